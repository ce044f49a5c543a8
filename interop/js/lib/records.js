/**
 * Every record: the table of the section "Records" of docs/protocol.md, the genesis file and the kinds of "Evidence", and how records
 * are sealed. Hides sizes, closedness and versions: what `decodeRecord` returns has the shape of the table.
 */
import { compareBytes, equalBytes } from './bytes.js'
import { countItems, decode, encode } from './codec.js'
import { must } from './errors.js'
import { H, preimage } from './identity.js'
import { LIMITS } from './limits.js'
import {
  AMOUNT, CODE, COORDINATE, COUNT, HASH, HEIGHT, KEY_ID, NAME, SIGNATURE, VERSION, WORLD_ID,
  any, anyMap, bool, byText, bytes, closed, int, list, oneOf, textOf, tuple
} from './schema.js'
import { sign, verify } from './signature.js'

const SEAL_BYTES = 67
const same = (value, path) => (...keys) => keys.forEach((key) => {
  const [a, b] = [value.first[0][key], value.second[0][key]]
  must(a instanceof Uint8Array ? equalBytes(a, b) : a === b, `${path}: ${key} differs`)
})
const keyIds = (min, max) => list(KEY_ID, min, max, compareBytes)
/** The signature is looked at first: without 64 bytes of it a record is malformed, whatever its version. */
const sealed = (type) => {
  const pair = tuple(any, SIGNATURE)
  return (value, path) => {
    const [record, signature] = pair(value, path)
    return [type(record, path), signature]
  }
}

const genesis = closed({
  v: VERSION, name: NAME, root_keys: keyIds(1, 8), root_threshold: int(1, 8), authorities_hash: HASH, body_hash: HASH, created_ms: COUNT
}, (header, path) => must(header.root_threshold <= header.root_keys.length, `${path}.root_threshold: more than there are root keys`))

const bounds = closed({
  x_min_cm: COORDINATE, x_max_cm: COORDINATE, y_min_cm: COORDINATE, y_max_cm: COORDINATE, z_min_cm: COORDINATE, z_max_cm: COORDINATE
}, (box, path) => ['x', 'y', 'z'].forEach((axis) => must(box[`${axis}_min_cm`] <= box[`${axis}_max_cm`], `${path}: ${axis} is empty`)))

const genesisBody = closed({
  bounds,
  max_move_cm: COUNT,
  resource_kinds: list(NAME, 0, 64, byText),
  balances: list(tuple(KEY_ID, NAME, AMOUNT), 0, 4096, (a, b) => compareBytes(a[0], b[0]) || byText(a[1], b[1])),
  limits: closed({
    batch_envelopes_max: int(1, 1024), batch_actions_max: int(64, 16384), batch_bytes_max: int(32776, 983040),
    envelope_bytes_max: int(1024, 32768), block_fuel_max: int(1, 1e11), agents_per_actor_max: int(1, 1e6),
    expiry_blocks_max: int(1, 1e5), action_skew_ms: int(0, 3600000)
  }),
  checkpoint_interval: int(1, 1e6),
  max_block_gap_ms: COUNT,
  admission: oneOf('open')
}, (body, path) => {
  const totals = new Map(body.resource_kinds.map((kind) => [kind, 0n]))
  for (const [, kind, amount] of body.balances) {
    must(totals.has(kind), `${path}.balances: ${kind} is no resource kind`)
    totals.set(kind, totals.get(kind) + BigInt(amount))
    AMOUNT(totals.get(kind), `${path}.balances: total of ${kind}`)
  }
})

const authorities = closed({
  v: VERSION, epoch: COUNT, proposers: keyIds(1, 16), executors: keyIds(1, 16), certifiers: keyIds(1, 1), commit_threshold: oneOf(1),
  'world_id?': WORLD_ID, 'resume?': closed({ height: COUNT, batch_hash: HASH })
}, (set, path) => {
  const later = set.epoch > 0
  must((set.world_id !== undefined) === later && (set.resume !== undefined) === later, `${path}: world_id and resume belong to epochs above 0`)
})
const SIGNED_AUTHORITIES = tuple(authorities, list(tuple(int(0, 7), SIGNATURE), 0, 8, (a, b) => a[0] - b[0]))

const envelope = closed({
  v: VERSION, world_id: WORLD_ID, actor_id: KEY_ID, nonce: COUNT, expires_at_height: HEIGHT, timestamp_ms: COUNT, atomic: bool,
  actions: list(tuple(textOf(1, 64), anyMap), 1, 64)
}, (value, path) => must(value.actions.reduce((sum, [, payload]) => sum + countItems(payload), 0) <= LIMITS.envelopeItems,
  `${path}.actions: more items than allowed`))

const ofWorld = (fields) => closed({ v: VERSION, world_id: WORLD_ID, ...fields })
const acceptance = ofWorld({ envelope_hash: HASH, gateway_id: KEY_ID, accepted_at_ms: COUNT, stage: oneOf('local', 'replicated') })
const batch = ofWorld({
  epoch: COUNT, term: COUNT, height: HEIGHT, prev_batch_hash: HASH, envelope_count: COUNT, actions_root: HASH, actions_ref: HASH,
  proposer_id: KEY_ID, timestamp_ms: COUNT
})
const lease = ofWorld({ epoch: COUNT, term: COUNT, holder_id: KEY_ID, granted_at_ms: COUNT, ttl_ms: COUNT, certifier_id: KEY_ID })
const commit = ofWorld({ epoch: COUNT, term: COUNT, height: HEIGHT, batch_hash: HASH, certifier_id: KEY_ID, as_of_ms: COUNT })
const block = ofWorld({
  height: HEIGHT, prev_block_hash: HASH, batch_hash: HASH, state_root: HASH, event_root: HASH, journal_ref: HASH, receipts_root: HASH,
  receipts_ref: HASH, history_root: HASH, term: COUNT, proposer_id: KEY_ID, timestamp_ms: COUNT, fuel_used: COUNT, 'manifest_hash?': HASH
})
const attestation = ofWorld({
  epoch: COUNT, height: HEIGHT, block_hash: HASH, executor_id: KEY_ID, 'snapshot?': closed({ height: HEIGHT, ref: HASH })
})
const head = closed({
  v: VERSION, header: genesis, authorities: SIGNED_AUTHORITIES, commit: sealed(commit),
  attestations: list(sealed(attestation), 1, 4, (a, b) => compareBytes(a[0].executor_id, b[0].executor_id)), block_hash: HASH
})

const fork = (type, order, ...equal) => closed({ v: VERSION, first: sealed(type), second: sealed(type) }, (value, path) => {
  same(value, path)(...equal)
  must(compareBytes(value.first[0][order], value.second[0][order]) < 0, `${path}: must ascend by ${order}`)
})

/** name -> [type, bytes at most of the body, field of the signer of a sealed one] */
const TABLE = {
  genesis: [genesis, 1024],
  genesis_body: [genesisBody, 524288],
  genesis_file: [closed({ v: VERSION, header: genesis, body: genesisBody, authorities }), 524288],
  authorities: [authorities, 2048],
  envelope: [envelope, 32768 - SEAL_BYTES, 'actor_id'],
  acceptance: [acceptance, 512, 'gateway_id'],
  batch: [batch, 1024, 'proposer_id'],
  lease: [lease, 512, 'certifier_id'],
  commit: [commit, 512, 'certifier_id'],
  block: [block, 1024],
  attestation: [attestation, 512, 'executor_id'],
  head: [head, 5120],
  receipt: [closed({ envelope_hash: HASH, code: CODE, 'index?': int(0, 63) }), 1024],
  event: [closed({ kind: CODE, envelope_hash: HASH, index: int(0, 63), data: anyMap }), 4096],
  commit_fork: [fork(commit, 'batch_hash', 'world_id', 'epoch', 'height', 'certifier_id'), 5264],
  lease_fork: [fork(lease, 'holder_id', 'world_id', 'epoch', 'term', 'certifier_id'), 5264],
  attestation_fork: [fork(attestation, 'block_hash', 'world_id', 'epoch', 'height', 'executor_id'), 5264],
  authorities_fork: [closed({ v: VERSION, first: SIGNED_AUTHORITIES, second: SIGNED_AUTHORITIES }, (value, path) => {
    same(value, path)('world_id', 'epoch')
    must(compareBytes(hashOf('authorities', value.first[0]), hashOf('authorities', value.second[0])) < 0, `${path}: must ascend by hash`)
  }), 5264],
  malformed_batch: [closed({ v: VERSION, commit: sealed(commit), batch, actions: bytes(0, 983040), 'parent?': batch }, (value, path) => {
    must(equalBytes(value.commit[0].batch_hash, hashOf('batch', value.batch)), `${path}.batch: is not the commit's`)
    must(equalBytes(value.batch.actions_ref, H(value.actions)), `${path}.actions: are not the batch's`)
    must(value.parent === undefined || equalBytes(value.batch.prev_batch_hash, hashOf('batch', value.parent)), `${path}.parent: is not the batch's`)
  }), 985731],
  wrong_root_proof: [closed({ v: VERSION, attestation: sealed(attestation), block }, (value, path) =>
    must(equalBytes(value.attestation[0].block_hash, hashOf('block', value.block)), `${path}.block: is not the attestation's`)), 5264]
}

export const bytesMaxOf = (name) => TABLE[name][1]

/** Of a value already decoded: a record that stands inside of other bytes. @param {string} name @param {Map} value @returns {object} */
export function checkRecord (name, value) {
  const [type, max] = TABLE[name]
  const record = type(value, name)
  must(encode(record).length <= max, `${name}: larger than it may be`)
  return record
}

/** @param {string} name @param {Uint8Array} body @returns {object} the record, of the shape of the table */
export function decodeRecord (name, body) {
  must(body.length <= TABLE[name][1], `${name}: ${body.length} bytes, at most ${TABLE[name][1]}`)
  return TABLE[name][0](decode(body), name)
}

/** @param {string} name @param {Array} value @returns {[object, Uint8Array]} a record and its signature, not yet verified */
export const checkSealed = (name, value) => sealed((record) => checkRecord(name, record))(value, name)

/** @param {string} name @param {Uint8Array} sealedBytes @returns {[object, Uint8Array]} the same of bytes */
export function decodeSealed (name, sealedBytes) {
  must(sealedBytes.length <= TABLE[name][1] + SEAL_BYTES, `${name}: larger than it may be`)
  return checkSealed(name, decode(sealedBytes))
}

export const preimageOf = (name, record) => preimage(name, encode(record))
/** @param {string} name @param {object} record @returns {Uint8Array} what the signature is over, and others call it by */
export const hashOf = (name, record) => H(preimageOf(name, record))
export const signerOf = (name, record) => record[TABLE[name][2]]

/** @param {string} name @param {[object, Uint8Array]} value */
export function mustBeSigned (name, [record, signature]) {
  must(verify(signerOf(name, record), hashOf(name, record), signature), `${name}.signature: does not verify`)
}

/** @param {string} name @param {object} record @param {Uint8Array} seed @returns {[object, Uint8Array]} */
export const seal = (name, record, seed) => [record, sign(hashOf(name, record), seed)]

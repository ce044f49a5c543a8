/**
 * Batches and blocks without executing them: those sections of docs/protocol.md. Hides which fields of one record bind another: callers
 * hand over records and blobs, and get them judged together.
 */
import { equalBytes, toHex } from '../lib/bytes.js'
import { decodeList } from '../lib/codec.js'
import { must } from '../lib/errors.js'
import { checkCommit } from '../lib/head.js'
import { H, preimage } from '../lib/identity.js'
import { LIMITS } from '../lib/limits.js'
import { EMPTY, leafHash, node } from '../lib/merkle.js'
import { bytesMaxOf, checkRecord, checkSealed, decodeRecord, hashOf, mustBeSigned } from '../lib/records.js'

/** A Merkle tree that grows by one item at a time; its peaks are the roots of the full subtrees, the largest first. */
export class MerkleTree {
  count = 0
  peaks = []

  push (item) {
    let hash = leafHash(item)
    for (let n = this.count++; n % 2 === 1; n = Math.floor(n / 2)) hash = node(this.peaks.pop(), hash)
    this.peaks.push(hash)
    return this
  }

  root () {
    return this.count === 0 ? EMPTY : this.peaks.reduceRight((right, left) => node(left, right))
  }
}

/** What the first batch and block stand on: the header in the place of a parent. */
export const rootOf = (genesis) => ({
  worldId: genesis.worldId, limits: genesis.body.limits, height: 0, batchHash: genesis.headerHash, blockHash: genesis.headerHash,
  timestampMs: genesis.header.created_ms, history: new MerkleTree()
})

/** The form of a batch on its parent, with the blob of its actions. @returns {number} how many actions it has */
function checkForm (batch, actions, parent) {
  const { limits, worldId } = parent
  must(batch.world_id === worldId && batch.height === parent.height + 1, 'batch: is of another world or height')
  must(equalBytes(batch.prev_batch_hash, parent.batchHash), 'batch.prev_batch_hash: is not the parent\'s')
  must(batch.timestamp_ms >= parent.timestampMs, 'batch.timestamp_ms: is before its parent')
  must(actions.length <= limits.batch_bytes_max && equalBytes(H(actions), batch.actions_ref), 'batch.actions_ref: is of other bytes')
  const hashes = new Set()
  const tree = new MerkleTree()
  let count = 0
  for (const { value, bytes } of decodeList(actions, limits.envelope_bytes_max)) {
    const [envelope] = checkSealed('envelope', value)
    must(envelope.world_id === worldId, 'envelope.world_id: is another')
    hashes.add(toHex(hashOf('envelope', envelope)))
    must(hashes.size === tree.push(bytes).count, 'actions: an envelope twice')
    count += envelope.actions.length
    must(tree.count <= limits.batch_envelopes_max && count <= limits.batch_actions_max, 'actions: more than this world allows')
  }
  must(tree.count === batch.envelope_count, 'batch.envelope_count: is another')
  must(equalBytes(tree.root(), batch.actions_root), 'batch.actions_root: is another')
  return count
}

const proposes = (set, { proposer_id: proposer }) => set.proposers.some((key) => equalBytes(key, proposer))

/** One height of a chain, in the epoch of its head: what the roots kept when it began, and what it ordered itself above that. */
export function checkKept ({ height, batchHash }, batch, set) {
  const kept = set.resume?.height ?? 0
  must(height !== set.resume?.height || equalBytes(batchHash, set.resume.batch_hash), 'chain: is not the one that its epoch keeps')
  if (height > kept) must(batch.epoch === set.epoch && proposes(set, batch), 'batch: is of another epoch, or by no proposer of it')
}

/**
 * What get_batch gives, against the sets that are known: those of the genesis and of the head. Refuses what is false.
 * @returns {boolean} whether it may be kept: without its epoch's set a commit says nothing
 */
export function checkCommitted ([batch, seal], sealedCommit, { authorities: first }, newest) {
  const [commit] = sealedCommit
  must(commit.world_id === batch.world_id && commit.height === batch.height && commit.term === batch.term &&
    equalBytes(commit.batch_hash, hashOf('batch', batch)), 'commit: is of another batch')
  // Where its seal is lost, a committed batch is believed for its commit.
  if (seal.some((byte) => byte !== 0)) mustBeSigned('batch', [batch, seal])
  const set = [newest, first].find(({ epoch }) => epoch === commit.epoch)
  if (set === undefined) return false
  checkCommit(sealedCommit, set, batch.world_id)
  const kept = newest.resume?.height ?? 0
  must(set === newest ? commit.height >= kept : commit.height <= kept, 'commit: is void in the epoch of the head')
  const resumed = set.resume?.height === commit.height
  must(resumed || (commit.epoch === batch.epoch && proposes(set, batch)), 'batch: is of another epoch than its commit, or by a stranger')
  return true
}

/** How large a list of a block can be in a world: no action has more than one receipt, and one event. */
export const listBytesMax = (name, limits) => Math.min(LIMITS.listBytes, 5 + limits.batch_actions_max * bytesMaxOf(name))

/** A list that a block names: canonical, of so many records of this kind at most, hashing to its reference and root. */
function checkList (name, blob, ref, root, countMax) {
  must(equalBytes(H(blob), ref), `${name} list: is not the block's`)
  const tree = new MerkleTree()
  for (const { value, bytes } of decodeList(blob, bytesMaxOf(name))) {
    checkRecord(name, value)
    must(tree.push(bytes).count <= countMax, `${name} list: more than there are actions`)
  }
  must(equalBytes(tree.root(), root), `${name} list: another root`)
}

/**
 * One height: block, batch and the blobs of their lists, on what is below.
 * @returns what the next height stands on
 */
export function checkHeight ({ block, batch, actions, receipts, events }, parent) {
  const batchHash = hashOf('batch', batch)
  const blockHash = hashOf('block', block)
  const count = checkForm(batch, actions, parent)
  must(block.world_id === parent.worldId && block.height === batch.height, 'block: is of another world or height')
  must(equalBytes(block.prev_block_hash, parent.blockHash), 'block.prev_block_hash: is not the parent\'s')
  must(equalBytes(block.batch_hash, batchHash), 'block.batch_hash: is another')
  must(block.term === batch.term && block.timestamp_ms === batch.timestamp_ms && equalBytes(block.proposer_id, batch.proposer_id),
    'block: differs from its batch')
  must(block.manifest_hash === undefined, 'block.manifest_hash: is not in this version')
  must(equalBytes(block.history_root, parent.history.root()), 'block.history_root: is another')
  checkList('receipt', receipts, block.receipts_ref, block.receipts_root, count)
  checkList('event', events, block.journal_ref, block.event_root, count)
  return { ...parent, height: block.height, batchHash, blockHash, timestampMs: block.timestamp_ms, history: parent.history.push(blockHash) }
}

/** Of the blob that is stored under a record's hash. */
export function decodePreimage (name, blob) {
  const domain = preimage(name, new Uint8Array())
  must(equalBytes(blob.subarray(0, domain.length), domain), `${name}: the blob is of another kind`)
  return decodeRecord(name, blob.subarray(domain.length))
}

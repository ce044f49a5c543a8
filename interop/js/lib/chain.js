/**
 * Batches and blocks without executing them: the sections "Batch", "Block" and "State and proofs" of docs/protocol.md. Hides which
 * fields of one record bind another: callers hand over records and blobs, and get them judged together.
 */
import { equalBytes, toHex } from './bytes.js'
import { decode, encode } from './codec.js'
import { must } from './errors.js'
import { checkCommit } from './head.js'
import { H } from './identity.js'
import { LIMITS } from './limits.js'
import { MerkleTree, merkleRoot, provesItem } from './merkle.js'
import { checkRecord, checkSealed, hashOf, mustBeSigned } from './records.js'
import { COUNT, HASH, any, list, open } from './schema.js'

/** What the first batch and block stand on: the header in the place of a parent. */
export const rootOf = (genesis) => ({
  worldId: genesis.worldId, limits: genesis.body.limits, height: 0, batchHash: genesis.headerHash, blockHash: genesis.headerHash,
  timestampMs: genesis.header.created_ms, history: new MerkleTree()
})

/** The form of a batch on its parent, with the blob of its actions. */
function checkForm (batch, actions, parent) {
  const { limits, worldId } = parent
  must(batch.world_id === worldId && batch.height === parent.height + 1, 'batch: is of another world or height')
  must(equalBytes(batch.prev_batch_hash, parent.batchHash), 'batch.prev_batch_hash: is not the parent\'s')
  must(batch.timestamp_ms >= parent.timestampMs, 'batch.timestamp_ms: is before its parent')
  must(actions.length <= limits.batch_bytes_max && equalBytes(H(actions), batch.actions_ref), 'batch.actions_ref: is of other bytes')
  const values = list(any, 0, limits.batch_envelopes_max)(decode(actions, Infinity), 'actions')
  const hashes = new Set()
  let count = 0
  for (const value of values) {
    const [envelope] = checkSealed('envelope', value)
    must(envelope.world_id === worldId, 'envelope.world_id: is another')
    must(encode(value).length <= limits.envelope_bytes_max, 'envelope: larger than this world allows')
    hashes.add(toHex(hashOf('envelope', envelope)))
    count += envelope.actions.length
  }
  must(hashes.size === values.length, 'actions: an envelope twice')
  must(count <= limits.batch_actions_max, 'actions: more than this world allows')
  must(values.length === batch.envelope_count, 'batch.envelope_count: is another')
  must(equalBytes(merkleRoot(values.map(encode)), batch.actions_root), 'batch.actions_root: is another')
}

/** A batch and its commit, as far as the set of one epoch can tell: commits of earlier epochs are by certifiers that it does not name. */
export function checkCommitted ([batch, seal], sealedCommit, set) {
  const [commit] = sealedCommit
  must(commit.world_id === batch.world_id && commit.height === batch.height && commit.term === batch.term &&
    equalBytes(commit.batch_hash, hashOf('batch', batch)), 'commit: is of another batch')
  const current = commit.epoch === set.epoch
  if (current) checkCommit(sealedCommit, set, batch.world_id)
  else mustBeSigned('commit', sealedCommit)
  const resumed = current && set.epoch > 0 && commit.height === set.resume.height
  must(resumed || commit.epoch === batch.epoch, 'commit.epoch: is not the batch\'s')
  must(!current || resumed || set.proposers.some((key) => equalBytes(key, batch.proposer_id)), 'batch.proposer_id: is no proposer of this epoch')
  // Where its seal is lost, a committed batch is believed for its commit.
  if (seal.some((byte) => byte !== 0)) mustBeSigned('batch', [batch, seal])
}

/** A list that a block names: canonical, of records of this kind, hashing to its reference and root. */
function checkList (name, blob, ref, root) {
  must(blob.length <= LIMITS.listBytes && equalBytes(H(blob), ref), `${name} list: is not the block's`)
  const values = list(any, 0, Infinity)(decode(blob, Infinity), `${name} list`)
  values.forEach((value) => checkRecord(name, value))
  must(equalBytes(merkleRoot(values.map(encode)), root), `${name} list: another root`)
}

/**
 * One height: block, batch and the blobs of their lists, on what is below.
 * @returns what the next height stands on
 */
export function checkHeight ({ block, batch, actions, receipts, events }, parent) {
  const batchHash = hashOf('batch', batch)
  const blockHash = hashOf('block', block)
  checkForm(batch, actions, parent)
  must(block.world_id === parent.worldId && block.height === batch.height, 'block: is of another world or height')
  must(equalBytes(block.prev_block_hash, parent.blockHash), 'block.prev_block_hash: is not the parent\'s')
  must(equalBytes(block.batch_hash, batchHash), 'block.batch_hash: is another')
  must(block.term === batch.term && block.timestamp_ms === batch.timestamp_ms && equalBytes(block.proposer_id, batch.proposer_id),
    'block: differs from its batch')
  must(block.manifest_hash === undefined, 'block.manifest_hash: is not in this version')
  must(equalBytes(block.history_root, parent.history.root()), 'block.history_root: is another')
  checkList('receipt', receipts, block.receipts_ref, block.receipts_root)
  checkList('event', events, block.journal_ref, block.event_root)
  return { ...parent, height: block.height, batchHash, blockHash, timestampMs: block.timestamp_ms, history: parent.history.push(blockHash) }
}

/** The block that a head names, against its commit. */
export function checkHeadBlock (block, head) {
  must(equalBytes(hashOf('block', block), head.blockHash), 'block: is not the head\'s')
  const { commit } = head
  must(block.world_id === commit.world_id && block.height === commit.height && block.term === commit.term &&
    equalBytes(block.batch_hash, commit.batch_hash), 'block: differs from the head\'s commit')
}

const PROVED_RECEIPT = open({ receipt: any, index: COUNT, count: COUNT, path: list(HASH, 0, 64) })
export const RECEIPT_ANSWER = open({
  head: any, head_block: any, block: any, history_path: list(HASH, 0, 64), receipts: list(PROVED_RECEIPT, 1, 64)
})

/** An answer to get_receipt, on a head that passed the check. @returns {{block, receipts: object[]}} */
export function checkReceipts (answer, head, envelopeHash) {
  const headBlock = checkRecord('block', answer.head_block)
  const block = checkRecord('block', answer.block)
  checkHeadBlock(headBlock, head)
  const blockHash = hashOf('block', block)
  // The head's own block is in no history yet.
  const inHistory = equalBytes(blockHash, head.blockHash)
    ? answer.history_path.length === 0
    : provesItem(headBlock.history_root, blockHash, block.height - 1, headBlock.height - 1, answer.history_path)
  must(inHistory, 'history_path: does not prove the block')
  const receipts = answer.receipts.map((proved, i) => {
    const receipt = checkRecord('receipt', proved.receipt)
    must(equalBytes(receipt.envelope_hash, envelopeHash), 'receipt: is of another envelope')
    must(proved.count === answer.receipts[0].count && proved.index === answer.receipts[0].index + i, 'receipts: are not neighbours')
    must(provesItem(block.receipts_root, encode(receipt), proved.index, proved.count, proved.path), 'receipt: is not proved')
    return receipt
  })
  const refused = receipts.length === 1 && receipts[0].index === undefined
  must(refused || receipts.every(({ index }, i) => index === i), 'receipts: are not those of one envelope')
  return { block, receipts }
}

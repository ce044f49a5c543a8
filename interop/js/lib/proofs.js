/**
 * Answers that prove what they say: the section "State and proofs" of docs/protocol.md. Hides how a proof hangs on a head: callers hand
 * over an answer and a world id, and get what is proved, with the head whose every seal was checked.
 */
import { equalBytes } from './bytes.js'
import { encode } from './codec.js'
import { must } from './errors.js'
import { checkHead } from './head.js'
import { LIMITS } from './limits.js'
import { provesItem } from './merkle.js'
import { checkRecord, hashOf } from './records.js'
import { COUNT, HASH, any, bytes, list, open } from './schema.js'
import { provedValue } from './state.js'

const STATE_ANSWER = open({ head: any, block: any, proof: bytes(1, LIMITS.proofBytes) })
const PATH = list(HASH, 0, 64)
const PROVED_RECEIPT = open({ receipt: any, index: COUNT, count: COUNT, path: PATH })
const RECEIPT_ANSWER = open({
  head: any, head_block: any, block: any, history_path: PATH, receipts: list(PROVED_RECEIPT, 1, 64), 'after?': PROVED_RECEIPT
})

/** The block that a head names, against its commit. @param {object} block @param {object} head as `checkHead` gives it */
export function checkHeadBlock (block, head) {
  must(equalBytes(hashOf('block', block), head.blockHash), 'block: is not the head\'s')
  const { commit } = head
  must(block.world_id === commit.world_id && block.height === commit.height && block.term === commit.term &&
    equalBytes(block.batch_hash, commit.batch_hash), 'block: differs from the head\'s commit')
}

/**
 * @param {Map} answer of get_state_proof, decoded @param {string} worldId @param {string} namespace @param {Uint8Array} key
 * @returns {{value?: Uint8Array, block: object, head: object}} without a value, its absence is proved
 */
export function checkStateAnswer (answer, worldId, namespace, key) {
  const { head: headValue, block: blockValue, proof } = STATE_ANSWER(answer, 'get_state_proof')
  const head = checkHead(encode(headValue), worldId)
  const block = checkRecord('block', blockValue)
  checkHeadBlock(block, head)
  return { value: provedValue(block.state_root, namespace, key, proof), block, head }
}

/**
 * @param {Map} answer of get_receipt, decoded @param {string} worldId @param {Uint8Array} envelopeHash
 * @returns {{receipts: {code: string, index?: number}[], block: object, head: object}} all receipts of the envelope, and their block
 */
export function checkReceiptAnswer (answer, worldId, envelopeHash) {
  const { head: headValue, head_block: top, block: value, history_path: historyPath, receipts, after } = RECEIPT_ANSWER(answer, 'get_receipt')
  const head = checkHead(encode(headValue), worldId)
  const headBlock = checkRecord('block', top)
  const block = checkRecord('block', value)
  checkHeadBlock(headBlock, head)
  const blockHash = hashOf('block', block)
  // The head's own block is in no history yet.
  const inHistory = equalBytes(blockHash, head.blockHash)
    ? historyPath.length === 0
    : provesItem(headBlock.history_root, blockHash, block.height - 1, headBlock.height - 1, historyPath)
  must(inHistory, 'history_path: does not prove the block')
  return { receipts: provedReceipts(receipts, after, block, envelopeHash), block, head }
}

function provedReceipts (own, after, block, envelopeHash) {
  const neighbours = after === undefined ? own : [...own, after]
  const [{ index: first, count }] = neighbours
  const proved = neighbours.map(({ receipt: value, index, count: ofCount, path }, i) => {
    const receipt = checkRecord('receipt', value)
    must(ofCount === count && index === first + i, 'receipts: are not neighbours')
    must(provesItem(block.receipts_root, encode(receipt), index, count, path), 'receipt: is not proved')
    return receipt
  })
  const receipts = proved.slice(0, own.length)
  must(receipts.every((receipt) => equalBytes(receipt.envelope_hash, envelopeHash)), 'receipt: is of another envelope')
  const refused = receipts.length === 1 && receipts[0].index === undefined
  must(refused || receipts.every(({ index }, i) => index === i), 'receipts: are not those of one envelope')
  // What stands behind the last shows that none was left out.
  must((after === undefined) === (first + receipts.length === count), 'after: is missing, or there at the end of the list')
  must(after === undefined || !equalBytes(proved.at(-1).envelope_hash, envelopeHash), 'after: is a receipt that was left out')
  return receipts
}

/**
 * One world, asked of one node: the methods of docs/protocol.md that a client needs. Hides bodies and the order of the checks.
 * Guarantees: what is returned hangs on the world's id alone, every seal and proof on the way having been checked here; everything else is
 * thrown, false bytes as Refused. Nothing is executed, so trust is `attested`: as far as the world's certifier and executors.
 */
import { equalBytes, utf8 } from './bytes.js'
import { decode, encode } from './codec.js'
import { Failure, must } from './errors.js'
import { checkGenesis, checkHead } from './head.js'
import { peerIdText, seedToKeyId } from './identity.js'
import { checkReceiptAnswer, checkStateAnswer } from './proofs.js'
import { checkRecord, checkSealed, hashOf, mustBeSigned, seal } from './records.js'
import { COORDINATE, COUNT, KEY_ID, any, closed, list, oneOf, open, textOf } from './schema.js'

const GENESIS_ANSWER = open({ genesis: any })
const HEAD_ANSWER = open({ 'head?': any })
const RESULT = open({
  outcome: oneOf('accepted', 'pooled', 'refused'), 'acceptance?': any, 'reason?': textOf(0, 64), 'message?': textOf(0, 512), 'next_nonce?': COUNT
})
const SUBMIT_ANSWER = open({ results: list(RESULT, 1, 1) })
const AGENT_CELL = closed({ owner: KEY_ID, x_cm: COORDINATE, y_cm: COORDINATE, z_cm: COORDINATE })
const ACTOR_CELL = closed({ nonce: COUNT, agents: COUNT })

/**
 * @typedef {object} Envelope
 * @property {Uint8Array} hash what receipts and acceptances call it by
 * @property {[object, Uint8Array]} sealed the record and its signature
 *
 * Signs an envelope of actions.
 * @param {{world_id: string, nonce: number, expires_at_height: number, timestamp_ms: number, atomic: boolean,
 *   actions: [string, object][]}} fields as in the table of docs/protocol.md; actor_id is the key's
 * @param {Uint8Array} seed of the actor's key, 32 bytes
 * @returns {Envelope}
 */
export function signEnvelope (fields, seed) {
  const envelope = checkRecord('envelope', decode(encode({ v: 1, actor_id: seedToKeyId(seed), ...fields })))
  return { hash: hashOf('envelope', envelope), sealed: seal('envelope', envelope, seed) }
}

export class World {
  #node

  /** @param {string} id @param {{id: string, ask: (method: string, body: Uint8Array) => Promise<Uint8Array>}} node its peer id as text */
  constructor (id, node) {
    this.id = id
    this.#node = node
  }

  /** @returns {Promise<{worldId: string, header: object, body: object, authorities: object, bytes: Uint8Array}>} what `checkGenesis` says */
  async genesis () {
    const { genesis } = GENESIS_ANSWER(await this.#ask('get_genesis'), 'get_genesis')
    return checkGenesis(encode(genesis), this.id)
  }

  /** The newest head that the node holds, as `checkHead` gives it. Kind `not_found` before the first block. */
  async head () {
    const { head } = HEAD_ANSWER(await this.#ask('get_world_head'), 'get_world_head')
    if (head === undefined) throw new Failure('not_found', 'the world has no block yet')
    return checkHead(encode(head), this.id)
  }

  /**
   * One cell of the state at the node's newest block.
   * @param {string} namespace @param {Uint8Array} key
   * @returns {Promise<{value?: Uint8Array, block: object, head: object}>} without a value its absence is proved
   */
  async cell (namespace, key) {
    return checkStateAnswer(await this.#ask('get_state_proof', { namespace, key }), this.id, namespace, key)
  }

  /** @param {string} agentId @returns {Promise<{agent?: {owner: Uint8Array, x_cm, y_cm, z_cm}, head: object}>} not there: its absence is proved */
  async agent (agentId) {
    const { value, head } = await this.cell('agents', utf8(agentId))
    return { agent: value && AGENT_CELL(decode(value), 'agent'), head }
  }

  /** @param {Uint8Array} keyId @returns {Promise<number>} the actor's next nonce, but for envelopes that no block holds yet */
  async nonce (keyId) {
    const { value } = await this.cell('actors', keyId)
    return value === undefined ? 0 : ACTOR_CELL(decode(value), 'actor').nonce
  }

  /**
   * What became of an envelope. Kind `rr` with the name ERR_NOT_FOUND while no block has it.
   * @param {Uint8Array} envelopeHash
   * @returns {Promise<{receipts: {code: string, index?: number}[], block: object, head: object}>}
   */
  async receipts (envelopeHash) {
    return checkReceiptAnswer(await this.#ask('get_receipt', { envelope_hash: envelopeHash }), this.id, envelopeHash)
  }

  /**
   * Hands an envelope in. `accepted` comes with the gateway's promise, its signature checked: the envelope is on its disk.
   * @param {Envelope} envelope
   * @returns {Promise<{outcome: string, acceptance?: [object, Uint8Array], reason?: string, message?: string, next_nonce?: number}>}
   */
  async submit ({ hash, sealed }) {
    const { results: [result] } = SUBMIT_ANSWER(await this.#ask('submit_actions', { envelopes: [sealed] }), 'submit_actions')
    must((result.outcome === 'accepted') === (result.acceptance !== undefined), 'submit_actions: an outcome without its acceptance, or with one that it has not')
    if (result.acceptance === undefined) return result
    const acceptance = checkSealed('acceptance', result.acceptance)
    const [{ world_id: worldId, envelope_hash: envelopeHash, gateway_id: gateway }] = acceptance
    must(worldId === this.id && equalBytes(envelopeHash, hash) && peerIdText(gateway) === this.#node.id, 'acceptance: is of another world, envelope or gateway')
    mustBeSigned('acceptance', acceptance)
    return { ...result, acceptance }
  }

  async #ask (method, fields = {}) {
    return decode(await this.#node.ask(method, encode({ world_id: this.id, ...fields })))
  }
}

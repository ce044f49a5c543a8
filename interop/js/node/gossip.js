/**
 * The verdict on a gossip message: the section "Gossip" of docs/protocol.md. Hides the rules of each topic. Only the bytes decide:
 * whoever rejects more than others marks honest relays.
 */
import { equalBytes } from '../lib/bytes.js'
import { decode, encode } from '../lib/codec.js'
import { Ignored, Refused, must } from '../lib/errors.js'
import { checkHead } from '../lib/head.js'
import { checkRecord, checkSealed, hashOf, mustBeSigned } from '../lib/records.js'
import { COUNT, HASH, NAME, any, list, open, tuple } from '../lib/schema.js'

const BYTES_MAX = 65_536
const ACTION_BYTES_MAX = 61_440
const ACTION_ITEMS_MAX = 8_192
const PAIR = tuple(any, any)
const EVIDENCE_KINDS = new Set(['commit_fork', 'lease_fork', 'attestation_fork', 'authorities_fork', 'malformed_batch', 'wrong_root_proof'])
const EVIDENCE_ITEM = open({ kind: NAME, height: COUNT, content_hash: HASH })

/** What is told, and a sealed word that names it. */
const pair = (kind, checkTold, word) => (data, worldId) => {
  const values = PAIR(decode(data), kind)
  const told = checkTold(kind, values[0])
  const sealed = checkSealed(word, values[1])
  const record = told[0] ?? told // a block is not sealed
  const [said] = sealed
  must(record.world_id === worldId && said.world_id === worldId, `${kind}.world_id: is another`)
  must(equalBytes(said[`${kind}_hash`], hashOf(kind, record)) && said.height === record.height, `${word}: is of another ${kind}`)
  if (told !== record) mustBeSigned(kind, told)
  mustBeSigned(word, sealed)
}

const CHECKS = {
  action (data, worldId, body) {
    must(data.length <= ACTION_BYTES_MAX, 'action_message: larger than it may be')
    const values = list(any, 1, 16)(decode(data, ACTION_ITEMS_MAX), 'action_message')
    // All are decoded before any is judged further: one of another version makes the message none of ours.
    for (const sealed of values.map((value) => checkSealed('envelope', value))) {
      must(sealed[0].world_id === worldId, 'envelope.world_id: is another')
      must(encode(sealed).length <= body.limits.envelope_bytes_max, 'envelope: larger than this world allows')
      mustBeSigned('envelope', sealed)
    }
  },
  batch: pair('batch', checkSealed, 'commit'),
  block: pair('block', checkRecord, 'attestation'),
  head: checkHead,
  evidence (data) {
    must(data.length <= 512, 'evidence_item: larger than it may be')
    const { kind } = EVIDENCE_ITEM(decode(data), 'evidence_item')
    if (!EVIDENCE_KINDS.has(kind)) throw new Ignored(`evidence of kind ${kind} is not known here`)
  },
  event () { throw new Ignored('event: not in this version') }
}

export const topicOf = (worldId, kind) => `aw.${worldId}.${kind}`

/** @returns {{worldId: string, kind: string} | undefined} */
export function parseTopic (topic) {
  const [, worldId, kind] = /^aw\.([a-z2-7]{32})\.([a-z]+)$/.exec(topic) ?? []
  return Object.hasOwn(CHECKS, kind) ? { worldId, kind } : undefined
}

/**
 * @param {Uint8Array} data @param {{body}} genesis of the world that the reader knows
 * @returns {{verdict: 'accept' | 'ignore' | 'reject', reason?: string}}
 */
export function judge (topic, data, genesis) {
  const { worldId, kind } = parseTopic(topic)
  try {
    must(data.length <= BYTES_MAX, 'message: larger than it may be')
    CHECKS[kind](data, worldId, genesis.body)
    return { verdict: 'accept' }
  } catch (error) {
    if (error instanceof Ignored) return { verdict: 'ignore', reason: error.message }
    if (error instanceof Refused) return { verdict: 'reject', reason: error.message }
    throw error
  }
}

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
  batch (data, worldId) {
    const values = PAIR(decode(data), 'batch_message')
    const batch = checkSealed('batch', values[0])
    const commit = checkSealed('commit', values[1])
    must(batch[0].world_id === worldId && commit[0].world_id === worldId, 'batch_message.world_id: is another')
    must(equalBytes(commit[0].batch_hash, hashOf('batch', batch[0])) && commit[0].height === batch[0].height,
      'batch_message.commit: is of another batch')
    mustBeSigned('batch', batch)
    mustBeSigned('commit', commit)
  },
  block (data, worldId) {
    const values = PAIR(decode(data), 'block_message')
    const block = checkRecord('block', values[0])
    const attestation = checkSealed('attestation', values[1])
    must(block.world_id === worldId && attestation[0].world_id === worldId, 'block_message.world_id: is another')
    must(equalBytes(attestation[0].block_hash, hashOf('block', block)) && attestation[0].height === block.height,
      'block_message.attestation: is of another block')
    mustBeSigned('attestation', attestation)
  },
  head (data, worldId) {
    checkHead(data, worldId)
  },
  evidence (data) {
    must(data.length <= 512, 'evidence_item: larger than it may be')
    const { kind } = EVIDENCE_ITEM(decode(data), 'evidence_item')
    if (!EVIDENCE_KINDS.has(kind)) throw new Ignored(`evidence of kind ${kind} is not known here`)
  },
  event () {
    throw new Ignored('event: not in this version')
  }
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

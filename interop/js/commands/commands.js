/** The commands of docs/interop.md, on a Peer. Hides the difference between JSON and bytes: fields are read by the table of FIELDS. */
import { setTimeout as sleep } from 'node:timers/promises'
import { peerIdFromString } from '@libp2p/peer-id'
import { createBLAKE3 } from 'hash-wasm'
import { fromHex } from '../lib/bytes.js'
import { encode } from '../lib/codec.js'
import { Failure } from '../lib/errors.js'
import { METHOD } from '../lib/frames.js'
import { checkHead, compareHeads } from '../lib/head.js'
import { LIMITS } from '../lib/limits.js'
import { World, signEnvelope } from '../lib/world.js'
import { fetchBlob, seededBytes } from '../node/blobs.js'
import { headKey } from '../node/dht.js'
import { parseTopic, topicOf } from '../node/gossip.js'
import { fromJson } from './json.js'
import { sendRaw } from './raw.js'
import { checkVectors } from './vectors.js'
import { mirror } from '../node/worlds.js'

const DEFAULT_MS = 10_000
const TRANSFER_MS = 60_000 // of a blob, or of a piece of a world
const HEAD_SKEW_MS = 60_000
const TIMER_MS_MAX = 2 ** 31 - 1
const LANES_MAX = 4_096 // of `requests`

const checked = (holds, what) => (value) => {
  if (!holds(value)) throw new Error(`must be ${what}`)
  return value
}
const is = (type) => checked((value) => typeof value === type, `a ${type}`)
const integer = (min, max = Number.MAX_SAFE_INTEGER) =>
  checked((value) => Number.isSafeInteger(value) && value >= min && value <= max, `an integer of ${min}..${max}`)
const count = integer(0)
const [text, flag] = [is('string'), is('boolean')]
const method = (value) => checked((name) => METHOD.test(name), 'the name of a method')(text(value))
const hex = (value) => fromHex(checked((digits) => !/[A-F]/.test(digits), 'lower-case hex')(text(value)))
const hexOf = (size) => (value) => checked((bytes) => bytes.length === size, `${size} bytes`)(hex(value))
const peerText = (value) => peerIdFromString(text(value)).toString()
const topic = checked((value) => parseTopic(text(value)), 'the topic of a world')
const pair = checked((value) => Array.isArray(value) && value.length === 2, '[kind, payload]')
const actionList = (value) => value.map(pair).map(([kind, payload]) => [text(kind), fromJson(payload)])

/** How each field is read, whatever the command. */
const FIELDS = {
  addr: text, peer: peerText, method, topic, key: text, dir: text, world_id: text, namespace: text,
  body: hex, data: hex, genesis: hex, value: hex, head: hex, content_hash: hexOf(32), envelope_hash: hexOf(32),
  one_shot: flag, atomic: flag, timeout_ms: integer(0, TIMER_MS_MAX), count: integer(1), in_flight: integer(1),
  size: integer(0, LIMITS.answerPartsBytes), length: count, nonce: count, expires_at_height: count, timestamp_ms: count, actions: actionList, seed: count
}
/** Where a command means something else by the name. */
const OWN_FIELDS = { submit: { seed: hexOf(32) }, state_proof: { key: hex } }

const aboutHead = ({ worldId, epoch, height, asOfMs, blockHash }) =>
  ({ world_id: worldId, epoch, height, as_of_ms: asOfMs, block_hash: blockHash })

/** name -> [fields, with `?` where optional, what it does] */
const COMMANDS = {
  dial: [['addr'], async (peer, { addr }) => ({ peer: await peer.dial(addr) })],
  identify: [['peer'], async (peer, { peer: other }) => await peer.identified(other)],
  disconnect: [['peer'], async (peer, { peer: other }) => { await peer.hangUp(other); return {} }],
  peers: [[], async (peer) => ({ peers: peer.host.getPeers().map(String) })],

  request: [['peer', 'method', 'body', 'one_shot?', 'timeout_ms?'], async (peer, { peer: other, method, body, one_shot: oneShot, timeout_ms: timeoutMs }) =>
    ({ body: await peer.ask(other, method, body, { oneShot, timeoutMs }) })],
  request_parts: [['peer', 'method', 'body', 'timeout_ms?'], async (peer, { peer: other, method, body, timeout_ms: timeoutMs }) => {
    const hash = await createBLAKE3()
    let [parts, size] = [0, 0]
    const last = await peer.askParts(other, method, body, (part) => {
      hash.update(part)
      parts++
      size += part.length
    }, timeoutMs)
    return { parts, bytes: size, hash: hash.digest('binary'), last }
  }],
  requests: [['peer', 'method', 'body', 'count', 'in_flight', 'one_shot?', 'timeout_ms?'], many],
  send_raw: [['peer', 'data', 'timeout_ms?'], async (peer, { peer: other, data, timeout_ms: timeoutMs = DEFAULT_MS }) =>
    await sendRaw(await peer.openStream(other, timeoutMs), data, timeoutMs)],

  put_blob: [['data?', 'seed?', 'size?'], async (peer, { data, seed, size }) => {
    if (data === undefined && (seed === undefined || size === undefined)) throw new Failure('usage', 'either data, or seed and size')
    return { content_hash: peer.blobs.put(data ?? await seededBytes(seed, size)) }
  }],
  fetch: [['peer', 'content_hash', 'length?', 'timeout_ms?'], async (peer, { peer: other, content_hash: contentHash, length, timeout_ms: timeoutMs = TRANSFER_MS }) => {
    const began = performance.now()
    const blob = await fetchBlob(peer.asking(other, timeoutMs).askParts, contentHash, { length })
    if (length === undefined) peer.blobs.set(contentHash, blob)
    return { size: blob.length, ms: Math.round(performance.now() - began) }
  }],
  forge_blob: [['content_hash', 'data'], async (peer, { content_hash: contentHash, data }) => { peer.blobs.set(contentHash, data); return {} }],
  served: [[], async (peer) => peer.blobs.served],

  world: [['genesis'], async (peer, { genesis }) => ({ world_id: peer.worlds.know(genesis).genesis.worldId })],
  join: [['topic'], async (peer, { topic }) => { peer.join(topic); return {} }],
  mesh: [['topic'], async (peer, { topic }) => ({ peers: peer.subscribers(topic) })],
  publish: [['topic', 'data'], async (peer, { topic, data }) => { await peer.publish(topic, data); return {} }],

  dht_put: [['key', 'value'], async (peer, { key, value }) => { await peer.dht.put(key, value); return {} }],
  dht_get: [['key'], async (peer, { key }) => ({ value: await peer.dht.get(key) })],
  dht_held: [['key'], async (peer, { key }) => peer.dht.held(key)],
  dht_peers: [[], async (peer) => ({ peers: peer.dht.peers() })],
  provide: [['content_hash'], async (peer, { content_hash: contentHash }) => { await peer.dht.provide(contentHash); return {} }],
  find_providers: [['content_hash'], async (peer, { content_hash: contentHash }) =>
    ({ providers: [...await peer.dht.findProviders(contentHash)].map(([id, addrs]) => ({ peer: id, addrs: [...addrs] })) })],

  check_head: [['head'], async (_, { head }) => aboutHead(checkHead(head))],
  head: [['world_id', 'peer?'], async (peer, { world_id: worldId, peer: other }) => {
    const head = other === undefined
      ? checkHead(await peer.dht.get(headKey(worldId)), worldId)
      : await new World(worldId, peer.asking(other)).head()
    return { ...aboutHead(head), head: head.bytes }
  }],
  state_proof: [['peer', 'world_id', 'namespace', 'key'], async (peer, { peer: other, world_id: worldId, namespace, key }) => {
    const { value, block } = await new World(worldId, peer.asking(other)).cell(namespace, key)
    return { height: block.height, state_root: block.state_root, value, trust: 'attested' }
  }],
  receipt_proof: [['peer', 'world_id', 'envelope_hash'], async (peer, { peer: other, world_id: worldId, envelope_hash: envelopeHash }) => {
    const { receipts, block, head } = await new World(worldId, peer.asking(other)).receipts(envelopeHash)
    return { height: block.height, head_height: head.height, receipts: receipts.map(({ code, index }) => ({ code, index })), trust: 'attested' }
  }],
  submit: [['peer', 'world_id', 'seed', 'nonce', 'expires_at_height', 'timestamp_ms', 'atomic', 'actions'], submit],
  mirror: [['world_id', 'peer', 'timeout_ms?'], async (peer, { world_id: worldId, peer: other, timeout_ms: timeoutMs = TRANSFER_MS }) =>
    ({ height: (await mirror(peer.worlds, peer.blobs, peer.asking(other, timeoutMs), worldId)).head.height })],
  follow: [['world_id'], follow],
  vectors: [['dir'], async (_, { dir }) => ({ files: await checkVectors(dir) })]
}

async function many (peer, { peer: other, method, body, count: total, in_flight: atOnce, one_shot: oneShot, timeout_ms: timeoutMs }) {
  const began = performance.now()
  const result = { ok: 0, failed: 0 }
  let started = 0
  const lane = async () => {
    while (started < total) {
      started++
      try {
        await peer.ask(other, method, body, { oneShot, timeoutMs })
        result.ok++
      } catch (error) {
        result.failed++
        result.first_error ??= reportOf(error)
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(atOnce, total, LANES_MAX) }, lane))
  return { ...result, ms: Math.round(performance.now() - began) }
}

async function submit (peer, { peer: other, world_id: worldId, seed, ...fields }) {
  const envelope = signEnvelope({ world_id: worldId, ...fields }, seed)
  const { outcome, reason, message } = await new World(worldId, peer.asking(other)).submit(envelope)
  return { outcome, envelope_hash: envelope.hash, envelope: encode(envelope.sealed), reason, message }
}

async function follow (peer, { world_id: worldId }) {
  let last = peer.worlds.get(worldId)?.head
  let early // the first that is due of the heads that are dated too far ahead
  const offer = async (head) => {
    const waitMs = head.asOfMs - HEAD_SKEW_MS - Date.now()
    if (waitMs > 0) {
      if (early !== undefined && early.asOfMs <= head.asOfMs) return
      early = head
      await sleep(Math.min(waitMs, TIMER_MS_MAX), undefined, { ref: false })
      if (early === head) early = undefined
    }
    if (last !== undefined && compareHeads(head, last) <= 0) return
    last = head
    peer.emit({ event: 'head', world_id: worldId, height: head.height, block_hash: head.blockHash })
  }
  peer.join(topicOf(worldId, 'head'), (data) => void offer(checkHead(data, worldId)))
  return {}
}

function readFields (names, command) {
  const fields = {}
  for (const name of names) {
    const key = name.replace(/\?$/, '')
    if (command[key] === undefined && key !== name) continue
    try {
      fields[key] = (OWN_FIELDS[command.do]?.[key] ?? FIELDS[key])(command[key])
    } catch (error) {
      throw new Failure('usage', `${key}: ${error.message}`)
    }
  }
  return fields
}

function reportOf (error) {
  if (error instanceof Failure) return { kind: error.kind, message: error.message, ...error.fields }
  if (['AbortError', 'TimeoutError'].includes(error.name)) return { kind: 'timeout', message: error.message }
  console.error('a command failed:', error)
  return { kind: 'fault', message: error.message }
}

/** @returns {Promise<object>} the line that answers a command: bytes in it are Uint8Array */
export async function perform (peer, command) {
  const { id = null } = command
  try {
    if (typeof command.do !== 'string' || !Object.hasOwn(COMMANDS, command.do)) throw new Failure('usage', `do: no command ${JSON.stringify(command.do)}`)
    const [names, run] = COMMANDS[command.do]
    return { id, ok: await run(peer, readFields(names, command)) }
  } catch (error) {
    return { id, error: reportOf(error) }
  }
}

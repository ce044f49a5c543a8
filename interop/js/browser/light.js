/**
 * One world, seen from a browser: connects to a node by WebSocket, asks it, and believes only what is proved. Hides libp2p, frames and
 * proofs. Guarantees: what `head`, `cell` and `agent` return hangs on a head of the world that was asked for, whose every seal was
 * checked here; everything else is thrown as a Failure, whose `kind` is one of docs/interop.md. Nothing is executed: trust is `attested`.
 */
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { ping } from '@libp2p/ping'
import { webSockets } from '@libp2p/websockets'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { toHex, utf8 } from '../lib/bytes.js'
import { checkHeadBlock } from '../lib/chain.js'
import { RR_PROTOCOL, askOnce } from '../lib/client.js'
import { decode, encode } from '../lib/codec.js'
import { Failure, Refused, must } from '../lib/errors.js'
import { checkHead } from '../lib/head.js'
import { peerIdText } from '../lib/identity.js'
import { LIMITS } from '../lib/limits.js'
import { checkRecord } from '../lib/records.js'
import { COORDINATE, KEY_ID, NAME, WORLD_ID, any, bytes, closed, open } from '../lib/schema.js'
import { provedValue } from '../lib/state.js'

export { Failure, Refused }

const ASK_MS = 10_000
const HEAD_ANSWER = open({ 'head?': any })
const STATE_ANSWER = open({ head: any, block: any, proof: bytes(1, LIMITS.proofBytes) })
const AGENT_CELL = closed({ owner: KEY_ID, x_cm: COORDINATE, y_cm: COORDINATE, z_cm: COORDINATE })

/** What the caller passed, read by a type of the schema: a mistake there is no fault of a peer. */
function argument (type, value, name) {
  try {
    return type(value, name)
  } catch (error) {
    throw new Failure('usage', error.message)
  }
}

function webSocketAddress (text) {
  const address = argument((value) => multiaddr(value), text, 'address')
  const isWebSocket = address.getComponents().some(({ name }) => name === 'ws' || name === 'wss')
  if (!isWebSocket) throw new Failure('usage', 'address: a browser can dial no other than one with /ws, such as /ip4/127.0.0.1/tcp/4102/ws')
  return address
}

function createHost () {
  const isStranger = (peerId) => peerId.type !== 'Ed25519'
  return createLibp2p({
    transports: [webSockets()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux({ streamOptions: { maxStreamWindowSize: LIMITS.streamWindowBytes } })],
    connectionGater: {
      // The library's own rule for browsers forbids ws:// and private addresses. Noise encrypts inside of any, the user chose this one,
      // and on a page that came by https the browser itself forbids what is not loopback.
      denyDialMultiaddr: () => false,
      denyOutboundEncryptedConnection: isStranger
    },
    connectionManager: { dialTimeout: LIMITS.dialMs },
    connectionMonitor: { pingInterval: LIMITS.livenessPeriodMs },
    services: { ping: ping() } // a node closes connections that answer no ping
  })
}

/** Whatever the library throws while a node is dialled: it could not be reached, or not in time. A browser does not tell why. */
function unreachable (error) {
  const isLate = ['TimeoutError', 'AbortError'].includes(error.name)
  return new Failure(isLate ? 'timeout' : 'stream', error.message || 'the node could not be reached')
}

class World {
  #host
  #node // its peer id

  constructor (id, host, node) {
    this.id = id
    this.#host = host
    this.#node = node
  }

  /** The newest head that the node holds. Kind `not_found` before the first block. */
  async head () {
    const { head } = HEAD_ANSWER(await this.#ask('get_world_head', {}), 'get_world_head')
    if (head === undefined) throw new Failure('not_found', 'the world has no block yet')
    return told(this.#checked(head))
  }

  /**
   * One cell of the state at the node's newest block.
   * @param {string} namespace @param {Uint8Array} key
   * @returns {Promise<{value?: Uint8Array, head: object}>} without a value its absence is proved
   */
  async cell (namespace, key) {
    const answer = STATE_ANSWER(await this.#ask('get_state_proof', { namespace, key }), 'get_state_proof')
    const head = this.#checked(answer.head)
    const block = checkRecord('block', answer.block)
    checkHeadBlock(block, head)
    return { value: provedValue(block.state_root, namespace, key, answer.proof), head: told(head) }
  }

  /** @returns {Promise<{exists: boolean, owner?: string, position?: {x_cm, y_cm, z_cm}, head: object}>} not there: its absence is proved */
  async agent (agentId) {
    const { value, head } = await this.cell('agents', utf8(argument(NAME, agentId, 'agent id')))
    if (value === undefined) return { exists: false, head }
    const { owner, ...position } = AGENT_CELL(decode(value), 'agent')
    return { exists: true, owner: peerIdText(owner), position, head }
  }

  async close () {
    await this.#host.stop()
  }

  /** Every head comes through here: world id, the root keys' signatures on later authorities, the certifier's and each executor's seal. */
  #checked (value) {
    const head = checkHead(encode(value))
    must(head.worldId === this.id, `head: is of the world ${head.worldId}`)
    return head
  }

  async #ask (method, fields) {
    let stream
    try {
      stream = await this.#host.dialProtocol(this.#node, RR_PROTOCOL, { signal: AbortSignal.timeout(ASK_MS) })
    } catch (error) {
      throw unreachable(error)
    }
    return decode(await askOnce(stream, method, encode({ world_id: this.id, ...fields }), ASK_MS))
  }
}

/** A head as callers see it. `asOf` is the certifier's clock: a node that is cut off, or hides what is newer, gives heads that grow old. */
function told ({ worldId, value, epoch, height, blockHash, asOfMs }) {
  return {
    worldId, name: value.header.name, epoch, height, blockHash: toHex(blockHash), asOf: new Date(asOfMs), ageMs: Date.now() - asOfMs,
    trust: 'attested'
  }
}

/**
 * Connects to one node.
 * @param {string} worldId the 32 letters that name the world: all that is trusted from the start
 * @param {string} address a multiaddr with /ws; with /p2p/ID at its end, no other node is spoken to
 * @returns {Promise<World>} to be closed. Throws Failure: `usage`, `stream`, `timeout`
 */
export async function openWorld (worldId, address) {
  argument(WORLD_ID, worldId, 'world id')
  const target = webSocketAddress(address)
  const host = await createHost()
  try {
    const connection = await host.dial(target, { signal: AbortSignal.timeout(ASK_MS) })
    return new World(worldId, host, connection.remotePeer)
  } catch (error) {
    await host.stop()
    throw unreachable(error)
  }
}

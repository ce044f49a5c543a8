/**
 * A connection to one node, for a program that asks and serves nothing: the section "Connections" of docs/protocol.md. Hides libp2p. The
 * transport is the caller's: `tcp()` of @libp2p/tcp in Node, `webSockets()` of @libp2p/websockets in a browser.
 */
import './polyfill.js'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { ping } from '@libp2p/ping'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { RR_PROTOCOL, askOnce } from './client.js'
import { Failure } from './errors.js'
import { LIMITS } from './limits.js'
import { WORLD_ID } from './schema.js'
import { World } from './world.js'

const ASK_MS = 10_000

function createHost (transport) {
  const isStranger = (peerId) => peerId.type !== 'Ed25519'
  return createLibp2p({
    transports: [transport],
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
export function unreachable (error) {
  const isLate = ['TimeoutError', 'AbortError'].includes(error.name)
  return new Failure(isLate ? 'timeout' : 'stream', error.message || 'the node could not be reached')
}

/** What the caller passed, judged by whoever knows it: a mistake there is no fault of a peer. Throws Failure of kind `usage`. */
export function argument (read) {
  try {
    return read()
  } catch (error) {
    throw new Failure('usage', error.message)
  }
}

/** One node, as a client sees it. */
class Node {
  #host
  #peer

  constructor (host, peer) {
    this.#host = host
    this.#peer = peer
  }

  /** Its peer id, as text. */
  get id () { return this.#peer.toString() }
  close () { return this.#host.stop() }

  /** @param {string} worldId the 32 letters that name it: all that is trusted from the start */
  world (worldId) {
    return new World(argument(() => WORLD_ID(worldId, 'world id')), this)
  }

  /**
   * One request, as the table of methods in docs/protocol.md has it.
   * @param {string} method @param {Uint8Array} body @returns {Promise<Uint8Array>} the body of the answer
   */
  async ask (method, body) {
    const signal = AbortSignal.timeout(ASK_MS)
    const stream = await this.#host.dialProtocol(this.#peer, RR_PROTOCOL, { signal }).catch((error) => { throw unreachable(error) })
    return await askOnce(stream, method, body, ASK_MS)
  }
}

/**
 * @param {string} address a multiaddr; with /p2p/ID at its end, no other node is spoken to
 * @param {object} transport what libp2p calls one
 * @returns {Promise<Node>} to be closed. Throws Failure: `usage`, `stream`, `timeout`
 */
export async function connect (address, transport) {
  const target = argument(() => multiaddr(address))
  const host = await createHost(transport)
  try {
    const connection = await host.dial(target, { signal: AbortSignal.timeout(ASK_MS) })
    return new Node(host, connection.remotePeer)
  } catch (error) {
    await host.stop()
    throw unreachable(error)
  }
}

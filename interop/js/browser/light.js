/**
 * One world, seen from a browser: connects to a node by WebSocket, asks it, and believes only what is proved. Hides the library of ../lib.
 * Guarantees: what `head`, `cell` and `agent` return hangs on a head of the world that was asked for, whose every seal was
 * checked here; everything else is thrown as a Failure, whose `kind` is one of docs/interop.md. Nothing is executed: trust is `attested`.
 */
import { webSockets } from '@libp2p/websockets'
import { multiaddr } from '@multiformats/multiaddr'
import { toHex } from '../lib/bytes.js'
import { argument, connect } from '../lib/connect.js'
import { Failure, Refused } from '../lib/errors.js'
import { peerIdText } from '../lib/identity.js'
import { NAME } from '../lib/schema.js'

export { Failure, Refused }

/** A head as callers see it. `asOf` is the certifier's clock: a node that is cut off, or hides what is newer, gives heads that grow old. */
function told ({ worldId, value, epoch, height, blockHash, asOfMs }) {
  return {
    worldId, name: value.header.name, epoch, height, blockHash: toHex(blockHash), asOf: new Date(asOfMs), ageMs: Date.now() - asOfMs,
    trust: 'attested'
  }
}

class LightWorld {
  #node
  #world

  constructor (node, world) {
    this.#node = node
    this.#world = world
  }

  get id () { return this.#world.id }

  /** The newest head that the node holds. Kind `not_found` before the first block. */
  async head () {
    return told(await this.#world.head())
  }

  /**
   * One cell of the state at the node's newest block.
   * @param {string} namespace @param {Uint8Array} key
   * @returns {Promise<{value?: Uint8Array, head: object}>} without a value its absence is proved
   */
  async cell (namespace, key) {
    const { value, head } = await this.#world.cell(namespace, key)
    return { value, head: told(head) }
  }

  /** @returns {Promise<{exists: boolean, owner?: string, position?: {x_cm, y_cm, z_cm}, head: object}>} not there: its absence is proved */
  async agent (agentId) {
    const { agent, head } = await this.#world.agent(argument(() => NAME(agentId, 'agent id')))
    if (agent === undefined) return { exists: false, head: told(head) }
    const { owner, ...position } = agent
    return { exists: true, owner: peerIdText(owner), position, head: told(head) }
  }

  async close () {
    await this.#node.close()
  }
}

/**
 * Connects to one node.
 * @param {string} worldId the 32 letters that name the world: all that is trusted from the start
 * @param {string} address a multiaddr with /ws; with /p2p/ID at its end, no other node is spoken to
 * @returns {Promise<LightWorld>} to be closed. Throws Failure: `usage`, `stream`, `timeout`
 */
export async function openWorld (worldId, address) {
  const isWebSocket = argument(() => multiaddr(address)).getComponents().some(({ name }) => name === 'ws' || name === 'wss')
  if (!isWebSocket) throw new Failure('usage', 'address: a browser can dial no other than one with /ws, such as /ip4/127.0.0.1/tcp/4102/ws')
  const node = await connect(address, webSockets())
  try {
    return new LightWorld(node, node.world(worldId))
  } catch (error) {
    await node.close()
    throw error
  }
}

/**
 * The DHT: that section of docs/protocol.md, on the library's Kademlia. Hides where the library differs: it stores without select, takes
 * a provider key for a CID, and has no bounds.
 */
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { Libp2pRecord } from '@libp2p/record'
import { MemoryDatastore } from 'datastore-core'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'
import { equalBytes, utf8 } from '../lib/bytes.js'
import { Failure, Refused, must } from '../lib/errors.js'
import { checkHead, compareHeads } from '../lib/head.js'
import { providerKey, worldOfHeadKey } from '../lib/identity.js'
import { LIMITS } from '../lib/limits.js'
import { headOfWorld } from './worlds.js'

const RAW = 0x55
const BLAKE3 = 0x1e
const RECORD = '/dht/record/'
const PROVIDER = '/dht/provider/'
/** Peers are told by strangers too. */
const BOUNDS = [[RECORD, LIMITS.recordsHeld], [PROVIDER, LIMITS.providerKeysHeld], ['/peers/', 65_536]]

const cidOf = (contentHash) => CID.createV1(RAW, Digest.decode(providerKey(contentHash)))

/** @returns the head that may stand under this key */
export function checkRecord (key, value) {
  const worldId = worldOfHeadKey(key)
  must(worldId !== undefined, `no record belongs under ${key}`)
  must(value.length <= LIMITS.recordBytes, 'record: larger than it may be')
  return headOfWorld(value, worldId)
}

/** The last of the best, so that putting the same value again refreshes it. */
function bestIndex (values) {
  const heads = values.map(checkHead)
  return heads.reduce((best, head, i) => compareHeads(head, heads[best]) >= 0 ? i : best, 0)
}

/**
 * The library's handler and its own put overwrite whatever is there: so the store itself refuses what is older, and what is too much.
 */
class BoundedStore extends MemoryDatastore {
  #counts = new Map(BOUNDS.map(([prefix]) => [prefix, 0]))

  constructor (careless) {
    super()
    this.careless = careless
  }

  put (key, value, options) {
    const bound = BOUNDS.find(([prefix]) => key.toString().startsWith(prefix))
    if (bound === undefined) return super.put(key, value, options)
    const [prefix, max] = bound
    const old = this.data.get(key.toString())
    if (old === undefined) {
      must(this.#counts.get(prefix) < max, 'the store is full')
      this.#counts.set(prefix, this.#counts.get(prefix) + 1)
    } else if (prefix === RECORD && !this.careless) {
      const [held, offered] = [old, value].map((record) => Libp2pRecord.deserialize(record).value)
      must(bestIndex([held, offered]) === 1, 'an older head than the one that is held')
    }
    return super.put(key, value, options)
  }

  delete (key, options) {
    const bound = BOUNDS.find(([prefix]) => key.toString().startsWith(prefix))
    if (bound !== undefined && this.data.has(key.toString())) this.#counts.set(bound[0], this.#counts.get(bound[0]) - 1)
    return super.delete(key, options)
  }
}

/** Lets handlers that want a CID work on a blake3 multihash. */
function onMultihash (handler) {
  const { handle } = handler
  handler.handle = async (peer, message) => {
    if (message.key?.[0] !== BLAKE3) return await handle.call(handler, peer, message)
    const answer = await handle.call(handler, peer, { ...message, key: CID.createV1(RAW, Digest.decode(message.key)).bytes })
    return answer && { ...answer, key: message.key }
  }
}

export const datastoreOf = (careless) => new BoundedStore(careless)

export const KAD_PROTOCOL = '/aw/kad/1.0.0'

export const kademlia = (careless) => (components) => {
  const kad = kadDHT({
    protocol: KAD_PROTOCOL,
    clientMode: false,
    allowQueryWithZeroPeers: true,
    peerInfoMapper: passthroughMapper,
    maxInboundStreams: 256,
    maxOutboundStreams: 256,
    validators: { aw: async (key, value) => { if (!careless) checkRecord(new TextDecoder().decode(key), value) } },
    selectors: { aw: (_, values) => bestIndex(values) }
  })(components)
  delete kad.validators.pk // only heads are kept here
  onMultihash(kad.rpc.handlers.ADD_PROVIDER)
  onMultihash(kad.rpc.handlers.GET_PROVIDERS)
  return kad
}

/** What the commands ask of the DHT. */
export class Dht {
  #kad
  #careless

  constructor (kad, careless) {
    this.#kad = kad
    this.#careless = careless
  }

  peers () { return [...this.#kad.routingTable.kb.toIterable()].map(({ peerId }) => peerId.toString()) }

  /** The library tries a newcomer once: one that was too busy then would never be in the table. */
  tryAgain (peerIds) {
    const there = new Set(this.peers())
    for (const peerId of peerIds) if (!there.has(peerId.toString())) this.#kad.routingTable.queueRoutingTableUpdate(peerId, { activeTimeout: LIMITS.dialMs })
  }

  async put (key, value) {
    if (!this.#careless) checkRecord(key, value)
    try {
      for await (const event of this.#kad.put(utf8(key), value, options())) void event
    } catch (error) {
      throw error instanceof Refused ? error : new Failure('stream', error.message)
    }
  }

  /** Asks the network, and sends the best to those who gave an older one. @returns {Promise<Uint8Array>} */
  async get (key) {
    const found = []
    try {
      for await (const { name, value, from } of this.#kad.contentFetching.getMany(utf8(key), options())) {
        if (name === 'VALUE' && isValid(key, value)) found.push({ value, from })
      }
    } catch (error) {
      if (found.length === 0) throw error // a peer that is late takes nothing from what others gave
    }
    if (found.length === 0) throw new Failure('not_found', `nothing under ${key}`)
    const best = found[bestIndex(found.map(({ value }) => value))].value
    const record = new Libp2pRecord(utf8(key), best, new Date()).serialize()
    for (const { value, from } of found) {
      if (equalBytes(value, best) || from.equals(this.#kad.components.peerId)) continue
      const path = { index: -1, queued: 0, running: 0, total: 0 }
      for await (const event of this.#kad.network.sendRequest(from, { type: 'PUT_VALUE', key: utf8(key), record }, { ...options(), path })) void event
    }
    return best
  }

  async provide (contentHash) {
    for await (const event of this.#kad.provide(cidOf(contentHash), options())) void event
  }

  /** @returns {Promise<Map<string, Set<string>>>} addresses by peer */
  async findProviders (contentHash) {
    const found = new Map()
    for await (const event of this.#kad.findProviders(cidOf(contentHash), options())) {
      if (event.name !== 'PROVIDER') continue
      for (const { id, multiaddrs } of event.providers) {
        const peer = id.toString()
        if (!found.has(peer)) found.set(peer, new Set())
        for (const address of multiaddrs) found.get(peer).add(address.toString())
      }
    }
    return found
  }
}

const options = () => ({ signal: AbortSignal.timeout(LIMITS.dhtLookupMs) })

function isValid (key, value) {
  try {
    checkRecord(key, value)
    return true
  } catch (error) {
    if (error instanceof Failure) return false
    throw error
  }
}

/**
 * The DHT: that section of docs/protocol.md, on the library's Kademlia. Hides where the library differs: it stores without select, takes
 * a provider key for a CID, looks through all that it has for the providers of one, and has no bounds.
 */
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { peerIdFromCID, peerIdFromString } from '@libp2p/peer-id'
import { Libp2pRecord } from '@libp2p/record'
import { MemoryDatastore } from 'datastore-core'
import { base32 } from 'multiformats/bases/base32'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'
import { concat, equalBytes, fromUtf8, utf8 } from '../lib/bytes.js'
import { Failure, Refused, must } from '../lib/errors.js'
import { checkHead, compareHeads } from '../lib/head.js'
import { H } from '../lib/identity.js'
import { LIMITS } from '../lib/limits.js'

/** The numbers of the section "Limits" that are the DHT's. */
const DHT = Object.freeze({
  recordBytes: 8_192, recordsHeld: 4_096, providerRecordsHeld: 16_384, providersPerKey: 20, addProviderPer10s: 500, addrsPerPeer: 16,
  addrBytes: 128, dhtLookupMs: 15_000
})
const RAW = 0x55
const BLAKE3 = 0x1e
const RECORD = '/dht/record/'
const PROVIDER = '/dht/provider/'
const PEER = '/peers/' // strangers tell of them too
const BOUNDS = [[RECORD, DHT.recordsHeld], [PEER, 8_192]]
const RATE_PERIOD_MS = 10_000
const PEERS_PER_ANSWER = 20

export const headKey = (worldId) => `/aw/world/${worldId}/head`
export const worldContentId = (worldId) => H(utf8('aw/world/1'), new Uint8Array(1), utf8(worldId))
export const providerKey = (contentId) => concat(Uint8Array.of(BLAKE3, contentId.length), contentId)
export const cidOf = (contentHash) => CID.createV1(RAW, Digest.decode(providerKey(contentHash)))

/** @returns the head that may stand under this key */
export function checkRecord (key, value) {
  const [, worldId] = /^\/aw\/world\/([a-z2-7]{32})\/head$/.exec(key) ?? []
  must(worldId !== undefined, `no record belongs under ${key}`)
  must(value.length <= DHT.recordBytes, 'record: larger than it may be')
  return checkHead(value, worldId)
}

/** The last of the best, so that putting the same value again refreshes it. */
function bestIndex (values) {
  const heads = values.map((value) => checkHead(value))
  return heads.reduce((best, head, i) => compareHeads(head, heads[best]) >= 0 ? i : best, 0)
}

/** Counts by name, and a name of the highest one, in constant time: counts change by one. */
class Tally {
  #counts = new Map()
  #names = new Map() // by count
  #highest = 0

  change (name, by) {
    const before = this.#counts.get(name) ?? 0
    const after = before + by
    if (this.#names.get(before)?.delete(name) && this.#names.get(before).size === 0) this.#names.delete(before)
    this.#counts.delete(name)
    if (after > 0) {
      this.#counts.set(name, after)
      if (!this.#names.has(after)) this.#names.set(after, new Set())
      this.#names.get(after).add(name)
    }
    if (after > this.#highest || !this.#names.has(this.#highest)) this.#highest = after
  }

  get most () { return this.#names.get(this.#highest).values().next().value }
  get isEmpty () { return this.#counts.size === 0 }
}

/** The provider records of others, by name, the oldest first: who floods displaces himself. */
class Shares {
  #told = new Map() // name -> network
  #networks = new Tally()
  #peers = new Map() // network -> Tally
  #names = new Map() // network and peer -> names, the oldest first

  /** @returns the name that has to go, if there is one: of the network with most, of its peer with most, the oldest */
  add (name, network) {
    const peer = peerOf(name)
    const whose = `${network} ${peer}`
    if (!this.#names.has(whose)) this.#names.set(whose, new Set())
    this.#names.get(whose).add(name)
    this.#told.set(name, network)
    this.#count(network, peer, 1)
    if (this.#told.size <= DHT.providerRecordsHeld) return undefined
    const most = this.#networks.most
    return this.#names.get(`${most} ${this.#peers.get(most).most}`).values().next().value
  }

  delete (name) {
    const network = this.#told.get(name)
    if (!this.#told.delete(name)) return
    const whose = `${network} ${peerOf(name)}`
    this.#names.get(whose).delete(name)
    if (this.#names.get(whose).size === 0) this.#names.delete(whose)
    this.#count(network, peerOf(name), -1)
  }

  #count (network, peer, by) {
    if (!this.#peers.has(network)) this.#peers.set(network, new Tally())
    this.#networks.change(network, by)
    this.#peers.get(network).change(peer, by)
    if (this.#peers.get(network).isEmpty) this.#peers.delete(network)
  }

  /** Of these the one that has to go: the first of the network that has most among them. */
  leastWorth (names) {
    const told = [...names].filter((name) => this.#told.has(name))
    const counts = new Map()
    for (const name of told) counts.set(this.#told.get(name), (counts.get(this.#told.get(name)) ?? 0) + 1)
    const most = Math.max(...counts.values())
    return told.find((name) => counts.get(this.#told.get(name)) === most)
  }
}

/**
 * The library's handler and its own put overwrite whatever is there: so the store itself refuses what is older. Where too much is put,
 * what was put or refreshed longest ago goes: a full store must not lock newcomers out.
 */
class BoundedStore extends MemoryDatastore {
  #shelves = new Map(BOUNDS.map(([prefix]) => [prefix, new Map()])) // keys by name, the oldest first
  #providers = new Map() // the same for each content that has providers
  #shares = new Shares()
  isNeeded = () => false // what never goes by itself
  networkOf = () => '' // of a peer

  constructor (careless) {
    super()
    this.careless = careless
  }

  put (key, value, options) {
    const name = key.toString()
    if (name.startsWith(PROVIDER)) return this.#putProvider(key, value, options)
    const [prefix, max] = boundOf(name)
    if (prefix === undefined) return super.put(key, value, options)
    if (prefix === RECORD && !this.careless && this.data.has(name)) {
      const [held, offered] = [this.data.get(name), value].map((record) => Libp2pRecord.deserialize(record).value)
      must(bestIndex([held, offered]) === 1, 'an older head than the one that is held')
    }
    this.delete(key)
    super.put(key, value, options)
    const shelf = this.#shelves.get(prefix)
    shelf.set(name, key)
    if (shelf.size > max) for (const old of shelf.values()) if (!this.isNeeded(old.toString())) return this.delete(old)
    return key
  }

  #putProvider (key, value, options) {
    const name = key.toString()
    const content = parentOf(name)
    this.delete(key)
    const siblings = this.#providers.get(content)
    const gone = siblings?.size >= DHT.providersPerKey && this.#shares.leastWorth(siblings.keys())
    if (gone) this.delete(gone)
    if (!this.#providers.has(content)) this.#providers.set(content, new Map())
    this.#providers.get(content).set(name, key)
    super.put(key, value, options)
    const surplus = this.isNeeded(name) ? undefined : this.#shares.add(name, this.networkOf(peerOf(name)))
    if (surplus !== undefined) this.delete(surplus)
    return key
  }

  delete (key, options) {
    const name = key.toString()
    this.#shelves.get(boundOf(name)[0])?.delete(name)
    this.#shares.delete(name)
    const siblings = this.#providers.get(parentOf(name))
    if (siblings?.delete(name) && siblings.size === 0) this.#providers.delete(parentOf(name))
    return super.delete(key, options)
  }

  /** The providers of one key are asked for by anybody, so that not all that is held is looked through for them. */
  query (query, options) {
    if (!query.prefix?.startsWith(PROVIDER)) return super.query(query, options)
    return [...this.#providers.get(query.prefix) ?? []].map(([name, key]) => ({ key, value: this.data.get(name) }))
  }
}

const boundOf = (name) => BOUNDS.find(([prefix]) => name.startsWith(prefix)) ?? []
const parentOf = (name) => name.slice(0, name.lastIndexOf('/'))
const peerOf = (name) => name.slice(name.lastIndexOf('/') + 1)

const NETWORK_BYTES = { ip4: [1, 5], ip6: [1, 9] } // behind the protocol's number

/** An IPv4 address, or the first 64 bits of an IPv6 one. All that is neither counts as one. */
function networkOf (connection) {
  const remote = connection?.remoteAddr
  const [from, to] = NETWORK_BYTES[remote?.getComponents()[0].name] ?? [0, 0]
  return from === to ? '' : remote.bytes.subarray(from, to).join()
}

/** Lets handlers that want a CID work on a blake3 multihash, and on nothing else: they take keys of any length. */
function onMultihash (handler) {
  const { handle } = handler
  handler.handle = async (peer, message) => {
    must(message.key?.length === 34 && message.key[0] === BLAKE3 && message.key[1] === 32, 'a key that is no blake3 multihash')
    const answer = await handle.call(handler, peer, { ...message, key: CID.createV1(RAW, Digest.decode(message.key)).bytes })
    return answer && { ...answer, key: message.key }
  }
}

/** Of what a message tells about peers not more is taken than an honest one has. */
const few = (peers = []) => peers.slice(0, PEERS_PER_ANSWER)
  .map((peer) => ({ ...peer, multiaddrs: peer.multiaddrs.filter(isShort).slice(0, DHT.addrsPerPeer) }))
const isShort = (address) => (address.bytes ?? address).length <= DHT.addrBytes // a name in it may be of any length

/** What one peer puts and provides is counted. */
function limitRate (handlers) {
  const counts = new Map()
  let began = 0
  for (const handler of handlers) {
    const { handle } = handler
    handler.handle = async (peer, message) => {
      if (Date.now() - began >= RATE_PERIOD_MS) {
        counts.clear()
        began = Date.now()
      }
      const count = (counts.get(peer.toString()) ?? 0) + 1
      counts.set(peer.toString(), count)
      must(count <= DHT.addProviderPer10s, 'too many puts of one peer')
      return await handle.call(handler, peer, { ...message, providers: few(message.providers) })
    }
  }
}

/** As `few`, for answers. */
function boundAnswers (network) {
  const { sendRequest } = network
  network.safeDispatchEvent = () => false // here the library tells of all of them
  network.sendRequest = async function * (...request) {
    for await (const event of sendRequest.apply(network, request)) {
      if (event.name === 'PEER_RESPONSE') {
        Object.assign(event, { closer: few(event.closer), providers: few(event.providers) })
        for (const detail of [...event.closer, ...event.providers]) network.dispatchEvent(new CustomEvent('peer', { detail }))
      }
      yield event
    }
  }
}

/** The library fails to answer where it has forgotten the addresses of one provider. */
function passOverForgotten (providers, peerStore) {
  const getProviders = providers.getProviders.bind(providers)
  providers.getProviders = async (...question) => {
    const found = await getProviders(...question)
    const isKnown = await Promise.all(found.map((peerId) => peerStore.has(peerId)))
    return found.filter((_, i) => isKnown[i])
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
    validators: { aw: async (key, value) => { if (!careless) checkRecord(fromUtf8(key), value) } },
    selectors: { aw: (_, values) => bestIndex(values) }
  })(components)
  delete kad.validators.pk // only heads are kept here
  const { ADD_PROVIDER: addProvider, GET_PROVIDERS: getProviders, PUT_VALUE: putValue } = kad.rpc.handlers
  onMultihash(addProvider)
  onMultihash(getProviders)
  limitRate([addProvider, putValue])
  boundAnswers(kad.network)
  passOverForgotten(kad.providers, components.peerStore)
  components.datastore.networkOf = (peer) => networkOf(components.connectionManager.getConnections(peerIdFromString(peer))[0])
  components.datastore.isNeeded = (name) => {
    if (name.startsWith(PROVIDER)) return name.endsWith(`/${components.peerId}`) // a server's own records never go for others'
    if (!name.startsWith(PEER)) return false
    const peerId = peerIdFromCID(CID.parse(name.slice(PEER.length)))
    return peerId.equals(components.peerId) || components.connectionManager.getConnections(peerId).length > 0
  }
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

  /** What the own store holds, valid or not, and how long it has since it was put last. */
  held (key) {
    const record = this.#kad.components.datastore.data.get(RECORD + base32.baseEncode(utf8(key)))
    if (record === undefined) throw new Failure('not_found', `nothing is held under ${key}`)
    const { value, timeReceived } = Libp2pRecord.deserialize(record)
    return { value, age_ms: Math.max(0, Date.now() - timeReceived.getTime()) }
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
    const stale = found.filter(({ value, from }) => !equalBytes(value, best) && !from.equals(this.#kad.components.peerId))
    await Promise.all(stale.map(async ({ from }) => { // at once, and not for long: whoever takes no correction must not hold up the reader
      const path = { index: -1, queued: 0, running: 0, total: 0 }
      const request = { type: 'PUT_VALUE', key: utf8(key), record }
      for await (const event of this.#kad.network.sendRequest(from, request, { signal: AbortSignal.timeout(LIMITS.dialMs), path })) void event
    }))
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

const options = () => ({ signal: AbortSignal.timeout(DHT.dhtLookupMs) })

function isValid (key, value) {
  try {
    checkRecord(key, value)
    return true
  } catch (error) {
    if (error instanceof Failure) return false
    throw error
  }
}

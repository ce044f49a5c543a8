/**
 * The DHT: that section of docs/protocol.md, on the library's Kademlia. Hides where the library differs: it stores without select, takes
 * a provider key for a CID, looks through all that it has for the providers of one, and has no bounds (but messages of 4 MiB).
 */
import { setImmediate as turn } from 'node:timers/promises'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { peerIdFromCID } from '@libp2p/peer-id'
import { Libp2pRecord } from '@libp2p/record'
import { multiaddr } from '@multiformats/multiaddr'
import { MemoryDatastore } from 'datastore-core'
import { base32 } from 'multiformats/bases/base32'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'
import { concat, equalBytes, fromUtf8, toHex, utf8 } from '../lib/bytes.js'
import { Failure, Refused, must } from '../lib/errors.js'
import { checkHead, compareHeads } from '../lib/head.js'
import { H } from '../lib/identity.js'
import { LIMITS } from '../lib/limits.js'

/** The numbers of the section "Limits" that are the DHT's. */
const DHT = Object.freeze({
  recordBytes: 8_192, recordsHeld: 4_096, providerRecordsHeld: 16_384, providersPerKey: 20, addProviderPer10s: 500, addrsPerPeer: 16,
  addrBytes: 128, messageBytes: 262_144, streamsPerPeer: 16, dhtLookupMs: 15_000, providerMs: 48 * 3_600_000
})
const RAW = 0x55
const BLAKE3 = 0x1e
const RECORD = '/dht/record/'
const PROVIDER = '/dht/provider/'
const PEER = '/peers/' // strangers tell of them too
const BOUNDS = [[RECORD, DHT.recordsHeld], [PEER, 8_192]]
const RATE_PERIOD_MS = 10_000
const LENGTH_BITS_MAX = 28 // of the length before a message: four bytes
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
    const before = this.of(name)
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

  of (name) { return this.#counts.get(name) ?? 0 }
  get most () { return this.#names.get(this.#highest).values().next().value }
  get isEmpty () { return this.#counts.size === 0 }
}

/** The provider records of others, each with the addresses that came with it: who floods displaces himself. */
class Providers {
  #all = new Set() // the oldest first
  #records = new Map() // multihash -> records by peer, the oldest first
  #networks = new Tally()
  #peers = new Map() // network -> Tally
  #ages = new Map() // network and peer -> records, the oldest first

  add (multihash, peerId, network, addresses) {
    for (const old of this.#all) {
      if (!isOver(old)) break
      this.#remove(old)
    }
    const [content, peer] = [toHex(multihash), peerId.toString()]
    const there = this.#records.get(content)
    if (there?.has(peer)) this.#remove(there.get(peer))
    if (there?.size >= DHT.providersPerKey) this.#remove(leastWorth([...there.values()]))
    const record = { content, peer, id: peerId.toMultihash().bytes, network, addresses, at: Date.now() }
    this.#all.add(record)
    at(this.#records, content, Map).set(peer, record)
    at(this.#ages, whose(record), Set).add(record)
    this.#count(record, 1)
    if (this.#all.size <= DHT.providerRecordsHeld) return
    const most = this.#networks.most
    this.#remove(this.#ages.get(whose({ network: most, peer: this.#peers.get(most).most })).values().next().value)
  }

  of (multihash) { return [...this.#records.get(toHex(multihash))?.values() ?? []].filter((record) => !isOver(record)) }

  #remove (record) {
    this.#all.delete(record)
    for (const [held, key, one] of [[this.#records, record.content, record.peer], [this.#ages, whose(record), record]]) {
      held.get(key).delete(one)
      if (held.get(key).size === 0) held.delete(key)
    }
    this.#count(record, -1)
  }

  #count ({ network, peer }, by) {
    this.#networks.change(network, by)
    at(this.#peers, network, Tally).change(peer, by)
    if (this.#peers.get(network).isEmpty) this.#peers.delete(network)
  }
}

const isOver = ({ at }) => Date.now() - at > DHT.providerMs
const whose = ({ network, peer }) => `${network} ${peer}`

/** Of the providers of a full key: the first of the network that has most there. */
function leastWorth (records) {
  const networks = new Tally()
  for (const { network } of records) networks.change(network, 1)
  return records.find(({ network }) => network === networks.most)
}

/** What the map has there, made where it has nothing. */
function at (map, key, Kind) {
  if (!map.has(key)) map.set(key, new Kind())
  return map.get(key)
}

/**
 * The library's handler and its own put overwrite whatever is there: so the store itself refuses what is older. Where too much is put,
 * what was put or refreshed longest ago goes: a full store must not lock newcomers out.
 */
class BoundedStore extends MemoryDatastore {
  #shelves = new Map(BOUNDS.map(([prefix]) => [prefix, new Map()])) // keys by name, the oldest first
  #provided = new Map() // the same of what this peer provides
  isNeeded = () => false // what never goes by itself
  own = '' // this peer's id

  constructor (careless) {
    super()
    this.careless = careless
  }

  put (key, value, options) {
    const name = key.toString()
    const [prefix, max] = boundOf(name)
    if (prefix === undefined) {
      super.put(key, value, options)
      if (name.startsWith(PROVIDER)) this.#provided.set(name, key)
      return key
    }
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

  delete (key, options) {
    this.#provided.delete(key.toString())
    this.#shelves.get(boundOf(key.toString())[0])?.delete(key.toString())
    return super.delete(key, options)
  }

  provides (multihash) { return this.#provided.has(`${PROVIDER}${base32.baseEncode(multihash)}/${this.own}`) }

  /** Of the providers of a key none but this peer itself is here, so that not all that is held is looked through. */
  query (query, options) {
    if (!query.prefix?.startsWith(PROVIDER)) return super.query(query, options)
    const key = this.#provided.get(`${query.prefix}/${this.own}`)
    return key === undefined ? [] : [{ key, value: this.get(key) }]
  }
}

const boundOf = (name) => BOUNDS.find(([prefix]) => name.startsWith(prefix)) ?? []
const NETWORK_BYTES = { ip4: [1, 5], ip6: [1, 8] } // behind the protocol's number

/** An IPv4 address, or the first 56 bits of an IPv6 one. All that is neither counts as one. */
function networkOf (connection) {
  const remote = connection?.remoteAddr
  const [from, to] = NETWORK_BYTES[remote?.getComponents()[0].name] ?? [0, 0]
  return from === to ? '' : remote.bytes.subarray(from, to).join()
}

/**
 * In place of the library's handlers, which take keys and addresses without end, let providers fall that nobody has met for long, and look
 * for the closest peers of another key.
 */
function keepProviders ({ ADD_PROVIDER: adding, GET_PROVIDERS: getting, FIND_NODE: finding }, held, components) {
  const own = components.peerId.toMultihash().bytes
  adding.handle = async (peer, { key, providers }) => {
    must(isMultihash(key), 'a key that is no blake3 multihash')
    const told = providers.find(({ id }) => equalBytes(id, peer.toMultihash().bytes))
    must(told?.multiaddrs.length > 0, 'nobody provides for others, or without an address')
    const addresses = told.multiaddrs.map((bytes) => multiaddr(bytes).bytes) // a copy, and not all that the library makes of it
    held.add(key, peer, networkOf(components.connectionManager.getConnections(peer)[0]), addresses)
  }
  getting.handle = async (peer, message) => {
    must(isMultihash(message.key), 'a key that is no blake3 multihash')
    const { closer } = await finding.handle(peer, message)
    const providers = held.of(message.key).map(({ id, addresses }) => ({ id, multiaddrs: addresses }))
    if (components.datastore.provides(message.key)) {
      providers.push({ id: own, multiaddrs: components.addressManager.getAddresses().map(({ bytes }) => bytes) })
    }
    return { type: message.type, key: message.key, clusterLevel: message.clusterLevel, closer, providers: providers.slice(-DHT.providersPerKey) }
  }
}

const isMultihash = (key) => key?.length === 34 && key[0] === BLAKE3 && key[1] === 32

/** Of what a message tells about peers not more is taken than an honest one has. */
const few = (peers = []) => peers.slice(0, PEERS_PER_ANSWER)
  .map((peer) => ({ ...peer, multiaddrs: peer.multiaddrs.filter(isShort).slice(0, DHT.addrsPerPeer) }))
const isShort = (address) => (address.bytes ?? address).length <= DHT.addrBytes // a name in it may be of any length

const isOurs = ({ id }) => id.type === 'Ed25519'

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

/**
 * As `few`, for answers. The library adds the addresses that they tell of a peer to all that it was ever told, without end, and dials them
 * one after the other: here the last telling counts, and of who is connected none but its own.
 */
function boundAnswers (network, { peerId, peerStore, connectionManager }) {
  const { sendRequest } = network
  network.safeDispatchEvent = () => false // here the library tells of all of them
  network.sendRequest = async function * (...request) {
    for await (const event of sendRequest.apply(network, request)) {
      if (event.name === 'PEER_RESPONSE') {
        Object.assign(event, { closer: few(event.closer.filter(isOurs)), providers: few(event.providers.filter(isOurs)) })
        for (const detail of [...event.closer, ...event.providers]) {
          if (peerId.equals(detail.id) || connectionManager.getConnections(detail.id).length > 0 || detail.multiaddrs.length === 0) continue
          await peerStore.patch(detail.id, { multiaddrs: detail.multiaddrs })
          network.dispatchEvent(new CustomEvent('peer', { detail }))
        }
      }
      yield event
    }
  }
}

/**
 * Resets a stream on which a message begins that is longer than it may be, or on which more waits than two of the longest.
 * @returns {() => void} to be called for each message that was taken
 */
function boundMessages (stream) {
  const sizes = [] // of those that were not taken, as far as they have begun
  let [unread, size, bits, left] = [0, 0, 0, 0]
  const begin = (byte) => { // one more of a message's length: a varint
    size = bits < LENGTH_BITS_MAX ? size + (byte & 0x7f) * 2 ** bits : Infinity
    bits += 7
    if (byte >= 0x80) return
    sizes.push(size + bits / 7)
    left = size
    if (size <= DHT.messageBytes) size = bits = 0
  }
  stream.addEventListener('message', (event) => {
    const { data } = event
    unread += data.byteLength
    const bytes = data.subarray()
    for (let at = 0; at < bytes.length && size <= DHT.messageBytes;) {
      if (left === 0) begin(bytes[at++])
      const passed = Math.min(left, bytes.length - at)
      left -= passed
      at += passed
    }
    const isTooMuch = size > DHT.messageBytes || unread > 2 * DHT.messageBytes
    if (!isTooMuch) return
    event.stopImmediatePropagation() // else the library reads it to its end
    queueMicrotask(() => stream.abort(new Refused('a DHT message larger than it may be, or too many at once')))
  })
  return () => { unread -= sizes.shift() }
}

function boundStreams ({ rpc, network }) {
  const { onIncomingStream } = rpc
  const open = new Tally()
  rpc.onIncomingStream = async (stream, connection) => {
    if (stream.status !== 'open') return // it has ended before the library got here: its end is told nobody any more
    const peer = connection.remotePeer.toString()
    open.change(peer, 1)
    stream.addEventListener('close', () => open.change(peer, -1), { once: true })
    if (open.of(peer) > DHT.streamsPerPeer) return stream.abort(new Refused('too many DHT streams'))
    const isTaken = boundMessages(stream)
    const serving = Object.assign(Object.create(rpc), {
      async handleMessage (...message) {
        isTaken()
        await turn() // the library would answer all that waits before anything else runs
        return await rpc.handleMessage(...message)
      }
    })
    await onIncomingStream.call(serving, stream, connection)
  }
  for (const name of ['_writeMessage', '_writeReadMessage']) {
    const write = network[name]
    network[name] = async (stream, ...message) => {
      boundMessages(stream)
      return await write.call(network, stream, ...message)
    }
  }
}

/** The library tags its nearest peers so that libp2p dials them again within 20 ms of parting, whoever parted; here they keep the tag of their worth alone. */
function letGo ({ closestPeerTagger }, { peerId, peerStore }) {
  closestPeerTagger.components = {
    peerId,
    peerStore: { merge: (peer, { tags }) => peerStore.merge(peer, { tags: { [closestPeerTagger.closeTagName]: tags[closestPeerTagger.closeTagName] } }) }
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
  const { handlers } = kad.rpc
  kad.held = new Providers()
  keepProviders(handlers, kad.held, components)
  limitRate([handlers.ADD_PROVIDER, handlers.PUT_VALUE])
  boundAnswers(kad.network, components)
  boundStreams(kad)
  letGo(kad.routingTable, components)
  components.datastore.own = components.peerId.toString()
  components.datastore.isNeeded = (name) => {
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
    const take = (peer, addresses) => {
      if (!found.has(peer)) found.set(peer, new Set())
      for (const address of addresses) found.get(peer).add(address.toString())
    }
    for (const { peer, addresses } of this.#kad.held.of(providerKey(contentHash))) take(peer, addresses.map((bytes) => multiaddr(bytes)))
    try {
      for await (const event of this.#kad.findProviders(cidOf(contentHash), options())) {
        if (event.name === 'PROVIDER') for (const { id, multiaddrs } of event.providers) take(id.toString(), multiaddrs)
      }
    } catch (error) {
      if (found.size === 0) throw error // as in `get`
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

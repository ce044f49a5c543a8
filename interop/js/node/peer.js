/** One peer: host, sessions, gossip and services in one object. Hides libp2p from the commands. */
import { peerIdFromString } from '@libp2p/peer-id'
import { multiaddr } from '@multiformats/multiaddr'
import { RR_PROTOCOL, Session, askOnce, askParts } from '../lib/client.js'
import { argument, unreachable } from '../lib/connect.js'
import { Failure, must } from '../lib/errors.js'
import { LIMITS } from '../lib/limits.js'
import { inTime } from '../lib/stream.js'
import { Blobs } from './blobs.js'
import { Dht, KAD_PROTOCOL } from './dht.js'
import { judge, parseTopic } from './gossip.js'
import { IDENTIFY_MS, STREAMS, createHost } from './host.js'
import { methodsOf } from './methods.js'
import { RrServer } from './server.js'
import { Worlds } from './worlds.js'

const DEFAULT_MS = 10_000
/** More than are served: the others wait for a place, or hear that there is none. */
const RR_STREAMS = { ...STREAMS, maxInboundStreams: 2 * LIMITS.streamsPerPeer }
const IDENTIFY_POLL_MS = 20

const reach = (promise) => promise.catch((error) => { throw unreachable(error) })

export class Peer {
  blobs = new Blobs()
  worlds = new Worlds()
  #sessions = new Map() // peer -> {opening: promise of a Session, session: it}
  #identified = new Map()
  #followers = new Map() // topic -> what follows its accepted messages

  /** @param {(event: object) => void} emit */
  static async start (settings, emit) {
    const peer = new Peer()
    peer.careless = settings.careless
    peer.emit = emit
    peer.host = await createHost(settings)
    peer.dht = new Dht(peer.host.services.dht, settings.careless)
    peer.host.addEventListener('peer:connect', ({ detail }) => emit({ event: 'connected', peer: detail.toString() }))
    peer.host.addEventListener('peer:disconnect', ({ detail }) => peer.#forget(detail.toString()))
    peer.host.addEventListener('peer:identify', ({ detail: { peerId, protocols, agentVersion: agent = '' } }) =>
      peer.#identified.set(peerId.toString(), { protocols, agent }))
    const speaksKad = (peerId) => peer.#identified.get(peerId.toString())?.protocols.includes(KAD_PROTOCOL)
    setInterval(() => peer.dht.tryAgain(peer.host.getPeers().filter(speaksKad)), LIMITS.livenessPeriodMs).unref()
    await peer.host.handle(RR_PROTOCOL, new RrServer(methodsOf(peer.blobs, peer.worlds)).serve, RR_STREAMS)
    await peer.host.start()
    await peer.host.peerStore.merge(peer.host.peerId, { multiaddrs: peer.host.getMultiaddrs() }) // else it names itself to nobody as a provider
    return peer
  }

  #forget (peer) {
    for (const held of [this.#sessions, this.#identified]) held.delete(peer)
    this.emit({ event: 'disconnected', peer })
  }

  get id () { return this.host.peerId.toString() }
  addresses () { return this.host.getMultiaddrs().map(String) }
  stop () { return this.host.stop() }

  async dial (address) {
    const target = argument(() => multiaddr(address))
    if (target.getComponents().at(-1)?.name !== 'p2p') throw new Failure('usage', 'addr must end in /p2p/ and a peer id')
    const connection = await reach(this.#connection(target))
    await this.#identification(connection)
    return connection.remotePeer.toString()
  }

  /** The library joins a dial that is on its way, which may be at a dead address, or of a time when nobody was there: then again, alone. */
  async #connection (target) {
    let hasJoined = false
    const onProgress = ({ type }) => { hasJoined ||= type === 'dial-queue:already-in-dial-queue' }
    const dial = () => this.host.dial(target, { signal: AbortSignal.timeout(DEFAULT_MS), onProgress })
    return await dial().catch((error) => {
      if (hasJoined) return dial()
      throw error
    })
  }

  /** Both sides identify of themselves on each connection; asking at the same time would meet the limit of streams, so it is asked only later. */
  async #identification (connection) {
    const peer = connection.remotePeer.toString()
    for (let waited = 0; waited < IDENTIFY_MS; waited += IDENTIFY_POLL_MS) {
      if (this.#identified.has(peer)) return
      await new Promise((resolve) => setTimeout(resolve, IDENTIFY_POLL_MS))
    }
    await reach(this.host.services.identify.identify(connection, { signal: AbortSignal.timeout(IDENTIFY_MS) }))
  }

  /** What a peer said of itself, as soon as it has. */
  async identified (peer) {
    const [connection] = this.host.getConnections(peerIdFromString(peer))
    if (connection !== undefined) await this.#identification(connection)
    const identified = this.#identified.get(peer)
    if (identified === undefined) throw new Failure('not_found', 'that peer has not identified itself')
    return identified
  }

  hangUp (peer) { return this.host.hangUp(peerIdFromString(peer)) }

  openStream (peer, timeoutMs) {
    return reach(this.host.dialProtocol(peerIdFromString(peer), RR_PROTOCOL, { signal: AbortSignal.timeout(timeoutMs), ...STREAMS }))
  }

  /** @returns {Promise<Uint8Array>} the body of the answer */
  async ask (peer, method, body, { oneShot = false, timeoutMs = DEFAULT_MS } = {}) {
    const deadline = Date.now() + timeoutMs
    if (oneShot) return await askOnce(await this.openStream(peer, timeoutMs), method, body, deadline - Date.now())
    for (;;) {
      const session = await inTime(this.#session(peer), deadline - Date.now(), () => new Failure('timeout', 'no stream in time'))
      const answer = await session.ask(method, body, deadline - Date.now())
      if (answer !== undefined) return answer
    }
  }

  async askParts (peer, method, body, onPart, timeoutMs = DEFAULT_MS) {
    const deadline = Date.now() + timeoutMs
    return await askParts(await this.openStream(peer, timeoutMs), method, body, deadline - Date.now(), onPart)
  }

  /** One peer, as a World asks it, with its time. */
  asking (peer, timeoutMs) {
    return {
      id: peer,
      ask: (method, body) => this.ask(peer, method, body, { timeoutMs }),
      askParts: (method, body, onPart) => this.askParts(peer, method, body, onPart, timeoutMs)
    }
  }

  /** One for all who ask: each gives up in its own time. */
  #session (peer) {
    const held = this.#sessions.get(peer)
    if (held !== undefined && held.session?.isOpen !== false) return held.opening
    const fresh = {}
    fresh.opening = this.openStream(peer, LIMITS.requestTotalMs).then((stream) => (fresh.session = new Session(stream)))
    this.#sessions.set(peer, fresh)
    fresh.opening.catch(() => { if (this.#sessions.get(peer) === fresh) this.#sessions.delete(peer) })
    return fresh.opening
  }

  /** Subscribes, with the check of the topic. @param {(data: Uint8Array) => void} [onAccept] */
  join (topic, onAccept) {
    this.#check(topic, new Uint8Array()) // the topic itself
    const { pubsub } = this.host.services
    if (onAccept !== undefined) this.#followers.set(topic, onAccept)
    pubsub.topicValidators.set(topic, (_, { from, data }) => {
      const judged = this.#check(topic, data).verdict
      const verdict = this.careless ? 'accept' : judged
      this.emit({ event: 'gossip', topic, verdict, data, from: from.toString() })
      if (judged === 'accept') this.#followers.get(topic)?.(data)
      return verdict
    })
    pubsub.subscribe(topic)
  }

  #check (topic, data) {
    const parsed = parseTopic(topic)
    if (parsed === undefined) throw new Failure('usage', `no topic ${topic}`)
    const world = this.worlds.get(parsed.worldId)
    if (world === undefined) throw new Failure('not_found', `the world ${parsed.worldId} is not known`)
    return judge(topic, data, world.genesis)
  }

  subscribers (topic) { return this.host.services.pubsub.getSubscribers(topic).map(String) }

  async publish (topic, data) {
    if (!this.careless) {
      const { verdict, reason } = this.#check(topic, data)
      must(verdict === 'accept', reason)
    }
    await this.host.services.pubsub.publish(topic, data)
  }
}

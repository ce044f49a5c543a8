/** The libp2p host: "Identity", "Connections" and the transport of "Gossip" of docs/protocol.md. Hides every setting of the libraries. */
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { generateKeyPairFromSeed } from '@libp2p/crypto/keys'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { createLibp2p } from 'libp2p'
import { concat } from '../lib/bytes.js'
import { LIMITS } from '../lib/limits.js'
import { u64be } from './blobs.js'
import { datastoreOf, kademlia } from './dht.js'
import { closeTheDead } from './liveness.js'
import { bound, boundEncrypter, boundMuxer, takeTurns } from './negotiation.js'

/** Streams are counted by those who serve them; the libraries' own counts would reset quick ones. */
export const STREAMS = { maxInboundStreams: 4096, maxOutboundStreams: 4096 }

/** How long a busy peer may take to say who it is. */
export const IDENTIFY_MS = 10_000

/** Gossip that waits for a slow reader, and one message of it on the wire. */
const OUT_QUEUE_BYTES_MAX = 1 << 24
const RPC_BYTES_MAX = 1 << 20
const REOPEN_MS = 1_000

const pubsub = (components) => {
  const service = gossipsub({
    globalSignaturePolicy: 'StrictSign',
    fallbackToFloodsub: false,
    allowPublishToZeroTopicPeers: true,
    maxInboundDataLength: RPC_BYTES_MAX,
    maxOutboundBufferSize: OUT_QUEUE_BYTES_MAX,
    msgIdFn: ({ from, sequenceNumber }) => concat(from.toMultihash().bytes, u64be(sequenceNumber)), // as py, go and rust have it
    scoreParams: { IPColocationFactorWeight: 0 } // many peers of a test share one address
  })(components)
  service.protocols = ['/meshsub/1.1.0']
  sendAsReadersTake(service, components.connectionManager)
  return service
}

/**
 * The library answers IWANTs with one RPC of any size, for which readers reset the stream; it aborts the stream where too much waits for a
 * slow reader; and it opens no other while the connection lasts: that peer would hear nothing any more.
 */
function sendAsReadersTake (service, connections) {
  const { sendRpc, createOutboundStream } = service
  const [opening, closed, watched] = [new Set(), new Set(), new WeakSet()] // ids of peers, and streams
  const sendOne = (id, rpc) => {
    const waiting = service.streamsOutbound.get(id)?.rawStream.writeBufferLength ?? 0
    const bytes = rpc.messages.reduce((sum, { data }) => sum + (data?.length ?? 0), 0)
    const hasRoom = bytes === 0 || waiting + bytes <= OUT_QUEUE_BYTES_MAX - RPC_BYTES_MAX // the rest is for who joins and leaves a mesh
    return hasRoom && sendRpc.call(service, id, rpc)
  }
  const reopen = (peerId) => {
    const id = peerId.toString()
    if (closed.has(id)) return
    closed.add(id)
    setTimeout(() => {
      closed.delete(id)
      const connection = connections.getConnections(peerId).find(({ status }) => status === 'open')
      if (connection !== undefined) void service.createOutboundStream(peerId, connection)
    }, REOPEN_MS).unref()
  }
  service.sendRpc = (id, rpc) => {
    const [first, ...more] = rpc.messages ?? []
    const isSent = sendOne(id, { ...rpc, messages: first === undefined ? [] : [first] })
    return more.reduce((sent, message) => sendOne(id, { subscriptions: [], messages: [message] }) && sent, isSent)
  }
  service.createOutboundStream = async (peerId, connection) => {
    const id = peerId.toString()
    if (opening.has(id)) return // the library looks for a stream before it waits for one
    opening.add(id)
    await createOutboundStream.call(service, peerId, connection).finally(() => opening.delete(id))
    const stream = service.streamsOutbound.get(id)?.rawStream
    if (stream === undefined) {
      if (service.peers.has(id)) reopen(peerId)
    } else if (!watched.has(stream)) {
      watched.add(stream)
      stream.addEventListener('close', () => reopen(peerId), { once: true })
    }
  }
}

/** Is to be started by its owner, once that is ready for those who call. @param {{seed: Uint8Array, listen: string[], careless: boolean}} settings */
export async function createHost ({ seed, listen, careless }) {
  const isStranger = (peerId) => peerId.type !== 'Ed25519'
  const host = await createLibp2p({
    start: false,
    privateKey: await generateKeyPairFromSeed('Ed25519', seed),
    addresses: { listen },
    transports: [tcp()],
    connectionEncrypters: [boundEncrypter(noise())],
    streamMuxers: [boundMuxer(yamux({ ...STREAMS, streamOptions: { maxStreamWindowSize: LIMITS.streamWindowBytes } }))],
    connectionGater: {
      denyInboundConnection: (connection) => { takeTurns(bound(connection)) },
      denyOutboundConnection: (_, connection) => { takeTurns(connection) },
      denyInboundEncryptedConnection: isStranger,
      denyOutboundEncryptedConnection: isStranger
    },
    connectionManager: {
      maxConnections: LIMITS.connections, inboundConnectionThreshold: 1000, maxIncomingPendingConnections: 100, dialTimeout: LIMITS.dialMs
    },
    connectionMonitor: { enabled: false },
    nodeInfo: { name: 'agent-world-js', version: '1.0.0', userAgent: 'agent-world-js/1.0.0' },
    datastore: datastoreOf(careless),
    peerStore: { maxAddressAge: Infinity, maxPeerAge: Infinity }, // else whom it has known for an hour has no address, however often told
    services: { identify: identify({ timeout: IDENTIFY_MS }), ping: ping(STREAMS), pubsub, dht: kademlia(careless) }
  })
  closeTheDead(host, STREAMS)
  return host
}

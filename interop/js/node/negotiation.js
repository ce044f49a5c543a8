/**
 * What strangers say, above all before it is known what a connection or a stream is for. Hides that js-libp2p takes and answers all of that
 * without ever letting anything else run: a few hundred kilobytes would stop the whole process for half a minute.
 */
import { must } from '../lib/errors.js'

const ANSWERS_MAX = 16 // in one negotiation: more than there are protocols
const UNSENT_MAX = 1 << 26 // bytes of a connection
const TOO_LONG = 'Could not decode varint' // of uint8-varint

/**
 * The library reads the length before a message byte by byte, and takes each RangeError for "there is more to come": also that of a length
 * longer than any, after eight bytes. That one is none from now on.
 */
Object.defineProperty(RangeError, Symbol.hasInstance, {
  value (error) {
    return Function.prototype[Symbol.hasInstance].call(this, error) && error.message !== TOO_LONG
  }
})

/** @param stream where another side is about to say what it wants; it may be a whole connection */
export function bound (stream) {
  let answers = 0
  stream.send = (data) => {
    if (stream.protocol) free(stream)
    else must(++answers <= ANSWERS_MAX, 'a negotiation without an end')
    return Object.getPrototypeOf(stream).send.call(stream, data)
  }
  return stream
}

/** The negotiation is over. */
function free (stream) {
  delete stream.send
  return stream
}

/** Between two reads of a socket everything else has its turn; Node would read on 32 times. */
export function takeTurns (connection) {
  const { socket } = connection
  socket.on('data', () => {
    socket.pause()
    setImmediate(() => { if (connection.readStatus !== 'paused') socket.resume() })
  })
}

/** The encrypter of connections that are `bound`: they are again, encrypted. */
export const boundEncrypter = (make) => (components) => {
  const encrypter = make(components)
  const { secureInbound } = encrypter
  encrypter.secureInbound = async (connection, ...options) => {
    const secured = await secureInbound.call(encrypter, free(connection), ...options)
    bound(secured.connection)
    return secured
  }
  return encrypter
}

/** The muxer of such connections: so is each stream that the other side opens. */
export const boundMuxer = (make) => (components) => {
  const factory = make(components)
  const { createStreamMuxer } = factory
  factory.createStreamMuxer = (connection) => {
    connection.maxWriteBufferLength = UNSENT_MAX // else what answers pings and resets waits without a bound for a reader
    const muxer = createStreamMuxer.call(factory, free(connection))
    const { onRemoteStream } = muxer
    muxer.onRemoteStream = (stream) => onRemoteStream.call(muxer, bound(stream))
    return muxer
  }
  return factory
}

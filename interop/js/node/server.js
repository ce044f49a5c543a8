/**
 * The answering side of /aw/rr/1: the section "Request / response" of docs/protocol.md. Hides streams, limits and error frames from the methods,
 * each of which is {parts?, timeoutMs?, handle(body: Map, context)} and returns a value to encode, or bytes.
 */
import { setMaxListeners } from 'node:events'
import { utf8 } from '../lib/bytes.js'
import { decode, encode } from '../lib/codec.js'
import { Failure, Ignored, Refused } from '../lib/errors.js'
import { ANSWER, CODE, ERROR, FrameError, PART, REQUEST, encodeFrame } from '../lib/frames.js'
import { LIMITS } from '../lib/limits.js'
import { anyMap } from '../lib/schema.js'
import { FrameReader, FrameWriter, inTime } from '../lib/stream.js'

const BUSY_RETRY_MS = 100
const STREAMS_MAX = 16_384

/** What a method throws to answer with an error frame. */
export class RpcError extends Error {
  constructor (code, message, { retryAfterMs = 0, detail = new Uint8Array() } = {}) {
    super(message)
    Object.assign(this, { code, retryAfterMs, detail })
  }
}

function errorFrame (id, error) {
  if (error instanceof Refused || error instanceof Ignored) error = new RpcError(CODE.BAD_REQUEST, error.message)
  if (!(error instanceof RpcError)) {
    console.error('a method failed:', error)
    error = new RpcError(CODE.NOT_AVAILABLE, 'a fault here')
  }
  const { code, message, retryAfterMs, detail } = error
  // 340 characters are at most 1,020 bytes.
  const words = utf8(message).length > LIMITS.errorMessageBytes ? message.slice(0, 340) : message
  return encodeFrame({ type: ERROR, id, code, retryAfterMs, message: words, body: detail })
}

/** Counts what is going on for each peer and in all. */
class Meter {
  #total = 0
  #perPeer = new Map()

  constructor (perPeerMax, totalMax) {
    Object.assign(this, { perPeerMax, totalMax })
  }

  enter (peer) {
    const count = this.#perPeer.get(peer) ?? 0
    if (count >= this.perPeerMax || this.#total >= this.totalMax) return false
    this.#perPeer.set(peer, count + 1)
    this.#total++
    return true
  }

  leave (peer) {
    const count = this.#perPeer.get(peer)
    if (count === 1) this.#perPeer.delete(peer)
    else this.#perPeer.set(peer, count - 1)
    this.#total--
  }
}

export class RrServer {
  #methods
  #requests = new Meter(LIMITS.inFlightPerPeer, LIMITS.inFlightTotal)
  #streams = new Meter(LIMITS.streamsPerPeer, STREAMS_MAX)
  #waiting = { bytes: 0 } // of answers that are not read yet

  constructor (methods) {
    this.#methods = methods
  }

  /** Never rejects: whatever a peer sends ends its stream at worst. */
  serve = async (stream, { remotePeer }) => {
    const peer = remotePeer.toString()
    if (!this.#streams.enter(peer)) return stream.abort(new Failure('stream', 'too many streams'))
    const session = { stream, peer, writer: new FrameWriter(stream, this.#waiting), inFlight: new Set(), cancel: new AbortController(), parts: false }
    setMaxListeners(LIMITS.inFlightPerSession, session.cancel.signal)
    try {
      await this.#converse(session)
    } catch (error) {
      stream.abort(error)
    } finally {
      session.cancel.abort()
      this.#streams.leave(peer)
    }
  }

  async #converse (session) {
    const { stream, writer, inFlight } = session
    // Nothing that is served here takes a larger request.
    const reader = new FrameReader(stream, LIMITS.requestBytes)
    const running = new Set()
    for (let idleMs = LIMITS.requestFirstByteMs; ; idleMs = LIMITS.sessionIdleMs) {
      let frame
      try {
        frame = await reader.next(idleMs)
      } catch (error) {
        if (error.kind === 'timeout' && reader.isBetweenFrames && inFlight.size > 0) continue
        if (error instanceof FrameError) return await this.#breakOff(writer, error.id, error.message)
        throw error
      }
      if (frame === undefined) break
      const { type, id, method, tooLarge } = frame
      if (type !== REQUEST || inFlight.has(id) || session.parts) return await this.#breakOff(writer, id, 'a frame that may not come here')
      const refusal = this.#refusal(session, method, tooLarge)
      if (refusal !== undefined) {
        await writer.write(errorFrame(id, refusal))
        continue
      }
      session.parts = this.#methods[method].parts === true
      inFlight.add(id)
      const answering = this.#answer(session, frame).finally(() => running.delete(answering))
      running.add(answering)
    }
    await Promise.all(running)
    await writer.close()
  }

  async #breakOff (writer, id, message) {
    if (id !== undefined) await writer.write(errorFrame(id, new RpcError(CODE.BAD_REQUEST, message)))
    await writer.reset(message)
  }

  /** Why a request is not taken up; takes a place for it where it is. */
  #refusal ({ peer, inFlight }, method, tooLarge) {
    if (!Object.hasOwn(this.#methods, method)) return new RpcError(CODE.UNSUPPORTED, `no method ${method}`)
    if (tooLarge) return new RpcError(CODE.BAD_REQUEST, 'a request larger than it may be')
    if (this.#methods[method].parts && inFlight.size > 0) return new RpcError(CODE.BAD_REQUEST, `${method} needs a stream of its own`)
    const isFull = inFlight.size >= LIMITS.inFlightPerSession || this.#waiting.bytes > LIMITS.answersWaitingBytes
    if (isFull || !this.#requests.enter(peer)) return new RpcError(CODE.BUSY, 'too much at once', { retryAfterMs: BUSY_RETRY_MS })
  }

  /** A request holds its place until there was room for its answer; one for parts until all of them are read. */
  async #answer ({ stream, peer, writer, inFlight, cancel, parts }, { id, method, body }) {
    const context = {
      raw: body,
      signal: cancel.signal,
      part: (bytes) => writer.write(encodeFrame({ type: PART, id, body: bytes })),
      reset: (reason) => writer.reset(reason)
    }
    try {
      const frame = await this.#frameFor(id, method, body, context)
      if (parts) cancel.abort() // a handler that took too long would go on
      await writer.write(frame)
      if (parts) await writer.close()
    } catch (error) {
      stream.abort(error)
    } finally {
      inFlight.delete(id)
      this.#requests.leave(peer)
    }
  }

  async #frameFor (id, method, body, context) {
    try {
      const { handle, timeoutMs = LIMITS.handlerMs } = this.#methods[method]
      const value = await inTime(handle(anyMap(decode(body), 'body'), context), timeoutMs, () => new RpcError(CODE.TIMEOUT, 'the method took too long'))
      return encodeFrame({ type: ANSWER, id, body: value instanceof Uint8Array ? value : encode(value) })
    } catch (error) {
      if (error.kind === 'stream' || context.signal.aborted) throw error // nobody is left to be answered
      return errorFrame(id, error)
    }
  }
}

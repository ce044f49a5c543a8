/**
 * The answering side of /aw/rr/1: the section "Request / response" of docs/protocol.md. Hides streams, limits and error frames from the methods,
 * each of which is {parts?, timeoutMs?, handle(body: Map, context)} and returns a value to encode, or bytes.
 */
import { setMaxListeners } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { utf8 } from '../lib/bytes.js'
import { decode, encode } from '../lib/codec.js'
import { Failure, Ignored, Refused } from '../lib/errors.js'
import { ANSWER, CODE, ERROR, FrameError, PART, REQUEST, encodeFrame } from '../lib/frames.js'
import { LIMITS } from '../lib/limits.js'
import { anyMap } from '../lib/schema.js'
import { FrameReader, FrameWriter, inTime } from '../lib/stream.js'

const BUSY_RETRY_MS = 100
/** What has just ended at the other side may still be under way here. */
const PLACE_WAIT_MS = 1_000
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
  #left = Promise.withResolvers()

  constructor (perPeerMax, totalMax) {
    Object.assign(this, { perPeerMax, totalMax })
  }

  #count (peer) { return this.#perPeer.get(peer) ?? 0 }

  get isFull () { return this.#total >= this.totalMax }

  /** @returns {Promise<boolean>} whether there is a place, or was one in a moment */
  async enter (peer) {
    for (const deadline = Date.now() + PLACE_WAIT_MS; this.isFull || this.#count(peer) >= this.perPeerMax;) {
      if (Date.now() >= deadline) return false
      await Promise.race([this.#left.promise, sleep(deadline - Date.now())])
    }
    this.#perPeer.set(peer, this.#count(peer) + 1)
    this.#total++
    return true
  }

  leave (peer) {
    this.#perPeer.set(peer, this.#count(peer) - 1)
    if (this.#count(peer) === 0) this.#perPeer.delete(peer)
    this.#total--
    this.#left.resolve()
    this.#left = Promise.withResolvers()
  }
}

const tooMuch = (what) => new RpcError(CODE.BUSY, `too many ${what}`, { retryAfterMs: BUSY_RETRY_MS })

export class RrServer {
  #methods
  #requests = new Meter(LIMITS.inFlightPerPeer, LIMITS.inFlightTotal)
  #streams = new Meter(LIMITS.streamsPerPeer, STREAMS_MAX)
  #isOverfull = () => this.#waiting.bytes > LIMITS.answersWaitingBytes
  #waiting = { bytes: 0, isFull: () => this.#isOverfull() || this.#requests.isFull } // answers that are not read yet

  constructor (methods) {
    this.#methods = methods
  }

  /** Never rejects: whatever a peer sends ends its stream at worst. */
  serve = async (stream, { remotePeer }) => {
    const peer = remotePeer.toString()
    const hasPlace = await this.#streams.enter(peer)
    const session = {
      stream, peer, hasPlace, writer: new FrameWriter(stream, this.#waiting), inFlight: new Set(), parts: false, cancel: new AbortController(),
      idleMs: LIMITS.requestFirstByteMs, idleSince: Date.now()
    }
    setMaxListeners(LIMITS.inFlightPerSession, session.cancel.signal)
    try {
      await this.#converse(session)
    } catch (error) {
      session.isBroken = true // what runs says nothing more
      await breakOff(session, error)
    } finally {
      session.cancel.abort()
      if (hasPlace) this.#streams.leave(peer)
    }
  }

  async #converse (session) {
    const { stream, writer, inFlight } = session
    // Nothing that is served here takes a larger request.
    const reader = new FrameReader(stream, LIMITS.requestBytes)
    const running = new Set()
    for (;;) {
      const frame = await this.#nextFrame(session, reader)
      if (frame === undefined) break
      const { type, id, method, tooLarge } = frame
      if (type !== REQUEST || inFlight.has(id) || session.parts) throw new FrameError('may not come here', id)
      Object.assign(session, { idleMs: 2 * LIMITS.sessionIdleMs, idleSince: Date.now() })
      const refusal = await this.#refusal(session, method, tooLarge)
      if (refusal !== undefined) {
        await writer.write(errorFrame(id, refusal))
        if (!session.hasPlace) break
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

  /** The next frame; undefined where the stream has ended, or is to be ended because nothing happens on it. */
  async #nextFrame (session, reader) {
    for (;;) {
      try {
        return await reader.next(session.idleSince + session.idleMs - Date.now(), Infinity)
      } catch (error) {
        if (error.kind !== 'timeout' || !reader.isBetweenFrames) throw error
        if (session.inFlight.size > 0) session.idleSince = Date.now()
        else if (Date.now() >= session.idleSince + session.idleMs) return undefined
      }
    }
  }

  /** Why a request is not taken up; takes a place for it where it is. */
  async #refusal ({ peer, inFlight, hasPlace }, method, tooLarge) {
    if (!hasPlace) return tooMuch('streams')
    if (!Object.hasOwn(this.#methods, method)) return new RpcError(CODE.UNSUPPORTED, `no method ${method}`)
    if (tooLarge) return new RpcError(CODE.BAD_REQUEST, 'a request larger than it may be')
    if (this.#methods[method].parts && inFlight.size > 0) return new RpcError(CODE.BAD_REQUEST, `${method} needs a stream of its own`)
    if (this.#isOverfull()) return tooMuch('answers that nobody reads')
    if (inFlight.size >= LIMITS.inFlightPerSession || !await this.#requests.enter(peer)) return tooMuch('requests in flight')
  }

  /** A request holds its place until there was room for its answer; one for parts until all of them are read. */
  async #answer (session, { id, method, body }) {
    const { peer, writer, inFlight, cancel, parts } = session
    const context = {
      raw: body,
      signal: cancel.signal,
      async part (bytes) {
        if (cancel.signal.aborted || session.isBroken) throw new Failure('stream', 'nobody waits for more')
        await writer.write(encodeFrame({ type: PART, id, body: bytes }))
      },
      reset: (reason) => writer.reset(reason),
      whole () {} // called when all parts have gone out
    }
    try {
      const frame = await this.#frameFor(id, method, body, context)
      if (session.isBroken) return
      if (parts) cancel.abort() // a handler that took too long would go on
      await writer.write(frame)
      if (parts) {
        await writer.flush()
        context.whole()
        await writer.close()
      }
      session.idleSince = Date.now()
    } catch (error) {
      if (!session.isBroken) await breakOff(session, error)
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

/** Resets a stream, where a frame is to blame after an error that says so. What is no Failure is a fault of this side. */
async function breakOff ({ stream, writer }, error) {
  if (!(error instanceof Failure)) console.error('a stream failed:', error)
  try {
    if (error.id !== undefined) await writer.write(errorFrame(error.id, error))
    if (error instanceof FrameError) await writer.reset(error.message)
  } catch (gone) {
    error = gone
  }
  stream.abort(error)
}

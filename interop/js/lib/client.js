/**
 * The asking side of /aw/rr/1: the section "Request / response" of docs/protocol.md. Hides ids, sessions and how a failed stream is told
 * from an answer that is an error.
 */
import { Failure, Refused } from './errors.js'
import { ANSWER, ERROR, ERRORS, PART, REQUEST, encodeFrame } from './frames.js'
import { LIMITS } from './limits.js'
import { FrameReader, FrameWriter, closeStream, inTime } from './stream.js'

export const RR_PROTOCOL = '/aw/rr/1'
const ID_MAX = 0xffffffff
const PART_BYTES_MIN = 64 // what a part counts at least, so that empty ones have an end

const rrFailure = ({ code, retryAfterMs, message, body }) =>
  new Failure('rr', message, { code, name: ERRORS[code], retry_after_ms: retryAfterMs, detail: body })
const timedOut = () => new Failure('timeout', 'no answer in time')
const unexpected = () => new Failure('stream', 'a frame that was not asked for')

/** What is no frame is no answer either. */
const answerFrom = (reader, timeoutMs) => reader.next(timeoutMs).catch((error) => { throw error instanceof Refused ? new Failure('stream', error.message) : error })

/**
 * A request on a stream of its own, of a method that is answered in parts.
 * @param {import('@libp2p/interface').Stream} stream @param {string} method @param {Uint8Array} body @param {number} timeoutMs
 * @param {(part: Uint8Array) => void} onPart
 * @returns {Promise<Uint8Array>} the body of the last answer
 */
export async function askParts (stream, method, body, timeoutMs, onPart) {
  const deadline = Date.now() + timeoutMs
  let bytes = 0
  try {
    const reader = new FrameReader(stream)
    await new FrameWriter(stream).write(encodeFrame({ type: REQUEST, id: 0, method, body }))
    for (;;) {
      if (Date.now() >= deadline) throw timedOut() // also where parts never cease to come
      const frame = await answerFrom(reader, deadline - Date.now())
      if (frame === undefined) throw new Failure('stream', 'the stream ended before the answer')
      if (frame.id !== 0 || frame.type === REQUEST || (frame.type === PART && frame.body.length > LIMITS.partBytes)) throw unexpected()
      if (frame.type !== PART) {
        void closeStream(stream)
        if (frame.type === ERROR) throw rrFailure(frame)
        return frame.body
      }
      bytes += Math.max(frame.body.length, PART_BYTES_MIN)
      if (bytes > LIMITS.answerPartsBytes) throw new Failure('too_large', 'more bytes than an answer may have')
      onPart(frame.body)
    }
  } catch (error) {
    if (error.kind !== 'rr') stream.abort(error)
    throw error
  }
}

/** The same of a method that is answered at once. */
export const askOnce = (stream, method, body, timeoutMs) => askParts(stream, method, body, timeoutMs, () => { throw unexpected() })

/** Many requests on one stream, answered as they finish. */
export class Session {
  #stream
  #writer
  #pending = new Map() // id -> {resolve, reject, isLate} of a request; one that is late keeps its place, as at the other side
  #nextId = 1
  #waiting = []
  #lastMs = Date.now() // when something happened
  #ended

  constructor (stream) {
    this.#stream = stream
    this.#writer = new FrameWriter(stream)
    void this.#read()
  }

  get isOpen () { return this.#ended === undefined }

  /**
   * At most 32 are in flight, as the other side would refuse more; the others wait here.
   * @param {string} method @param {Uint8Array} body @param {number} timeoutMs
   * @returns {Promise<Uint8Array | undefined>} the body of the answer; undefined where the session ended before it was asked: another may ask
   */
  async ask (method, body, timeoutMs) {
    const deadline = Date.now() + timeoutMs
    // A server ends a session that rests, twice as late: no request shall meet that end.
    if (this.#pending.size === 0 && Date.now() - this.#lastMs >= LIMITS.sessionIdleMs) this.#end(new Failure('stream', 'the session rested'))
    const id = this.#nextId
    this.#nextId = id === ID_MAX ? 1 : id + 1
    // Before it waits: whoever is let in and then throws would keep the place from who waits behind.
    const frame = encodeFrame({ type: REQUEST, id, method, body })
    while (this.isOpen && this.#pending.size >= LIMITS.inFlightPerSession) await this.#slot(deadline - Date.now())
    if (!this.isOpen) return undefined
    const request = { isLate: false }
    const answer = new Promise((resolve, reject) => this.#pending.set(id, Object.assign(request, { resolve, reject })))
    this.#lastMs = Date.now()
    this.#writer.write(frame).catch((error) => this.#end(error))
    try {
      return await inTime(answer, deadline - Date.now(), timedOut)
    } catch (error) {
      request.isLate = true
      const held = [...this.#pending.values()]
      const isStuck = held.length === LIMITS.inFlightPerSession && held.every(({ isLate }) => isLate)
      if (isStuck) this.#breakOff(new Failure('stream', 'nothing was answered any more')) // it must not lock this side out
      throw error
    }
  }

  async #slot (timeoutMs) {
    let enter
    const slot = new Promise((resolve) => { this.#waiting.push(enter = resolve) })
    try {
      await inTime(slot, timeoutMs, timedOut)
    } catch (error) {
      this.#waiting.splice(this.#waiting.indexOf(enter), 1)
      throw error
    }
  }

  async #read () {
    const reader = new FrameReader(this.#stream)
    try {
      for (;;) {
        const frame = await answerFrom(reader, 2 ** 31 - 1)
        if (frame === undefined) break
        if ((frame.type !== ANSWER && frame.type !== ERROR) || !this.#pending.has(frame.id)) throw unexpected()
        this.#lastMs = Date.now()
        const request = this.#pending.get(frame.id)
        this.#pending.delete(frame.id)
        if (frame.type === ANSWER) request.resolve(frame.body)
        else request.reject(rrFailure(frame))
        this.#waiting.shift()?.()
      }
      this.#end(new Failure('stream', 'the session ended'))
    } catch (error) {
      this.#breakOff(error)
    }
  }

  #breakOff (error) {
    this.#stream.abort(error)
    this.#end(error)
  }

  #end (error) {
    this.#ended ??= error
    for (const request of this.#pending.values()) request.reject(this.#ended)
    this.#pending.clear()
    for (const enter of this.#waiting.splice(0)) enter()
    void closeStream(this.#stream)
  }
}

/**
 * The asking side of /aw/rr/1: the section "Request / response" of docs/protocol.md. Hides ids, sessions and how a failed stream is told
 * from an answer that is an error.
 */
import { Failure } from './errors.js'
import { ANSWER, ERROR, ERRORS, PART, REQUEST, encodeFrame } from './frames.js'
import { LIMITS } from './limits.js'
import { FrameReader, FrameWriter, closeStream, inTime } from './stream.js'

export const RR_PROTOCOL = '/aw/rr/1'
const ID_MAX = 0xffffffff

const rrFailure = ({ code, retryAfterMs, message, body }) =>
  new Failure('rr', message, { code, name: ERRORS[code], retry_after_ms: retryAfterMs, detail: body })
const timedOut = () => new Failure('timeout', 'no answer in time')
const unexpected = () => new Failure('stream', 'a frame that was not asked for')

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
      const frame = await reader.next(deadline - Date.now())
      if (frame === undefined) throw new Failure('stream', 'the stream ended before the answer')
      if (frame.id !== 0 || frame.type === REQUEST) throw unexpected()
      if (frame.type !== PART) {
        void closeStream(stream)
        if (frame.type === ERROR) throw rrFailure(frame)
        return frame.body
      }
      bytes += frame.body.length
      if (frame.body.length > LIMITS.partBytes || bytes > LIMITS.answerPartsBytes) throw new Failure('too_large', 'more bytes than an answer may have')
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
  #writer
  #pending = new Map() // id -> {resolve, reject} of a request, also where nobody waits for it any more
  #nextId = 1
  #waiting = []
  #ended

  constructor (stream) {
    this.#writer = new FrameWriter(stream)
    void this.#read(stream)
  }

  get isOpen () { return this.#ended === undefined }

  /**
   * At most 32 are in flight, as the other side would refuse more; the others wait here.
   * @param {string} method @param {Uint8Array} body @param {number} timeoutMs @returns {Promise<Uint8Array>} the body of the answer
   */
  async ask (method, body, timeoutMs) {
    const deadline = Date.now() + timeoutMs
    while (this.isOpen && this.#pending.size >= LIMITS.inFlightPerSession) await this.#slot(deadline - Date.now())
    if (!this.isOpen) throw this.#ended
    const id = this.#nextId
    this.#nextId = id === ID_MAX ? 1 : id + 1
    const frame = encodeFrame({ type: REQUEST, id, method, body })
    const answer = new Promise((resolve, reject) => this.#pending.set(id, { resolve, reject }))
    this.#writer.write(frame).catch((error) => this.#end(error))
    return await inTime(answer, deadline - Date.now(), timedOut)
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

  async #read (stream) {
    const reader = new FrameReader(stream)
    try {
      for (;;) {
        const frame = await reader.next(2 ** 31 - 1)
        if (frame === undefined) break
        if ((frame.type !== ANSWER && frame.type !== ERROR) || !this.#pending.has(frame.id)) throw unexpected()
        const request = this.#pending.get(frame.id)
        this.#pending.delete(frame.id)
        if (frame.type === ANSWER) request.resolve(frame.body)
        else request.reject(rrFailure(frame))
        this.#waiting.shift()?.()
      }
      this.#end(new Failure('stream', 'the session ended'))
      await closeStream(stream)
    } catch (error) {
      this.#end(error)
      stream.abort(error)
    }
  }

  #end (error) {
    this.#ended ??= error.kind === 'stream' ? error : new Failure('stream', error.message)
    for (const request of this.#pending.values()) request.reject(this.#ended)
    this.#pending.clear()
    for (const enter of this.#waiting.splice(0)) enter()
  }
}

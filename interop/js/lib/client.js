/**
 * The asking side of /aw/rr/1: the section "Request / response" of docs/protocol.md. Hides ids, sessions and how a failed stream is told
 * from an answer that is an error.
 */
import { Failure } from './errors.js'
import { ANSWER, ERROR, ERRORS, PART, REQUEST, encodeFrame } from './frames.js'
import { LIMITS } from './limits.js'
import { FrameReader, FrameWriter, closeStream } from './stream.js'

export const RR_PROTOCOL = '/aw/rr/1'
const ID_MAX = 0xffffffff

const rrFailure = ({ code, retryAfterMs, message, body }) =>
  new Failure('rr', message, { code, name: ERRORS[code], retry_after_ms: retryAfterMs, detail: body })
const timedOut = () => new Failure('timeout', 'no answer in time')
const unexpected = () => new Failure('stream', 'a frame that was not asked for')

function answerOf (frame) {
  if (frame === undefined) throw new Failure('stream', 'the stream ended before the answer')
  if (frame.type === ERROR) throw rrFailure(frame)
  return frame
}

/** A request on a stream of its own. @returns {Promise<Uint8Array>} the body of the answer */
export async function askOnce (stream, method, body, timeoutMs) {
  try {
    const reader = new FrameReader(stream)
    await new FrameWriter(stream).write(encodeFrame({ type: REQUEST, id: 0, method, body }))
    const frame = answerOf(await reader.next(timeoutMs))
    if (frame.type !== ANSWER || frame.id !== 0) throw unexpected()
    return frame.body
  } finally {
    void closeStream(stream)
  }
}

/**
 * A request that is answered in parts. @param {(part: Uint8Array) => void} onPart
 * @returns {Promise<Uint8Array>} the body of the last answer
 */
export async function askParts (stream, method, body, timeoutMs, onPart) {
  const deadline = Date.now() + timeoutMs
  let bytes = 0
  try {
    const reader = new FrameReader(stream)
    await new FrameWriter(stream).write(encodeFrame({ type: REQUEST, id: 0, method, body }))
    for (;;) {
      const frame = answerOf(await reader.next(deadline - Date.now()))
      if (frame.id !== 0 || (frame.type !== PART && frame.type !== ANSWER)) throw unexpected()
      if (frame.type === ANSWER) {
        void closeStream(stream)
        return frame.body
      }
      bytes += frame.body.length
      if (frame.body.length > LIMITS.partBytes || bytes > LIMITS.answerPartsBytes) throw new Failure('too_large', 'more bytes than an answer may have')
      onPart(frame.body)
    }
  } catch (error) {
    stream.abort(error)
    throw error
  }
}

/** Many requests on one stream, answered as they finish. */
export class Session {
  #writer
  #pending = new Map() // id -> {resolve, reject} of a request, or null of one that nobody waits for any more
  #nextId = 1
  #waiting = []
  #ended

  constructor (stream) {
    this.#writer = new FrameWriter(stream)
    void this.#read(stream)
  }

  get isOpen () { return this.#ended === undefined }

  /** At most 32 are in flight, as the other side would refuse more; the others wait here. */
  async ask (method, body, timeoutMs) {
    const deadline = Date.now() + timeoutMs
    while (this.isOpen && this.#pending.size >= LIMITS.inFlightPerSession) await this.#slot(deadline - Date.now())
    if (!this.isOpen) throw this.#ended
    const id = this.#nextId
    this.#nextId = id === ID_MAX ? 1 : id + 1
    return await new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#pending.set(id, null)
        reject(timedOut())
      }, deadline - Date.now())
      const settle = (how) => (value) => {
        clearTimeout(timer)
        how(value)
      }
      this.#pending.set(id, { resolve: settle(resolve), reject: settle(reject) })
      this.#writer.write(encodeFrame({ type: REQUEST, id, method, body })).catch((error) => this.#end(error))
    })
  }

  #slot (timeoutMs) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting.splice(this.#waiting.indexOf(enter), 1)
        reject(timedOut())
      }, timeoutMs)
      const enter = () => {
        clearTimeout(timer)
        resolve()
      }
      this.#waiting.push(enter)
    })
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
        if (frame.type === ANSWER) request?.resolve(frame.body)
        else request?.reject(rrFailure(frame))
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
    for (const request of this.#pending.values()) request?.reject(this.#ended)
    this.#pending.clear()
    for (const enter of this.#waiting.splice(0)) enter()
  }
}

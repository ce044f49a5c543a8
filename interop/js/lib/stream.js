/**
 * Frames on a libp2p stream: reading with backpressure and deadlines, writing with few flushes. Hides how a stream of js-libp2p ends, fills
 * and drains; knows nothing of Node, as a browser uses it too.
 */
import { concat } from './bytes.js'
import { Failure } from './errors.js'
import { FrameSplitter } from './frames.js'
import { LIMITS } from './limits.js'

/** Above this, js-yamux would send one DATA frame so large that py-libp2p closes the connection. */
const UNSENT_MAX = 262_144
const QUEUE_BYTES_MAX = 1_048_576
const LINGER_MS = 100
const CLOSE_MS = 5_000
const HURRIED_MS = 1_000 // for one write, while others wait for what it holds

const turn = typeof setImmediate === 'function' ? () => new Promise((resolve) => setImmediate(resolve)) : () => new Promise((resolve) => setTimeout(resolve))
const gone = (message) => new Failure('stream', message)

/** The promise's value, where it comes in time. @param {() => Error} late what is thrown otherwise */
export function inTime (promise, timeoutMs, late) {
  let timer
  const end = new Promise((_, reject) => { timer = setTimeout(() => reject(late()), Math.max(0, timeoutMs)) })
  return Promise.race([promise, end]).finally(() => clearTimeout(timer))
}

/** Waits for the first of some events of a stream. @returns {Promise<boolean>} false where none came in time */
function eventOf (stream, names, timeoutMs) {
  return new Promise((resolve) => {
    const settle = (event) => {
      clearTimeout(timer)
      for (const name of names) stream.removeEventListener(name, settle)
      resolve(event !== undefined)
    }
    const timer = setTimeout(settle, timeoutMs)
    for (const name of names) stream.addEventListener(name, settle)
  })
}

export class FrameReader {
  #stream
  #splitter
  #wake = () => {}
  #end // undefined while open, then null for a clean end, or the error
  #frameSince = 0

  /** @param {number} [frameBytesMax] larger frames are passed over */
  constructor (stream, frameBytesMax = LIMITS.frameBytes) {
    this.#stream = stream
    this.#splitter = new FrameSplitter(frameBytesMax)
    stream.addEventListener('message', ({ data }) => {
      if (this.#splitter.isEmpty) this.#frameSince = Date.now()
      this.#splitter.push(data.subarray())
      if (this.#splitter.held > frameBytesMax + 3 && stream.readStatus === 'readable') stream.pause()
      this.#finishIfEnded()
      this.#wake()
    })
    // 'end' comes after the last byte was delivered, 'remoteCloseWrite' may come before it.
    stream.addEventListener('end', () => this.#finishIfEnded())
    stream.addEventListener('close', ({ error }) => error ? this.#finish(gone(error.message)) : this.#finishIfEnded())
    this.#finishIfEnded()
  }

  get isBetweenFrames () { return this.#splitter.isEmpty }

  /** What came with the negotiation is put back into the stream, where 'end' may have been told already. */
  #finishIfEnded () {
    const { readableEnded, readBufferLength, status } = this.#stream
    if (readableEnded && readBufferLength === 0) this.#finish(['aborted', 'reset'].includes(status) ? gone(`the stream was ${status}`) : null)
  }

  #finish (end) {
    if (this.#end === undefined) this.#end = end
    this.#wake()
  }

  /**
   * @param {number} idleMs how long until the first byte of the frame
   * @param {number} [totalMs] how long until its last; within 30 s of the first in any case
   * @returns the next frame, undefined at the end of the stream
   */
  async next (idleMs, totalMs = idleMs) {
    const began = Date.now()
    for (;;) {
      const frame = this.#splitter.next()
      if (frame !== undefined) {
        this.#frameSince = Date.now()
        return frame
      }
      if (this.#end !== undefined) {
        if (this.#end === null && this.isBetweenFrames) return undefined
        throw this.#end ?? gone('the stream ended inside a frame')
      }
      const more = new Promise((resolve) => { this.#wake = resolve })
      if (this.#stream.readStatus === 'paused') this.#stream.resume() // tells what waited before it returns
      const deadline = this.isBetweenFrames ? began + idleMs : Math.min(began + totalMs, this.#frameSince + LIMITS.requestTotalMs)
      await inTime(more, deadline - Date.now(), () => new Failure('timeout', 'no frame in time'))
    }
  }
}

export class FrameWriter {
  #stream
  #queue = []
  #bytes = 0 // in the queue, and of what was taken from it until the muxer has it
  #waiting
  #pumping
  #error
  #room = []

  /** @param {{bytes: number, isFull?: () => boolean}} [waiting] the sum of several writers, and whether others wait for what they hold */
  constructor (stream, waiting = { bytes: 0 }) {
    this.#stream = stream
    this.#waiting = waiting
  }

  /** Resolves when there was room for the frame, rejects when the stream is gone. */
  async write (frame) {
    while (this.#error === undefined && !this.#hasRoom(frame)) await new Promise((resolve) => this.#room.push(resolve))
    if (this.#error !== undefined) throw this.#error
    this.#queue.push(frame)
    this.#count(frame.length)
    this.#pumping ??= this.#pump()
  }

  #hasRoom (frame) {
    return this.#queue.length < LIMITS.sessionQueueFrames && (this.#bytes === 0 || this.#bytes + frame.length <= QUEUE_BYTES_MAX)
  }

  #count (bytes) {
    this.#bytes += bytes
    this.#waiting.bytes += bytes
  }

  /** Resolves when all is with the muxer, rejects when the stream is gone. */
  async flush () {
    while (this.#pumping !== undefined) await this.#pumping
    if (this.#error !== undefined) throw this.#error
  }

  /** One turn of the event loop before each flush lets frames that come together leave together. */
  async #pump () {
    try {
      while (this.#queue.length > 0) {
        await turn()
        const bytes = this.#take()
        for (let at = 0; at < bytes.length; at += LIMITS.sessionWriteBatchBytes) {
          this.#stream.send(bytes.subarray(at, at + LIMITS.sessionWriteBatchBytes))
          await this.#drained()
        }
        this.#count(-bytes.length)
        this.#makeRoom()
      }
    } catch (error) {
      this.#error = error instanceof Failure ? error : gone(error.message)
      this.#queue = []
      this.#count(-this.#bytes)
      this.#stream.abort(this.#error)
    } finally {
      this.#pumping = undefined
      this.#makeRoom()
    }
  }

  #take () {
    let bytes = 0
    let n = 0
    while (n < this.#queue.length && (n === 0 || bytes + this.#queue[n].length <= LIMITS.sessionWriteBatchBytes)) bytes += this.#queue[n++].length
    const frames = this.#queue.splice(0, n)
    return frames.length === 1 ? frames[0] : concat(...frames)
  }

  #makeRoom () {
    for (const resolve of this.#room.splice(0)) resolve()
  }

  /** The library's onDrain() waits only once in the life of a stream. */
  async #drained () {
    const began = Date.now()
    while (this.#stream.writableNeedsDrain && this.#stream.writeBufferLength > UNSENT_MAX) {
      await eventOf(this.#stream, ['drain', 'close'], HURRIED_MS)
      if (Date.now() >= began + (this.#waiting.isFull?.() ? HURRIED_MS : LIMITS.requestTotalMs)) throw gone('the reader is too slow')
      if (this.#stream.writeStatus === 'closed') throw gone('the stream is closed')
    }
  }

  /** Ends the stream after all that was written. */
  async close () {
    await this.flush()
    await closeStream(this.#stream, LIMITS.requestTotalMs) // it may still be read
  }

  /** Resets the stream, after what was written had its chance to leave. */
  async reset (message) {
    await this.flush()
    if (this.#stream.writeBufferLength > 0) await eventOf(this.#stream, ['idle', 'close'], CLOSE_MS)
    await new Promise((resolve) => setTimeout(resolve, LINGER_MS)) // a reset throws away what go has not read yet
    this.#stream.abort(gone(message))
  }
}

/** Ends a stream that has done its work, and forgets it even where the other side never ends it. */
export async function closeStream (stream, timeoutMs = CLOSE_MS) {
  if (stream.status !== 'open') return
  const late = setTimeout(() => stream.abort(gone('the other side did not end the stream')), timeoutMs)
  stream.addEventListener('close', () => clearTimeout(late), { once: true }) // else a program that has ended would wait for it
  try {
    await stream.close({ signal: AbortSignal.timeout(timeoutMs) })
  } catch (error) {
    stream.abort(error)
  }
}

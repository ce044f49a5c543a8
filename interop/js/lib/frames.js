/**
 * Frames of /aw/rr/1: the first half of the section "Request / response" of docs/protocol.md. Hides varints and how frames lie in the
 * pieces that a stream delivers. No input or output here.
 */
import { concat, fromUtf8, utf8 } from './bytes.js'
import { Failure, Refused, must } from './errors.js'
import { LIMITS } from './limits.js'

export const REQUEST = 0
export const ANSWER = 1
export const PART = 2
export const ERROR = 3

export const ERRORS = [
  undefined, 'ERR_NOT_FOUND', 'ERR_BAD_REQUEST', 'ERR_INVALID_HASH', 'ERR_STATE_MISMATCH', 'ERR_UNSUPPORTED', 'ERR_UNAUTHORIZED',
  'ERR_BUSY', 'ERR_RATE_LIMITED', 'ERR_TIMEOUT', 'ERR_NOT_AVAILABLE'
]
export const CODE = Object.fromEntries(ERRORS.map((name, code) => [name?.slice('ERR_'.length), code]))
export const METHOD = /^[a-z_]{1,64}$/
/** Length, type, id and method: with so many bytes a request says which it is. */
const HEAD_BYTES_MAX = 3 + 1 + 5 + 1 + 64

/** Bytes that are no frame; `id` where it can be told. */
export class FrameError extends Refused {
  constructor (message, id, kind = 'refused') {
    super(`frame: ${message}`)
    Object.assign(this, { id, kind })
  }
}

function varint (value) {
  const bytes = []
  for (; value >= 0x80; value = Math.floor(value / 0x80)) bytes.push((value % 0x80) | 0x80)
  return Uint8Array.from([...bytes, value])
}

/** @returns {[value: number, next: number] | undefined} undefined where the bytes end inside of it */
function readVarint (bytes, at, end, bytesMax) {
  let value = 0
  for (let i = 0; i < bytesMax; i++) {
    if (at + i >= end) return undefined
    const byte = bytes[at + i]
    value += (byte & 0x7f) * 0x80 ** i
    if (byte < 0x80) {
      if (byte === 0 && i > 0) throw new FrameError('a number that is not the shortest')
      return [value, at + i + 1]
    }
  }
  throw new FrameError('a number of too many bytes')
}

/** A frame is {type, id, body}, a request with `method`, an error with {code, retryAfterMs, message} and the detail as body. */
export function encodeFrame ({ type, id, method, code, retryAfterMs = 0, message = '', body }) {
  const parts = [Uint8Array.of(type), varint(id)]
  if (type === REQUEST) parts.push(Uint8Array.of(method.length), utf8(method))
  if (type === ERROR) {
    const words = utf8(message)
    must(words.length <= LIMITS.errorMessageBytes, 'frame: the message is too long')
    parts.push(Uint8Array.of(code), varint(retryAfterMs), Uint8Array.of(words.length >> 8, words.length & 0xff), words)
  }
  const rest = concat(...parts, body)
  if (rest.length > LIMITS.frameBytes) throw new Failure('usage', 'frame: larger than it may be')
  return concat(varint(rest.length), rest)
}

/** @param {Uint8Array} bytes all that follows the length */
function decodeFrame (bytes) {
  const cut = (message, id) => { throw new FrameError(`it ends inside ${message}`, id) }
  const type = bytes[0]
  const [id, next] = readVarint(bytes, 1, bytes.length, 5) ?? cut('the id')
  if (id > 0xffffffff) throw new FrameError('the id is too large')
  if (type === ANSWER || type === PART) return { type, id, body: bytes.slice(next) }
  if (type === REQUEST) {
    const end = next + 1 + (bytes[next] ?? 0)
    if (end > bytes.length || next >= bytes.length) cut('the method', id)
    const method = String.fromCharCode(...bytes.subarray(next + 1, end))
    if (!METHOD.test(method)) throw new FrameError('a method that cannot be', id)
    return { type, id, method, body: bytes.slice(end) }
  }
  if (type !== ERROR) throw new FrameError(`type ${type} is not known`, id)
  const code = bytes[next] ?? cut('the code', id)
  if (ERRORS[code] === undefined) throw new FrameError(`code ${code} is not known`, id)
  const [retryAfterMs, at] = readVarint(bytes, next + 1, bytes.length, 5) ?? cut('retry_after_ms', id)
  if (retryAfterMs > 0xffffffff) throw new FrameError('retry_after_ms is too large', id)
  if (at + 2 > bytes.length) cut('the length of the message', id)
  const words = (bytes[at] << 8) | bytes[at + 1]
  if (words > LIMITS.errorMessageBytes) throw new FrameError('the message is too long', id)
  if (at + 2 + words > bytes.length) cut('the message', id)
  return { type, id, code, retryAfterMs, message: readUtf8(bytes.subarray(at + 2, at + 2 + words), id), body: bytes.slice(at + 2 + words) }
}

function readUtf8 (bytes, id) {
  try {
    return fromUtf8(bytes)
  } catch {
    throw new FrameError('the message is no UTF-8', id)
  }
}

/** Cuts a stream of bytes into frames; holds less than one frame and one piece. */
export class FrameSplitter {
  #bytes = new Uint8Array(4096)
  #start = 0
  #end = 0
  #passing = 0 // bytes still to come of a frame that is passed over
  #frameBytesMax

  /** @param {number} [frameBytesMax] of a larger frame nothing is kept but what says which it is */
  constructor (frameBytesMax = LIMITS.frameBytes) {
    this.#frameBytesMax = frameBytesMax
  }

  get held () { return this.#end - this.#start }
  get isEmpty () { return this.held === 0 && this.#passing === 0 }

  push (piece) {
    const passed = Math.min(this.#passing, piece.length)
    this.#passing -= passed
    piece = piece.subarray(passed)
    if (this.#end + piece.length > this.#bytes.length) {
      const held = this.#bytes.subarray(this.#start, this.#end)
      // Twice the need, so that many small pieces of a large frame are not copied each time.
      const target = held.length + piece.length > this.#bytes.length / 2 ? new Uint8Array(2 * (held.length + piece.length)) : this.#bytes
      target.set(held)
      this.#bytes = target
      this.#end = held.length
      this.#start = 0
    }
    this.#bytes.set(piece, this.#end)
    this.#end += piece.length
  }

  /** @returns the next whole frame, if there is one; or what is known of one that is `tooLarge`, as soon as it is */
  next () {
    const prefix = readVarint(this.#bytes, this.#start, this.#end, 3)
    if (prefix === undefined) return undefined
    const [length, from] = prefix
    if (length === 0) throw new FrameError('a length of zero')
    if (length > LIMITS.frameBytes) throw new FrameError(`a length of ${length}`, undefined, 'too_large')
    const tooLarge = length > this.#frameBytesMax
    if (tooLarge ? this.held < HEAD_BYTES_MAX : from + length > this.#end) return undefined
    this.#start = Math.min(from + length, this.#end)
    this.#passing = from + length - this.#start
    const frame = decodeFrame(this.#bytes.subarray(from, this.#start))
    if (this.held === 0 && this.#bytes.length > 65536) this.#bytes = new Uint8Array(4096)
    if (this.held === 0) this.#start = this.#end = 0
    return tooLarge ? { ...frame, body: new Uint8Array(), tooLarge } : frame
  }
}

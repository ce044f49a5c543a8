/** Blobs by content id, in memory: "Hashes" and fetch_blob of docs/protocol.md. Hides how bytes are kept, made and fetched in parts. */
import { blake3 } from '@noble/hashes/blake3.js'
import { createBLAKE3 } from 'hash-wasm'
import { equalBytes, toHex } from '../lib/bytes.js'
import { decode, encode } from '../lib/codec.js'
import { must } from '../lib/errors.js'
import { H } from '../lib/identity.js'
import { LIMITS } from '../lib/limits.js'
import { COUNT, open } from '../lib/schema.js'

const TOTAL_BYTES_MAX = 2 ** 30
const PIECE_BYTES = 2 ** 20
const LAST = open({ size: COUNT })

export class Blobs {
  #blobs = new Map()
  #bytes = 0
  served = { blobs: 0, bytes: 0 } // what went out whole

  get (contentHash) { return this.#blobs.get(toHex(contentHash)) }

  /** Serves these bytes under this hash, whatever they are. */
  set (contentHash, bytes) {
    const key = toHex(contentHash)
    const grown = this.#bytes + bytes.length - (this.#blobs.get(key)?.length ?? 0)
    must(grown <= TOTAL_BYTES_MAX, 'no room for more blobs')
    this.#blobs.set(key, bytes)
    this.#bytes = grown
  }

  put (bytes) {
    const contentHash = H(bytes)
    this.set(contentHash, bytes)
    return contentHash
  }

  countServed (size) { this.served = { blobs: this.served.blobs + 1, bytes: this.served.bytes + size } }
}

/** Eight bytes, big-endian. */
export function u64be (value) {
  const bytes = new Uint8Array(8)
  new DataView(bytes.buffer).setBigUint64(0, BigInt(value))
  return bytes
}

/** The first `size` bytes of BLAKE3's extended output of a seed; others run between its pieces. */
export async function seededBytes (seed, size) {
  const hash = blake3.create({}).update(u64be(seed))
  const bytes = new Uint8Array(size)
  for (let at = 0; at < size; at += PIECE_BYTES) {
    bytes.set(hash.xof(Math.min(PIECE_BYTES, size - at)), at)
    await new Promise((resolve) => setImmediate(resolve))
  }
  return bytes
}

/**
 * @param {(method: string, body: Uint8Array, onPart: (part: Uint8Array) => void) => Promise<Uint8Array>} askParts
 * @param {{length?: number, bytesMax?: number}} [limits] with a length only so many, which no hash can tell
 * @returns {Promise<Uint8Array>} bytes of this hash; hashed as they come, so that no long pause blocks the peer
 */
export async function fetchBlob (askParts, contentHash, { length, bytesMax = LIMITS.answerPartsBytes } = {}) {
  const hash = await createBLAKE3()
  const parts = []
  let size = 0
  const last = await askParts('fetch_blob', encode({ content_hash: contentHash, length }), (part) => {
    hash.update(part)
    parts.push(part)
    size += part.length
    must(size <= (length ?? bytesMax), 'fetch_blob: more than it may be')
  })
  const { size: whole } = LAST(decode(last), 'fetch_blob')
  must(length !== undefined || (whole === size && equalBytes(hash.digest('binary'), contentHash)), 'fetch_blob: bytes of another hash')
  return new Uint8Array(Buffer.concat(parts))
}

/** The bytes asked for, as parts. */
export function * partsOf (bytes, offset = 0, length = bytes.length) {
  const end = Math.min(bytes.length, offset + length)
  for (let at = offset; at < end; at += LIMITS.partBytes) yield bytes.subarray(at, Math.min(end, at + LIMITS.partBytes))
}

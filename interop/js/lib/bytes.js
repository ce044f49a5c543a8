/** Byte strings: hex, text, joining, comparing. Hides that Uint8Array has none of these. */
import { bytesToHex, hexToBytes, concatBytes } from '@noble/hashes/utils.js'

/** @type {(bytes: Uint8Array) => string} */
export const toHex = bytesToHex
/** @type {(hex: string) => Uint8Array} */
export const fromHex = hexToBytes
export const concat = concatBytes
/** @param {string} text @returns {Uint8Array} */
export const utf8 = (text) => new TextEncoder().encode(text)

const TEXT = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
/** Throws where the bytes are no UTF-8. A U+FEFF at the start is text like any other. */
export const fromUtf8 = (bytes) => TEXT.decode(bytes)

/** Lexicographic, as a sort function. */
export function compareBytes (a, b) {
  const n = Math.min(a.length, b.length)
  for (let i = 0; i < n; i++) if (a[i] !== b[i]) return a[i] - b[i]
  return a.length - b.length
}

export const equalBytes = (a, b) => a.length === b.length && compareBytes(a, b) === 0

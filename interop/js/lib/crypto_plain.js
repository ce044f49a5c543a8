/** BLAKE3 and Ed25519 in plain JavaScript: for browsers, which have none of the one, and others among each other. */
import { ed25519 } from '@noble/curves/ed25519.js'
import { blake3 } from '@noble/hashes/blake3.js'
import { sha512 } from '@noble/hashes/sha2.js'
import { concat } from './bytes.js'

const { Point } = ed25519
const littleEndian = (bytes) => bytes.reduceRight((sum, byte) => (sum << 8n) | BigInt(byte), 0n)

/** BLAKE3-256 of all parts joined. @param {...Uint8Array} parts @returns {Uint8Array} */
export const H = (...parts) => blake3(concat(...parts))

/** [S]B = R + [k]A without the cofactor, of keys and signatures whose encodings have been judged already. @returns {boolean} */
export function equationHolds (publicKey, message, signature) {
  let A, R
  try {
    A = Point.fromBytes(publicKey)
    R = Point.fromBytes(signature.subarray(0, 32))
  } catch {
    return false // no point of the curve
  }
  const k = littleEndian(sha512(concat(signature.subarray(0, 32), publicKey, message))) % Point.Fn.ORDER
  const S = littleEndian(signature.subarray(32))
  return Point.BASE.multiplyUnsafe(S).equals(R.add(A.multiplyUnsafe(k)))
}

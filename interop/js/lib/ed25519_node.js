/** The same equation by Node's OpenSSL, ten times as fast: it compares the encoding of [S]B - [k]A with R, without the cofactor. */
import { createPublicKey, verify } from 'node:crypto'
import { concat, fromHex } from './bytes.js'

const SPKI = fromHex('302a300506032b6570032100')

/** @returns {boolean} */
export function equationHolds (publicKey, message, signature) {
  const key = createPublicKey({ key: Buffer.from(concat(SPKI, publicKey)), format: 'der', type: 'spki' })
  return verify(null, message, key, signature)
}

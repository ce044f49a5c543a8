/** The same equation by Node's OpenSSL, ten times as fast: it compares the encoding of [S]B - [k]A with R, without the cofactor. */
import { createPrivateKey, createPublicKey, sign as signWith, verify } from 'node:crypto'
import { concat, fromHex } from './bytes.js'

const SPKI = fromHex('302a300506032b6570032100')
const PKCS8 = fromHex('302e020100300506032b657004220420')

/** @returns {boolean} */
export function equationHolds (publicKey, message, signature) {
  const key = createPublicKey({ key: Buffer.from(concat(SPKI, publicKey)), format: 'der', type: 'spki' })
  return verify(null, message, key, signature)
}

export function sign (message, seed) {
  const key = createPrivateKey({ key: Buffer.from(concat(PKCS8, seed)), format: 'der', type: 'pkcs8' })
  return new Uint8Array(signWith(null, message, key))
}

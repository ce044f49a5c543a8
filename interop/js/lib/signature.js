/**
 * Which signatures hold: the section "Signatures" of docs/protocol.md. Hides that no library has exactly this rule: encodings and small
 * orders are judged here, before an implementation of the equation (`#crypto`, one for Node and one for browsers) is asked.
 */
import * as native from '#crypto'
import { ed25519 } from '@noble/curves/ed25519.js'
import { compareBytes, fromHex, toHex } from './bytes.js'
import { isKeyId, publicKeyOf, signedMessage } from './identity.js'

const bigEndian = (hex) => fromHex(hex).reverse()
const P = bigEndian('edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f')
const L = bigEndian('edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010')
/** The y of the eight points of small order; the sign of x is left out, as -P has the order of P. */
const SMALL_ORDER = new Set([
  '0100000000000000000000000000000000000000000000000000000000000000',
  'ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
  '0000000000000000000000000000000000000000000000000000000000000000',
  '26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05',
  'c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a'
])

/** A point is canonical with y < p; x = 0 with a sign is canonical in no case, but such points are of small order. */
function isSoundPoint (bytes) {
  const y = Uint8Array.from(bytes) // slice() of a Buffer would be no copy
  y[31] &= 0x7f
  return !SMALL_ORDER.has(toHex(y)) && compareBytes(y.reverse(), P) < 0
}

/** @param {Uint8Array} keyId @param {Uint8Array} recordHash @param {Uint8Array} signature @returns {boolean} whether the key signed it */
export function verify (keyId, recordHash, signature, { equationHolds } = native) {
  if (!isKeyId(keyId) || signature.length !== 64) return false
  const publicKey = publicKeyOf(keyId)
  if (compareBytes(Uint8Array.from(signature.subarray(32)).reverse(), L) >= 0) return false
  if (!isSoundPoint(publicKey) || !isSoundPoint(signature.subarray(0, 32))) return false
  return equationHolds(publicKey, signedMessage(recordHash), signature)
}

/** @param {Uint8Array} recordHash @param {Uint8Array} seed @returns {Uint8Array} */
export const sign = (recordHash, seed) => ed25519.sign(signedMessage(recordHash), seed)

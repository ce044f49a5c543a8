/** Hashes and ids: the sections "Hashes" and "Identity" of docs/protocol.md. Hides every domain prefix, and how people write ids (base32, base58). */
import { ed25519 } from '@noble/curves/ed25519.js'
import { base32 } from 'multiformats/bases/base32'
import { base58btc } from 'multiformats/bases/base58'
import { concat, fromHex, utf8 } from './bytes.js'

const KEY_ID_PREFIX = fromHex('002408011220')
const NUL = new Uint8Array(1)
export { H } from '#crypto'

/** The blob that stands for a record: what its hash is of, and what is stored under it. */
export const preimage = (record, body) => concat(utf8(`aw/${record}/1`), NUL, body)
export const signedMessage = (recordHash) => concat(utf8('aw/sig/1'), NUL, recordHash)

export const publicKeyOf = (keyId) => keyId.subarray(KEY_ID_PREFIX.length)
export const isKeyId = (bytes) => bytes.length === 38 && KEY_ID_PREFIX.every((byte, i) => bytes[i] === byte)
/** @param {Uint8Array} keyId @returns {string} as people write it: 12D3Koo... */
export const peerIdText = (keyId) => base58btc.baseEncode(keyId)
/** @param {Uint8Array} seed 32 bytes @returns {Uint8Array} the key id of an actor or a node */
export const seedToKeyId = (seed) => concat(KEY_ID_PREFIX, ed25519.getPublicKey(seed))

export const worldIdOf = (headerHash) => base32.baseEncode(headerHash.subarray(0, 20))

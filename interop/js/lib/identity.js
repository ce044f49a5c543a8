/**
 * Hashes and names: the sections "Hashes", "Names" and "Identity" of docs/protocol.md. Hides every domain prefix and how the
 * ids of people (base32, base58) are written.
 */
import { ed25519 } from '@noble/curves/ed25519.js'
import { blake3 } from '@noble/hashes/blake3.js'
import { base32 } from 'multiformats/bases/base32'
import { base58btc } from 'multiformats/bases/base58'
import { concat, fromHex, utf8 } from './bytes.js'

const KEY_ID_PREFIX = fromHex('002408011220')
const NUL = new Uint8Array(1)

export const H = (...parts) => blake3(parts.length === 1 ? parts[0] : concat(...parts))
export const hasher = () => blake3.create({})

/** The blob that stands for a record: what its hash is of, and what is stored under it. */
export const preimage = (record, body) => concat(utf8(`aw/${record}/1`), NUL, body)
export const signedMessage = (recordHash) => concat(utf8('aw/sig/1'), NUL, recordHash)

export const publicKeyOf = (keyId) => keyId.subarray(KEY_ID_PREFIX.length)
export const isKeyId = (bytes) => bytes.length === 38 && KEY_ID_PREFIX.every((byte, i) => bytes[i] === byte)
export const peerIdText = (keyId) => base58btc.baseEncode(keyId)
export const seedToKeyId = (seed) => concat(KEY_ID_PREFIX, ed25519.getPublicKey(seed))

export const worldIdOf = (headerHash) => base32.baseEncode(headerHash.subarray(0, 20))
export const worldContentId = (worldId) => H(utf8('aw/world/1'), NUL, utf8(worldId))
export const headKey = (worldId) => `/aw/world/${worldId}/head`

export const topicOf = (worldId, kind) => `aw.${worldId}.${kind}`

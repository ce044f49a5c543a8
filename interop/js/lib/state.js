/** Proofs of the state: the sections "State" and "Proofs" of docs/protocol.md. Hides their shape: callers see a root, a cell and bytes. */
import { compareBytes, concat, equalBytes, fromHex, utf8 } from './bytes.js'
import { decode, encode } from './codec.js'
import { must } from './errors.js'
import { H } from './identity.js'
import { LIMITS } from './limits.js'
import { HASH, bytes, closed, int, list, oneOf, tuple } from './schema.js'

const DOMAIN = concat(utf8('aw/trie/1'), fromHex('00'))
const [BUCKET, INNER] = ['00', '01'].map((tag) => concat(DOMAIN, fromHex(tag)))
const EMPTY = new Uint8Array(32)

const KEY = bytes(1, 256)
const INLINE = tuple(KEY, oneOf(0), bytes(1, LIMITS.valueInlineBytes))
const BESIDE = tuple(KEY, oneOf(1), HASH, int(257, 65536))
const ENTRY = (value, path) => (value?.[1] === 1 ? BESIDE : INLINE)(value, path)
const PATH = closed({ siblings: list(bytes(480), 0, LIMITS.proofDepth), bucket: list(ENTRY, 0, LIMITS.bucketEntries) })
const PROOF = closed({ top: PATH, 'cells?': PATH, 'value?': bytes(257, 65536) })

export const nibble = (hash, depth) => depth % 2 === 0 ? hash[depth >> 1] >> 4 : hash[depth >> 1] & 15
export const bucketHash = (entries) => entries.length === 0 ? EMPTY : H(BUCKET, encode(entries))
export const innerHash = (...children) => H(INNER, ...children)

/** Refuses a path that does not lead to the root. @returns {Array | undefined} the key's entry, or none where its absence is proved */
function entryAt (root, { siblings, bucket }, key) {
  const target = H(key)
  const depth = siblings.length
  const hashes = bucket.map(([entryKey]) => H(entryKey))
  hashes.forEach((hash, i) => {
    must(i === 0 || compareBytes(hashes[i - 1], hash) < 0, 'proof: entries do not ascend')
    for (let d = 0; d < depth; d++) must(nibble(hash, d) === nibble(target, d), 'proof: an entry is not on the path')
  })
  let node = bucketHash(bucket)
  for (let d = depth - 1; d >= 0; d--) {
    const at = 32 * nibble(target, d)
    node = innerHash(siblings[d].subarray(0, at), node, siblings[d].subarray(at))
  }
  must(equalBytes(node, root), 'proof: does not lead to the root')
  return bucket.find(([entryKey]) => equalBytes(entryKey, key))
}

/**
 * @param {Uint8Array} root @param {string} namespace @param {Uint8Array} key @param {Uint8Array} proofBytes
 * @returns {Uint8Array | undefined} the cell's value, undefined where its absence is proved; everything else is refused
 */
export function provedValue (root, namespace, key, proofBytes) {
  must(proofBytes.length <= LIMITS.proofBytes, 'proof: larger than it may be')
  const proof = PROOF(decode(proofBytes), 'proof')
  const top = entryAt(root, proof.top, utf8(namespace))
  must((top === undefined) === (proof.cells === undefined), 'proof: the path in the namespace is there without it, or missing')
  if (top !== undefined) must(top[1] === 0 && top[2].length === 32, 'proof: a namespace without a root')
  const entry = top && entryAt(top[2], proof.cells, key)
  must((entry?.[1] === 1) === (proof.value !== undefined), 'proof: a value beside its entry that does not belong there, or none')
  if (entry === undefined) return undefined
  if (entry[1] === 0) return entry[2]
  must(proof.value.length === entry[3] && equalBytes(H(proof.value), entry[2]), 'proof: another value than its entry says')
  return proof.value
}

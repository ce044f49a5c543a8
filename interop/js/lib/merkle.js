/** Proofs in Merkle trees: that section of docs/protocol.md. Hides the domains of leaf and node, and the order of the siblings in a path. */
import { concat, equalBytes, fromHex, utf8 } from './bytes.js'
import { H } from './identity.js'

const DOMAIN = concat(utf8('aw/merkle/1'), fromHex('00'))
const [LEAF, NODE, NONE] = ['00', '01', '02'].map((tag) => concat(DOMAIN, fromHex(tag)))

/** The root of the tree without items. */
export const EMPTY = H(NONE)
export const leafHash = (item) => H(LEAF, item)
export const node = (left, right) => H(NODE, left, right)

/** @returns {boolean} whether the item stands at this index of a tree of this count; index and count are what the caller knows */
export function provesItem (root, item, index, count, path) {
  if (index >= count) return false
  let hash = leafHash(item)
  let used = 0
  for (let last = count - 1; last > 0; index = Math.floor(index / 2), last = Math.floor(last / 2)) {
    if (index === last && index % 2 === 0) continue // the odd one moves up
    if (used === path.length) return false
    hash = index % 2 === 1 ? node(path[used++], hash) : node(hash, path[used++])
  }
  return used === path.length && equalBytes(hash, root)
}

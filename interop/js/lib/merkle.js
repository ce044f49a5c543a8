/** Merkle trees: that section of docs/protocol.md. Hides the domains of leaf and node, and the order of the siblings in a path. */
import { concat, equalBytes, fromHex, utf8 } from './bytes.js'
import { H } from './identity.js'

const DOMAIN = concat(utf8('aw/merkle/1'), fromHex('00'))
const [LEAF, NODE, EMPTY] = ['00', '01', '02'].map((tag) => concat(DOMAIN, fromHex(tag)))

const leafHash = (item) => H(LEAF, item)
const node = (left, right) => H(NODE, left, right)

/** A tree that grows by one item at a time; its peaks are the roots of the full subtrees, the largest first. */
export class MerkleTree {
  constructor () {
    this.count = 0
    this.peaks = []
  }

  push (item) {
    let hash = leafHash(item)
    for (let n = this.count++; n % 2 === 1; n = Math.floor(n / 2)) hash = node(this.peaks.pop(), hash)
    this.peaks.push(hash)
    return this
  }

  root () {
    return this.count === 0 ? H(EMPTY) : this.peaks.reduceRight((right, left) => node(left, right))
  }
}

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

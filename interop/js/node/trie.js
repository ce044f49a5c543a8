/**
 * The state trie built whole, as far as the genesis: the sections "State" and "Cells" of docs/protocol.md. Hides how cells
 * [namespace, key, value] become subtrees.
 */
import { compareBytes, utf8 } from '../lib/bytes.js'
import { encode } from '../lib/codec.js'
import { H } from '../lib/identity.js'
import { LIMITS } from '../lib/limits.js'
import { bucketHash, innerHash, nibble } from '../lib/state.js'

function subtree (nodes, depth) {
  if (nodes.length <= LIMITS.bucketEntries) return bucketHash(nodes.map(({ entry }) => entry))
  const children = Array.from({ length: 16 }, () => [])
  for (const node of nodes) children[nibble(node.hash, depth)].push(node)
  return innerHash(...children.map((child) => subtree(child, depth + 1)))
}

function trieRoot (entries) {
  const nodes = entries.map((entry) => ({ entry, hash: H(entry[0]) }))
  return subtree(nodes.sort((a, b) => compareBytes(a.hash, b.hash)), 0)
}

const entryOf = (key, value) => value.length <= LIMITS.valueInlineBytes ? [key, 0, value] : [key, 1, H(value), value.length]

/** @param {[string, Uint8Array, Uint8Array][]} cells @returns {Uint8Array} the state root */
export function stateRoot (cells) {
  const namespaces = new Map()
  for (const [namespace, key, value] of cells) {
    if (!namespaces.has(namespace)) namespaces.set(namespace, [])
    namespaces.get(namespace).push(entryOf(key, value))
  }
  return trieRoot([...namespaces].map(([namespace, entries]) => [utf8(namespace), 0, trieRoot(entries)]))
}

/** The cells at height 0. What limits a batch is no parameter of the kernel. */
export function genesisCells ({ balances, limits, ...others }) {
  const parameters = Object.entries({ ...others, ...limits }).filter(([name]) => !/^(batch|envelope)_/.test(name))
  return [
    ...parameters.map(([name, value]) => ['kernel', utf8(name), encode(value)]),
    ...balances.filter(([, , amount]) => amount > 0).map(([actor, kind, amount]) => ['ledger', encode(['actor', actor, kind]), encode(amount)])
  ]
}

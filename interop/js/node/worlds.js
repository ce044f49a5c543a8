/**
 * Worlds that this peer knows or mirrors: "Joining a world" of docs/protocol.md without the replay. Hides how a chain is fetched from its
 * head down, checked from its genesis up, and held.
 */
import { equalBytes, toHex } from '../lib/bytes.js'
import { decode, encode } from '../lib/codec.js'
import { must } from '../lib/errors.js'
import { CODE } from '../lib/frames.js'
import { checkGenesis } from '../lib/head.js'
import { LIMITS } from '../lib/limits.js'
import { checkHeadBlock } from '../lib/proofs.js'
import { bytesMaxOf, checkRecord, checkSealed, hashOf, preimageOf } from '../lib/records.js'
import { any, list, open } from '../lib/schema.js'
import { World } from '../lib/world.js'
import { fetchBlob } from './blobs.js'
import { checkCommitted, checkHeight, checkKept, decodePreimage, listBytesMax, rootOf } from './chain.js'

const BATCH_ANSWER = open({ batch: any, commit: any })
const PREIMAGE_BYTES_MAX = bytesMaxOf('batch') + 'aw/batch/1'.length + 1

export class Worlds {
  #worlds = new Map()

  get (worldId) { return this.#worlds.get(worldId) }
  ids () { return [...this.#worlds.keys()] }

  /** @returns {object} the world of a genesis file, known from now on */
  know (genesisBytes) {
    const genesis = checkGenesis(genesisBytes)
    if (!this.#worlds.has(genesis.worldId)) {
      this.#worlds.set(genesis.worldId, { genesis, file: decode(genesisBytes), heights: [], byHash: new Map(), head: undefined })
    }
    return this.#worlds.get(genesis.worldId)
  }
}

/** Fetches a world whole, checks it and keeps it. @returns {Promise<object>} the world */
export async function mirror (worlds, blobs, node, worldId) {
  const { ask, askParts } = node
  const asked = new World(worldId, node)
  const genesis = await asked.genesis()
  const head = await asked.head()
  const blocks = await blocksDown(askParts, worldId, head)
  let below = rootOf(genesis)
  checkKept(below, undefined, head.set)
  const heights = []
  const byHash = new Map()
  for (const block of blocks) {
    const height = await fetchHeight({ ask, askParts }, block, genesis)
    below = checkHeight(height, below)
    checkKept(below, height.batch, head.set)
    const isCommitted = height.seals !== undefined && checkCommitted(height.seals.batch, height.seals.commit, genesis, head.set)
    for (const blob of [preimageOf('block', block), preimageOf('batch', height.batch), height.actions, height.receipts, height.events]) blobs.put(blob)
    heights.push({ block, seals: isCommitted ? height.seals : undefined })
    byHash.set(toHex(below.blockHash), heights.at(-1))
  }
  return Object.assign(worlds.know(genesis.bytes), { heights, byHash, head })
}

/** Block records from the head's hash down, each linking to the next. @returns {Promise<object[]>} ascending */
async function blocksDown (askParts, worldId, head) {
  const blocks = []
  let expected = head.blockHash
  for (let top = head.height; top > 0;) {
    const from = Math.max(1, top - LIMITS.blocksPerAnswer + 1)
    const answer = []
    await askParts('get_blocks', encode({ world_id: worldId, from_height: from, count: top - from + 1 }), (part) => {
      for (const value of list(any, 1, LIMITS.blocksPerAnswer)(decode(part), 'get_blocks')) answer.push(checkRecord('block', value))
    })
    must(answer.length === top - from + 1, 'get_blocks: not as many as were asked for')
    for (; top >= from; top--) {
      const block = answer[top - from]
      must(block.height === top && equalBytes(hashOf('block', block), expected), 'get_blocks: a block that does not link')
      expected = block.prev_block_hash
      blocks.push(block)
    }
  }
  checkHeadBlock(blocks[0], head)
  return blocks.reverse()
}

async function fetchHeight ({ ask, askParts }, block, { body: { limits } }) {
  const seals = await fetchSeals(ask, block)
  const fetch = (ref, bytesMax) => fetchBlob(askParts, ref, { bytesMax })
  const batch = seals?.batch[0] ?? decodePreimage('batch', await fetch(block.batch_hash, PREIMAGE_BYTES_MAX))
  must(equalBytes(hashOf('batch', batch), block.batch_hash), 'batch: is not the block\'s')
  const [actions, receipts, events] = await Promise.all([
    fetch(batch.actions_ref, limits.batch_bytes_max),
    fetch(block.receipts_ref, listBytesMax('receipt', limits)),
    fetch(block.journal_ref, listBytesMax('event', limits))
  ])
  return { block, batch, seals, actions, receipts, events }
}

/** The sealed batch and commit of a height; undefined where a peer keeps those of the last heights only, or never had them. */
async function fetchSeals (ask, { world_id: worldId, height }) {
  try {
    const { batch, commit } = BATCH_ANSWER(decode(await ask('get_batch', encode({ world_id: worldId, height }))), 'get_batch')
    return { batch: checkSealed('batch', batch), commit: checkSealed('commit', commit) }
  } catch (error) {
    if (error.kind === 'rr' && error.fields.code === CODE.NOT_FOUND) return undefined
    throw error
  }
}

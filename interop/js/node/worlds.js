/**
 * Worlds that this peer knows, and those of them that it mirrors: "Joining a world" of docs/protocol.md without the replay. Hides how a
 * chain is fetched from its head down, checked from its genesis up, and held.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { equalBytes, toHex } from '../lib/bytes.js'
import { decode, encode } from '../lib/codec.js'
import { Failure, must } from '../lib/errors.js'
import { CODE } from '../lib/frames.js'
import { checkGenesis, compareHeads } from '../lib/head.js'
import { LIMITS } from '../lib/limits.js'
import { checkHeadBlock } from '../lib/proofs.js'
import { bytesMaxOf, checkRecord, checkSealed, hashOf, preimageOf } from '../lib/records.js'
import { any, list, open } from '../lib/schema.js'
import { World } from '../lib/world.js'
import { fetchBlob } from './blobs.js'
import { checkCommitted, checkHeight, checkKept, decodePreimage, listBytesMax, rootOf } from './chain.js'

const BATCH_ANSWER = open({ batch: any, commit: any })
const PREIMAGE_BYTES_MAX = bytesMaxOf('batch') + 'aw/batch/1'.length + 1
const HEIGHTS_MAX = 2 ** 20
const AGAIN_MAX = 10
const AGAIN_MS_MAX = 5_000

export class Worlds {
  #worlds = new Map()

  get (worldId) { return this.#worlds.get(worldId) }
  mirroredIds () { return [...this.#worlds.keys()].filter((worldId) => this.mirrored(worldId)).sort() }

  /** @returns {object | undefined} the world, where it is more than known */
  mirrored (worldId) { return this.get(worldId)?.head && this.get(worldId) }

  /** @returns {object} the world of a genesis file, known from now on */
  know (genesisBytes) {
    const genesis = checkGenesis(genesisBytes)
    if (!this.#worlds.has(genesis.worldId)) this.#worlds.set(genesis.worldId, { genesis, file: decode(genesisBytes) })
    return this.#worlds.get(genesis.worldId)
  }
}

/** Fetches a world whole, checks it, and keeps it where what is held is no newer. @returns {Promise<object>} the world as it is held */
export async function mirror (worlds, blobs, { id, ...asking }, worldId) {
  const node = { id, ask: patient(asking.ask), askParts: patient(asking.askParts) }
  const asked = new World(worldId, node)
  const genesis = await asked.genesis()
  const head = await asked.head()
  if (head.height > HEIGHTS_MAX) throw new Failure('too_large', 'more heights than are mirrored')
  const blocks = await blocksDown(node, worldId, head)
  let below = rootOf(genesis)
  checkKept(below, undefined, head.set)
  const heights = []
  const byHash = new Map()
  for (const block of blocks) {
    const height = await fetchHeight(node, block, genesis)
    below = checkHeight(height, below)
    checkKept(below, height.batch, head.set)
    const isCommitted = height.seals !== undefined && checkCommitted(height.seals.batch, height.seals.commit, genesis, head.set)
    for (const blob of [preimageOf('block', block), preimageOf('batch', height.batch), height.actions, height.receipts, height.events]) blobs.put(blob)
    heights.push({ block, seals: isCommitted ? height.seals : undefined })
    byHash.set(toHex(below.blockHash), heights.at(-1))
  }
  const world = worlds.know(genesis.bytes)
  const isNewer = world.head === undefined || compareHeads(head, world.head) > 0
  return isNewer ? Object.assign(world, { heights, byHash, head }) : world
}

/** A long chain is many questions: who is busy, or counts them, is asked again. */
const patient = (ask, again = AGAIN_MAX) => async (...question) => {
  try {
    return await ask(...question)
  } catch (error) {
    const isForLater = error.kind === 'rr' && [CODE.BUSY, CODE.RATE_LIMITED].includes(error.fields.code)
    if (!isForLater || again === 0) throw error
    await sleep(Math.min(error.fields.retry_after_ms, AGAIN_MS_MAX))
    return await patient(ask, again - 1)(...question)
  }
}

/** Block records from the head's hash down, each linking to the next. @returns {Promise<object[]>} ascending */
async function blocksDown ({ askParts }, worldId, head) {
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

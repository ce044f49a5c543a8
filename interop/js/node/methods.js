/** The methods that this peer answers: "Methods" of docs/protocol.md and the test methods of docs/interop.md. Hides nothing but their shapes. */
import { setTimeout as sleep } from 'node:timers/promises'
import { toHex } from '../lib/bytes.js'
import { encode } from '../lib/codec.js'
import { Failure, must } from '../lib/errors.js'
import { CODE } from '../lib/frames.js'
import { LIMITS } from '../lib/limits.js'
import { COUNT, HASH, HEIGHT, WORLD_ID, anyMap, bytes, int, list, open, textOf } from '../lib/schema.js'
import { partsOf } from './blobs.js'
import { RpcError } from './server.js'

const EMPTY = encode({})
const WORLDS_TOLD = 64
const BLOCKS_PER_PART = 128 // of 1,024 bytes at most
const PARTS_MAX = 65_536
const WAIT_MS_MAX = 60_000

const WORLD = open({ world_id: WORLD_ID })
const BLOCK = open({ world_id: WORLD_ID, 'height?': HEIGHT, 'block_hash?': HASH }, ({ height, block_hash: hash }, path) =>
  must((height === undefined) !== (hash === undefined), `${path}: either height or block_hash`))
const BLOCKS = open({ world_id: WORLD_ID, from_height: HEIGHT, count: int(1, LIMITS.blocksPerAnswer) })
const BATCH = open({ world_id: WORLD_ID, height: HEIGHT })
const FETCH = open({ content_hash: HASH, 'offset?': COUNT, 'length?': COUNT })
const HAS = open({ hashes: list(HASH, 1, 1024) })
const X_ERROR = open({
  code: int(1, 10), retry_after_ms: int(0, 0xffffffff), message: textOf(0, LIMITS.errorMessageBytes), detail: bytes(0, LIMITS.requestBytes)
})
const X_WAIT = open({ ms: int(0, WAIT_MS_MAX) })
const X_PARTS = open({ count: int(0, PARTS_MAX), size: int(0, LIMITS.partBytes) })
const X_RESET = open({ after: int(0, PARTS_MAX) })

const answer = (type, handle, timeoutMs) => ({ handle: (body, context) => handle(type(body, 'request'), context), timeoutMs })
const parts = (type, handle) => ({ ...answer(type, handle), parts: true })

const there = (value, code, message) => {
  if (value === undefined) throw new RpcError(code, message)
  return value
}
const held = (value) => there(value, CODE.NOT_FOUND, 'not held here')

/** @param {import('./blobs.js').Blobs} blobs @param {import('./worlds.js').Worlds} worlds */
export function methodsOf (blobs, worlds) {
  const world = (worldId) => there(worlds.mirrored(worldId), CODE.NOT_AVAILABLE, 'a world that is not mirrored here')
  return {
    hello: answer(anyMap, async () =>
      ({ versions: [1], max_in_flight: LIMITS.inFlightPerSession, worlds: worlds.mirroredIds().slice(0, WORLDS_TOLD) })),
    has_blobs: answer(HAS, async ({ hashes }) => ({ has: hashes.map((hash) => blobs.get(hash) !== undefined) })),
    fetch_blob: parts(FETCH, async ({ content_hash: hash, offset, length }, context) => {
      const blob = held(blobs.get(hash))
      let size = 0
      for (const piece of partsOf(blob, offset, length)) {
        await context.part(piece)
        size += piece.length
      }
      context.whole = () => blobs.countServed(size)
      return { size: blob.length }
    }),
    get_genesis: answer(WORLD, async ({ world_id: worldId }) => ({ genesis: world(worldId).file })),
    get_world_head: answer(WORLD, async ({ world_id: worldId }) => ({ head: world(worldId).head.value })),
    get_block: answer(BLOCK, async ({ world_id: worldId, height, block_hash: hash }) => {
      const { byHash, heights } = world(worldId)
      return { block: held(hash === undefined ? heights[height - 1] : byHash.get(toHex(hash))).block }
    }),
    get_blocks: parts(BLOCKS, async ({ world_id: worldId, from_height: from, count }, { part }) => {
      const blocks = world(worldId).heights.slice(from - 1, from - 1 + count).map(({ block }) => block)
      for (let at = 0; at < blocks.length; at += BLOCKS_PER_PART) await part(encode(blocks.slice(at, at + BLOCKS_PER_PART)))
      return EMPTY
    }),
    get_batch: answer(BATCH, async ({ world_id: worldId, height }) => held(world(worldId).heights[height - 1]?.seals)),

    x_echo: answer(anyMap, async (_, { raw }) => raw),
    x_error: answer(X_ERROR, async ({ code, retry_after_ms: retryAfterMs, message, detail }) => {
      throw new RpcError(code, message, { retryAfterMs, detail })
    }),
    x_wait: answer(X_WAIT, async ({ ms }, { signal }) => {
      await sleep(ms, undefined, { signal }).catch((error) => { throw new Failure('stream', error.message) })
      return EMPTY
    }, WAIT_MS_MAX + 1_000), // longer than a method has
    x_parts: parts(X_PARTS, async ({ count, size }, { part }) => {
      for (let i = 0; i < count; i++) await part(new Uint8Array(size).fill(i % 256))
      return { count }
    }),
    x_reset: parts(X_RESET, async ({ after }, { part, reset }) => {
      for (let i = 0; i < after; i++) await part(new Uint8Array(1024))
      await reset('as asked')
      throw new Failure('stream', 'reset, as asked')
    })
  }
}

/** The methods that this peer answers: "Methods" of docs/protocol.md and the test methods of docs/interop.md. Hides nothing but their shapes. */
import { setTimeout as sleep } from 'node:timers/promises'
import { toHex } from '../lib/bytes.js'
import { encode } from '../lib/codec.js'
import { Failure } from '../lib/errors.js'
import { CODE } from '../lib/frames.js'
import { LIMITS } from '../lib/limits.js'
import { COUNT, HASH, HEIGHT, WORLD_ID, bytes, int, list, open, textOf } from '../lib/schema.js'
import { partsOf } from './blobs.js'
import { RpcError } from './server.js'

const EMPTY = encode({})
const WORLD = open({ world_id: WORLD_ID })
const BLOCK = open({ world_id: WORLD_ID, 'height?': HEIGHT, 'block_hash?': HASH })
const BLOCKS = open({ world_id: WORLD_ID, from_height: HEIGHT, count: int(1, LIMITS.blocksPerAnswer) })
const BATCH = open({ world_id: WORLD_ID, height: HEIGHT })
const FETCH = open({ content_hash: HASH, 'offset?': COUNT, 'length?': COUNT })
const HAS = open({ hashes: list(HASH, 1, 1024) })
const X_ERROR = open({
  code: int(1, 10), retry_after_ms: int(0, 0xffffffff), message: textOf(0, LIMITS.errorMessageBytes), detail: bytes(0, LIMITS.requestBytes)
})
const X_WAIT = open({ ms: int(0, 60_000) })
const X_PARTS = open({ count: COUNT, size: int(0, LIMITS.partBytes) })
const X_RESET = open({ after: COUNT })

const held = (value) => {
  if (value === undefined) throw new RpcError(CODE.NOT_FOUND, 'not held here')
  return value
}

/** @param {import('./blobs.js').Blobs} blobs @param {import('./worlds.js').Worlds} worlds */
export function methodsOf (blobs, worlds) {
  const world = (worldId) => {
    const known = worlds.get(worldId)
    if (known === undefined) throw new RpcError(CODE.NOT_AVAILABLE, 'an unknown world')
    return known
  }
  return {
    hello: { handle: async () => ({ versions: [1], max_in_flight: LIMITS.inFlightPerSession, worlds: worlds.ids().slice(0, 64) }) },

    has_blobs: { handle: async (body) => ({ has: HAS(body, 'has_blobs').hashes.map((hash) => blobs.get(hash) !== undefined) }) },

    fetch_blob: {
      parts: true,
      async handle (body, { part, signal }) {
        const { content_hash: hash, offset, length } = FETCH(body, 'fetch_blob')
        const blob = held(blobs.get(hash))
        for (const piece of partsOf(blob, offset, length)) {
          signal.throwIfAborted()
          await part(piece)
        }
        return { size: blob.length }
      }
    },

    get_genesis: { handle: async (body) => ({ genesis: world(WORLD(body, 'get_genesis').world_id).file }) },

    get_world_head: {
      async handle (body) {
        const { head } = world(WORLD(body, 'get_world_head').world_id)
        return head === undefined ? EMPTY : { head: head.value }
      }
    },

    get_block: {
      async handle (body) {
        const { world_id: worldId, height, block_hash: hash } = BLOCK(body, 'get_block')
        if ((height === undefined) === (hash === undefined)) throw new RpcError(CODE.BAD_REQUEST, 'get_block: either height or block_hash')
        const known = world(worldId)
        return { block: held(height === undefined ? known.byHash.get(toHex(hash)) : known.heights[height - 1]).block }
      }
    },

    get_blocks: {
      parts: true,
      async handle (body, { part }) {
        const { world_id: worldId, from_height: from, count } = BLOCKS(body, 'get_blocks')
        const { heights } = world(worldId)
        held(heights[from - 1])
        await part(encode(heights.slice(from - 1, from - 1 + count).map(({ block }) => block)))
        return EMPTY
      }
    },

    get_batch: {
      async handle (body) {
        const { world_id: worldId, height } = BATCH(body, 'get_batch')
        return held(held(world(worldId).heights[height - 1]).seals)
      }
    },

    x_echo: { handle: async (_, { raw }) => raw },

    x_error: {
      async handle (body) {
        const { code, retry_after_ms: retryAfterMs, message, detail } = X_ERROR(body, 'x_error')
        throw new RpcError(code, message, { retryAfterMs, detail })
      }
    },

    x_wait: {
      timeoutMs: 61_000, // it may wait longer than a method has
      async handle (body, { signal }) {
        await sleep(X_WAIT(body, 'x_wait').ms, undefined, { signal }).catch((error) => { throw new Failure('stream', error.message) })
        return EMPTY
      }
    },

    x_parts: {
      parts: true,
      async handle (body, { part, signal }) {
        const { count, size } = X_PARTS(body, 'x_parts')
        for (let i = 0; i < count; i++) {
          signal.throwIfAborted()
          await part(new Uint8Array(size).fill(i % 256))
        }
        return { count }
      }
    },

    x_reset: {
      parts: true,
      async handle (body, { part, reset }) {
        const { after } = X_RESET(body, 'x_reset')
        for (let i = 0; i < after; i++) await part(new Uint8Array(1024))
        await reset('as asked')
        throw new Failure('stream', 'reset, as asked')
      }
    }
  }
}

#!/usr/bin/env node
/**
 * Puts an agent where it shall be, and believes it only when it is proved: registers the agent, or moves it where it is there already.
 * stdout: one line of JSON. Exit 0 when the world applied it; otherwise 1, and why on stderr.
 */
import { parseArgs } from 'node:util'
import { tcp } from '@libp2p/tcp'
import { Failure, connect, encode, fromHex, seedToKeyId, signEnvelope, toHex } from 'agent-world-peer'

const USAGE = 'usage: node submit.js --bootstrap MULTIADDR --world ID --seed HEX --agent NAME --to X,Y,Z    (HEX: 32 bytes; X,Y,Z: cm)'
const BLOCK_MS = 60_000
const POLL_MS = 200
const EXPIRES_IN_BLOCKS = 100

function readArguments () {
  const option = { type: 'string' }
  const { values } = parseArgs({ options: { bootstrap: option, world: option, seed: option, agent: option, to: option } })
  const { bootstrap, world, seed = '', agent, to = '' } = values
  const place = to.split(',').map(Number)
  const isWhole = bootstrap && world && agent && /^[0-9a-f]{64}$/.test(seed) && place.length === 3 && place.every(Number.isSafeInteger)
  if (!isWhole) throw new Failure('usage', USAGE)
  return { bootstrap, worldId: world, seed: fromHex(seed), agentId: agent, place }
}

/** What `work` gives; undefined where the node has nothing of it (yet). */
async function ifThere (work) {
  try {
    return await work
  } catch (error) {
    if (error.kind === 'not_found' || error.fields?.name === 'ERR_NOT_FOUND') return undefined
    throw error
  }
}

/** Before the first block nothing is proved, and nobody has acted. */
async function stateOf (world, agentId, keyId) {
  const head = await ifThere(world.head())
  if (head === undefined) return { height: 0, nonce: 0 }
  const { agent } = await ifThere(world.agent(agentId)) ?? {}
  return { height: head.height, nonce: await ifThere(world.nonce(keyId)) ?? 0, agent }
}

/** Signs and hands in. The gateway knows of envelopes that no block holds yet: where a nonce is not free, it says which is. */
async function submit (world, action, { height, nonce }, seed) {
  const { body } = await world.genesis()
  const expiresAtHeight = height + Math.min(EXPIRES_IN_BLOCKS, body.limits.expiry_blocks_max)
  for (;;) {
    const envelope = signEnvelope({
      world_id: world.id, nonce, expires_at_height: expiresAtHeight, timestamp_ms: Date.now(), atomic: true, actions: [action]
    }, seed)
    const { outcome, acceptance, reason, message, next_nonce: nextNonce } = await world.submit(envelope)
    if (outcome === 'accepted') return { envelope, acceptance }
    if (nextNonce === undefined || nextNonce <= nonce) throw new Failure('refused', `the gateway refused it: ${reason}: ${message}`)
    nonce = nextNonce
  }
}

/** Asks until a block has it; the receipts come with a proof under a head whose seals are checked. */
async function proved (world, { hash }) {
  for (const deadline = Date.now() + BLOCK_MS; Date.now() < deadline;) {
    const found = await ifThere(world.receipts(hash))
    if (found !== undefined) return found
    await new Promise((resolve) => setTimeout(resolve, POLL_MS))
  }
}

async function run ({ bootstrap, worldId, seed, agentId, place: [x, y, z] }) {
  const node = await connect(bootstrap, tcp())
  try {
    const world = node.world(worldId)
    const state = await stateOf(world, agentId, seedToKeyId(seed))
    const action = [state.agent ? 'move_agent' : 'register_agent', { agent_id: agentId, x_cm: x, y_cm: y, z_cm: z }]
    const { envelope, acceptance } = await submit(world, action, state, seed)
    const found = await proved(world, envelope)
    // The promise is signed: whoever breaks it can be shown to have given it.
    if (found === undefined) throw new Failure('timeout', `no block has it after ${BLOCK_MS} ms; the gateway's promise: ${toHex(encode(acceptance))}`)
    const { receipts: [{ code }], block } = found
    if (code !== 'Applied') throw new Failure('refused', `the world refused it at height ${block.height}: ${code}`)
    return { agent: agentId, envelope: toHex(envelope.hash), height: block.height, code, trust: 'attested' }
  } finally {
    await node.close()
  }
}

try {
  console.log(JSON.stringify(await run(readArguments())))
} catch (error) {
  const isFault = !(error instanceof Failure) && !error.code?.startsWith('ERR_PARSE_ARGS')
  console.error(isFault ? error : `error: ${error.message}`)
  process.exitCode = 1
}

#!/usr/bin/env node
/** A peer of Agent World Runtime, driven by JSON lines on stdin (docs/interop.md). Hides the command line and the life of the process. */
import './lib/polyfill.js'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { fromHex } from './lib/bytes.js'
import { perform } from './node/commands.js'
import { parseJson, toLine } from './node/json.js'
import { Peer } from './node/peer.js'

const STOP_MS = 2_000

const { values } = parseArgs({
  options: {
    seed: { type: 'string' },
    listen: { type: 'string', multiple: true, default: ['/ip4/127.0.0.1/tcp/0'] },
    careless: { type: 'boolean', default: false }
  }
})
if (!/^[0-9a-f]{64}$/.test(values.seed ?? '')) {
  console.error('usage: node peer.js --seed HEX [--listen MULTIADDR]... [--careless]    (HEX: 32 bytes)')
  process.exit(2)
}
const emit = (value) => process.stdout.write(toLine(value))
const peer = await Peer.start({ seed: fromHex(values.seed), listen: values.listen, careless: values.careless }, emit)

// A listener of a library that throws on what a peer sent must not end this one; it is told, never hidden.
process.on('uncaughtException', (error) => console.error('uncaught:', error))
process.on('unhandledRejection', (error) => console.error('unhandled:', error))

async function quit () {
  await Promise.race([peer.stop(), new Promise((resolve) => setTimeout(resolve, STOP_MS))])
  process.exit(0)
}

async function onLine (line) {
  let command
  try {
    command = parseJson(line)
    if (command === null || typeof command !== 'object') throw new SyntaxError('must be an object')
  } catch (error) {
    return emit({ id: null, error: { kind: 'usage', message: error.message } })
  }
  if (command.do !== 'quit') return emit(await perform(peer, command))
  process.stdout.write(toLine({ id: command.id, ok: {} }), () => void quit())
}

emit({ event: 'ready', peer_id: peer.id, addrs: peer.addresses() })
createInterface({ input: process.stdin, crlfDelay: Infinity }).on('line', (line) => void onLine(line)).on('close', () => void quit())
process.on('SIGTERM', () => void quit())

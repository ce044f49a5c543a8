#!/usr/bin/env node
/** A peer of Agent World Runtime, driven by JSON lines on stdin (docs/interop.md). Hides the command line and the life of the process. */
import './lib/polyfill.js'
import { parseArgs } from 'node:util'
import { fromHex } from './lib/bytes.js'
import { perform } from './commands/commands.js'
import { parseJson, toLine } from './commands/json.js'
import { Peer } from './node/peer.js'

const STOP_MS = 2_000
const LINE_BYTES_MAX = 64 * 2 ** 20

function fail (...words) {
  console.error(...words)
  process.exit(1)
}
// No library is known to throw, or to reject, where nobody hears it: whatever does is a fault.
process.on('uncaughtException', (error, origin) => fail(origin === 'unhandledRejection' ? 'unhandled:' : 'uncaught:', error))

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

/** The lines of stdin, the last one also where no newline ends it. */
async function * lines () {
  const pieces = []
  let size = 0
  const add = (piece) => {
    pieces.push(piece)
    size += piece.length
    if (size > LINE_BYTES_MAX) fail(`error: stdin: a line over ${LINE_BYTES_MAX} bytes`)
  }
  const take = () => {
    size = 0
    return Buffer.concat(pieces.splice(0)).toString()
  }
  for await (const chunk of process.stdin) {
    let from = 0
    for (let to; (to = chunk.indexOf('\n', from)) >= 0; from = to + 1) {
      add(chunk.subarray(from, to))
      yield take()
    }
    add(chunk.subarray(from))
  }
  if (size > 0) yield take()
}

process.on('SIGTERM', () => void quit())
emit({ event: 'ready', peer_id: peer.id, addrs: peer.addresses() })
for await (const line of lines()) void onLine(line)
await quit()

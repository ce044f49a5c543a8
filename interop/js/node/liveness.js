/**
 * Closes connections over which nothing comes, or goes, any more: "Connections" of docs/protocol.md. The library's own monitor looks at pings
 * alone, and over a slow link the answer to one waits behind all else. Hides where bytes are counted.
 */
import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { byteStream } from '@libp2p/utils'
import { LIMITS } from '../lib/limits.js'
import { closeStream } from '../lib/stream.js'

const PING = '/ipfs/ping/1.0.0'
const PING_BYTES = 32
const SILENCES = 2 // in a row: the cause of one may be this process, when it was busy itself
const STUCK_LOOKS = 2 // one each liveness period: write_stuck_ms
const STILL_MS = 1_000

const bytesHeard = (connection) => connection.maConn.socket.bytesRead

/** What changes whenever the socket takes anything; undefined where nothing waits for that. A write that is half done shows only in its handle. */
function bytesTaken ({ maConn: { socket } }) {
  return socket.writableLength > 0 ? `${socket.bytesWritten - socket.writableLength} ${socket._handle?.writeQueueSize}` : undefined
}

/** Whether it is answered is not looked at: what is heard meanwhile tells, and be it a refusal. */
async function ping (connection, streams) {
  const signal = AbortSignal.timeout(LIMITS.livenessTimeoutMs)
  let stream
  try {
    stream = await connection.newStream(PING, { signal, ...streams })
    const bytes = byteStream(stream)
    await Promise.all([bytes.write(randomBytes(PING_BYTES), { signal }), bytes.read({ bytes: PING_BYTES, signal })])
    void closeStream(stream)
  } catch (error) {
    stream?.abort(error)
  }
}

async function isSilent (connection, streams) {
  const before = bytesHeard(connection)
  for (let silences = 0; silences < SILENCES; silences++) {
    await Promise.all([ping(connection, streams), sleep(LIMITS.livenessTimeoutMs, undefined, { ref: false })])
    if (bytesHeard(connection) !== before) return false
  }
  return true
}

/** @param {import('@libp2p/interface').Libp2p} host whose transports are all TCP @param {object} streams how many a protocol may have */
export function closeTheDead (host, streams) {
  const seen = new WeakMap() // connection -> {heard, taken, stuckLooks} at the last look
  const asked = new WeakSet()
  const look = async (connection) => {
    const last = seen.get(connection)
    const [heard, taken] = [bytesHeard(connection), bytesTaken(connection)]
    const stuckLooks = taken !== undefined && taken === last?.taken ? last.stuckLooks + 1 : 0
    seen.set(connection, { heard, taken, stuckLooks })
    if (stuckLooks >= STUCK_LOOKS) {
      await sleep(STILL_MS, undefined, { ref: false }) // this process may have stood still, and the socket have room
      if (bytesTaken(connection) === taken) connection.abort(new Error('nothing is read any more'))
      return
    }
    if (last?.heard !== heard || asked.has(connection)) return
    asked.add(connection)
    if (await isSilent(connection, streams)) connection.abort(new Error('nothing is heard any more'))
    asked.delete(connection)
  }
  const looks = setInterval(() => host.getConnections().forEach((connection) => void look(connection)), LIMITS.livenessPeriodMs)
  looks.unref()
  host.addEventListener('stop', () => clearInterval(looks), { once: true })
}

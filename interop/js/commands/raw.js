/** The command `send_raw`: bytes on a stream of /aw/rr/1, and whatever comes back. Hides how the stream ended. */
import { setTimeout as sleep } from 'node:timers/promises'
import { concat } from '../lib/bytes.js'
import { Failure } from '../lib/errors.js'
import { FrameWriter, closeStream } from '../lib/stream.js'

const SILENCE_MS = 1_000
const ANSWER_MAX = 2 ** 24

/** @returns {Promise<{answer: Uint8Array, end: 'eof' | 'reset' | 'open'}>} */
export async function sendRaw (stream, data, timeoutMs) {
  const deadline = Date.now() + timeoutMs
  const pieces = []
  let size = 0
  let end
  let event = Promise.withResolvers()
  const tell = (how) => {
    end ??= how
    event.resolve(true)
  }
  stream.addEventListener('message', ({ data: piece }) => {
    pieces.push(piece.slice())
    size += piece.byteLength
    tell()
  })
  stream.addEventListener('end', () => tell(['aborted', 'reset'].includes(stream.status) ? 'reset' : 'eof'))
  stream.addEventListener('close', ({ error }) => tell(error ? 'reset' : 'eof'))
  const writer = new FrameWriter(stream)
  const written = writer.write(data).then(() => writer.flush()).catch(() => tell('reset'))
  await Promise.race([written, event.promise, sleep(timeoutMs)])
  for (; end === undefined && size <= ANSWER_MAX; event = Promise.withResolvers()) {
    const quietMs = Math.max(0, Math.min(SILENCE_MS, deadline - Date.now()))
    if (!await Promise.race([event.promise, sleep(quietMs)])) end ??= 'open'
  }
  void closeStream(stream)
  if (size > ANSWER_MAX) throw new Failure('too_large', 'more than a raw answer may have')
  return { answer: concat(...pieces), end }
}

/** The command `send_raw`: bytes on a stream of /aw/rr/1, and whatever comes back. Hides how the stream ended. */
import { concat } from '../lib/bytes.js'
import { Failure } from '../lib/errors.js'
import { FrameWriter, closeStream } from '../lib/stream.js'

const SILENCE_MS = 1_000
const ANSWER_MAX = 2 ** 24

/** @returns {Promise<{answer: Uint8Array, end: 'eof' | 'reset' | 'open'}>} */
export function sendRaw (stream, data, timeoutMs) {
  return new Promise((resolve, reject) => {
    const pieces = []
    let size = 0
    let silence
    let settled = false
    const settle = (end, error) => {
      settled = true
      clearTimeout(silence)
      clearTimeout(limit)
      if (error) reject(error)
      else resolve({ answer: concat(...pieces), end })
      void closeStream(stream)
    }
    const listen = () => {
      clearTimeout(silence)
      if (!settled) silence = setTimeout(() => settle('open'), SILENCE_MS)
    }
    const limit = setTimeout(() => settle('open'), timeoutMs)
    stream.addEventListener('message', ({ data: piece }) => {
      pieces.push(piece.slice())
      size += piece.byteLength
      if (size > ANSWER_MAX) settle('open', new Failure('too_large', 'more than a raw answer may have'))
      else listen()
    })
    stream.addEventListener('end', () => settle(['aborted', 'reset'].includes(stream.status) ? 'reset' : 'eof'))
    stream.addEventListener('close', ({ error }) => settle(error ? 'reset' : 'eof'))
    const writer = new FrameWriter(stream)
    void writer.write(data).then(() => writer.flush()).then(listen) // a reset meanwhile is told by the stream's events
  })
}

/** JSON lines and vectors (docs/interop.md, interop/README.md). Hides bytes, which JSON has not, and integers that it rounds. */
import { fromHex, toHex } from '../lib/bytes.js'
import { must } from '../lib/errors.js'

/** A value of JSON, in which bytes are {"hex": ...}, as a value to encode. */
export function fromJson (json) {
  if (Array.isArray(json)) return json.map(fromJson)
  if (typeof json === 'number') must(Number.isInteger(json), 'floats cannot be encoded')
  if (json === null || typeof json !== 'object') return json
  const keys = Object.keys(json)
  if (keys.length === 1 && keys[0] === 'hex') return fromHex(json.hex)
  return new Map(keys.map((key) => [key, fromJson(json[key])]))
}

/** JSON.parse rounds integers above 2^53; here they become BigInt. */
export function parseJson (text) {
  const marked = text.replace(/"[^"\\]*(?:\\.[^"\\]*)*"|(?<![\d.eE+-])-?\d{16,}(?![\d.eE])/g, (token) => token[0] === '"' ? token : `{"\\u0000int":"${token}"}`)
  return JSON.parse(marked, (_, value) => {
    const digits = value?.['\u0000int']
    if (digits === undefined) return value
    return Number.isSafeInteger(Number(digits)) ? Number(digits) : BigInt(digits)
  })
}

/** One line of JSON, bytes in hex. A Buffer has its own toJSON, so the value is looked up before that. */
export const toLine = (value) => JSON.stringify(value, function (key, item) {
  if (this[key] instanceof Uint8Array) return toHex(this[key])
  return typeof item === 'bigint' ? Number(item) : item
}) + '\n'

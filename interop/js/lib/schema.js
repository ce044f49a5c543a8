/**
 * A small schema language for decoded CBOR, after docs/protocol.cddl. Hides how values are walked: a type is a function
 * (value, path) => value that throws Refused or Ignored; closed maps become plain objects, whose keys are known, open parts stay Maps.
 */
import { compareBytes, utf8 } from './bytes.js'
import { Ignored, must } from './errors.js'
import { isKeyId } from './identity.js'

const COUNT_MAX = 2 ** 53 - 1

/** The type of the values that pass a test. */
const where = (passes, what) => (value, path) => {
  must(passes(value), `${path}: must be ${what}`)
  return value
}
const isWithin = (number, min, max) => number >= min && number <= max

export const int = (min, max) =>
  where((value) => (typeof value === 'number' || typeof value === 'bigint') && isWithin(value, min, max), `an integer of ${min}..${max}`)
export const bytes = (min, max = min) => where((value) => value instanceof Uint8Array && isWithin(value.length, min, max), `${min}..${max} bytes`)
export const text = (pattern) => where((value) => typeof value === 'string' && pattern.test(value), `text like ${pattern}`)
/** Text of min..max bytes. */
export const textOf = (min, max) => where((value) => typeof value === 'string' && isWithin(utf8(value).length, min, max), `${min}..${max} bytes of text`)
export const oneOf = (...values) => where((value) => values.includes(value), `one of ${values.join(', ')}`)
export const bool = oneOf(true, false)
export const any = (value) => value
export const anyMap = where((value) => value instanceof Map, 'a map')

/** @param {(a, b) => number} [order] where the items must ascend, how they are compared */
export const list = (type, min, max, order) => (value, path) => {
  must(Array.isArray(value) && value.length >= min && value.length <= max, `${path}: must be a list of ${min}..${max}`)
  const items = value.map((item, i) => type(item, `${path}[${i}]`))
  must(order === undefined || items.every((item, i) => i === 0 || order(items[i - 1], item) < 0), `${path}: must ascend`)
  return items
}
export const tuple = (...types) => (value, path) => {
  must(Array.isArray(value) && value.length === types.length, `${path}: must be a list of ${types.length}`)
  return types.map((type, i) => type(value[i], `${path}[${i}]`))
}

const mapOf = (closed) => (fields, rule) => {
  const known = Object.entries(fields).map(([key, type]) => ({ key: key.replace(/\?$/, ''), optional: key.endsWith('?'), type }))
  return (value, path) => {
    anyMap(value, path)
    // Of another version everything else may differ too, so it is looked at first.
    const v = value.get('v')
    if (fields.v !== undefined && v !== 1 && (Number.isInteger(v) || typeof v === 'bigint')) throw new Ignored(`${path}.v: ${v} is not known here`)
    const result = {}
    for (const { key, optional, type } of known) {
      must(optional || value.has(key), `${path}.${key}: is missing`)
      if (value.has(key)) result[key] = type(value.get(key), `${path}.${key}`)
    }
    must(!closed || Object.keys(result).length === value.size, `${path}: has a key that is not known`)
    rule?.(result, path)
    return result
  }
}
/** Fields whose name ends in `?` are optional; rule(result, path) checks what holds between fields. */
export const closed = mapOf(true)
export const open = mapOf(false)

export const VERSION = oneOf(1)
export const HASH = bytes(32)
export const SIGNATURE = bytes(64)
export const COUNT = int(0, COUNT_MAX)
export const HEIGHT = int(1, COUNT_MAX)
export const AMOUNT = int(0, 2n ** 63n - 1n)
export const COORDINATE = int(-COUNT_MAX, COUNT_MAX)
export const NAME = text(/^[a-z0-9][a-z0-9_.-]{0,63}$/)
export const WORLD_ID = text(/^[a-z2-7]{32}$/)
export const CODE = text(/^[A-Za-z]{1,64}$/)
export const KEY_ID = where((value) => value instanceof Uint8Array && isKeyId(value), 'a key id')
export const byText = (a, b) => compareBytes(utf8(a), utf8(b))

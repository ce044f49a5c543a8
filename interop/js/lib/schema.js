/**
 * A small schema language for decoded CBOR, after docs/protocol.cddl. Hides how values are walked: a type is a function
 * (value, path) => value that throws Refused or Ignored; closed maps become plain objects, whose keys are known, open parts stay Maps.
 */
import { compareBytes, utf8 } from './bytes.js'
import { Ignored, must } from './errors.js'
import { isKeyId } from './identity.js'

const COUNT_MAX = 2 ** 53 - 1

export const int = (min, max) => (value, path) => {
  must((typeof value === 'number' || typeof value === 'bigint') && value >= min && value <= max, `${path}: must be an integer of ${min}..${max}`)
  return value
}
export const bytes = (min, max = min) => (value, path) => {
  must(value instanceof Uint8Array && value.length >= min && value.length <= max, `${path}: must be ${min}..${max} bytes`)
  return value
}
export const text = (pattern) => (value, path) => {
  must(typeof value === 'string' && pattern.test(value), `${path}: must be text like ${pattern}`)
  return value
}
/** Text of min..max bytes. */
export const textOf = (min, max) => (value, path) => {
  must(typeof value === 'string', `${path}: must be text`)
  const length = utf8(value).length
  must(length >= min && length <= max, `${path}: must be ${min}..${max} bytes of text`)
  return value
}
export const oneOf = (...values) => (value, path) => {
  must(values.includes(value), `${path}: must be one of ${values.join(', ')}`)
  return value
}
export const bool = oneOf(true, false)
export const any = (value) => value
export const anyMap = (value, path) => {
  must(value instanceof Map, `${path}: must be a map`)
  return value
}

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
    let found = 0
    for (const { key, optional, type } of known) {
      if (!value.has(key)) {
        must(optional, `${path}.${key}: is missing`)
        continue
      }
      found++
      result[key] = type(value.get(key), `${path}.${key}`)
    }
    must(!closed || found === value.size, `${path}: has a key that is not known`)
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
export const KEY_ID = (value, path) => {
  must(value instanceof Uint8Array && isKeyId(value), `${path}: must be a key id`)
  return value
}
export const byText = (a, b) => compareBytes(utf8(a), utf8(b))

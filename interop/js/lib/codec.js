/**
 * Canonical CBOR: the profile of the section "Encoding" of docs/protocol.md. Hides the library's laxness: it takes floats, tags,
 * any key and wrong orders, and drops a U+FEFF at the start of text, so its tokens are judged as they come, and the value is
 * encoded again and compared.
 *
 * Maps are decoded to Map (a payload may have the key `__proto__`), integers outside of +-2^53 to BigInt.
 */
import { Tokenizer, decodeFirst, encode as encodeWith } from 'cborg'
import { equalBytes, fromUtf8 } from './bytes.js'
import { Refused, must } from './errors.js'
import { LIMITS } from './limits.js'

const INT_MAX = 2n ** 63n - 1n
const INT_MIN = -(2n ** 63n)
const OPTIONS = {
  strict: true, allowIndefinite: false, allowUndefined: false, allowNaN: false, allowInfinity: false,
  rejectDuplicateMapKeys: true, useMaps: true, tags: {}, retainStringBytes: true
}
const KINDS = new Set(['uint', 'negint', 'bytes', 'string', 'array', 'map', 'false', 'true', 'null'])

/** Judges each token before the library builds anything of it, so that no bytes cost more than their items. */
class ProfileTokenizer extends Tokenizer {
  constructor (bytes, itemsMax) {
    super(bytes, OPTIONS)
    this.itemsLeft = itemsMax + 1 // the outermost value is no item
    this.open = [] // for each open array or map: how many values are missing, and whether it is a map
  }

  next () {
    const token = super.next()
    const kind = token.type.name
    must(KINDS.has(kind), `no canonical CBOR: ${kind}`)
    must(this.itemsLeft-- > 0, 'more items than allowed')
    const parent = this.open.at(-1)
    if (parent !== undefined) {
      must(!parent.map || parent.missing % 2 === 1 || kind === 'string', 'no canonical CBOR: a key that is no text')
      parent.missing--
    }
    if (token.byteValue?.[0] === 0xef) token.value = fromUtf8(token.byteValue)
    if (kind === 'array' || kind === 'map') {
      must(this.open.length < LIMITS.depth, 'nested deeper than 32')
      this.open.push({ map: kind === 'map', missing: kind === 'map' ? 2 * token.value : token.value })
    } else if (typeof token.value === 'bigint') {
      must(token.value <= INT_MAX && token.value >= INT_MIN, 'an integer outside of 64 bits')
    }
    while (this.open.at(-1)?.missing === 0) this.open.pop()
    return token
  }
}

/** @returns {Uint8Array} canonical CBOR of a value of Maps, plain objects, arrays, bytes, text, integers and booleans */
export const encode = (value) => encodeWith(value, { ignoreUndefinedProperties: true })

const plain = (bytes) => new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length) // a Buffer's slices would share its memory

function reading (read) {
  try {
    return read()
  } catch (error) {
    throw error instanceof Refused ? error : new Refused(`no canonical CBOR: ${error.message}`)
  }
}

/** @returns {{value, bytes: Uint8Array}} what begins where the tokenizer stands */
function valueAt (tokenizer) {
  const from = tokenizer.pos()
  const [value] = reading(() => decodeFirst(tokenizer.data, { ...OPTIONS, tokenizer }))
  const bytes = tokenizer.data.subarray(from, tokenizer.pos())
  must(equalBytes(encode(value), bytes), 'no canonical CBOR: not as it would be encoded')
  return { value, bytes }
}

/** @param {Uint8Array} bytes @param {number} [itemsMax] */
export function decode (bytes, itemsMax = LIMITS.cborItems) {
  const tokenizer = new ProfileTokenizer(plain(bytes), itemsMax)
  const { value } = valueAt(tokenizer)
  must(tokenizer.done(), 'no canonical CBOR: bytes behind it')
  return value
}

/** The values of a list that a block names, one by one: it may be long, and an item of one byte costs a hundred. */
export function * decodeList (bytes, valueBytesMax) {
  const tokenizer = new ProfileTokenizer(plain(bytes), 0)
  const { type, value: count } = reading(() => tokenizer.next())
  must(type.name === 'array', 'no list')
  for (let i = 0; i < count; i++) {
    tokenizer.itemsLeft = valueBytesMax
    const item = valueAt(tokenizer)
    must(item.bytes.length <= valueBytesMax, 'a value larger than it may be')
    yield item
  }
  must(tokenizer.done(), 'no canonical CBOR: bytes behind the list')
}

/** How many keys, values and elements a value holds, at any depth. */
export function countItems (value) {
  if (Array.isArray(value)) return value.reduce((sum, item) => sum + 1 + countItems(item), 0)
  if (!(value instanceof Map)) return 0
  return [...value.values()].reduce((sum, item) => sum + 2 + countItems(item), 0)
}

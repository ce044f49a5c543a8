/**
 * js-libp2p reads the length before a message byte by byte, and takes each RangeError for "there is more to come": also that of a length
 * longer than any, after eight bytes. 256 KiB of those on one stream, also where its protocol is still negotiated, stop the whole process
 * for seconds. Once this is loaded that error is none of those.
 */
const TOO_LONG = 'Could not decode varint' // of uint8-varint

Object.defineProperty(RangeError, Symbol.hasInstance, {
  value (error) {
    return Function.prototype[Symbol.hasInstance].call(this, error) && error.message !== TOO_LONG
  }
})

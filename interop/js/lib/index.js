/**
 * The library for client authors: `import { connect } from 'agent-world-peer'`. Everything that comes from a node is checked where it comes
 * in: what does not hold is thrown as a Failure, whose `kind` is one of docs/interop.md. Records are plain objects with the field names of
 * docs/protocol.md, their bytes Uint8Array; open maps inside of them (payloads, event data) are Map.
 *
 * Most clients need the first two groups. The rest is what those are made of, for whoever has a transport or a store of their own.
 */
// Ask a node: connect(address, transport) -> node; node.world(id) -> World, which reads, proves and submits.
export { connect } from './connect.js'
export { World, signEnvelope } from './world.js'
export { Failure, Ignored, Refused } from './errors.js'

// Bytes and keys.
export { fromHex, toHex, utf8 } from './bytes.js'
export { H, peerIdText, seedToKeyId } from './identity.js'

// Check what came in another way: genesis files, heads, records, proofs.
export { decode, encode } from './codec.js'
export { checkGenesis, checkHead, compareHeads } from './head.js'
export { checkRecord, checkSealed, decodeRecord, decodeSealed, hashOf, mustBeSigned, seal } from './records.js'
export { checkHeadBlock, checkReceiptAnswer, checkStateAnswer } from './proofs.js'
export { provedValue } from './state.js'
export { sign, verify } from './signature.js'

// Requests on libp2p streams of RR_PROTOCOL.
export { RR_PROTOCOL, Session, askOnce, askParts } from './client.js'

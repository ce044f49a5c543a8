// Package aw is the protocol of Agent World Runtime (docs/protocol.md) as bytes and decisions: canonical CBOR, hashes and
// ids, signatures, the shapes and rules of all records, heads, chains, Merkle and state proofs, and the verdicts on gossip.
//
// It hides the CBOR and hash libraries, and how shapes are written down and judged. It does no I/O, reads no clock and keeps
// nothing between calls. It guarantees that what it takes is canonical and whole, that all implementations of the protocol
// decide alike, and that bytes which break a rule are a *Refusal, those of a later version ErrVersion, and never a panic.
package aw

// Package kad is a Kademlia client and server on the wire of the public libp2p specification.
//
// It hides lookups, the routing table and what is held for others. It knows nothing of the records it keeps: their check
// and their order are given to it, and it guarantees that no record leaves or enters that has not passed the check. What it
// holds and does for others is bounded, for each peer and for all together.
package kad

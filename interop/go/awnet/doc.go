// Package awnet is the network side of a client: a libp2p host kept to the rules of the protocol, questions to other nodes
// whose answers are checked, and, for whoever wants them, gossip and the DHT. Nothing in it executes a world.
//
//	n, err := awnet.New(ctx, key, nil)            // no address: it only dials
//	err = n.Dial(ctx, *gateway)
//	head, err := n.AskHead(ctx, gateway.ID, world) // every seal in it has been checked
//
// It hides the libp2p libraries and the cures that they need (docs/interop.md). It guarantees that heads, proofs, acceptances
// and blobs are what they claim for the world that was asked for, or the call fails with an *aw.Refusal; only Ask and
// BlobStart give what nothing proves. The age of a head is left to the caller to judge.
package awnet

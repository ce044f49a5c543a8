// Worlds in the DHT: the validator and the order of their head records. The wire is the folder kad's.
// docs/protocol.md: DHT, Names.

package awnet

import (
	"bytes"
	"context"

	"github.com/libp2p/go-libp2p/core/protocol"

	"aw/interop/aw"
	"aw/interop/kad"
)

const kadProtocol protocol.ID = "/aw/kad/1.0.0"

// NewDHT takes part in the DHT, as a server too, until the context ends. A careless one takes any record and
// prefers none: only a peer that plays the liar is.
func NewDHT(ctx context.Context, n *Node, careless bool) (*kad.DHT, error) {
	check, compare := checkHeadRecord, compareHeadRecords
	if careless {
		check = func([]byte, []byte) error { return nil }
		compare = func(_, _, _ []byte) int { return 0 }
	}
	return kad.New(ctx, n.Host, kad.Config{Protocol: kadProtocol, Check: check, Compare: compare, Usable: usable})
}

// FindHead gives the best head of a world that the DHT has, checked.
func FindHead(ctx context.Context, d *kad.DHT, world string) (*aw.Head, error) {
	value, err := d.Get(ctx, []byte(aw.HeadKey(world)))
	if err != nil {
		return nil, err
	}
	return aw.CheckHead(value, world)
}

// checkHeadRecord: the key names the world whose head the value must be.
func checkHeadRecord(key, value []byte) error {
	world, err := aw.WorldOfHeadKey(key)
	if err == nil {
		_, err = aw.CheckHead(value, world)
	}
	return err
}

// compareHeadRecords is the order of heads. Both values have passed the check.
func compareHeadRecords(_, a, b []byte) int {
	x, errX := aw.CheckHead(a, "")
	y, errY := aw.CheckHead(b, "")
	if errX != nil || errY != nil {
		return bytes.Compare(a, b) // cannot be: only checked values come here
	}
	return x.Compare(y)
}

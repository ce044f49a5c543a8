// What the DHT holds for a world: its head record, and provider records by raw multihash.
// docs/protocol.md: DHT, Names. The wire is the folder kad's.
package main

import (
	"bytes"
	"context"
	"strings"

	"github.com/libp2p/go-libp2p/core/protocol"

	"aw/interop/kad"
)

const kadProtocol protocol.ID = "/aw/kad/1.0.0"

func newDHT(ctx context.Context, n *node) (*kad.DHT, error) {
	check, compare := checkRecord, compareRecords
	if n.careless {
		check = func([]byte, []byte) error { return nil }
		compare = func(_, _, _ []byte) int { return 0 }
	}
	return kad.New(ctx, n.host, kad.Config{Protocol: kadProtocol, Check: check, Compare: compare, Usable: usable})
}

// checkRecord is the validator: the key names the world whose head the value must be.
func checkRecord(key, value []byte) error {
	world := strings.TrimSuffix(strings.TrimPrefix(string(key), "/aw/world/"), "/head")
	if headKey(world) != string(key) || rules["world_id"](world) != nil {
		return refuse("no key of a record: %q", key)
	}
	_, err := checkHead(value, world)
	return err
}

// compareRecords is the order of heads. Both values have passed the check.
func compareRecords(_, a, b []byte) int {
	x, errX := checkHead(a, "")
	y, errY := checkHead(b, "")
	if errX != nil || errY != nil {
		return bytes.Compare(a, b) // cannot be: only checked values come here
	}
	return x.newer(y)
}

// The routing table, buckets of peers by the length of the prefix that they share with us.

package kad

import (
	"bytes"
	"crypto/sha256"
	"math/bits"
	"slices"
	"sort"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
)

const bucketSize = 20 // the specification's k

type table struct {
	self    [32]byte
	mu      sync.Mutex
	buckets [257][]peer.ID
}

func distance(a, b [32]byte) [32]byte {
	for i := range a {
		a[i] ^= b[i]
	}
	return a
}

func place(key []byte) [32]byte { return sha256.Sum256(key) }

func (t *table) bucket(p peer.ID) *[]peer.ID {
	zeros := 0
	for _, b := range distance(t.self, place([]byte(p))) {
		zeros += bits.LeadingZeros8(b)
		if b != 0 {
			break
		}
	}
	return &t.buckets[zeros]
}

// add keeps the old peers of a full bucket: they have proved that they stay.
func (t *table) add(p peer.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b := t.bucket(p); len(*b) < bucketSize && !slices.Contains(*b, p) {
		*b = append(*b, p)
	}
}

func (t *table) remove(p peer.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.bucket(p)
	*b = slices.DeleteFunc(*b, func(x peer.ID) bool { return x == p })
}

func (t *table) all() []peer.ID {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Concat(t.buckets[:]...)
}

func (t *table) closest(key []byte) []peer.ID {
	out := byDistance(t.all(), place(key))
	return out[:min(len(out), bucketSize)]
}

func byDistance(peers []peer.ID, to [32]byte) []peer.ID {
	at := make(map[peer.ID][32]byte, len(peers))
	for _, p := range peers {
		at[p] = distance(place([]byte(p)), to)
	}
	sort.Slice(peers, func(i, j int) bool {
		a, b := at[peers[i]], at[peers[j]]
		return bytes.Compare(a[:], b[:]) < 0
	})
	return peers
}

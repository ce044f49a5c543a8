// Blobs by content id: what this peer keeps and serves.
// docs/protocol.md: Hashes, Methods (fetch_blob); docs/interop.md: Blobs.

package main

import (
	"context"
	"encoding/binary"
	"io"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
	"lukechampine.com/blake3"
)

type blobs struct {
	mu   sync.RWMutex
	held map[string][]byte
}

func (b *blobs) get(hash []byte) ([]byte, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	blob, ok := b.held[string(hash)]
	return blob, ok
}

// put takes the hash on trust: whoever has not made it of the blob has checked it, or lies on purpose.
func (b *blobs) put(hash, blob []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held[string(hash)] = blob
}

// fetchBlob asks the peer for a blob, of at most so many bytes, and keeps it.
func (n *node) fetchBlob(ctx context.Context, p peer.ID, hash []byte, most int64) ([]byte, error) {
	blob, err := n.FetchBlob(ctx, p, hash, most)
	if err == nil {
		n.blobs.put(hash, blob)
	}
	return blob, err
}

// seededBlob is the extended output of BLAKE3 for the 8 bytes of the seed.
func seededBlob(seed uint64, size int) []byte {
	h := blake3.New(32, nil)
	h.Write(binary.BigEndian.AppendUint64(nil, seed))
	blob := make([]byte, size)
	if _, err := io.ReadFull(h.XOF(), blob); err != nil {
		panic(err) // the output is longer than any blob
	}
	return blob
}

// Blobs by content id: what this peer keeps and serves.
// docs/protocol.md: Hashes, Methods (fetch_blob); docs/interop.md: Blobs.

package main

import (
	"encoding/binary"
	"io"
	"sync"

	"lukechampine.com/blake3"

	"aw/interop/aw"
)

const blobsMax = 1 << 30 // bytes, of all together

type blobs struct {
	mu     sync.RWMutex
	held   map[string][]byte
	size   int
	served struct{ blobs, bytes int }
}

func (b *blobs) get(hash []byte) ([]byte, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	blob, ok := b.held[string(hash)]
	return blob, ok
}

// put takes the hash on trust: whoever has not made it of the blob has checked it, or lies on purpose.
func (b *blobs) put(hash, blob []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	grown := b.size + len(blob) - len(b.held[string(hash)])
	if grown > blobsMax {
		return aw.Refuse("no room for this blob: all together have at most %d bytes", blobsMax)
	}
	b.held[string(hash)], b.size = blob, grown
	return nil
}

// sent counts an answer of one blob, or of a piece of one, that went out whole.
func (b *blobs) sent(size int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.served.blobs++
	b.served.bytes += size
}

func (b *blobs) sentSoFar() (blobs, bytes int) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.served.blobs, b.served.bytes
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

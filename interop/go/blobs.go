// Blobs by content id: keeping them, and fetching them from another peer.
// docs/protocol.md: Hashes, Methods (fetch_blob); docs/interop.md: Blobs.
package main

import (
	"bytes"
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

// fetchBlob asks the peer for a blob, of at most so many bytes, and keeps it when it is the right one.
func (n *node) fetchBlob(ctx context.Context, p peer.ID, hash []byte, most int64) ([]byte, error) {
	blob, size, err := n.askBlob(ctx, p, dict{"content_hash": hash}, most)
	if err != nil {
		return nil, err
	}
	if size != int64(len(blob)) || !bytes.Equal(H(blob), hash) {
		return nil, refuse("the peer's bytes are not the blob %x", hash)
	}
	n.blobs.put(hash, blob)
	return blob, nil
}

// blobStart gives the first bytes, which nothing proves.
func (n *node) blobStart(ctx context.Context, p peer.ID, hash []byte, length int64) ([]byte, error) {
	start, _, err := n.askBlob(ctx, p, dict{"content_hash": hash, "length": length}, length)
	return start, err
}

// askBlob gives what the peer sent, and how large it says that the whole blob is.
func (n *node) askBlob(ctx context.Context, p peer.ID, q dict, most int64) ([]byte, int64, error) {
	var joined bytes.Buffer
	last, _, err := n.rr.parts(ctx, p, "fetch_blob", encode(q), func(part []byte) error {
		if int64(joined.Len()+len(part)) > most {
			return errTooLarge
		}
		joined.Write(part)
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	a, err := readRecord("fetch_blob.answer", last)
	if err != nil {
		return nil, 0, err
	}
	return joined.Bytes(), a.int("size"), nil
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

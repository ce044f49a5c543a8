// Asking others as a light client that executes nothing: heads, proofs, blobs, and handing in envelopes.
// docs/protocol.md: State and proofs, Actions, Methods.

package awnet

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"aw/interop/aw"
	"aw/interop/rr"
)

const askTime = 10 * time.Second

// Ask calls a method and judges the shape of its answer.
func (n *Node) Ask(ctx context.Context, p peer.ID, method string, q aw.Map) (aw.Map, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	answer, err := n.RR.Call(ctx, p, method, aw.Encode(q))
	if err != nil {
		return nil, err
	}
	return aw.ReadRecord(method+".answer", answer)
}

// AskGenesis gives the genesis of a world, bound to its id, and knows it from now on.
func (n *Node) AskGenesis(ctx context.Context, p peer.ID, world string) (aw.Map, error) {
	a, err := n.Ask(ctx, p, "get_genesis", aw.Map{"world_id": world})
	if err != nil {
		return nil, err
	}
	if _, err := n.Know(a.Map("genesis"), world); err != nil {
		return nil, err
	}
	return a.Map("genesis"), nil
}

// AskHead gives the peer's head of a world, checked. ErrNotFound: it has none.
func (n *Node) AskHead(ctx context.Context, p peer.ID, world string) (*aw.Head, error) {
	a, err := n.Ask(ctx, p, "get_world_head", aw.Map{"world_id": world})
	if err != nil {
		return nil, err
	}
	if !a.Has("head") {
		return nil, ErrNotFound
	}
	return aw.CheckHead(aw.Encode(a["head"]), world)
}

// StateProof gives the block of the head and the value of a cell of the state, nil when it is proved absent.
func (n *Node) StateProof(ctx context.Context, p peer.ID, world, namespace string, key []byte) (block aw.Map, value []byte, err error) {
	a, err := n.Ask(ctx, p, "get_state_proof", aw.Map{"world_id": world, "namespace": namespace, "key": key})
	if err != nil {
		return nil, nil, err
	}
	return aw.CheckStateAnswer(a, world, namespace, key)
}

// ReceiptProof gives the height of the block that has the envelope, the head under which that is proved, and the
// envelope's receipts. An rr Error of CodeNotFound: no block has it yet, as far as the peer knows.
func (n *Node) ReceiptProof(ctx context.Context, p peer.ID, world string, envelope []byte) (at int64, h *aw.Head, receipts []aw.Map, err error) {
	a, err := n.Ask(ctx, p, "get_receipt", aw.Map{"world_id": world, "envelope_hash": envelope})
	if err != nil {
		return 0, nil, nil, err
	}
	return aw.CheckReceiptAnswer(a, world, envelope)
}

// Submit seals one envelope, hands it to a gateway and checks its promise: result has an acceptance where the outcome is
// accepted.
func (n *Node) Submit(ctx context.Context, p peer.ID, envelope aw.Map, key ed25519.PrivateKey) (sealed []any, result aw.Map, err error) {
	if err := aw.CheckRecord("envelope", envelope); err != nil {
		return nil, nil, err
	}
	world := envelope.Text("world_id")
	sealed = aw.Seal("envelope", envelope, key)
	a, err := n.Ask(ctx, p, "submit_actions", aw.Map{"world_id": world, "envelopes": []any{sealed}})
	if err != nil {
		return nil, nil, err
	}
	result, err = aw.CheckSubmitAnswer(a, world, []byte(p), aw.RecordHash("envelope", envelope))
	return sealed, result, err
}

// FetchBlob gives the blob of a hash, of at most so many bytes, checked against it. The context has a deadline.
func (n *Node) FetchBlob(ctx context.Context, p peer.ID, hash []byte, most int64) ([]byte, error) {
	blob, size, err := n.askBlob(ctx, p, aw.Map{"content_hash": hash}, most)
	if err != nil {
		return nil, err
	}
	if size != int64(len(blob)) || !bytes.Equal(aw.H(blob), hash) {
		return nil, aw.Refuse("the peer's bytes are not the blob %x", hash)
	}
	return blob, nil
}

// BlobStart gives the first bytes of a blob, which nothing proves.
func (n *Node) BlobStart(ctx context.Context, p peer.ID, hash []byte, length int64) ([]byte, error) {
	start, _, err := n.askBlob(ctx, p, aw.Map{"content_hash": hash, "length": length}, length)
	if errors.Is(err, rr.ErrTooLarge) {
		return nil, aw.Refuse("the peer sent more than the %d bytes that were asked for", length)
	}
	return start, err
}

// askBlob gives what the peer sent, and how large it says that the whole blob is.
func (n *Node) askBlob(ctx context.Context, p peer.ID, q aw.Map, most int64) ([]byte, int64, error) {
	var joined bytes.Buffer
	last, _, err := n.RR.Parts(ctx, p, "fetch_blob", aw.Encode(q), func(part []byte) error {
		if int64(joined.Len()+len(part)) > most {
			return rr.ErrTooLarge
		}
		joined.Write(part)
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	a, err := aw.ReadRecord("fetch_blob.answer", last)
	if err != nil {
		return nil, 0, err
	}
	return joined.Bytes(), a.Int("size"), nil
}

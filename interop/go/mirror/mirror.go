// Package mirror fetches a whole world from one peer without executing it (docs/protocol.md: Joining a world, without the
// replay): blocks from the head's hash down, then for each height its batch, its lists and its seals.
//
// It hides the order of the questions. It guarantees that all which it gives hangs together: every block is linked from the
// head to the genesis, every batch has its form, every list its hash and root. That the state roots are right it takes on
// the head's word.
package mirror

import (
	"bytes"
	"cmp"
	"context"
	"errors"

	"github.com/libp2p/go-libp2p/core/peer"

	"aw/interop/aw"
	"aw/interop/awnet"
	"aw/interop/rr"
)

const (
	listMax    = 64 << 20 // a list of receipts or events
	heightsMax = 1 << 20  // of a world that is mirrored in memory
)

// World is a world with all its heights, in memory.
type World struct {
	ID      string
	Genesis aw.Map // the genesis file
	Head    *aw.Head
	Heights []Height         // 1 and up
	ByHash  map[string]int64 // the height of a block, by its hash
}

// Height is what one height has beside its blobs.
type Height struct {
	Block         aw.Map
	Batch, Commit any // sealed; nil where the peer had none
}

// source is the peer that a world is fetched from, and who keeps the blobs.
type source struct {
	*awnet.Node
	from peer.ID
	keep func(hash, blob []byte) error
}

// Fetch fetches a world up to the peer's head. Each blob is given to keep when it has been checked against its hash.
func Fetch(ctx context.Context, n *awnet.Node, from peer.ID, id string, keep func(hash, blob []byte) error) (*World, error) {
	genesis := n.Genesis(id)
	if genesis == nil {
		var err error
		if genesis, err = n.AskGenesis(ctx, from, id); err != nil {
			return nil, err
		}
	}
	h, err := n.AskHead(ctx, from, id)
	if err != nil {
		return nil, err
	}
	w, s := &World{ID: id, Genesis: genesis, Head: h, ByHash: map[string]int64{}}, &source{n, from, keep}
	blocks, err := s.blocksTo(ctx, w)
	if err != nil {
		return nil, err
	}
	at := aw.FirstLink(genesis.Map("header"))
	for _, block := range blocks {
		of, err := s.fetchHeight(ctx, w, at, block)
		if err != nil {
			return nil, err
		}
		w.Heights = append(w.Heights, of)
		w.ByHash[string(at.BlockHash)] = at.Height
		if err := keep(at.BlockHash, aw.Preimage("block", aw.Encode(block))); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// blocksTo gives the blocks 1..head, every one linked from the head's hash down to the header.
func (s *source) blocksTo(ctx context.Context, w *World) ([]aw.Map, error) {
	h := w.Head
	if h.Height() > heightsMax {
		return nil, rr.ErrTooLarge
	}
	var blocks []aw.Map
	for int64(len(blocks)) < h.Height() {
		before := len(blocks)
		q := aw.Encode(aw.Map{"world_id": w.ID, "from_height": int64(before) + 1, "count": min(256, h.Height()-int64(before))})
		_, _, err := s.RR.Parts(ctx, s.from, "get_blocks", q, func(part []byte) error {
			items, err := aw.DecodeList(part, 256, aw.BytesMax("block"))
			if err != nil {
				return err
			}
			for _, item := range items {
				block, err := aw.ReadRecord("block", item)
				if err != nil {
					return err
				}
				blocks = append(blocks, block)
			}
			if int64(len(blocks)) > h.Height() {
				return aw.Refuse("more blocks than asked for")
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if len(blocks) == before {
			return nil, awnet.ErrNotFound
		}
	}
	want := h.BlockHash()
	for i := len(blocks) - 1; i >= 0; i-- {
		if !bytes.Equal(aw.RecordHash("block", blocks[i]), want) {
			return nil, aw.Refuse("block %d is not the one that the next names", i+1)
		}
		want = blocks[i].Bytes("prev_block_hash")
	}
	return blocks, cmp.Or(h.CheckBlock(blocks[len(blocks)-1]), checkKept(w, blocks))
}

// checkKept: the chain is the one that the head's epoch keeps.
func checkKept(w *World, blocks []aw.Map) error {
	h := w.Head
	if !h.Authorities().Has("resume") {
		return nil
	}
	at, kept := h.Authorities().Map("resume"), aw.FirstLink(w.Genesis.Map("header")).BatchHash
	if n := at.Int("height"); n > 0 { // and at most the head's, which aw.CheckHead has seen to
		kept = blocks[n-1].Bytes("batch_hash")
	}
	return aw.RefuseIf(!bytes.Equal(kept, at.Bytes("batch_hash")), "the chain is not the one that its epoch keeps")
}

// fetchBlob fetches a blob of at most so many bytes, and has it kept.
func (s *source) fetchBlob(ctx context.Context, hash []byte, most int64) ([]byte, error) {
	blob, err := s.FetchBlob(ctx, s.from, hash, most)
	if err == nil {
		err = s.keep(hash, blob)
	}
	return blob, err
}

// fetchHeight fetches what one block names, and checks it as the next link.
func (s *source) fetchHeight(ctx context.Context, w *World, at *aw.Link, block aw.Map) (Height, error) {
	of := Height{Block: block}
	raw, err := s.fetchBlob(ctx, block.Bytes("batch_hash"), int64(aw.BytesMax("batch"))+64)
	if err != nil {
		return of, err
	}
	inner, ok := bytes.CutPrefix(raw, aw.Preimage("batch", nil))
	if !ok {
		return of, aw.Refuse("batch_hash names no batch")
	}
	batch, err := aw.ReadRecord("batch", inner)
	if err != nil {
		return of, err
	}
	var lists [3][]byte
	for i, ref := range [][]byte{batch.Bytes("actions_ref"), block.Bytes("receipts_ref"), block.Bytes("journal_ref")} {
		if lists[i], err = s.fetchBlob(ctx, ref, listMax); err != nil {
			return of, err
		}
	}
	if err := at.Follow(w.Genesis, batch, block, lists[0], lists[1], lists[2]); err != nil {
		return of, err
	}
	return of, s.fetchSeals(ctx, w, batch, &of)
}

// fetchSeals asks for the seals of a batch and its commit, which old heights may not have any more.
func (s *source) fetchSeals(ctx context.Context, w *World, batch aw.Map, of *Height) error {
	a, err := s.Ask(ctx, s.from, "get_batch", aw.Map{"world_id": w.ID, "height": batch.Int("height")})
	var told *rr.Error
	if errors.As(err, &told) && told.Code == rr.CodeNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	commit := aw.Body(a["commit"])
	other := !bytes.Equal(aw.RecordHash("batch", aw.Body(a["batch"])), aw.RecordHash("batch", batch)) || commit.Int("term") != batch.Int("term")
	err = cmp.Or(aw.RefuseIf(other, "get_batch: another batch or term"), aw.CheckNames(commit, "batch", batch))
	// A committed batch whose seal nobody kept has zeros in its place, and is believed for its commit.
	if signature := a.List("batch")[1].([]byte); !bytes.Equal(signature, make([]byte, 64)) {
		err = cmp.Or(err, aw.VerifySeal("batch", a["batch"]))
	}
	set, resumed := w.inForce(commit)
	if set == nil || err != nil {
		return err // without its set a commit says nothing: it is not kept, the batch being known by its hash
	}
	// The batch from which an epoch resumes may be of an older one, and its proposer of no set any more.
	stranger := commit["epoch"] != batch["epoch"] || !aw.Contains(set.List("proposers"), batch.Bytes("proposer_id"))
	of.Batch, of.Commit = a["batch"], a["commit"]
	return cmp.Or(aw.CheckCommit(set, w.ID, a["commit"]), aw.RefuseIf(stranger && !resumed, "get_batch: the proposer is not of the set"))
}

// inForce gives the set that may have certified a commit, nil where it is not known here: the head's from where it
// resumes, and that of the genesis up to there. resumed: the epoch resumes from just this height.
func (w *World) inForce(commit aw.Map) (set aw.Map, resumed bool) {
	first, newest, from := w.Genesis.Map("authorities"), w.Head.Authorities(), int64(0)
	if newest.Has("resume") {
		from = newest.Map("resume").Int("height")
	}
	switch at := commit.Int("height"); {
	case commit["epoch"] == newest["epoch"] && at >= from:
		return newest, at == from
	case commit["epoch"] == first["epoch"] && at <= from:
		return first, false
	}
	return nil, false
}

// Mirroring: every blob of every height of a world from one peer, checked, kept and served again.
// docs/protocol.md: Joining a world, without the replay; docs/interop.md: Worlds (mirror).
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	listMax    = 64 << 20 // a list of receipts or events
	heightsMax = 1 << 20  // of a world that is mirrored in memory
)

func (n *node) mirror(ctx context.Context, p peer.ID, id string) (*world, error) {
	w := n.world(id)
	if w == nil {
		a, err := n.ask(ctx, p, "get_genesis", dict{"world_id": id})
		if err != nil {
			return nil, err
		}
		if w, err = n.know(a.dict("genesis"), id); err != nil {
			return nil, err
		}
	}
	h, err := n.askHead(ctx, p, id)
	if err != nil {
		return nil, err
	}
	blocks, err := n.blocksTo(ctx, p, w, h)
	if err != nil {
		return nil, err
	}
	full := &world{id: id, genesis: w.genesis, head: h, byHash: map[string]int64{}}
	at := firstLink(w.genesis.dict("header"))
	for _, block := range blocks {
		of, err := n.fetchHeight(ctx, p, full, at, block)
		if err != nil {
			return nil, err
		}
		full.heights = append(full.heights, of)
		full.byHash[string(at.blockHash)] = at.height
		n.blobs.put(at.blockHash, preimage("block", encode(block)))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.worlds[id] = full
	return full, nil
}

// blocksTo gives the blocks 1..head, every one linked from the head's hash down to the header.
func (n *node) blocksTo(ctx context.Context, p peer.ID, w *world, h *head) ([]dict, error) {
	if h.height() > heightsMax {
		return nil, errTooLarge
	}
	var blocks []dict
	for int64(len(blocks)) < h.height() {
		before := len(blocks)
		q := encode(dict{"world_id": w.id, "from_height": int64(before) + 1, "count": min(256, h.height()-int64(before))})
		_, _, err := n.rr.parts(ctx, p, "get_blocks", q, func(part []byte) error {
			items, err := decodeList(part, 256, schema["block"].max)
			if err != nil {
				return err
			}
			for _, item := range items {
				block, err := readRecord("block", item)
				if err != nil {
					return err
				}
				blocks = append(blocks, block)
			}
			if int64(len(blocks)) > h.height() {
				return refuse("more blocks than asked for")
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if len(blocks) == before {
			return nil, errNotFound
		}
	}
	want := h.blockHash()
	for i := len(blocks) - 1; i >= 0; i-- {
		if !bytes.Equal(recordHash("block", blocks[i]), want) {
			return nil, refuse("block %d is not the one that the next names", i+1)
		}
		want = blocks[i].bytes("prev_block_hash")
	}
	return blocks, cmp.Or(h.checkBlock(blocks[len(blocks)-1]), checkKept(w, h, blocks))
}

// checkKept: the chain is the one that the head's epoch keeps.
func checkKept(w *world, h *head, blocks []dict) error {
	if !h.set().has("resume") {
		return nil
	}
	at, kept := h.set().dict("resume"), firstLink(w.genesis.dict("header")).batchHash
	if n := at.int("height"); n > 0 { // and at most the head's, which checkHead has seen to
		kept = blocks[n-1].bytes("batch_hash")
	}
	return refuseIf(!bytes.Equal(kept, at.bytes("batch_hash")), "the chain is not the one that its epoch keeps")
}

// fetchHeight fetches what one block names, and checks it as the next link.
func (n *node) fetchHeight(ctx context.Context, p peer.ID, w *world, at *link, block dict) (height, error) {
	of := height{block: block}
	raw, err := n.fetchBlob(ctx, p, block.bytes("batch_hash"), int64(schema["batch"].max)+64)
	if err != nil {
		return of, err
	}
	inner, ok := bytes.CutPrefix(raw, preimage("batch", nil))
	if !ok {
		return of, refuse("batch_hash names no batch")
	}
	batch, err := readRecord("batch", inner)
	if err != nil {
		return of, err
	}
	var lists [3][]byte
	for i, ref := range [][]byte{batch.bytes("actions_ref"), block.bytes("receipts_ref"), block.bytes("journal_ref")} {
		if lists[i], err = n.fetchBlob(ctx, p, ref, listMax); err != nil {
			return of, err
		}
	}
	if err := at.follow(w.genesis, batch, block, lists[0], lists[1], lists[2]); err != nil {
		return of, err
	}
	return of, n.fetchSeals(ctx, p, w, batch, &of)
}

// fetchSeals asks for the seals of a batch and its commit, which old heights may not have any more.
func (n *node) fetchSeals(ctx context.Context, p peer.ID, w *world, batch dict, of *height) error {
	a, err := n.ask(ctx, p, "get_batch", dict{"world_id": w.id, "height": batch.int("height")})
	var told *rrError
	if errors.As(err, &told) && told.code == codeNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	commit := body(a["commit"])
	other := !bytes.Equal(recordHash("batch", body(a["batch"])), recordHash("batch", batch)) || commit.int("term") != batch.int("term")
	err = cmp.Or(refuseIf(other, "get_batch: another batch or term"), names(commit, "batch", batch))
	// A committed batch whose seal nobody kept has zeros in its place, and is believed for its commit.
	if signature := a.list("batch")[1].([]byte); !bytes.Equal(signature, make([]byte, 64)) {
		err = cmp.Or(err, verifySeal("batch", a["batch"]))
	}
	set, resumed := w.inForce(commit)
	if set == nil || err != nil {
		return err // without its set a commit says nothing: it is not kept, the batch being known by its hash
	}
	// The batch from which an epoch resumes may be of an older one, and its proposer of no set any more.
	stranger := commit["epoch"] != batch["epoch"] || !contains(set.list("proposers"), batch.bytes("proposer_id"))
	of.batch, of.commit = a["batch"], a["commit"]
	return cmp.Or(checkCommit(set, w.id, a["commit"]), refuseIf(stranger && !resumed, "get_batch: the proposer is not of the set"))
}

// inForce gives the set that may have certified a commit, nil where it is not known here: the head's from where it
// resumes, and that of the genesis up to there. resumed: the epoch resumes from just this height.
func (w *world) inForce(commit dict) (set dict, resumed bool) {
	first, newest, from := w.genesis.dict("authorities"), w.head.set(), int64(0)
	if newest.has("resume") {
		from = newest.dict("resume").int("height")
	}
	switch at := commit.int("height"); {
	case commit["epoch"] == newest["epoch"] && at >= from:
		return newest, at == from
	case commit["epoch"] == first["epoch"] && at <= from:
		return first, false
	}
	return nil, false
}

// Worlds: what this peer knows of them, and asking others as a light client that executes nothing.
// docs/protocol.md: State and proofs, Actions, Joining a world; docs/interop.md: Worlds.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"maps"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
)

// world is never changed once it is known: a mirror puts a new one in its place.
type world struct {
	id      string
	genesis dict
	head    *head // nil until it is mirrored
	heights []height
	byHash  map[string]int64
}

type height struct {
	block         dict
	batch, commit any // sealed; nil where the peer had none
}

func (n *node) world(id string) *world {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.worlds[id]
}

func (n *node) worldIDs() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.worlds))
}

func (w *world) envelopeMax() int {
	return int(w.genesis.dict("body").dict("limits").int("envelope_bytes_max"))
}

// know takes a genesis that was checked, bound to the id where one is given.
func (n *node) know(genesis dict, id string) (*world, error) {
	w := &world{id: worldID(recordHash("genesis", genesis.dict("header"))), genesis: genesis}
	n.mu.Lock()
	defer n.mu.Unlock()
	if known := n.worlds[w.id]; known != nil {
		w = known
	} else if id == "" || id == w.id {
		n.worlds[w.id] = w
	}
	return w, refuseIf(id != "" && id != w.id, "genesis: of world %s, not %s", w.id, id)
}

// ask calls a method and judges the shape of its answer.
func (n *node) ask(ctx context.Context, p peer.ID, method string, q dict) (dict, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	answer, err := n.rr.call(ctx, p, method, encode(q))
	if err != nil {
		return nil, err
	}
	return readRecord(method+".answer", answer)
}

// askHead gives the peer's head of a world.
func (n *node) askHead(ctx context.Context, p peer.ID, id string) (*head, error) {
	a, err := n.ask(ctx, p, "get_world_head", dict{"world_id": id})
	if err != nil {
		return nil, err
	}
	if !a.has("head") {
		return nil, errNotFound
	}
	return checkHead(encode(a["head"]), id)
}

// findHead asks the peer, or the DHT where none is named.
func (n *node) findHead(ctx context.Context, p peer.ID, id string) (*head, error) {
	if p != "" {
		return n.askHead(ctx, p, id)
	}
	value, err := n.dht.Get(ctx, []byte(headKey(id)))
	if err != nil {
		return nil, err
	}
	return checkHead(value, id)
}

// provedHead checks the head of an answer, and that the block is its block.
func provedHead(a dict, block dict, id string) (*head, error) {
	h, err := checkHead(encode(a["head"]), id)
	if err != nil {
		return nil, err
	}
	return h, h.checkBlock(block)
}

// stateProof gives the block of the head and the value of the cell, nil when it is proved absent.
func (n *node) stateProof(ctx context.Context, p peer.ID, id, namespace string, key []byte) (block dict, value []byte, err error) {
	a, err := n.ask(ctx, p, "get_state_proof", dict{"world_id": id, "namespace": namespace, "key": key})
	if err != nil {
		return nil, nil, err
	}
	block = a.dict("block")
	if _, err := provedHead(a, block, id); err != nil {
		return nil, nil, err
	}
	value, err = checkStateProof(block.bytes("state_root"), namespace, key, a.bytes("proof"))
	return block, value, err
}

// receiptProof gives the height of the envelope, that of the head, and the envelope's receipts.
func (n *node) receiptProof(ctx context.Context, p peer.ID, id string, envelope []byte) (at, head int64, receipts []dict, err error) {
	a, err := n.ask(ctx, p, "get_receipt", dict{"world_id": id, "envelope_hash": envelope})
	if err != nil {
		return 0, 0, nil, err
	}
	h, err := provedHead(a, a.dict("head_block"), id)
	if err != nil {
		return 0, 0, nil, err
	}
	block := a.dict("block")
	blockHash, path := recordHash("block", block), a.list("history_path")
	if at = block.int("height"); at == h.height() {
		err = refuseIf(!bytes.Equal(blockHash, h.blockHash()) || len(path) > 0, "the block at the head's height is another")
	} else {
		err = verifyMerkle(a.dict("head_block").bytes("history_root"), blockHash, at-1, h.height()-1, path)
	}
	receipts, wrong := provedReceipts(block, envelope, a)
	return at, h.height(), receipts, cmp.Or(err, wrong)
}

// provedReceipts gives all receipts that the block has for the envelope. What lies behind the last is of another
// envelope, or the last is the list's: so none is left out.
func provedReceipts(block dict, envelope []byte, a dict) (receipts []dict, err error) {
	proved := a.list("receipts")
	from, count := proved[0].(dict).int("index"), proved[0].(dict).int("count")
	behind := from + int64(len(proved))
	if a.has("after") != (behind < count) {
		return nil, refuse("a receipt behind the last belongs to one that is not the list's last")
	}
	if a.has("after") {
		proved = append(slices.Clone(proved), a["after"])
	}
	for i, x := range proved {
		r, receipt, index := x.(dict), x.(dict).dict("receipt"), from+int64(i)
		ours := bytes.Equal(receipt.bytes("envelope_hash"), envelope)
		// One refusal of the whole, or one receipt for each action.
		whole := receipt["index"] == int64(i) || !receipt.has("index") && behind == from+1
		if err := cmp.Or(refuseIf(r.int("index") != index || r.int("count") != count, "receipts that do not lie side by side"),
			refuseIf(ours != (index < behind), "receipts that are not those of the envelope, or not all of them"),
			refuseIf(ours && !whole, "neither one receipt without index, nor indexes 0..n-1"),
			verifyMerkle(block.bytes("receipts_root"), encode(receipt), index, count, r.list("path"))); err != nil {
			return nil, err
		}
		if ours {
			receipts = append(receipts, receipt)
		}
	}
	return receipts, nil
}

// submit hands one sealed envelope to a gateway and checks its promise.
func (n *node) submit(ctx context.Context, p peer.ID, envelope dict, key ed25519.PrivateKey) (sealed []any, result dict, err error) {
	if err := record("envelope")(envelope); err != nil {
		return nil, nil, err
	}
	id := envelope.text("world_id")
	sealed = seal("envelope", envelope, key)
	a, err := n.ask(ctx, p, "submit_actions", dict{"world_id": id, "envelopes": []any{sealed}})
	if err != nil {
		return nil, nil, err
	}
	result = a.list("results")[0].(dict)
	if accepted := result.text("outcome") == "accepted"; accepted != result.has("acceptance") || !accepted {
		return sealed, result, refuseIf(accepted != result.has("acceptance"), "an acceptance belongs to the outcome accepted")
	}
	promise := body(result["acceptance"])
	other := string(promise.bytes("gateway_id")) != string(p) || !bytes.Equal(promise.bytes("envelope_hash"), recordHash("envelope", envelope))
	return sealed, result, cmp.Or(ofWorld(id, promise), refuseIf(other, "the acceptance is of another envelope or gateway"),
		verifySeal("acceptance", result["acceptance"]))
}

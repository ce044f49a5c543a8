// What an answer proves: state and receipts under a head of the world, and the promise of a gateway.
// docs/protocol.md: State and proofs, Actions.

package aw

import (
	"bytes"
	"cmp"
	"slices"
)

// provedHead checks the head of an answer, and that the block is its block.
func provedHead(a Map, block Map, world string) (*Head, error) {
	h, err := CheckHead(Encode(a["head"]), world)
	if err != nil {
		return nil, err
	}
	return h, h.CheckBlock(block)
}

// CheckStateAnswer checks an answer to get_state_proof. It gives the block of the head under which the proof holds, and the
// value of the cell, nil when it is proved absent.
func CheckStateAnswer(a Map, world, namespace string, key []byte) (block Map, value []byte, err error) {
	block = a.Map("block")
	if _, err := provedHead(a, block, world); err != nil {
		return nil, nil, err
	}
	value, err = CheckStateProof(block.Bytes("state_root"), namespace, key, a.Bytes("proof"))
	return block, value, err
}

// CheckReceiptAnswer checks an answer to get_receipt. It gives the height of the block that has the envelope, the head under
// which that is proved, and all receipts of the envelope.
func CheckReceiptAnswer(a Map, world string, envelope []byte) (at int64, h *Head, receipts []Map, err error) {
	if h, err = provedHead(a, a.Map("head_block"), world); err != nil {
		return 0, nil, nil, err
	}
	block := a.Map("block")
	blockHash, path := RecordHash("block", block), a.List("history_path")
	if at = block.Int("height"); at == h.Height() {
		err = RefuseIf(!bytes.Equal(blockHash, h.BlockHash()) || len(path) > 0, "the block at the head's height is another")
	} else {
		err = VerifyMerkle(a.Map("head_block").Bytes("history_root"), blockHash, at-1, h.Height()-1, path)
	}
	receipts, wrong := provedReceipts(block, envelope, a)
	return at, h, receipts, cmp.Or(err, wrong)
}

// provedReceipts gives all receipts that the block has for the envelope. What lies behind the last is of another
// envelope, or the last is the list's: so none is left out.
func provedReceipts(block Map, envelope []byte, a Map) (receipts []Map, err error) {
	proved := a.List("receipts")
	from, count := proved[0].(Map).Int("index"), proved[0].(Map).Int("count")
	behind := from + int64(len(proved))
	if a.Has("after") != (behind < count) {
		return nil, Refuse("a receipt behind the last belongs to one that is not the list's last")
	}
	if a.Has("after") {
		proved = append(slices.Clone(proved), a["after"])
	}
	for i, x := range proved {
		r, receipt, index := x.(Map), x.(Map).Map("receipt"), from+int64(i)
		ours := bytes.Equal(receipt.Bytes("envelope_hash"), envelope)
		// One refusal of the whole, or one receipt for each action.
		whole := receipt["index"] == int64(i) || !receipt.Has("index") && behind == from+1
		if err := cmp.Or(RefuseIf(r.Int("index") != index || r.Int("count") != count, "receipts that do not lie side by side"),
			RefuseIf(ours != (index < behind), "receipts that are not those of the envelope, or not all of them"),
			RefuseIf(ours && !whole, "neither one receipt without index, nor indexes 0..n-1"),
			VerifyMerkle(block.Bytes("receipts_root"), Encode(receipt), index, count, r.List("path"))); err != nil {
			return nil, err
		}
		if ours {
			receipts = append(receipts, receipt)
		}
	}
	return receipts, nil
}

// CheckSubmitAnswer checks an answer to submit_actions of one envelope: the acceptance that belongs to the outcome accepted
// must be this gateway's, for this envelope.
func CheckSubmitAnswer(a Map, world string, gateway, envelope []byte) (result Map, err error) {
	result = a.List("results")[0].(Map)
	if accepted := result.Text("outcome") == "accepted"; accepted != result.Has("acceptance") || !accepted {
		return result, RefuseIf(accepted != result.Has("acceptance"), "an acceptance belongs to the outcome accepted")
	}
	promise := Body(result["acceptance"])
	other := !bytes.Equal(promise.Bytes("gateway_id"), gateway) || !bytes.Equal(promise.Bytes("envelope_hash"), envelope)
	return result, cmp.Or(ofWorld(world, promise), RefuseIf(other, "the acceptance is of another envelope or gateway"),
		VerifySeal("acceptance", result["acceptance"]))
}

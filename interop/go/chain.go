// What binds a batch to its parent, and a block to its batch and lists, short of executing it.
// docs/protocol.md: Batch (the form), Block, Receipts, State (Cells at height 0).
package main

import (
	"bytes"
	"cmp"
)

// link is what the next height must follow: at height 0 the header, for batches and blocks alike.
type link struct {
	height, time         int64
	batchHash, blockHash []byte
	history              peaks // over the block hashes so far
}

func firstLink(header dict) *link {
	h := recordHash("genesis", header)
	return &link{time: header.int("created_ms"), batchHash: h, blockHash: h}
}

// follow checks one height and becomes the link to the next.
func (l *link) follow(genesis, batch, block dict, actions, receipts, events []byte) error {
	err := cmp.Or(checkForm(genesis, l, batch, actions), checkBlock(l, batch, block),
		checkList(receipts, "receipt", block.bytes("receipts_ref"), block.bytes("receipts_root")),
		checkList(events, "event", block.bytes("journal_ref"), block.bytes("event_root")))
	l.height, l.time = block.int("height"), block.int("timestamp_ms")
	l.batchHash, l.blockHash = block.bytes("batch_hash"), recordHash("block", block)
	l.history.add(l.blockHash)
	return err
}

func checkForm(genesis dict, parent *link, batch dict, actions []byte) error {
	limits, world := genesis.dict("body").dict("limits"), worldID(recordHash("genesis", genesis.dict("header")))
	stray := batch.int("height") != parent.height+1 || !bytes.Equal(batch.bytes("prev_batch_hash"), parent.batchHash) ||
		batch.int("timestamp_ms") < parent.time
	blob := int64(len(actions)) <= limits.int("batch_bytes_max") && bytes.Equal(H(actions), batch.bytes("actions_ref"))
	if err := cmp.Or(ofWorld(world, batch), refuseIf(stray, "batch: does not follow its parent"), refuseIf(!blob, "batch: not the blob of actions_ref")); err != nil {
		return err
	}
	envelopes, err := decodeList(actions, int(limits.int("batch_envelopes_max")), int(limits.int("envelope_bytes_max")))
	if err != nil {
		return err
	}
	total, seen := 0, map[string]bool{}
	for _, e := range envelopes {
		s, err := readSealed("envelope", e)
		if err != nil {
			return err
		}
		if err := ofWorld(world, body(s)); err != nil {
			return err
		}
		total += len(body(s).list("actions"))
		seen[string(recordHash("envelope", body(s)))] = true
	}
	return cmp.Or(refuseIf(len(seen) != len(envelopes), "batch: an envelope twice"),
		refuseIf(int64(total) > limits.int("batch_actions_max"), "batch: too many actions"),
		refuseIf(int64(len(envelopes)) != batch.int("envelope_count") || !bytes.Equal(merkleRoot(envelopes), batch.bytes("actions_root")),
			"batch: another count or root"))
}

func checkBlock(parent *link, batch, block dict) error {
	wanted := dict{
		"world_id": batch["world_id"], "height": batch["height"], "batch_hash": recordHash("batch", batch),
		"term": batch["term"], "proposer_id": batch["proposer_id"], "timestamp_ms": batch["timestamp_ms"],
		"prev_block_hash": parent.blockHash, "history_root": parent.history.root(),
	}
	for field, want := range wanted {
		if !bytes.Equal(encode(block[field]), encode(want)) {
			return refuse("block %d: %s is another", block.int("height"), field)
		}
	}
	return refuseIf(block.has("manifest_hash"), "block %d: manifest_hash is not of this version", block.int("height"))
}

// checkList checks a list of receipts or events against its content id and its root.
func checkList(blob []byte, record string, ref, root []byte) error {
	items, err := decodeList(blob, itemsMax, schema[record].max)
	for i := 0; i < len(items) && err == nil; i++ {
		_, err = readRecord(record, items[i])
	}
	return cmp.Or(err, refuseIf(!bytes.Equal(H(blob), ref) || !bytes.Equal(merkleRoot(items), root), "the list of %ss is another", record))
}

// firstStateRoot is the root at height 0: the kernel's cells and the initial balances.
func firstStateRoot(genesisBody dict) []byte {
	kernel, ledger := map[string][]byte{}, map[string][]byte{}
	for _, p := range []string{"bounds", "max_move_cm", "resource_kinds", "checkpoint_interval", "max_block_gap_ms", "admission"} {
		kernel[p] = encode(genesisBody[p])
	}
	for _, p := range []string{"block_fuel_max", "agents_per_actor_max", "expiry_blocks_max", "action_skew_ms"} {
		kernel[p] = encode(genesisBody.dict("limits")[p])
	}
	for _, b := range genesisBody.list("balances") {
		if row := b.([]any); row[2].(int64) > 0 {
			ledger[string(encode([]any{"actor", row[0], row[1]}))] = encode(row[2])
		}
	}
	return stateRoot(map[string]map[string][]byte{"kernel": kernel, "ledger": ledger})
}

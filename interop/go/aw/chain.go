// What binds a batch to its parent, and a block to its batch and lists, short of executing it.
// docs/protocol.md: Batch (the form), Block, Receipts, State (Cells at height 0).

package aw

import (
	"bytes"
	"cmp"
)

// Link is what the next height must follow: at height 0 the header, for batches and blocks alike.
type Link struct {
	Height, time         int64
	BatchHash, BlockHash []byte
	history              Peaks // over the block hashes so far
}

// FirstLink is the link at height 0.
func FirstLink(header Map) *Link {
	h := RecordHash("genesis", header)
	return &Link{time: header.Int("created_ms"), BatchHash: h, BlockHash: h}
}

// Follow checks one height, with the blobs that its batch and block name, and becomes the link to the next.
func (l *Link) Follow(genesis, batch, block Map, actions, receipts, events []byte) error {
	err := cmp.Or(checkForm(genesis, l, batch, actions), checkBlock(l, batch, block),
		checkList(receipts, "receipt", block.Bytes("receipts_ref"), block.Bytes("receipts_root")),
		checkList(events, "event", block.Bytes("journal_ref"), block.Bytes("event_root")))
	l.Height, l.time = block.Int("height"), block.Int("timestamp_ms")
	l.BatchHash, l.BlockHash = block.Bytes("batch_hash"), RecordHash("block", block)
	l.history.Add(l.BlockHash)
	return err
}

func checkForm(genesis Map, parent *Link, batch Map, actions []byte) error {
	limits, world := genesis.Map("body").Map("limits"), WorldID(RecordHash("genesis", genesis.Map("header")))
	stray := batch.Int("height") != parent.Height+1 || !bytes.Equal(batch.Bytes("prev_batch_hash"), parent.BatchHash) ||
		batch.Int("timestamp_ms") < parent.time
	blob := int64(len(actions)) <= limits.Int("batch_bytes_max") && bytes.Equal(H(actions), batch.Bytes("actions_ref"))
	if err := cmp.Or(ofWorld(world, batch), RefuseIf(stray, "batch: does not follow its parent"), RefuseIf(!blob, "batch: not the blob of actions_ref")); err != nil {
		return err
	}
	envelopes, err := DecodeList(actions, int(limits.Int("batch_envelopes_max")), int(limits.Int("envelope_bytes_max")))
	if err != nil {
		return err
	}
	total, seen := 0, map[string]bool{}
	for _, e := range envelopes {
		s, err := ReadSealed("envelope", e)
		if err != nil {
			return err
		}
		if err := ofWorld(world, Body(s)); err != nil {
			return err
		}
		total += len(Body(s).List("actions"))
		seen[string(RecordHash("envelope", Body(s)))] = true
	}
	return cmp.Or(RefuseIf(len(seen) != len(envelopes), "batch: an envelope twice"),
		RefuseIf(int64(total) > limits.Int("batch_actions_max"), "batch: too many actions"),
		RefuseIf(int64(len(envelopes)) != batch.Int("envelope_count") || !bytes.Equal(merkleRoot(envelopes), batch.Bytes("actions_root")),
			"batch: another count or root"))
}

func checkBlock(parent *Link, batch, block Map) error {
	wanted := Map{
		"world_id": batch["world_id"], "height": batch["height"], "batch_hash": RecordHash("batch", batch),
		"term": batch["term"], "proposer_id": batch["proposer_id"], "timestamp_ms": batch["timestamp_ms"],
		"prev_block_hash": parent.BlockHash, "history_root": parent.history.Root(),
	}
	for field, want := range wanted {
		if !bytes.Equal(Encode(block[field]), Encode(want)) {
			return Refuse("block %d: %s is another", block.Int("height"), field)
		}
	}
	return RefuseIf(block.Has("manifest_hash"), "block %d: manifest_hash is not of this version", block.Int("height"))
}

// checkList checks a list of receipts or events against its content id and its root.
func checkList(blob []byte, record string, ref, root []byte) error {
	items, err := DecodeList(blob, itemsMax, schema[record].max)
	for i := 0; i < len(items) && err == nil; i++ {
		_, err = ReadRecord(record, items[i])
	}
	return cmp.Or(err, RefuseIf(!bytes.Equal(H(blob), ref) || !bytes.Equal(merkleRoot(items), root), "the list of %ss is another", record))
}

// FirstStateRoot is the root at height 0: the kernel's cells and the initial balances.
func FirstStateRoot(genesisBody Map) []byte {
	kernel, ledger := map[string][]byte{}, map[string][]byte{}
	for _, p := range []string{"bounds", "max_move_cm", "resource_kinds", "checkpoint_interval", "max_block_gap_ms", "admission"} {
		kernel[p] = Encode(genesisBody[p])
	}
	for _, p := range []string{"block_fuel_max", "agents_per_actor_max", "expiry_blocks_max", "action_skew_ms"} {
		kernel[p] = Encode(genesisBody.Map("limits")[p])
	}
	for _, b := range genesisBody.List("balances") {
		if row := b.([]any); row[2].(int64) > 0 {
			ledger[string(Encode([]any{"actor", row[0], row[1]}))] = Encode(row[2])
		}
	}
	return StateRoot(map[string]map[string][]byte{"kernel": kernel, "ledger": ledger})
}

// The check of a head, of the commit and the set in it, and the order of heads.
// docs/protocol.md: Head, Commit, Authorities (Resume).

package aw

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
)

// Head is one that passed the check: all that its bytes alone decide.
type Head struct {
	World  string
	Raw    []byte
	Record Map
}

// Commit, Authorities, Height, AsOf (ms since 1970) and BlockHash are parts of its record.
func (h *Head) Commit() Map       { return Body(h.Record["commit"]) }
func (h *Head) Authorities() Map  { return Body(h.Record["authorities"]) }
func (h *Head) Height() int64     { return h.Commit().Int("height") }
func (h *Head) AsOf() int64       { return h.Commit().Int("as_of_ms") }
func (h *Head) BlockHash() []byte { return h.Record.Bytes("block_hash") }

// Compare is the order of heads, above zero where h is the newer: epoch, height, as_of_ms, then the hash of the preimage.
func (h *Head) Compare(o *Head) int {
	return cmp.Or(cmp.Compare(h.Commit().Int("epoch"), o.Commit().Int("epoch")), cmp.Compare(h.Height(), o.Height()),
		cmp.Compare(h.AsOf(), o.AsOf()), bytes.Compare(H(Preimage("head", h.Raw)), H(Preimage("head", o.Raw))))
}

// CheckHead judges all that the bytes alone decide. An empty world takes the header's.
func CheckHead(raw []byte, world string) (*Head, error) {
	r, err := ReadRecord("head", raw)
	if err != nil {
		return nil, err
	}
	id := WorldID(RecordHash("genesis", r.Map("header")))
	h := &Head{id, raw, r}
	err = cmp.Or(RefuseIf(world != "" && world != id, "head: of world %s, not %s", id, world),
		checkSet(r.Map("header"), id, r.List("authorities")), CheckCommit(h.Authorities(), id, r["commit"]), checkResume(h.Authorities(), h.Commit()))
	var last []byte
	for i := 0; i < len(r.List("attestations")) && err == nil; i++ {
		a := r.List("attestations")[i]
		b, by := Body(a), Body(a).Bytes("executor_id")
		other := b.Text("world_id") != id || b["epoch"] != h.Authorities()["epoch"] || b["height"] != h.Commit()["height"] ||
			!bytes.Equal(b.Bytes("block_hash"), h.BlockHash())
		err = cmp.Or(RefuseIf(other, "head: an attestation is of another block"),
			RefuseIf(!Contains(h.Authorities().List("executors"), by), "head: an attestation is by no executor"),
			RefuseIf(bytes.Compare(last, by) >= 0, "head: attestations do not ascend"), VerifySeal("attestation", a))
		last = by
	}
	return h, err
}

// CheckBlock: the block is the one that the head vouches for.
func (h *Head) CheckBlock(block Map) error {
	c := h.Commit()
	other := !bytes.Equal(RecordHash("block", block), h.BlockHash()) || block["height"] != c["height"] || block["term"] != c["term"] ||
		!bytes.Equal(block.Bytes("batch_hash"), c.Bytes("batch_hash"))
	return cmp.Or(ofWorld(h.World, block), RefuseIf(other, "the block is not the head's"))
}

// checkResume holds an epoch's commits to the chain that the epoch keeps.
func checkResume(set, commit Map) error {
	if !set.Has("resume") {
		return nil
	}
	at := set.Map("resume")
	below := cmp.Compare(commit.Int("height"), at.Int("height"))
	return RefuseIf(below < 0 || below == 0 && !bytes.Equal(commit.Bytes("batch_hash"), at.Bytes("batch_hash")),
		"head: not of the chain that its epoch resumes")
}

// checkSet binds a set to the header: by its hash in epoch 0, by the root keys later.
func checkSet(header Map, world string, signed []any) error {
	set, signatures := signed[0].(Map), signed[1].([]any)
	if set.Int("epoch") == 0 {
		return cmp.Or(RefuseIf(len(signatures) != 0, "authorities: epoch 0 has no signatures"), checkFirstSet(header, set))
	}
	keys, last, setHash := header.List("root_keys"), int64(-1), RecordHash("authorities", set)
	err := cmp.Or(ofWorld(world, set), RefuseIf(int64(len(signatures)) != header.Int("root_threshold"),
		"authorities: needs exactly %d signatures", header.Int("root_threshold")))
	for _, s := range signatures {
		i, sig := s.([]any)[0].(int64), s.([]any)[1].([]byte)
		if err == nil && (i <= last || i >= int64(len(keys)) || !Verify(keys[i].([]byte), setHash, sig)) {
			err = Refuse("authorities: indexes of roots do not ascend, or a signature does not hold")
		}
		last = i
	}
	return err
}

// CheckCommit holds a sealed commit to a set: world, epoch, certifier and signature.
func CheckCommit(set Map, world string, sealed any) error {
	c := Body(sealed)
	other := c["epoch"] != set["epoch"] || !Contains(set.List("certifiers"), c.Bytes("certifier_id"))
	return cmp.Or(ofWorld(world, c), RefuseIf(other, "commit: not by a certifier of this epoch"), VerifySeal("commit", sealed))
}

// Contains: the id is one of a list of key ids.
func Contains(ids []any, id []byte) bool {
	return slices.ContainsFunc(ids, func(x any) bool { return bytes.Equal(x.([]byte), id) })
}

// WorldOfHeadKey gives the world of a DHT key `/aw/world/<world_id>/head`.
func WorldOfHeadKey(key []byte) (string, error) {
	world := strings.TrimSuffix(strings.TrimPrefix(string(key), "/aw/world/"), "/head")
	return world, RefuseIf(HeadKey(world) != string(key) || rules["world_id"](world) != nil, "no key of a record: %q", key)
}

// The check of a head, of the commit and the set in it, and the order of heads.
// docs/protocol.md: Head, Commit, Authorities (Resume).
package main

import (
	"bytes"
	"cmp"
	"slices"
)

// head is one that passed the check.
type head struct {
	world  string
	raw    []byte
	record dict
}

func (h *head) commit() dict      { return body(h.record["commit"]) }
func (h *head) set() dict         { return body(h.record["authorities"]) }
func (h *head) height() int64     { return h.commit().int("height") }
func (h *head) asOf() int64       { return h.commit().int("as_of_ms") }
func (h *head) blockHash() []byte { return h.record.bytes("block_hash") }

// newer is the order of heads: epoch, height, as_of_ms, then the hash of the preimage.
func (h *head) newer(o *head) int {
	return cmp.Or(cmp.Compare(h.commit().int("epoch"), o.commit().int("epoch")), cmp.Compare(h.height(), o.height()),
		cmp.Compare(h.asOf(), o.asOf()), bytes.Compare(H(preimage("head", h.raw)), H(preimage("head", o.raw))))
}

// checkHead judges all that the bytes alone decide. An empty world takes the header's.
func checkHead(raw []byte, world string) (*head, error) {
	r, err := readRecord("head", raw)
	if err != nil {
		return nil, err
	}
	id := worldID(recordHash("genesis", r.dict("header")))
	h := &head{id, raw, r}
	err = cmp.Or(refuseIf(world != "" && world != id, "head: of world %s, not %s", id, world),
		checkSet(r.dict("header"), id, r.list("authorities")), checkCommit(h.set(), id, r["commit"]), checkResume(h.set(), h.commit()))
	var last []byte
	for i := 0; i < len(r.list("attestations")) && err == nil; i++ {
		a := r.list("attestations")[i]
		b, by := body(a), body(a).bytes("executor_id")
		other := b.text("world_id") != id || b["epoch"] != h.set()["epoch"] || b["height"] != h.commit()["height"] ||
			!bytes.Equal(b.bytes("block_hash"), h.blockHash())
		err = cmp.Or(refuseIf(other, "head: an attestation is of another block"),
			refuseIf(!contains(h.set().list("executors"), by), "head: an attestation is by no executor"),
			refuseIf(bytes.Compare(last, by) >= 0, "head: attestations do not ascend"), verifySeal("attestation", a))
		last = by
	}
	return h, err
}

// checkBlock: the block is the one that the head vouches for.
func (h *head) checkBlock(block dict) error {
	c := h.commit()
	other := !bytes.Equal(recordHash("block", block), h.blockHash()) || block["height"] != c["height"] || block["term"] != c["term"] ||
		!bytes.Equal(block.bytes("batch_hash"), c.bytes("batch_hash"))
	return cmp.Or(ofWorld(h.world, block), refuseIf(other, "the block is not the head's"))
}

// checkResume holds an epoch's commits to the chain that the epoch keeps.
func checkResume(set, commit dict) error {
	if !set.has("resume") {
		return nil
	}
	at := set.dict("resume")
	below := cmp.Compare(commit.int("height"), at.int("height"))
	return refuseIf(below < 0 || below == 0 && !bytes.Equal(commit.bytes("batch_hash"), at.bytes("batch_hash")),
		"head: not of the chain that its epoch resumes")
}

// checkSet binds a set to the header: by its hash in epoch 0, by the root keys later.
func checkSet(header dict, world string, signed []any) error {
	set, signatures := signed[0].(dict), signed[1].([]any)
	if set.int("epoch") == 0 {
		return cmp.Or(refuseIf(len(signatures) != 0, "authorities: epoch 0 has no signatures"), checkFirstSet(header, set))
	}
	keys, last, setHash := header.list("root_keys"), int64(-1), recordHash("authorities", set)
	err := cmp.Or(ofWorld(world, set), refuseIf(int64(len(signatures)) != header.int("root_threshold"),
		"authorities: needs exactly %d signatures", header.int("root_threshold")))
	for _, s := range signatures {
		i, sig := s.([]any)[0].(int64), s.([]any)[1].([]byte)
		if err == nil && (i <= last || i >= int64(len(keys)) || !verify(keys[i].([]byte), setHash, sig)) {
			err = refuse("authorities: indexes of roots do not ascend, or a signature does not hold")
		}
		last = i
	}
	return err
}

func checkCommit(set dict, world string, sealed any) error {
	c := body(sealed)
	other := c["epoch"] != set["epoch"] || !contains(set.list("certifiers"), c.bytes("certifier_id"))
	return cmp.Or(ofWorld(world, c), refuseIf(other, "commit: not by a certifier of this epoch"), verifySeal("commit", sealed))
}

func contains(ids []any, id []byte) bool {
	return slices.ContainsFunc(ids, func(x any) bool { return bytes.Equal(x.([]byte), id) })
}

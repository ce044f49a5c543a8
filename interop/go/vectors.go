// The golden bytes of interop/vectors: each value made or checked, each refusal refused.
// docs/interop.md: Vectors. Of step.json it checks all that needs no execution.

package main

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"

	"github.com/libp2p/go-libp2p/core/peer"

	"aw/interop/aw"
	"aw/interop/rr"
)

// tally counts what was checked of one file, and keeps the first fault.
type tally struct {
	Checked int `json:"checked"`
	Refused int `json:"refused"`
	fault   error
}

func (t *tally) holds(ok bool, what string, a ...any) {
	t.Checked++
	if !ok && t.fault == nil {
		t.fault = aw.Refuse(what, a...)
	}
}

func (t *tally) equal(made, want any, what string) {
	t.holds(reflect.DeepEqual(made, want), "%s: made %x, want %x", what, made, want)
}

// passes wants no error.
func (t *tally) passes(err error, what string) { t.holds(err == nil, "%s: %v", what, err) }

// refuses wants a refusal, and no other kind of error.
func (t *tally) refuses(err error, what string) {
	t.Refused++
	var r *aw.Refusal
	var b *rr.BadFrame
	if t.fault == nil && !errors.As(err, &r) && !errors.As(err, &b) {
		t.fault = aw.Refuse("not refused: %s: %v", what, err)
	}
}

func checkVectors(dir string) (map[string]*tally, error) {
	files := map[string]*tally{}
	for name, check := range map[string]func(*tally, *args) error{
		"ids": idVectors, "merkle": merkleVectors, "frames": frameVectors, "signatures": signatureVectors,
		"records": recordVectors, "state": stateVectors, "step": stepVectors, "gossip": gossipVectors,
	} {
		b, err := os.ReadFile(filepath.Join(dir, name+".json"))
		if err != nil {
			return nil, &usageError{err.Error()}
		}
		// As an object, so that files which are lists are read in the same way.
		a, err := readArgs(append(append([]byte(`{"all":`), b...), '}'))
		if err != nil {
			return nil, err
		}
		t := &tally{}
		if err := errors.Join(check(t, a), *a.err, t.fault); err != nil {
			return nil, fmt.Errorf("%s.json: %w", name, err)
		}
		files[name+".json"] = t
	}
	return files, nil
}

func idVectors(t *tally, a *args) error {
	a = a.sub("all")
	content, id, world := a.sub("content_id"), a.sub("peer"), a.sub("world_id")
	name, seed := world.text("world_id"), id.hex("seed")
	if *a.err != nil || len(seed) != ed25519.SeedSize || len(world.hex("header_hash")) != 32 {
		return errors.Join(*a.err, aw.Refuse("a seed or a hash of another size"))
	}
	t.equal(aw.H(content.hex("blob")), content.hex("hex"), "content id")
	t.equal(aw.ContentCID(content.hex("hex")), content.text("cid"), "cid")
	t.equal(aw.ProviderKey(content.hex("hex")), a.hex("provider_key"), "provider key")
	t.equal(aw.KeyIDOf(ed25519.NewKeyFromSeed(seed)), id.hex("key_id"), "key id")
	t.equal(peer.ID(id.hex("key_id")).String(), id.text("text"), "peer id")
	t.equal(aw.WorldID(world.hex("header_hash")), name, "world id")
	t.equal(aw.HeadKey(name), a.text("head_key"), "head key")
	t.equal(aw.WorldContentID(name), a.hex("world_content_id"), "content id of the world")
	for _, topic := range a.list("topics") {
		world, _, err := aw.SplitTopic(fmt.Sprint(topic.of))
		if topic.of == "aw."+name+".event" {
			t.refuses(err, "a topic that is not in this version")
		} else {
			t.holds(err == nil && world == name, "topic %v: %v", topic.of, err)
		}
	}
	return nil
}

func merkleVectors(t *tally, a *args) error {
	for _, tree := range a.sub("all").list("trees") {
		count, root := tree.count("count"), tree.hex("root")
		var p aw.Peaks
		for i := range count {
			p.Add([]byte{byte(i)})
		}
		t.equal(p.Root(), root, fmt.Sprintf("root of %d", count))
		t.holds(count == 0 || reflect.DeepEqual(p.Roots, tree.hexes("peaks")), "peaks of %d", count)
		for i, hashes := range get[[]any](tree, "paths") {
			item, index := []byte{byte(i)}, int64(i)
			path := []any{}
			for _, h := range (&args{map[string]any{"path": hashes}, a.err}).hexes("path") {
				path = append(path, h)
			}
			t.passes(aw.VerifyMerkle(root, item, index, count, path), "path")
			t.refuses(aw.VerifyMerkle(root, item, index, count, append(path, root)), "a longer path")
			t.refuses(aw.VerifyMerkle(root, []byte{byte(i), 0}, index, count, path), "another item")
			t.refuses(aw.VerifyMerkle(root, item, count, count, path), "an index out of range")
			if len(path) > 0 {
				t.refuses(aw.VerifyMerkle(root, item, index, count, path[1:]), "a shorter path")
			}
		}
	}
	return nil
}

func frameVectors(t *tally, a *args) error {
	a = a.sub("all")
	kinds := map[string]byte{"request": rr.KindRequest, "answer": rr.KindAnswer, "part": rr.KindPart, "error": rr.KindError}
	for _, x := range a.list("frames") {
		want := &rr.Frame{Kind: kinds[x.text("kind")], ID: uint32(x.count("id")), Body: x.optHex("body")}
		switch want.Kind {
		case rr.KindRequest:
			want.Method = x.text("method")
		case rr.KindError:
			want.Code, want.RetryAfterMS, want.Message, want.Body = byte(x.count("code")), uint32(x.count("retry_after_ms")), x.text("message"), x.hex("detail")
		}
		t.equal(want.Encode(), x.hex("hex"), "frame")
		got, err := rr.ReadFrame(bufio.NewReader(bytes.NewReader(x.hex("hex"))), rr.FrameMax)
		t.holds(err == nil && reflect.DeepEqual(got, want), "frame: %v", err)
	}
	for _, x := range a.list("refuse") {
		_, err := rr.ReadFrame(bufio.NewReader(bytes.NewReader(x.hex("hex"))), rr.FrameMax)
		t.refuses(err, x.text("reason"))
	}
	return nil
}

func signatureVectors(t *tally, a *args) error {
	for _, x := range a.list("all") {
		hash, name := x.hex("record_hash"), x.text("name")
		t.equal(aw.SignedMessage(hash), x.hex("message"), name)
		err := aw.RefuseIf(!aw.Verify(x.hex("key_id"), hash, x.hex("signature")), "the signature does not hold")
		if x.flag("accept") {
			t.passes(err, name)
		} else {
			t.refuses(err, name)
		}
	}
	return nil
}

func recordVectors(t *tally, a *args) error {
	for _, x := range a.list("all") {
		kind, name, bytes, pre := x.text("record"), x.text("name"), x.hex("body"), x.hex("preimage")
		if !aw.IsRecord(kind) {
			return aw.Refuse("no record %q", kind)
		}
		t.equal(aw.Encode((&args{x.of.(map[string]any)["value"], x.err}).value()), bytes, name+": body")
		_, err := aw.ReadRecord(kind, bytes)
		t.passes(err, name)
		t.equal(aw.Preimage(kind, bytes), pre, name+": preimage")
		t.equal(aw.H(pre), x.hex("hash"), name+": hash")
		if kind == "head" {
			_, err := aw.CheckHead(bytes, "")
			t.passes(err, name)
		}
		if x.has("sealed") {
			s, err := aw.ReadSealed(kind, x.hex("sealed"))
			if err != nil {
				return err
			}
			t.passes(aw.VerifySeal(kind, s), name+": seal")
			t.equal(aw.Signer(kind, s), x.hex("signer"), name+": signer")
			t.equal(aw.Encode([]any{aw.Body(s), x.hex("signature")}), x.hex("sealed"), name+": sealed")
			for _, bad := range x.list("refuse_sealed") {
				_, err := aw.ReadSealed(kind, bad.hex("hex"))
				t.refuses(err, name+" sealed: "+bad.text("reason"))
			}
		}
		for _, bad := range x.list("refuse") {
			_, err := aw.ReadRecord(kind, bad.hex("hex"))
			t.refuses(err, name+": "+bad.text("reason"))
		}
		for _, other := range x.list("ignore") {
			_, err := aw.ReadRecord(kind, other.hex("hex"))
			t.holds(errors.Is(err, aw.ErrVersion), "%s: %s: not ignored: %v", name, other.text("reason"), err)
		}
	}
	return nil
}

func stateVectors(t *tally, a *args) error {
	for _, x := range a.list("all") {
		cells, root := map[string]map[string][]byte{}, x.hex("root")
		for _, c := range x.list("cells") {
			row, ok := c.of.([]any)
			if !ok || len(row) != 3 {
				return aw.Refuse("a cell is namespace, key, value")
			}
			namespace, of := fmt.Sprint(row[0]), (&args{map[string]any{"of": row[1:]}, a.err}).hexes("of")
			if cells[namespace] == nil {
				cells[namespace] = map[string][]byte{}
			}
			cells[namespace][string(of[0])] = of[1]
		}
		t.equal(aw.StateRoot(cells), root, fmt.Sprintf("root of %d cells", len(cells)))
		for _, p := range x.list("proofs") {
			namespace, key := p.text("namespace"), p.hex("key")
			value, err := aw.CheckStateProof(root, namespace, key, p.hex("proof"))
			t.passes(err, fmt.Sprintf("proof of %s %x", namespace, key))
			t.holds((value != nil) == p.has("value") && bytes.Equal(value, p.optHex("value")), "value of %s %x", namespace, key)
			for _, bad := range p.list("refuse") {
				_, err := aw.CheckStateProof(root, namespace, key, bad.hex("proof"))
				t.refuses(err, fmt.Sprintf("proof of %s %x: %s", namespace, key, bad.text("reason")))
			}
		}
	}
	return nil
}

func stepVectors(t *tally, a *args) error {
	a = a.sub("all")
	genesis, err1 := aw.ReadRecord("genesis_file", a.hex("genesis"))
	batch, err2 := aw.ReadSealed("batch", a.hex("batch"))
	commit, err3 := aw.ReadSealed("commit", a.hex("commit"))
	block, err4 := aw.ReadRecord("block", a.hex("block"))
	head, err5 := aw.CheckHead(a.hex("head"), a.text("world_id"))
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return err
	}
	header, set, world := genesis.Map("header"), genesis.Map("authorities"), a.text("world_id")
	t.equal(aw.WorldID(aw.RecordHash("genesis", header)), world, "world id")
	t.equal(aw.FirstStateRoot(genesis.Map("body")), a.hex("state_root_before"), "state root at height 0")
	joined := []any{}
	for _, e := range a.hexes("envelopes") {
		s, err := aw.ReadSealed("envelope", e)
		if err != nil {
			return err
		}
		t.passes(aw.VerifySeal("envelope", s), "envelope")
		joined = append(joined, s)
	}
	t.equal(aw.Encode(joined), a.hex("actions"), "actions")
	t.passes(aw.VerifySeal("batch", batch), "batch")
	t.holds(aw.Contains(set.List("proposers"), aw.Body(batch).Bytes("proposer_id")), "batch: not by a proposer")
	t.passes(aw.CheckCommit(set, world, commit), "commit")
	t.passes(aw.CheckNames(aw.Body(commit), "batch", aw.Body(batch)), "commit")
	blobs := a.sub("blobs")
	for id := range get[map[string]any](a, "blobs") {
		t.equal(hex.EncodeToString(aw.H(blobs.hex(id))), id, "blob")
	}
	list := func(ref, of string) []byte {
		blob := blobs.hex(hex.EncodeToString(block.Bytes(ref)))
		t.equal(aw.Encode((&args{get[[]any](a, of), a.err}).value()), blob, of)
		return blob
	}
	t.equal(block.Bytes("state_root"), a.hex("state_root"), "state root")
	t.equal(aw.RecordHash("block", block), a.hex("block_hash"), "block hash")
	t.equal(head.BlockHash(), a.hex("block_hash"), "block hash of the head")
	t.passes(aw.FirstLink(header).Follow(genesis, aw.Body(batch), block, a.hex("actions"), list("receipts_ref", "receipts"), list("journal_ref", "events")), "block")
	return nil
}

func gossipVectors(t *tally, a *args) error {
	for _, x := range a.list("all") {
		world, kind, err := aw.SplitTopic(x.text("topic"))
		if err != nil {
			return err
		}
		got, why := aw.Judge(world, kind, 32768, x.hex("data"))
		t.holds(string(got) == x.text("verdict"), "%s: %s, not %s: %v", x.text("name"), got, x.text("verdict"), why)
		if got == aw.Reject {
			t.Refused++
		}
	}
	return nil
}

// Package vectors holds this peer's code against the golden bytes of interop/vectors (docs/interop.md: Vectors).
//
// It guarantees that every entry of every file was looked at: each value made or checked, each refusal refused; a file that is
// not as expected fails. Of step.json it checks all that needs no execution.
package vectors

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
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"

	"aw/interop/aw"
	"aw/interop/jsonargs"
	"aw/interop/rr"
)

const treeMax = 1024 // items of a Merkle tree in a file

type args = jsonargs.Args

// Tally counts the entries of one file: those that must be refused, and what was checked of all others.
type Tally struct {
	Checked int   `json:"checked"`
	Refused int   `json:"refused"`
	fault   error // the first
}

func (t *Tally) must(ok bool, what string, a ...any) {
	if !ok && t.fault == nil {
		t.fault = aw.Refuse(what, a...)
	}
}

func (t *Tally) holds(ok bool, what string, a ...any) {
	t.Checked++
	t.must(ok, what, a...)
}

func (t *Tally) equal(made, want any, what string) {
	t.holds(reflect.DeepEqual(made, want), "%s: made %x, want %x", what, made, want)
}

// passes wants no error.
func (t *Tally) passes(err error, what string) { t.holds(err == nil, "%s: %v", what, err) }

// refuses is for an entry that must be refused.
func (t *Tally) refuses(err error, what string) {
	t.Refused++
	t.must(isRefusal(err), "not refused: %s: %v", what, err)
}

// isRefusal: the bytes are at fault, and no other kind of error.
func isRefusal(err error) bool {
	var r *aw.Refusal
	var b *rr.BadFrame
	return errors.As(err, &r) || errors.As(err, &b)
}

var checks = map[string]func(*Tally, *args) error{
	"ids.json": idVectors, "merkle.json": merkleVectors, "frames.json": frameVectors, "signatures.json": signatureVectors,
	"records.json": recordVectors, "state.json": stateVectors, "step.json": stepVectors, "gossip.json": gossipVectors,
}

// Check wants each of these files in the folder, and no other JSON. It fails with an *aw.Refusal for the first vector that is not so.
func Check(dir string) (map[string]*Tally, error) {
	there, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(there) < len(checks) {
		return nil, &jsonargs.Malformed{Why: fmt.Sprintf("dir has %d of %d files of vectors", len(there), len(checks))}
	}
	files := map[string]*Tally{}
	for _, path := range there {
		name := filepath.Base(path)
		check := checks[name]
		if check == nil {
			return nil, aw.Refuse("%s: nothing here checks it", name)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, &jsonargs.Malformed{Why: err.Error()}
		}
		// As an object, so that files which are lists are read in the same way.
		a, err := jsonargs.Read(append(append([]byte(`{"all":`), b...), '}'))
		if err != nil {
			return nil, aw.Refuse("%s: %v", name, err)
		}
		t := &Tally{}
		err = check(t, a)
		if err = errors.Join(err, a.Err(), t.fault); err != nil { // a missing field is a fault of the file, not of the command
			return nil, aw.Refuse("%s: %v", name, err)
		}
		files[name] = t
	}
	return files, nil
}

func idVectors(t *Tally, a *args) error {
	a = a.Field("all")
	content, id, world := a.Field("content_id"), a.Field("peer"), a.Field("world_id")
	name, seed, header := world.Text("world_id"), id.Sized("seed", ed25519.SeedSize), world.Sized("header_hash", 32)
	if a.Err() != nil {
		return nil
	}
	t.equal(aw.H(content.Hex("blob")), content.Hex("hex"), "content id")
	t.equal(aw.ContentCID(content.Hex("hex")), content.Text("cid"), "cid")
	t.equal(aw.ProviderKey(content.Hex("hex")), a.Hex("provider_key"), "provider key")
	t.equal(aw.KeyIDOf(ed25519.NewKeyFromSeed(seed)), id.Hex("key_id"), "key id")
	t.equal(peer.ID(id.Hex("key_id")).String(), id.Text("text"), "peer id")
	t.equal(aw.WorldID(header), name, "world id")
	t.equal(aw.HeadKey(name), a.Text("head_key"), "head key")
	t.equal(aw.WorldContentID(name), a.Hex("world_content_id"), "content id of the world")
	for _, topic := range a.List("topics") {
		kind := strings.TrimPrefix(fmt.Sprint(topic.Of), "aw."+name+".")
		t.equal(aw.Topic(name, kind), topic.Of, "topic")
		_, _, err := aw.SplitTopic(aw.Topic(name, kind))
		t.must((err == nil) == (kind != "event"), "topic %v: %v", topic.Of, err) // a name, but nobody subscribes in this version
	}
	return nil
}

func merkleVectors(t *Tally, a *args) error {
	for _, tree := range a.Field("all").List("trees") {
		count, root, paths := tree.Within("count", 0, treeMax), tree.Hex("root"), tree.List("paths")
		t.holds(int64(len(paths)) == count, "%d paths of %d", len(paths), count)
		var p aw.Peaks
		for i := range count {
			p.Add([]byte{byte(i)})
		}
		t.equal(p.Root(), root, fmt.Sprintf("root of %d", count))
		t.holds(slices.EqualFunc(p.Roots, tree.Field("peaks").Hexes(), bytes.Equal), "peaks of %d", count)
		for i, hashes := range paths {
			item, index := []byte{byte(i)}, int64(i)
			path := []any{}
			for _, h := range hashes.Hexes() {
				path = append(path, h)
			}
			t.passes(aw.VerifyMerkle(root, item, index, count, path), "path")
			t.holds(isRefusal(aw.VerifyMerkle(root, item, index, count, append(path, root))), "a longer path")
			t.holds(isRefusal(aw.VerifyMerkle(root, []byte{byte(i), 0}, index, count, path)), "another item")
			t.holds(isRefusal(aw.VerifyMerkle(root, item, count, count, path)), "an index out of range")
			t.holds(len(path) == 0 || isRefusal(aw.VerifyMerkle(root, item, index, count, path[1:])), "a shorter path")
		}
	}
	return nil
}

func frameVectors(t *Tally, a *args) error {
	a = a.Field("all")
	kinds := map[string]byte{"request": rr.KindRequest, "answer": rr.KindAnswer, "part": rr.KindPart, "error": rr.KindError}
	for _, x := range a.List("frames") {
		kind, known := kinds[x.Text("kind")]
		t.must(known, "a frame of no kind")
		want := &rr.Frame{Kind: kind, ID: uint32(x.Count("id"))}
		switch kind {
		case rr.KindError:
			want.Code, want.RetryAfterMS, want.Message, want.Body = byte(x.Count("code")), uint32(x.Count("retry_after_ms")), x.Text("message"), x.Hex("detail")
		case rr.KindRequest:
			want.Method = x.Text("method")
			fallthrough
		default:
			want.Body = x.Hex("body")
		}
		t.equal(want.Encode(), x.Hex("hex"), "frame")
		got, err := rr.ReadFrame(bufio.NewReader(bytes.NewReader(x.Hex("hex"))), rr.FrameMax)
		t.holds(err == nil && reflect.DeepEqual(got, want), "frame: %v", err)
	}
	for _, x := range a.List("refuse") {
		_, err := rr.ReadFrame(bufio.NewReader(bytes.NewReader(x.Hex("hex"))), rr.FrameMax)
		t.refuses(err, x.Text("reason"))
	}
	return nil
}

func signatureVectors(t *Tally, a *args) error {
	for _, x := range a.List("all") {
		hash, name := x.Hex("record_hash"), x.Text("name")
		t.equal(aw.SignedMessage(hash), x.Hex("message"), name)
		err := aw.RefuseIf(!aw.Verify(x.Hex("key_id"), hash, x.Hex("signature")), "the signature does not hold")
		if x.Bool("accept") {
			t.passes(err, name)
		} else {
			t.refuses(err, name)
		}
	}
	return nil
}

func recordVectors(t *Tally, a *args) error {
	for _, x := range a.List("all") {
		kind, name, bytes, pre := x.Text("record"), x.Text("name"), x.Hex("body"), x.Hex("preimage")
		if !aw.IsRecord(kind) {
			return aw.Refuse("no record %q", kind)
		}
		t.equal(aw.Encode(x.Field("value").Value()), bytes, name+": body")
		_, err := aw.ReadRecord(kind, bytes)
		t.passes(err, name)
		t.equal(aw.Preimage(kind, bytes), pre, name+": preimage")
		t.equal(aw.H(pre), x.Hex("hash"), name+": hash")
		if kind == "head" {
			_, err := aw.CheckHead(bytes, "")
			t.passes(err, name)
		}
		for _, field := range []string{"sealed", "signature", "signer", "refuse_sealed"} {
			t.must(x.Has(field) == aw.IsSealed(kind), "%s: %s", name, field)
		}
		if x.Has("sealed") {
			s, err := aw.ReadSealed(kind, x.Hex("sealed"))
			if err != nil {
				return err
			}
			t.passes(aw.VerifySeal(kind, s), name+": seal")
			t.equal(aw.Signer(kind, s), x.Hex("signer"), name+": signer")
			t.equal(aw.Encode([]any{aw.Body(s), x.Hex("signature")}), x.Hex("sealed"), name+": sealed")
			for _, bad := range x.List("refuse_sealed") {
				_, err := aw.ReadSealed(kind, bad.Hex("hex"))
				t.refuses(err, name+" sealed: "+bad.Text("reason"))
			}
		}
		for _, bad := range x.List("refuse") {
			_, err := aw.ReadRecord(kind, bad.Hex("hex"))
			t.refuses(err, name+": "+bad.Text("reason"))
		}
		for _, other := range x.List("ignore") {
			_, err := aw.ReadRecord(kind, other.Hex("hex"))
			t.Refused++
			t.must(errors.Is(err, aw.ErrVersion), "%s: %s: not ignored: %v", name, other.Text("reason"), err)
		}
	}
	return nil
}

func stateVectors(t *Tally, a *args) error {
	for _, x := range a.List("all") {
		cells, root := map[string]map[string][]byte{}, x.Hex("root")
		for _, c := range x.List("cells") {
			row := c.Items()
			if len(row) != 3 {
				return aw.Refuse("a cell is namespace, key, value")
			}
			namespace := fmt.Sprint(row[0].Of)
			if cells[namespace] == nil {
				cells[namespace] = map[string][]byte{}
			}
			cells[namespace][string(row[1].Bytes())] = row[2].Bytes()
		}
		t.equal(aw.StateRoot(cells), root, fmt.Sprintf("root of %d cells", len(cells)))
		for _, p := range x.List("proofs") {
			namespace, key := p.Text("namespace"), p.Hex("key")
			value, err := aw.CheckStateProof(root, namespace, key, p.Hex("proof"))
			t.passes(err, fmt.Sprintf("proof of %s %x", namespace, key))
			var want []byte
			if v := p.Field("value"); v.Of != nil { // null: it is proved absent
				want = v.Bytes()
			}
			t.holds((value == nil) == (want == nil) && bytes.Equal(value, want), "value of %s %x", namespace, key)
			for _, bad := range p.List("refuse") {
				_, err := aw.CheckStateProof(root, namespace, key, bad.Hex("proof"))
				t.refuses(err, fmt.Sprintf("proof of %s %x: %s", namespace, key, bad.Text("reason")))
			}
		}
	}
	return nil
}

func stepVectors(t *Tally, a *args) error {
	a = a.Field("all")
	genesis, err1 := aw.ReadRecord("genesis_file", a.Hex("genesis"))
	batch, err2 := aw.ReadSealed("batch", a.Hex("batch"))
	commit, err3 := aw.ReadSealed("commit", a.Hex("commit"))
	block, err4 := aw.ReadRecord("block", a.Hex("block"))
	head, err5 := aw.CheckHead(a.Hex("head"), a.Text("world_id"))
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return err
	}
	header, set, world := genesis.Map("header"), genesis.Map("authorities"), a.Text("world_id")
	t.equal(aw.WorldID(aw.RecordHash("genesis", header)), world, "world id")
	t.equal(aw.FirstStateRoot(genesis.Map("body")), a.Hex("state_root_before"), "state root at height 0")
	joined := []any{}
	for _, e := range a.Field("envelopes").Hexes() {
		s, err := aw.ReadSealed("envelope", e)
		if err != nil {
			return err
		}
		t.passes(aw.VerifySeal("envelope", s), "envelope")
		joined = append(joined, s)
	}
	t.equal(aw.Encode(joined), a.Hex("actions"), "actions")
	t.passes(aw.VerifySeal("batch", batch), "batch")
	t.holds(aw.Contains(set.List("proposers"), aw.Body(batch).Bytes("proposer_id")), "batch: not by a proposer")
	t.passes(aw.CheckCommit(set, world, commit), "commit")
	t.passes(aw.CheckNames(aw.Body(commit), "batch", aw.Body(batch)), "commit")
	blobs := a.Field("blobs")
	for _, id := range blobs.Keys() {
		t.equal(hex.EncodeToString(aw.H(blobs.Hex(id))), id, "blob")
	}
	list := func(ref, of string) []byte {
		blob := blobs.Hex(hex.EncodeToString(block.Bytes(ref)))
		t.equal(aw.Encode(a.Field(of).Value()), blob, of)
		return blob
	}
	t.equal(block.Bytes("state_root"), a.Hex("state_root"), "state root")
	t.equal(aw.RecordHash("block", block), a.Hex("block_hash"), "block hash")
	t.equal(head.BlockHash(), a.Hex("block_hash"), "block hash of the head")
	t.passes(aw.FirstLink(header).Follow(genesis, aw.Body(batch), block, a.Hex("actions"), list("receipts_ref", "receipts"), list("journal_ref", "events")), "block")
	return nil
}

func gossipVectors(t *Tally, a *args) error {
	for _, x := range a.List("all") {
		world, kind, err := aw.SplitTopic(x.Text("topic"))
		if err != nil {
			return err
		}
		got, why := aw.Judge(world, kind, 32768, x.Hex("data"))
		if got == aw.Accept {
			t.Checked++
		} else {
			t.Refused++
		}
		t.must(string(got) == x.Text("verdict"), "%s: %s, not %s: %v", x.Text("name"), got, x.Text("verdict"), why)
	}
	return nil
}

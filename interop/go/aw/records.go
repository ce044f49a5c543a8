// Reading records from bytes, and the rules of a record that reach over several fields.
// docs/protocol.md: Records, Genesis and world id, Authorities, Evidence.

package aw

import (
	"bytes"
	"cmp"
	"math"
)

// readAs judges bytes: size, canonical form, then shape and rules.
func readAs[T any](b []byte, most int, judge rule) (none T, err error) {
	if len(b) > most {
		return none, Refuse("%d bytes, at most %d", len(b), most)
	}
	v, err := decode(b, itemsMax)
	if err == nil {
		err = judge(v)
	}
	if err != nil {
		return none, err
	}
	return v.(T), nil
}

// IsRecord: there is a record, request or answer of this name.
func IsRecord(name string) bool { return schema[name] != nil }

// IsSealed: records of this name are signed, by one key that they name.
func IsSealed(name string) bool { return schema[name] != nil && schema[name].signer != "" }

// BytesMax is what the body of a record may have at most.
func BytesMax(name string) int { return schema[name].max }

// IsKeyID: these are the bytes of an Ed25519 peer id.
func IsKeyID(id []byte) bool { return keyID(id) == nil }

// CheckRecord judges a record that was not read from bytes.
func CheckRecord(name string, body Map) error { return record(name)(body) }

// ReadRecord reads the body of a record, or a request or an answer ("get_block.answer"), and judges it.
func ReadRecord(name string, b []byte) (Map, error) {
	return readAs[Map](b, cmp.Or(schema[name].max, messageMax), record(name))
}

// ReadSealed reads a sealed record, and leaves the signature to VerifySeal.
func ReadSealed(name string, b []byte) ([]any, error) {
	return readAs[[]any](b, schema[name].max+sealBytes, sealed(name))
}

// Body is the record of a sealed one.
func Body(sealed any) Map { return sealed.([]any)[0].(Map) }

// Signer is the key id of who sealed a record, as the record says.
func Signer(name string, sealed any) []byte { return Body(sealed).Bytes(schema[name].signer) }

// VerifySeal checks that a sealed record is signed by whom it names.
func VerifySeal(name string, s any) error {
	holds := Verify(Signer(name, s), RecordHash(name, Body(s)), s.([]any)[1].([]byte))
	return RefuseIf(!holds, "%s: the signature does not hold", name)
}

func ofWorld(world string, records ...Map) error {
	for _, r := range records {
		if r.Text("world_id") != world {
			return Refuse("of world %s, not %s", r.Text("world_id"), world)
		}
	}
	return nil
}

func genesisRules(d Map) error {
	return RefuseIf(d.Int("root_threshold") > int64(len(d.List("root_keys"))), "root_threshold is above the number of root keys")
}

func genesisBodyRules(d Map) error {
	b, total, last := d.Map("bounds"), map[any]int64{}, []any(nil)
	for _, axis := range []string{"x", "y", "z"} {
		if b.Int(axis+"_min_cm") > b.Int(axis+"_max_cm") {
			return Refuse("bounds of %s are empty", axis)
		}
	}
	for _, kind := range d.List("resource_kinds") {
		total[kind] = 0
	}
	for _, x := range d.List("balances") {
		row := x.([]any)
		if sum, known := total[row[1]]; !known || row[2].(int64) > math.MaxInt64-sum {
			return Refuse("a balance of an unknown kind, or a total above 2^63-1")
		}
		if last != nil && cmp.Or(compare(last[0], row[0]), compare(last[1], row[1])) >= 0 {
			return Refuse("balances do not ascend")
		}
		total[row[1]] += row[2].(int64)
		last = row
	}
	return nil
}

func genesisFileRules(d Map) error {
	header := d.Map("header")
	other := !bytes.Equal(RecordHash("genesis_body", d.Map("body")), header.Bytes("body_hash"))
	return cmp.Or(RefuseIf(other, "body_hash is of another body"), checkFirstSet(header, d.Map("authorities")))
}

func checkFirstSet(header, set Map) error {
	other := set.Int("epoch") != 0 || !bytes.Equal(RecordHash("authorities", set), header.Bytes("authorities_hash"))
	return RefuseIf(other, "authorities_hash is of another set")
}

func authoritiesRules(d Map) error {
	later := d.Int("epoch") > 0
	return RefuseIf(d.Has("world_id") != later || d.Has("resume") != later, "world_id and resume belong to every epoch but 0")
}

func envelopeRules(d Map) (err error) {
	left := 4096
	for _, action := range d.List("actions") {
		if left, err = walk(action.([]any)[1], left); err != nil {
			return err
		}
	}
	return nil
}

func heightOrHash(d Map) error {
	return RefuseIf(d.Has("height") == d.Has("block_hash"), "needs height or block_hash")
}

// fork is the evidence that one key sealed two records which exclude each other.
func fork(record, ascends string, same ...string) func(Map) error {
	return func(d Map) error {
		first, second := Body(d["first"]), Body(d["second"])
		for _, f := range same {
			if !bytes.Equal(Encode(first[f]), Encode(second[f])) {
				return Refuse("%s differs", f)
			}
		}
		return cmp.Or(RefuseIf(compare(first[ascends], second[ascends]) >= 0, "%s does not ascend", ascends),
			VerifySeal(record, d["first"]), VerifySeal(record, d["second"]))
	}
}

func malformedBatchRules(d Map) error {
	batch := d.Map("batch")
	orphan := d.Has("parent") && !bytes.Equal(RecordHash("batch", d.Map("parent")), batch.Bytes("prev_batch_hash"))
	return cmp.Or(CheckNames(Body(d["commit"]), "batch", batch),
		RefuseIf(!bytes.Equal(H(d.Bytes("actions")), batch.Bytes("actions_ref")), "actions are not those of actions_ref"),
		RefuseIf(orphan, "parent is another batch"), VerifySeal("commit", d["commit"]))
}

// CheckNames: the commit, or attestation, is of this batch, or block.
func CheckNames(by Map, what string, named Map) error {
	other := !bytes.Equal(RecordHash(what, named), by.Bytes(what+"_hash")) ||
		named["height"] != by["height"] || named["world_id"] != by["world_id"]
	return RefuseIf(other, "it is of another %s", what)
}

func wrongRootRules(d Map) error {
	return cmp.Or(CheckNames(Body(d["attestation"]), "block", d.Map("block")), VerifySeal("attestation", d["attestation"]))
}

func authoritiesForkRules(d Map) error {
	first, second := Body(d["first"]), Body(d["second"])
	return cmp.Or(RefuseIf(!first.Has("world_id") || first["world_id"] != second["world_id"] || first["epoch"] != second["epoch"], "not of one world and epoch"),
		RefuseIf(bytes.Compare(RecordHash("authorities", first), RecordHash("authorities", second)) >= 0, "the sets do not ascend"))
}

// Reading records from bytes, and the rules of a record that reach over several fields.
// docs/protocol.md: Records, Genesis and world id, Authorities, Evidence.
package main

import (
	"bytes"
	"cmp"
	"math"
)

// readAs judges bytes: size, canonical form, then shape and rules.
func readAs[T any](b []byte, most int, judge rule) (none T, err error) {
	if len(b) > most {
		return none, refuse("%d bytes, at most %d", len(b), most)
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

func readRecord(name string, b []byte) (dict, error) {
	return readAs[dict](b, cmp.Or(schema[name].max, frameMax), record(name))
}

// readSealed leaves the signature to verifySeal.
func readSealed(name string, b []byte) ([]any, error) {
	return readAs[[]any](b, schema[name].max+sealBytes, sealed(name))
}

func body(sealed any) dict { return sealed.([]any)[0].(dict) }

func verifySeal(name string, s any) error {
	holds := verify(body(s).bytes(schema[name].signer), recordHash(name, body(s)), s.([]any)[1].([]byte))
	return refuseIf(!holds, "%s: the signature does not hold", name)
}

func ofWorld(world string, records ...dict) error {
	for _, r := range records {
		if r.text("world_id") != world {
			return refuse("of world %s, not %s", r.text("world_id"), world)
		}
	}
	return nil
}

func genesisRules(d dict) error {
	return refuseIf(d.int("root_threshold") > int64(len(d.list("root_keys"))), "root_threshold is above the number of root keys")
}

func genesisBodyRules(d dict) error {
	b, total, last := d.dict("bounds"), map[any]int64{}, []any(nil)
	for _, axis := range []string{"x", "y", "z"} {
		if b.int(axis+"_min_cm") > b.int(axis+"_max_cm") {
			return refuse("bounds of %s are empty", axis)
		}
	}
	for _, kind := range d.list("resource_kinds") {
		total[kind] = 0
	}
	for _, x := range d.list("balances") {
		row := x.([]any)
		if sum, known := total[row[1]]; !known || row[2].(int64) > math.MaxInt64-sum {
			return refuse("a balance of an unknown kind, or a total above 2^63-1")
		}
		if last != nil && cmp.Or(compare(last[0], row[0]), compare(last[1], row[1])) >= 0 {
			return refuse("balances do not ascend")
		}
		total[row[1]] += row[2].(int64)
		last = row
	}
	return nil
}

func genesisFileRules(d dict) error {
	header := d.dict("header")
	other := !bytes.Equal(recordHash("genesis_body", d.dict("body")), header.bytes("body_hash"))
	return cmp.Or(refuseIf(other, "body_hash is of another body"), checkFirstSet(header, d.dict("authorities")))
}

func checkFirstSet(header, set dict) error {
	other := set.int("epoch") != 0 || !bytes.Equal(recordHash("authorities", set), header.bytes("authorities_hash"))
	return refuseIf(other, "authorities_hash is of another set")
}

func authoritiesRules(d dict) error {
	later := d.int("epoch") > 0
	return refuseIf(d.has("world_id") != later || d.has("resume") != later, "world_id and resume belong to every epoch but 0")
}

func envelopeRules(d dict) (err error) {
	left := 4096
	for _, action := range d.list("actions") {
		if left, err = walk(action.([]any)[1], left); err != nil {
			return err
		}
	}
	return nil
}

func heightOrHash(d dict) error {
	return refuseIf(d.has("height") == d.has("block_hash"), "needs height or block_hash")
}

// fork is the evidence that one key sealed two records which exclude each other.
func fork(record, ascends string, same ...string) func(dict) error {
	return func(d dict) error {
		first, second := body(d["first"]), body(d["second"])
		for _, f := range same {
			if !bytes.Equal(encode(first[f]), encode(second[f])) {
				return refuse("%s differs", f)
			}
		}
		return cmp.Or(refuseIf(compare(first[ascends], second[ascends]) >= 0, "%s does not ascend", ascends),
			verifySeal(record, d["first"]), verifySeal(record, d["second"]))
	}
}

func malformedBatchRules(d dict) error {
	batch := d.dict("batch")
	orphan := d.has("parent") && !bytes.Equal(recordHash("batch", d.dict("parent")), batch.bytes("prev_batch_hash"))
	return cmp.Or(names(body(d["commit"]), "batch", batch),
		refuseIf(!bytes.Equal(H(d.bytes("actions")), batch.bytes("actions_ref")), "actions are not those of actions_ref"),
		refuseIf(orphan, "parent is another batch"), verifySeal("commit", d["commit"]))
}

// names: the commit, or attestation, is of this batch, or block.
func names(by dict, what string, named dict) error {
	other := !bytes.Equal(recordHash(what, named), by.bytes(what+"_hash")) ||
		named["height"] != by["height"] || named["world_id"] != by["world_id"]
	return refuseIf(other, "it is of another %s", what)
}

func wrongRootRules(d dict) error {
	return cmp.Or(names(body(d["attestation"]), "block", d.dict("block")), verifySeal("attestation", d["attestation"]))
}

func authoritiesForkRules(d dict) error {
	first, second := body(d["first"]), body(d["second"])
	return cmp.Or(refuseIf(!first.has("world_id") || first["world_id"] != second["world_id"] || first["epoch"] != second["epoch"], "not of one world and epoch"),
		refuseIf(bytes.Compare(recordHash("authorities", first), recordHash("authorities", second)) >= 0, "the sets do not ascend"))
}

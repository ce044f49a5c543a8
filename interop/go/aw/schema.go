// The shape of every record and body as one table, and the small language in which it is written.
// docs/protocol.md: Records, Methods; docs/protocol.cddl.
//
// A line of the table lists fields in the order in which they are judged: "name" has the rule of that
// name, "name:rule" another one, "?name" may be absent. "@r" is a record r, "~r" a sealed one.

package aw

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// CountMax bounds heights, nonces, times and other counts.
const CountMax = 1<<53 - 1

const (
	amountMax = 1<<63 - 1
	blobMax   = 983040 // a list of sealed envelopes
	sealBytes = 67     // what a seal adds to a body
)

type rule func(v any) error

type field struct {
	name     string
	optional bool
	rule     rule
}

type shape struct {
	max    int    // bytes of the body; 0 for bodies of requests and answers, which the frame bounds
	signer string // the field that names who seals it
	fields string
	also   func(Map) error // what one field alone does not decide

	compiled []field
}

var schema = map[string]*shape{}

func init() {
	for name, s := range table {
		s.compiled = compile(s.fields)
		schema[name] = s
	}
}

var table = map[string]*shape{
	"genesis": {max: 1024, also: genesisRules,
		fields: "v name root_keys root_threshold authorities_hash body_hash created_ms"},
	"genesis_body": {max: 524288, also: genesisBodyRules,
		fields: "bounds:@bounds max_move_cm resource_kinds balances limits:@limits checkpoint_interval max_block_gap_ms admission"},
	"genesis_file": {max: 524288, also: genesisFileRules,
		fields: "v header:@genesis body:@genesis_body authorities:@authorities"},
	"bounds": {fields: "x_min_cm x_max_cm y_min_cm y_max_cm z_min_cm z_max_cm"},
	"limits": {fields: "batch_envelopes_max batch_actions_max batch_bytes_max envelope_bytes_max block_fuel_max " +
		"agents_per_actor_max expiry_blocks_max action_skew_ms"},
	"authorities": {max: 2048, also: authoritiesRules,
		fields: "v epoch proposers executors certifiers commit_threshold ?world_id ?resume:@resume"},
	"resume": {fields: "height:count batch_hash"},

	"envelope": {max: 32768 - sealBytes, signer: "actor_id", also: envelopeRules,
		fields: "v world_id actor_id nonce expires_at_height:height timestamp_ms atomic:bool actions"},
	"acceptance": {max: 512, signer: "gateway_id",
		fields: "v world_id envelope_hash gateway_id accepted_at_ms stage"},
	"batch": {max: 1024, signer: "proposer_id",
		fields: "v world_id epoch term height prev_batch_hash envelope_count:count actions_root actions_ref proposer_id timestamp_ms"},
	"lease": {max: 512, signer: "certifier_id",
		fields: "v world_id epoch term holder_id granted_at_ms ttl_ms certifier_id"},
	"commit": {max: 512, signer: "certifier_id",
		fields: "v world_id epoch term height batch_hash certifier_id as_of_ms"},
	"block": {max: 1024, fields: "v world_id height prev_block_hash batch_hash state_root event_root journal_ref receipts_root " +
		"receipts_ref history_root term proposer_id timestamp_ms fuel_used:count ?manifest_hash"},
	"attestation": {max: 512, signer: "executor_id",
		fields: "v world_id epoch height block_hash executor_id ?snapshot:@snapshot"},
	"snapshot": {fields: "height ref:hash"},
	"head":     {max: 5120, fields: "v header:@genesis authorities:signed_authorities commit:~commit attestations block_hash"},
	"receipt":  {max: 1024, fields: "envelope_hash code ?index"},
	"event":    {max: 4096, fields: "kind:code envelope_hash index data:map"},

	"commit_fork":      {max: 5264, also: fork("commit", "batch_hash", "world_id", "epoch", "height", "certifier_id"), fields: "v first:~commit second:~commit"},
	"lease_fork":       {max: 5264, also: fork("lease", "holder_id", "world_id", "epoch", "term", "certifier_id"), fields: "v first:~lease second:~lease"},
	"attestation_fork": {max: 5264, also: fork("attestation", "block_hash", "world_id", "epoch", "height", "executor_id"), fields: "v first:~attestation second:~attestation"},
	"malformed_batch":  {max: 985731, also: malformedBatchRules, fields: "v commit:~commit batch:@batch actions:blob ?parent:@batch"},
	"wrong_root_proof": {max: 5264, also: wrongRootRules, fields: "v attestation:~attestation block:@block"},
	"authorities_fork": {max: 5264, also: authoritiesForkRules, fields: "v first:signed_authorities second:signed_authorities"},
	"evidence_item":    {max: 512, fields: "kind:name height:count content_hash +"},

	"state_proof": {max: 262144, fields: "top:@trie_path ?cells:@trie_path ?value:beside"},
	"trie_path":   {fields: "siblings bucket"},

	"cell.actors": {fields: "nonce agents:count"},
	"cell.agents": {fields: "owner:actor_id x_cm y_cm z_cm"},

	"any.request":            {fields: "+"},
	"fetch_blob.request":     {fields: "content_hash ?offset:count ?length:count +"},
	"fetch_blob.answer":      {fields: "size:count +"},
	"has_blobs.request":      {fields: "hashes +"},
	"world.request":          {fields: "world_id +"},
	"get_genesis.answer":     {fields: "genesis:@genesis_file +"},
	"get_world_head.answer":  {fields: "?head:map +"},
	"get_block.request":      {fields: "world_id ?height ?block_hash +", also: heightOrHash},
	"get_blocks.request":     {fields: "world_id from_height:height count:upto256 +"},
	"get_batch.request":      {fields: "world_id height +"},
	"get_batch.answer":       {fields: "batch:~batch commit:~commit +"},
	"get_state_proof.answer": {fields: "head:map block:@block proof:proof_bytes +"},
	"get_receipt.answer": {fields: "head:map head_block:@block block:@block history_path:path receipts:proved_receipts " +
		"?after:@proved_receipt +"},
	"proved_receipt":        {fields: "receipt:@receipt index:count count path +"},
	"submit_actions.answer": {fields: "results +"},
	"submit_result":         {fields: "outcome ?acceptance:~acceptance ?reason:text64 ?message:text512 ?retry_after_ms ?next_nonce:count +"},

	// Of the methods with which peers are tested: docs/interop.md.
	"x_error.request": {fields: "code:error_code retry_after_ms:u32 message:text1024 detail:bytes +"},
	"x_wait.request":  {fields: "ms:wait_ms +"},
	"x_parts.request": {fields: "count size:part_size +"},
	"x_reset.request": {fields: "after:count +"},
}

var (
	count = integer(0, CountMax)
	hash  = byteString(32, 32)
	name  = pattern(`[a-z0-9][a-z0-9_.-]{0,63}`)
	path  = list(0, 64, hash)
)

var rules = map[string]rule{
	"v": version, "world_id": pattern(`[a-z2-7]{32}`), "name": name, "count": count, "hash": hash, "path": path,
	"epoch": count, "term": count, "nonce": count, "height": integer(1, CountMax), "index": integer(0, 63),
	"code": pattern(`[A-Za-z]{1,64}`), "bool": isBool, "map": isMap, "bytes": byteString(0, 1<<20),
	"stage": word("local", "replicated"), "admission": word("open"), "outcome": word("accepted", "pooled", "refused"),

	"root_keys": ascending(list(1, 8, keyID)), "root_threshold": integer(1, 8),
	"proposers": ascending(list(1, 16, keyID)), "executors": ascending(list(1, 16, keyID)),
	"certifiers": list(1, 1, keyID), "commit_threshold": integer(1, 1),
	"signed_authorities": tuple(record("authorities"), list(0, 8, tuple(integer(0, 7), byteString(64, 64)))),
	"attestations":       list(1, 4, sealed("attestation")),

	"max_move_cm": count, "resource_kinds": ascending(list(0, 64, name)),
	"balances":            list(0, 4096, tuple(keyID, name, integer(0, amountMax))),
	"checkpoint_interval": integer(1, 1000000), "batch_envelopes_max": integer(1, 1024),
	"batch_actions_max": integer(64, 16384), "batch_bytes_max": integer(32776, blobMax),
	"envelope_bytes_max": integer(1024, 32768), "block_fuel_max": integer(1, 100000000000),
	"agents_per_actor_max": integer(1, 1000000), "expiry_blocks_max": integer(1, 100000), "action_skew_ms": integer(0, 3600000),

	"actions": list(1, 64, tuple(text(1, 64), isMap)), "blob": byteString(0, blobMax),
	"siblings": list(0, 64, byteString(480, 480)), "bucket": list(0, 16, entry), "beside": byteString(257, 65536),

	"hashes": list(1, 1024, hash), "upto256": integer(1, 256), "proof_bytes": byteString(1, 262144),
	"proved_receipts": list(1, 64, record("proved_receipt")), "results": list(1, 1, record("submit_result")),
	"text64": text(0, 64), "text512": text(0, 512), "text1024": text(0, 1024), "u32": integer(0, 1<<32-1),
	"error_code": integer(1, 10), "wait_ms": integer(0, 60000), "part_size": integer(0, 256<<10),
}

// What most fields of such an ending are.
var endings = []struct {
	ending string
	rule   rule
}{{"_hash", hash}, {"_root", hash}, {"_ref", hash}, {"_id", keyID}, {"_ms", count}, {"_cm", integer(-CountMax, CountMax)}}

func compile(line string) []field {
	var out []field
	for _, word := range strings.Fields(line) {
		if word == "+" { // open: later versions may add keys
			out = append(out, field{name: word})
			continue
		}
		word, optional := strings.CutPrefix(word, "?")
		name, by, other := strings.Cut(word, ":")
		if !other {
			by = name
		}
		out = append(out, field{name, optional, named(by)})
	}
	return out
}

func named(by string) rule {
	switch r, ok := rules[by]; {
	case ok:
		return r
	case by[0] == '@':
		return record(by[1:])
	case by[0] == '~':
		return sealed(by[1:])
	}
	for _, e := range endings {
		if strings.HasSuffix(by, e.ending) {
			return e.rule
		}
	}
	panic("schema: no rule " + by)
}

func record(name string) rule {
	return func(v any) error {
		d, ok := v.(Map)
		if !ok {
			return Refuse("%s: no map", name)
		}
		s, known, open := schema[name], 0, false
		for _, f := range s.compiled {
			x, there := d[f.name]
			switch {
			case f.name == "+":
				open = true
			case there:
				known++
				if err := f.rule(x); err != nil {
					return fmt.Errorf("%s.%s: %w", name, f.name, err)
				}
			case !f.optional:
				return Refuse("%s: %s is missing", name, f.name)
			}
		}
		if !open && known != len(d) {
			return Refuse("%s: unknown key", name)
		}
		// Only now its size: a record of another version is none of ours to measure.
		if size := len(Encode(d)); s.max > 0 && size > s.max {
			return Refuse("%s: %d bytes, at most %d", name, size, s.max)
		}
		if s.also == nil {
			return nil
		}
		return s.also(d)
	}
}

// sealed judges the signature's size first: it is malformed whatever the version of the record.
func sealed(name string) rule {
	shape, inner := tuple(anything, byteString(64, 64)), record(name)
	return func(v any) error {
		if err := shape(v); err != nil {
			return err
		}
		return inner(v.([]any)[0])
	}
}

func anything(any) error { return nil }

func version(v any) error {
	n, ok := v.(int64)
	if ok && n != 1 {
		return ErrVersion
	}
	return RefuseIf(!ok, "no integer")
}

// typed is a value of one type that passes.
func typed[T any](what string, passes func(T) bool) rule {
	return func(v any) error {
		x, ok := v.(T)
		return RefuseIf(!ok || !passes(x), "no %s", what)
	}
}

func integer(lo, hi int64) rule {
	return typed(fmt.Sprintf("integer of %d..%d", lo, hi), func(n int64) bool { return lo <= n && n <= hi })
}

func byteString(lo, hi int) rule {
	return typed(fmt.Sprintf("byte string of %d..%d", lo, hi), func(b []byte) bool { return lo <= len(b) && len(b) <= hi })
}

func text(lo, hi int) rule {
	return typed(fmt.Sprintf("text of %d..%d bytes", lo, hi), func(s string) bool { return lo <= len(s) && len(s) <= hi })
}

func pattern(re string) rule {
	return typed("text like "+re, regexp.MustCompile(`\A(?:`+re+`)\z`).MatchString)
}

func word(words ...string) rule { return pattern(strings.Join(words, "|")) }

var (
	keyID  = typed("key id", func(b []byte) bool { return len(b) == 38 && bytes.HasPrefix(b, keyIDPrefix) })
	isBool = typed("bool", func(bool) bool { return true })
	isMap  = typed("map", func(Map) bool { return true })
)

// items judges each element of a list whose length passes.
func items(what string, passes func(n int) bool, of func(i int) rule) rule {
	return func(v any) error {
		l, ok := v.([]any)
		if !ok || !passes(len(l)) {
			return Refuse("no list of %s", what)
		}
		for i, x := range l {
			if err := of(i)(x); err != nil {
				return fmt.Errorf("[%d]: %w", i, err)
			}
		}
		return nil
	}
}

func list(lo, hi int, of rule) rule {
	return items(fmt.Sprintf("%d..%d", lo, hi), func(n int) bool { return lo <= n && n <= hi }, func(int) rule { return of })
}

func tuple(of ...rule) rule {
	return items(fmt.Sprint(len(of)), func(n int) bool { return n == len(of) }, func(i int) rule { return of[i] })
}

// ascending is for lists of texts or of byte strings: strictly ascending bytes, so none twice.
func ascending(of rule) rule {
	return func(v any) error {
		if err := of(v); err != nil {
			return err
		}
		sorted := slices.IsSortedFunc(v.([]any), func(a, b any) int { return cmp.Or(compare(a, b), 1) })
		return RefuseIf(!sorted, "not ascending")
	}
}

// compare orders two texts, or two byte strings, by their bytes.
func compare(a, b any) int {
	if s, ok := a.(string); ok {
		return cmp.Compare(s, b.(string))
	}
	return bytes.Compare(a.([]byte), b.([]byte))
}

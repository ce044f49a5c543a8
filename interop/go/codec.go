// Canonical CBOR, the hashes over it and the identifiers made of them. It hides the CBOR library.
// docs/protocol.md: Encoding, Hashes, Genesis and world id, Names, Identity.
package main

import (
	"bytes"
	"cmp"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/fxamacker/cbor/v2"
	"lukechampine.com/blake3"
)

const itemsMax = 262144 // of one body or message

// dict is a decoded map. Its getters are for fields that a schema has already judged.
type dict map[string]any

func (d dict) int(k string) int64    { return d[k].(int64) }
func (d dict) bytes(k string) []byte { return d[k].([]byte) }
func (d dict) text(k string) string  { return d[k].(string) }
func (d dict) dict(k string) dict    { return d[k].(dict) }
func (d dict) list(k string) []any   { return d[k].([]any) }
func (d dict) has(k string) bool     { _, ok := d[k]; return ok }

// refusal says why bytes break a rule of the protocol.
type refusal struct{ why string }

func (r *refusal) Error() string { return r.why }

func refuse(format string, a ...any) error { return &refusal{fmt.Sprintf(format, a...)} }

// refuseIf makes a check an expression, so that cmp.Or takes the first of several that fails.
func refuseIf(broken bool, format string, a ...any) error {
	if !broken {
		return nil
	}
	return refuse(format, a...)
}

// errVersion marks a record of a version that is not known: no fault of whoever sent it.
var errVersion = errors.New("a version that is not known here")

var encoder, decoder = modes()

func modes() (cbor.EncMode, cbor.DecMode) {
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err) // the options are constants
	}
	dec, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		IntDec:           cbor.IntDecConvertSignedOrFail,
		MaxNestedLevels:  32,
		MaxArrayElements: itemsMax,
		MaxMapPairs:      itemsMax / 2,
		DefaultMapType:   reflect.TypeOf(dict(nil)),
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return enc, dec
}

func encode(v any) []byte {
	b, err := encoder.Marshal(v)
	if err != nil {
		panic(err) // only values of the profile are ever given to it
	}
	return b
}

// decode takes nothing but the canonical bytes of a value of the profile.
func decode(b []byte, items int) (any, error) {
	var v any
	if err := decoder.Unmarshal(b, &v); err != nil {
		return nil, refuse("not CBOR of the profile: %v", err)
	}
	if _, err := walk(v, items); err != nil {
		return nil, err
	}
	return v, refuseIf(!bytes.Equal(encode(v), b), "not canonical")
}

// walk refuses what re-encoding lets through (floats, simple values), and counts items.
func walk(v any, left int) (int, error) {
	inner := []any{}
	switch v := v.(type) {
	case nil, bool, int64, string, []byte:
	case []any:
		left, inner = left-len(v), v
	case dict:
		left, inner = left-2*len(v), slices.Collect(maps.Values(v))
	default:
		return left, refuse("%T is not of the profile", v)
	}
	err := refuseIf(left < 0, "too many items")
	for i := 0; i < len(inner) && err == nil; i++ {
		left, err = walk(inner[i], left)
	}
	return left, err
}

// decodeList splits a canonical list into the bytes of its elements without decoding them.
func decodeList(b []byte, count, eachMax int) ([][]byte, error) {
	var raw []cbor.RawMessage
	if err := decoder.Unmarshal(b, &raw); err != nil || raw == nil {
		return nil, refuse("no list: %v", err)
	}
	out := make([][]byte, len(raw))
	err := cmp.Or(refuseIf(len(raw) > count, "%d elements, at most %d", len(raw), count),
		refuseIf(!bytes.Equal(encode(raw), b), "not canonical"))
	for i, r := range raw {
		out[i] = r
		err = cmp.Or(err, refuseIf(len(r) > eachMax, "element %d has %d bytes, at most %d", i, len(r), eachMax))
	}
	return out, err
}

// H is BLAKE3-256 of the joined parts.
func H(parts ...[]byte) []byte {
	h := blake3.New(32, nil)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

func preimage(record string, body []byte) []byte {
	return append([]byte("aw/"+record+"/1\x00"), body...)
}

func recordHash(record string, body dict) []byte { return H(preimage(record, encode(body))) }

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

func worldID(headerHash []byte) string { return base32Lower.EncodeToString(headerHash[:20]) }

func contentCID(hash []byte) string {
	return "b" + base32Lower.EncodeToString(append([]byte{0x01, 0x55, 0x1e, 0x20}, hash...))
}

func providerKey(hash []byte) []byte { return append([]byte{0x1e, 0x20}, hash...) }

func headKey(world string) string { return "/aw/world/" + world + "/head" }

func worldContentID(world string) []byte { return H([]byte("aw/world/1\x00"), []byte(world)) }

var keyIDPrefix = []byte{0x00, 0x24, 0x08, 0x01, 0x12, 0x20}

// hexBytes are byte strings in JSON: lower-case hex.
type hexBytes []byte

func (h hexBytes) MarshalJSON() ([]byte, error) { return json.Marshal(hex.EncodeToString(h)) }

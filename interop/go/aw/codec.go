// Canonical CBOR, the hashes over it and the identifiers made of them. It hides the CBOR library.
// docs/protocol.md: Encoding, Hashes, Genesis and world id, Names, Identity.

package aw

import (
	"bytes"
	"cmp"
	"encoding/base32"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/fxamacker/cbor/v2"
	"lukechampine.com/blake3"
)

const (
	itemsMax   = 262144  // of one body or message
	messageMax = 1 << 20 // of what has no limit of its own: the frame bounds it
)

// Map is a decoded map of the profile; values are nil, bool, int64, string, []byte, []any and Map, and what is to be encoded
// must be made of these. Its getters are for fields that a schema has judged: they panic where the field is another.
type Map map[string]any

func (d Map) Int(k string) int64    { return d[k].(int64) }
func (d Map) Bytes(k string) []byte { return d[k].([]byte) }
func (d Map) Text(k string) string  { return d[k].(string) }
func (d Map) Map(k string) Map      { return d[k].(Map) }
func (d Map) List(k string) []any   { return d[k].([]any) }
func (d Map) Has(k string) bool     { _, ok := d[k]; return ok }

// Refusal says why bytes break a rule of the protocol.
type Refusal struct{ why string }

func (r *Refusal) Error() string { return r.why }

// Refuse makes a Refusal.
func Refuse(format string, a ...any) error { return &Refusal{fmt.Sprintf(format, a...)} }

// RefuseIf makes a check an expression, so that cmp.Or takes the first of several that fails.
func RefuseIf(broken bool, format string, a ...any) error {
	if !broken {
		return nil
	}
	return Refuse(format, a...)
}

// ErrVersion marks a record of a version that is not known: no fault of whoever sent it.
var ErrVersion = errors.New("a version that is not known here")

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
		DefaultMapType:   reflect.TypeOf(Map(nil)),
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return enc, dec
}

// Encode gives the canonical bytes of a value of the profile.
func Encode(v any) []byte {
	b, err := encoder.Marshal(v)
	if err != nil {
		panic(err) // only values of the profile are ever given to it
	}
	return b
}

// decode takes nothing but the canonical bytes of a value of the profile, of at most so many items.
func decode(b []byte, items int) (any, error) {
	var v any
	if err := decoder.Unmarshal(b, &v); err != nil {
		return nil, Refuse("not CBOR of the profile: %v", err)
	}
	if _, err := walk(v, items); err != nil {
		return nil, err
	}
	return v, RefuseIf(!bytes.Equal(Encode(v), b), "not canonical")
}

// walk refuses what re-encoding lets through (floats, simple values), and counts items.
func walk(v any, left int) (int, error) {
	inner := []any{}
	switch v := v.(type) {
	case nil, bool, int64, string, []byte:
	case []any:
		left, inner = left-len(v), v
	case Map:
		left, inner = left-2*len(v), slices.Collect(maps.Values(v))
	default:
		return left, Refuse("%T is not of the profile", v)
	}
	err := RefuseIf(left < 0, "too many items")
	for i := 0; i < len(inner) && err == nil; i++ {
		left, err = walk(inner[i], left)
	}
	return left, err
}

// DecodeList splits a canonical list into the bytes of its elements without decoding them.
func DecodeList(b []byte, count, eachMax int) ([][]byte, error) {
	var raw []cbor.RawMessage
	if err := decoder.Unmarshal(b, &raw); err != nil || raw == nil {
		return nil, Refuse("no list: %v", err)
	}
	out := make([][]byte, len(raw))
	err := cmp.Or(RefuseIf(len(raw) > count, "%d elements, at most %d", len(raw), count),
		RefuseIf(!bytes.Equal(Encode(raw), b), "not canonical"))
	for i, r := range raw {
		out[i] = r
		err = cmp.Or(err, RefuseIf(len(r) > eachMax, "element %d has %d bytes, at most %d", i, len(r), eachMax))
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

// Preimage is what the hash of a record is made of, and the blob that is stored under that hash.
func Preimage(record string, body []byte) []byte {
	return append([]byte("aw/"+record+"/1\x00"), body...)
}

// RecordHash is the hash of a record, without its signature.
func RecordHash(record string, body Map) []byte { return H(Preimage(record, Encode(body))) }

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// WorldID is made of the hash of the genesis header.
func WorldID(headerHash []byte) string { return base32Lower.EncodeToString(headerHash[:20]) }

// ContentCID is a content id as CIDv1, for people.
func ContentCID(hash []byte) string {
	return "b" + base32Lower.EncodeToString(append([]byte{0x01, 0x55, 0x1e, 0x20}, hash...))
}

// ProviderKey is the DHT key of those who have a blob.
func ProviderKey(hash []byte) []byte { return append([]byte{0x1e, 0x20}, hash...) }

// HeadKey is the DHT key of the head of a world.
func HeadKey(world string) string { return "/aw/world/" + world + "/head" }

// WorldContentID stands for a world as a whole: whoever serves it provides this.
func WorldContentID(world string) []byte { return H([]byte("aw/world/1\x00"), []byte(world)) }

var keyIDPrefix = []byte{0x00, 0x24, 0x08, 0x01, 0x12, 0x20}

// Reading JSON objects, of commands and of vectors, field by field: the first fault sticks.

package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"

	"aw/interop/aw"
)

// usageError: the command, or a file that it names, is malformed.
type usageError struct{ why string }

func (u *usageError) Error() string { return u.why }

type args struct {
	of  any
	err *error // shared with what it was taken from
}

func readArgs(b []byte) (*args, error) {
	in := json.NewDecoder(bytes.NewReader(b))
	in.UseNumber()
	a := &args{err: new(error)}
	if err := in.Decode(&a.of); err != nil {
		return nil, &usageError{err.Error()}
	}
	return a, nil
}

func (a *args) fail(format string, x ...any) {
	if *a.err == nil {
		*a.err = &usageError{fmt.Sprintf(format, x...)}
	}
}

func (a *args) has(k string) bool {
	m, ok := a.of.(map[string]any)
	return ok && m[k] != nil
}

// get gives a field that must be there, and of this type.
func get[T any](a *args, k string) (x T) {
	m, ok := a.of.(map[string]any)
	if ok {
		x, ok = m[k].(T)
	}
	if !ok {
		a.fail("%s is missing, or no %T", k, x)
	}
	return x
}

func (a *args) text(k string) string { return get[string](a, k) }
func (a *args) flag(k string) bool   { return a.has(k) && get[bool](a, k) }
func (a *args) hex(k string) []byte  { return a.unhex(get[string](a, k)) }
func (a *args) sub(k string) *args   { return &args{get[map[string]any](a, k), a.err} }

func (a *args) unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil || s != strings.ToLower(s) {
		a.fail("no lower-case hex: %.40q", s)
	}
	return b
}

func (a *args) optHex(k string) []byte {
	if !a.has(k) {
		return nil
	}
	return a.hex(k)
}

// count is an integer of 0..2^53-1, else where it may be absent.
func (a *args) count(k string, otherwise ...int64) int64 {
	if !a.has(k) && len(otherwise) > 0 {
		return otherwise[0]
	}
	n, err := get[json.Number](a, k).Int64()
	if err != nil || n < 0 || n > aw.CountMax {
		a.fail("%s is no count", k)
	}
	return n
}

// upTo is a count of at most so many.
func (a *args) upTo(k string, most int64, otherwise ...int64) int64 {
	n := a.count(k, otherwise...)
	if n > most {
		a.fail("%s is above %d", k, most)
		return 0
	}
	return n
}

func (a *args) peer(k string) peer.ID {
	p, err := peer.Decode(a.text(k))
	if err != nil {
		a.fail("%s: %v", k, err)
	}
	return p
}

func (a *args) list(k string) (out []*args) {
	for _, x := range get[[]any](a, k) {
		out = append(out, &args{x, a.err})
	}
	return out
}

func (a *args) hexes(k string) (out [][]byte) {
	for _, x := range a.list(k) {
		s, ok := x.of.(string)
		if !ok {
			a.fail("%s: no hex", k)
		}
		out = append(out, a.unhex(s))
	}
	return out
}

// value is a value of CBOR, byte strings being {"hex": ...}.
func (a *args) value() any {
	switch v := a.of.(type) {
	case json.Number:
		n, err := v.Int64()
		if err != nil {
			a.fail("no integer: %s", v)
		}
		return n
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = (&args{v[i], a.err}).value()
		}
		return out
	case map[string]any:
		if h, ok := v["hex"].(string); ok && len(v) == 1 {
			return a.unhex(h)
		}
		out := aw.Map{}
		for k, x := range v {
			out[k] = (&args{x, a.err}).value()
		}
		return out
	}
	return a.of
}

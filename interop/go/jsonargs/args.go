// Package jsonargs reads JSON objects, of commands and of vectors, field by field.
//
// It hides the types of encoding/json. It guarantees that the first fault sticks, so that a reader asks for Err once, when
// it has read all; what it was given after a fault is of no use, and harmless.
package jsonargs

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"

	"aw/interop/aw"
)

// Malformed is the error of what is not as it must be.
type Malformed struct{ Why string }

func (m *Malformed) Error() string { return m.Why }

// Args is a JSON value. Of is what encoding/json makes of it, numbers being a json.Number.
type Args struct {
	Of   any
	name string
	err  *error // shared with what it was taken from
}

// Read takes one JSON value.
func Read(b []byte) (*Args, error) {
	in := json.NewDecoder(bytes.NewReader(b))
	in.UseNumber()
	a := &Args{name: "it", err: new(error)}
	if err := in.Decode(&a.Of); err != nil {
		return nil, &Malformed{err.Error()}
	}
	if _, err := in.Token(); err != io.EOF {
		return nil, &Malformed{"more than one value"}
	}
	return a, nil
}

// Err is the first fault.
func (a *Args) Err() error { return *a.err }

// Fail is for faults that only the reader sees.
func (a *Args) Fail(format string, x ...any) {
	if *a.err == nil {
		*a.err = &Malformed{fmt.Sprintf(format, x...)}
	}
}

func as[T any](a *Args, what string) T {
	x, ok := a.Of.(T)
	if !ok {
		a.Fail("%s is no %s", a.name, what)
	}
	return x
}

// Has: there is such a field, and it is not null.
func (a *Args) Has(k string) bool {
	m, ok := a.Of.(map[string]any)
	return ok && m[k] != nil
}

// Keys are those of an object.
func (a *Args) Keys() []string { return slices.Sorted(maps.Keys(as[map[string]any](a, "object"))) }

// Field must be there. The methods of the same names as types want one of that type.
func (a *Args) Field(k string) *Args {
	x, there := as[map[string]any](a, "object")[k]
	if !there {
		a.Fail("%s is missing", k)
	}
	return &Args{x, k, a.err}
}

func (a *Args) Text(k string) string  { return as[string](a.Field(k), "text") }
func (a *Args) Bool(k string) bool    { return as[bool](a.Field(k), "true or false") }
func (a *Args) Hex(k string) []byte   { return a.Field(k).Bytes() }
func (a *Args) List(k string) []*Args { return a.Field(k).Items() }

// Flag may be absent.
func (a *Args) Flag(k string) bool { return a.Has(k) && a.Bool(k) }

// Bytes are lower-case hex.
func (a *Args) Bytes() []byte {
	s := as[string](a, "text")
	b, err := hex.DecodeString(s)
	if err != nil || s != strings.ToLower(s) {
		a.Fail("%s is no lower-case hex: %.40q", a.name, s)
	}
	return b
}

// Sized is so many bytes, such as a hash.
func (a *Args) Sized(k string, size int) []byte {
	b := a.Hex(k)
	if len(b) != size {
		a.Fail("%s is not of %d bytes", k, size)
	}
	return b
}

// Count is an integer of 0..2^53-1, else where it may be absent.
func (a *Args) Count(k string, otherwise ...int64) int64 {
	if !a.Has(k) && len(otherwise) > 0 {
		return otherwise[0]
	}
	n, err := as[json.Number](a.Field(k), "number").Int64()
	if err != nil || n < 0 || n > aw.CountMax {
		a.Fail("%s is no count", k)
	}
	return n
}

// Within is a count of these.
func (a *Args) Within(k string, least, most int64, otherwise ...int64) int64 {
	n := a.Count(k, otherwise...)
	if n < least || n > most {
		a.Fail("%s is not in %d..%d", k, least, most)
		return least
	}
	return n
}

func (a *Args) Peer(k string) peer.ID {
	p, err := peer.Decode(a.Text(k))
	if err != nil {
		a.Fail("%s: %v", k, err)
	}
	return p
}

// Items are those of a list.
func (a *Args) Items() (out []*Args) {
	for i, x := range as[[]any](a, "list") {
		out = append(out, &Args{x, fmt.Sprintf("%s[%d]", a.name, i), a.err})
	}
	return out
}

// Hexes are those of a list of byte strings.
func (a *Args) Hexes() (out [][]byte) {
	for _, x := range a.Items() {
		out = append(out, x.Bytes())
	}
	return out
}

// Value is a value of CBOR, byte strings being {"hex": ...}.
func (a *Args) Value() any {
	switch v := a.Of.(type) {
	case json.Number:
		n, err := v.Int64()
		if err != nil {
			a.Fail("no integer: %s", v)
		}
		return n
	case []any:
		out := make([]any, len(v))
		for i, x := range a.Items() {
			out[i] = x.Value()
		}
		return out
	case map[string]any:
		if _, ok := v["hex"].(string); ok && len(v) == 1 {
			return a.Hex("hex")
		}
		out := aw.Map{}
		for k := range v {
			out[k] = a.Field(k).Value()
		}
		return out
	}
	return a.Of
}

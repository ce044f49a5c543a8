// The state trie: roots from cells, and proofs of a cell or of its absence.
// docs/protocol.md: State, Proofs.

package aw

import (
	"bytes"
	"cmp"
	"slices"
)

const bucketMax = 16

var (
	bucketDomain = []byte("aw/trie/1\x00\x00")
	innerDomain  = []byte("aw/trie/1\x00\x01")
	zeros        = make([]byte, 32)
)

// entry = [key, 0, value], or [key, 1, hash, size] of a value that is kept beside.
func entry(v any) error {
	if l, ok := v.([]any); ok && len(l) == 4 {
		return tuple(byteString(1, 256), integer(1, 1), hash, integer(257, 65536))(v)
	}
	return tuple(byteString(1, 256), integer(0, 0), byteString(1, 256))(v)
}

func makeEntry(key, value []byte) any {
	if len(value) <= 256 {
		return []any{key, int64(0), value}
	}
	return []any{key, int64(1), H(value), int64(len(value))}
}

func entryPath(e any) []byte { return H(e.([]any)[0].([]byte)) }

func nibble(path []byte, i int) int {
	if i%2 == 0 {
		return int(path[i/2] >> 4)
	}
	return int(path[i/2] & 15)
}

func bucketHash(entries []any) []byte {
	if len(entries) == 0 {
		return zeros
	}
	return H(bucketDomain, Encode(entries))
}

// trieRoot is the hash of the subtree at a depth; entries ascend by H(key).
func trieRoot(entries []any, depth int) []byte {
	if len(entries) <= bucketMax {
		return bucketHash(entries)
	}
	node := bytes.Clone(innerDomain)
	for n, i := 0, 0; n < 16; n++ {
		j := i
		for j < len(entries) && nibble(entryPath(entries[j]), depth) == n {
			j++
		}
		node = append(node, trieRoot(entries[i:j], depth+1)...)
		i = j
	}
	return H(node)
}

// StateRoot is the root over namespaces of cells.
func StateRoot(cells map[string]map[string][]byte) []byte {
	var top []any
	for namespace, of := range cells {
		if len(of) == 0 {
			continue
		}
		var entries []any
		for key, value := range of {
			entries = append(entries, makeEntry([]byte(key), value))
		}
		top = append(top, makeEntry([]byte(namespace), trieRoot(sorted(entries), 0)))
	}
	return trieRoot(sorted(top), 0)
}

func sorted(entries []any) []any {
	slices.SortFunc(entries, func(a, b any) int { return bytes.Compare(entryPath(a), entryPath(b)) })
	return entries
}

// findEntry checks a path against a root, and gives the entry of the key, nil when it is proved absent.
func findEntry(root, key []byte, path Map) ([]any, error) {
	want, siblings, bucket := H(key), path.List("siblings"), path.List("bucket")
	var found []any
	var last []byte
	var off bool
	for _, e := range bucket {
		at := entryPath(e)
		off = off || bytes.Compare(last, at) >= 0
		last = at
		for i := range siblings {
			off = off || nibble(at, i) != nibble(want, i)
		}
		if bytes.Equal(at, want) {
			found = e.([]any)
		}
	}
	node := bucketHash(bucket)
	for i := len(siblings) - 1; i >= 0; i-- {
		at, level := nibble(want, i)*32, siblings[i].([]byte)
		node = H(innerDomain, level[:at], node, level[at:])
	}
	return found, cmp.Or(RefuseIf(off, "proof: an entry is not on the path, or they do not ascend"),
		RefuseIf(!bytes.Equal(node, root), "proof: the path does not lead to the root"))
}

// CheckStateProof gives the value of a cell, nil when the proof is one of absence.
func CheckStateProof(root []byte, namespace string, key, proof []byte) ([]byte, error) {
	p, err := ReadRecord("state_proof", proof)
	if err != nil {
		return nil, err
	}
	top, err := findEntry(root, []byte(namespace), p.Map("top"))
	if err != nil {
		return nil, err
	}
	var cell []any
	switch {
	case (top != nil) != p.Has("cells"):
		return nil, Refuse("proof: a path in the namespace belongs to a namespace that is there")
	case top != nil:
		if err := tuple(byteString(1, 64), integer(0, 0), hash)(top); err != nil {
			return nil, err
		}
		if cell, err = findEntry(top[2].([]byte), key, p.Map("cells")); err != nil {
			return nil, err
		}
	}
	switch beside := len(cell) == 4; {
	case beside != p.Has("value"):
		return nil, Refuse("proof: a value beside belongs to an entry that names one")
	case beside:
		value := p.Bytes("value")
		return value, RefuseIf(!bytes.Equal(H(value), cell[2].([]byte)) || int64(len(value)) != cell[3].(int64), "proof: the value is not the entry's")
	case cell == nil:
		return nil, nil
	}
	return cell[2].([]byte), nil
}

// Merkle trees and their paths. docs/protocol.md: Merkle trees.

package aw

import "bytes"

var merkleDomain = []byte("aw/merkle/1\x00")

func merkleLeaf(item []byte) []byte { return H(merkleDomain, []byte{0}, item) }

func merkleNode(left, right []byte) []byte { return H(merkleDomain, []byte{1}, left, right) }

// Peaks are the roots of the perfect subtrees of a growing tree, the largest first.
type Peaks struct {
	Roots [][]byte
	count int
}

// Add appends a leaf.
func (p *Peaks) Add(item []byte) {
	node := merkleLeaf(item)
	for n := p.count; n&1 == 1; n >>= 1 {
		last := len(p.Roots) - 1
		node = merkleNode(p.Roots[last], node)
		p.Roots = p.Roots[:last]
	}
	p.Roots = append(p.Roots, node)
	p.count++
}

// Root is that of the whole tree so far.
func (p *Peaks) Root() []byte {
	if p.count == 0 {
		return H(merkleDomain, []byte{2})
	}
	last := len(p.Roots) - 1
	node := p.Roots[last]
	for i := last - 1; i >= 0; i-- {
		node = merkleNode(p.Roots[i], node)
	}
	return node
}

func merkleRoot(items [][]byte) []byte {
	var p Peaks
	for _, item := range items {
		p.Add(item)
	}
	return p.Root()
}

// VerifyMerkle checks the path of an item from its leaf to the root. It walks upwards by levels: an odd last node moves up
// without a sibling.
func VerifyMerkle(root, item []byte, index, count int64, path []any) error {
	if index < 0 || index >= count {
		return Refuse("merkle: no index %d of %d", index, count)
	}
	node := merkleLeaf(item)
	for ; count > 1; index, count = index/2, (count+1)/2 {
		if index == count-1 && index%2 == 0 {
			continue
		}
		if len(path) == 0 {
			return Refuse("merkle: the path is too short")
		}
		sibling := path[0].([]byte)
		path = path[1:]
		if index%2 == 1 {
			node = merkleNode(sibling, node)
		} else {
			node = merkleNode(node, sibling)
		}
	}
	return RefuseIf(len(path) > 0 || !bytes.Equal(node, root), "merkle: the path does not lead to the root")
}

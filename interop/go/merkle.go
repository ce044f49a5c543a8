// Merkle trees and their paths. docs/protocol.md: Merkle trees.
package main

import "bytes"

var merkleDomain = []byte("aw/merkle/1\x00")

func merkleLeaf(item []byte) []byte { return H(merkleDomain, []byte{0}, item) }

func merkleNode(left, right []byte) []byte { return H(merkleDomain, []byte{1}, left, right) }

// peaks are the roots of the perfect subtrees of a growing tree, the largest first.
type peaks struct {
	roots [][]byte
	count int
}

func (p *peaks) add(item []byte) {
	node := merkleLeaf(item)
	for n := p.count; n&1 == 1; n >>= 1 {
		last := len(p.roots) - 1
		node = merkleNode(p.roots[last], node)
		p.roots = p.roots[:last]
	}
	p.roots = append(p.roots, node)
	p.count++
}

func (p *peaks) root() []byte {
	if p.count == 0 {
		return H(merkleDomain, []byte{2})
	}
	last := len(p.roots) - 1
	node := p.roots[last]
	for i := last - 1; i >= 0; i-- {
		node = merkleNode(p.roots[i], node)
	}
	return node
}

func merkleRoot(items [][]byte) []byte {
	var p peaks
	for _, item := range items {
		p.add(item)
	}
	return p.root()
}

// verifyMerkle walks upwards by levels: an odd last node moves up without a sibling.
func verifyMerkle(root, item []byte, index, count int64, path []any) error {
	if index < 0 || index >= count {
		return refuse("merkle: no index %d of %d", index, count)
	}
	node := merkleLeaf(item)
	for ; count > 1; index, count = index/2, (count+1)/2 {
		if index == count-1 && index%2 == 0 {
			continue
		}
		if len(path) == 0 {
			return refuse("merkle: the path is too short")
		}
		sibling := path[0].([]byte)
		path = path[1:]
		if index%2 == 1 {
			node = merkleNode(sibling, node)
		} else {
			node = merkleNode(node, sibling)
		}
	}
	return refuseIf(len(path) > 0 || !bytes.Equal(node, root), "merkle: the path does not lead to the root")
}

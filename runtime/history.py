"""Merkle paths of old blocks under the newest `history_root`, at a cost that hardly grows with the chain.

Hides: which subtrees are remembered. Guarantees: paths equal codec.merkle_path over all block hashes; a subtree is
remembered by its last leaf, so that a chain that went back and on is never answered for with roots of the old one.
Implements docs/protocol.md, section "Proofs" (history).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from runtime import codec

GROUP_LEVEL: Final = 8
GROUP_LEAVES: Final = 1 << GROUP_LEVEL

ReadHashes = Callable[[int, int], Sequence[bytes]]
"""(first, count) -> hashes of the blocks at heights first + 1 .. first + count: leaf 0 is height 1."""


class History:
    """The tree over the block hashes of one chain. It remembers the roots of full subtrees of 256 leaves and more.

    That is two roots for every 256 blocks; whoever asks first pays for all of them once.
    """

    def __init__(self, read: ReadHashes) -> None:
        self._read = read
        self._roots: dict[tuple[int, int], tuple[bytes, bytes]] = {}  # (level, index) -> (last leaf, root)

    def path(self, height: int, newest_height: int) -> tuple[bytes, ...]:
        """Siblings of block `height` under the history_root of block `newest_height`, from the leaf upwards.

        1 <= height < newest_height: a block's history is that of the heights below it.
        """
        index, count = height - 1, newest_height - 1
        group = index >> GROUP_LEVEL
        first = group << GROUP_LEVEL
        leaves = self._read(first, min(GROUP_LEAVES, count - first))
        path = codec.merkle_path(leaves, index - first)
        level, width = GROUP_LEVEL, -(-count // GROUP_LEAVES)
        while width > 1:
            if group ^ 1 < width:
                path.append(self._root(level, group ^ 1, count))
            level, group, width = level + 1, group // 2, (width + 1) // 2
        return tuple(path)

    def _root(self, level: int, index: int, count: int) -> bytes:
        """Root of leaves index * 2^level and on: 2^level of them, or fewer at the right edge of the tree."""
        first = index << level
        end = min(first + (1 << level), count)
        last_leaf = self._read(end - 1, 1)[0]
        known = self._roots.get((level, index))
        if known is not None and known[0] == last_leaf and end == first + (1 << level):
            return known[1]
        if level == GROUP_LEVEL:
            root = codec.merkle_root(self._read(first, end - first))
        else:
            root = self._root(level - 1, 2 * index, count)
            if first + (1 << level - 1) < count:  # else an odd one, which moves up
                root = codec.merkle_node(root, self._root(level - 1, 2 * index + 1, count))
        if end == first + (1 << level):
            self._roots[level, index] = (last_leaf, root)
        return root

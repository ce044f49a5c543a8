"""The state trie: every cell of the world under one 32-byte root, with proofs of presence and of absence.

Hides: the tree. A State is immutable; `update` shares all that did not change and costs O(changed cells).
Guarantees: the root is a function of the content alone, in whatever order it came about; whoever knows a root
can check one cell against it with a StateProof, and no proof with a changed bit passes.

    path   = the 64 nibbles of BLAKE3(key), high nibble first
    entry  = [key, 0, value]                  value of at most 256 bytes (canonical CBOR of the cell)
           | [key, 1, BLAKE3(value), size]    larger: the value is kept beside the trie
    bucket = at most 16 entries               H("aw/trie/1" 00 00 || CBOR array of entries, ascending by path)
    inner  = a larger subtree                 H("aw/trie/1" 00 01 || 16 child hashes, an empty one zeros)
    top    = the same trie over namespaces, with entries [namespace, 0, root]; an empty namespace has none

Implements docs/protocol.md, section "State".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any, ClassVar, TypeAlias

from runtime import codec, limits
from runtime.codec import HASH_BYTES, ZERO_HASH, content_id
from runtime.errors import Invalid
from runtime.schema import HASH, Kind, Record, bytes_between, bytes_of, int_between, list_of, nested

_BUCKET_DOMAIN = b"aw/trie/1\x00\x00"
_INNER_DOMAIN = b"aw/trie/1\x00\x01"
_INLINE, _BESIDE = 0, 1
FANOUT = 16
SIBLINGS_BYTES = (FANOUT - 1) * HASH_BYTES
NAMESPACES_CACHED_MAX = 1_024

Cell: TypeAlias = tuple[str, bytes]
"""(namespace, key): where a value lies."""


# --- the trie ----------------------------------------------------------------------------------------------


class _Entry:
    """One key with its value; `packed` is what is hashed; `subtree` is set in the trie of namespaces only."""

    __slots__ = ("encoded", "key", "packed", "path", "subtree", "value")

    def __init__(self, key: bytes, path: bytes, value: bytes, subtree: _Node | None = None) -> None:
        self.key, self.path, self.value, self.subtree = key, path, value, subtree
        self.packed = _pack(key, value)
        self.encoded = codec.encode(self.packed)


class _Bucket:
    """1..16 entries, ascending by path."""

    __slots__ = ("_hash", "count", "entries")

    def __init__(self, entries: tuple[_Entry, ...]) -> None:
        self.entries, self.count = entries, len(entries)
        self._hash: bytes | None = None

    def hash(self) -> bytes:
        if self._hash is None:
            self._hash = _bucket_hash([entry.encoded for entry in self.entries])
        return self._hash


class _Inner:
    """17 entries or more, by the next nibble of their paths."""

    __slots__ = ("_hash", "children", "count")

    def __init__(self, children: tuple[_Node | None, ...], count: int) -> None:
        self.children, self.count = children, count
        self._hash: bytes | None = None

    def hash(self) -> bytes:
        if self._hash is None:
            self._hash = content_id(_INNER_DOMAIN + b"".join([_hash_of(child) for child in self.children]))
        return self._hash


_Node: TypeAlias = _Bucket | _Inner
_Change: TypeAlias = tuple[bytes, _Entry | None]  # (path, the new entry or None to delete)


def _pack(key: bytes, value: bytes) -> tuple[Any, ...]:
    if len(value) <= limits.VALUE_INLINE_BYTES_MAX:
        return (key, _INLINE, value)
    return (key, _BESIDE, content_id(value), len(value))


def _bucket_hash(encoded: list[bytes]) -> bytes:
    return content_id(_BUCKET_DOMAIN + codec.array_of(encoded))


def _hash_of(node: _Node | None) -> bytes:
    return ZERO_HASH if node is None else node.hash()


def _nibble(path: bytes, depth: int) -> int:
    byte = path[depth >> 1]
    return byte & 15 if depth & 1 else byte >> 4


def _entries(node: _Node | None) -> Iterator[_Entry]:
    """All entries under a node, ascending by path."""
    if isinstance(node, _Bucket):
        yield from node.entries
    elif node is not None:
        for child in node.children:
            yield from _entries(child)


def _built(entries: list[_Entry], depth: int) -> _Node | None:
    """The one subtree that holds these entries, which ascend by path and share its first `depth` nibbles."""
    if not entries:
        return None
    if len(entries) <= limits.BUCKET_ENTRIES_MAX:
        return _Bucket(tuple(entries))
    groups: list[list[_Entry]] = [[] for _ in range(FANOUT)]
    for entry in entries:
        groups[_nibble(entry.path, depth)].append(entry)
    return _Inner(tuple([_built(group, depth + 1) for group in groups]), len(entries))


def _updated(node: _Node | None, changes: Iterable[_Change], depth: int) -> _Node | None:
    """The subtree after the changes, all of which belong under it; what is untouched is shared."""
    if not isinstance(node, _Inner):
        held = {} if node is None else {entry.path: entry for entry in node.entries}
        for path, entry in changes:
            if entry is None:
                held.pop(path, None)
            else:
                held[path] = entry
        return _built([held[path] for path in sorted(held)], depth)
    groups: dict[int, list[_Change]] = {}
    for change in changes:
        groups.setdefault(_nibble(change[0], depth), []).append(change)
    children = list(node.children)
    for nibble, group in groups.items():
        children[nibble] = _updated(children[nibble], group, depth + 1)
    inner = _Inner(tuple(children), sum([child.count for child in children if child is not None]))
    # The shape follows the content: what has shrunk to a bucket's size is a bucket again.
    return inner if inner.count > limits.BUCKET_ENTRIES_MAX else _built(list(_entries(inner)), depth)


def _find(node: _Node | None, path: bytes) -> _Entry | None:
    depth = 0
    while isinstance(node, _Inner):
        node, depth = node.children[_nibble(path, depth)], depth + 1
    if node is not None:
        for entry in node.entries:
            if entry.path == path:
                return entry
    return None


# --- the state ---------------------------------------------------------------------------------------------


@lru_cache(NAMESPACES_CACHED_MAX)
def _namespace(name: str) -> tuple[bytes, bytes]:
    """(key, path) of a namespace in the top trie."""
    key = name.encode()
    if not 1 <= len(key) <= limits.KEY_BYTES_MAX:
        raise Invalid("state.namespace", f"must be 1..{limits.KEY_BYTES_MAX} bytes")
    return key, content_id(key)


def _check_key(key: bytes) -> None:
    if not 1 <= len(key) <= limits.KEY_BYTES_MAX:
        raise Invalid("state.key", f"must be 1..{limits.KEY_BYTES_MAX} bytes")


class State:
    """All cells of a world at one height, immutable. Values are bytes: the canonical CBOR of a cell."""

    __slots__ = ("_top",)

    def __init__(self, _top: _Node | None = None) -> None:
        self._top = _top

    @classmethod
    def empty(cls) -> State:
        """The state without any cell; its root is 32 zero bytes."""
        return cls()

    def root(self) -> bytes:
        """The 32-byte state root."""
        return _hash_of(self._top)

    def get(self, namespace: str, key: bytes) -> bytes | None:
        """The value of a cell, or None."""
        entry = _find(self._subtree(namespace), content_id(key))
        return None if entry is None else entry.value

    def items(self, namespace: str) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of all cells of a namespace, ascending by BLAKE3(key)."""
        return ((entry.key, entry.value) for entry in _entries(self._subtree(namespace)))

    def count(self, namespace: str) -> int:
        """How many cells a namespace has."""
        node = self._subtree(namespace)
        return 0 if node is None else node.count

    def set(self, namespace: str, key: bytes, value: bytes | None) -> State:
        """The state with one cell changed; None deletes it."""
        return self.update({(namespace, key): value})

    def update(self, changes: Mapping[Cell, bytes | None]) -> State:
        """The state after all changes at once; None deletes a cell, if it is there.

        Raises Invalid for a key outside 1..256 bytes or a value outside 1..64 KiB; then nothing has changed.
        """
        by_namespace: dict[str, list[_Change]] = {}
        for (namespace, key), value in changes.items():
            _check_key(key)
            path, entry = content_id(key), None
            if value is not None:
                if not 1 <= len(value) <= limits.VALUE_BYTES_MAX:
                    raise Invalid("state.value", f"must be 1..{limits.VALUE_BYTES_MAX} bytes")
                entry = _Entry(key, path, value)
            by_namespace.setdefault(namespace, []).append((path, entry))
        top: list[_Change] = []
        for namespace, group in by_namespace.items():
            name, path = _namespace(namespace)
            subtree = _updated(self._subtree(namespace), group, 0)
            top.append((path, None if subtree is None else _Entry(name, path, subtree.hash(), subtree)))
        return State(_updated(self._top, top, 0))

    def prove(self, namespace: str, key: bytes) -> StateProof:
        """The proof of what a cell holds, or that it is absent, under `root()`."""
        _check_key(key)
        _name, path = _namespace(namespace)
        above = _find(self._top, path)
        top = _trie_path(self._top, path)
        if above is None:
            return StateProof(top)
        entry = _find(above.subtree, content_id(key))
        beside = entry.value if entry is not None and entry.packed[1] == _BESIDE else None
        return StateProof(top, _trie_path(above.subtree, content_id(key)), beside)

    def _subtree(self, namespace: str) -> _Node | None:
        entry = _find(self._top, _namespace(namespace)[1])
        return None if entry is None else entry.subtree


# --- proofs ------------------------------------------------------------------------------------------------

_KEY = bytes_between(1, limits.KEY_BYTES_MAX)
_INLINE_VALUE = bytes_between(1, limits.VALUE_INLINE_BYTES_MAX)
_BESIDE_SIZE = int_between(limits.VALUE_INLINE_BYTES_MAX + 1, limits.VALUE_BYTES_MAX)


def _check_entry(value: Any, field: str) -> None:
    match value:
        case (key, int(tag), inline) if type(tag) is int and tag == _INLINE:
            _KEY.check(key, f"{field}.key")
            _INLINE_VALUE.check(inline, f"{field}.value")
        case (key, int(tag), digest, size) if type(tag) is int and tag == _BESIDE:
            _KEY.check(key, f"{field}.key")
            HASH.check(digest, f"{field}.hash")
            _BESIDE_SIZE.check(size, f"{field}.size")
        case _:
            raise Invalid(field, "must be [key, 0, value] or [key, 1, hash, size]")


def _unpack_entry(value: codec.Value, field: str) -> tuple[codec.Value, ...]:
    if type(value) is not list:
        raise Invalid(field, "must be [key, 0, value] or [key, 1, hash, size]")
    return tuple(value)


_ENTRY = Kind(_check_entry, list, _unpack_entry)


@dataclass(frozen=True, slots=True)
class TriePath(Record):
    """The way from a root down to where a key's entry is or would be.

    `siblings`, from the root downwards: the hashes of the 15 children beside the path, by nibble, zeros for
    an empty one. `bucket`: all entries of the bucket where the path ends; none where it ends in an empty
    slot.
    """

    NAME: ClassVar[str] = "trie_path"
    BYTES_MAX: ClassVar[int] = limits.PROOF_BYTES_MAX
    VERSIONED: ClassVar[bool] = False

    siblings: Annotated[tuple[bytes, ...], list_of(bytes_of(SIBLINGS_BYTES), 0, limits.PROOF_DEPTH_MAX)]
    bucket: Annotated[tuple[tuple[Any, ...], ...], list_of(_ENTRY, 0, limits.BUCKET_ENTRIES_MAX)]


@dataclass(frozen=True, slots=True)
class StateProof(Record):
    """What one cell holds under a state root, or that it holds nothing. Checked by `verify_state_proof`.

    `top` leads to the namespace, `cells` to the key in it (absent when the namespace is), `value` is the
    value of an entry that keeps it beside the trie (absent otherwise).
    """

    NAME: ClassVar[str] = "state_proof"
    BYTES_MAX: ClassVar[int] = limits.PROOF_BYTES_MAX
    VERSIONED: ClassVar[bool] = False

    top: Annotated[TriePath, nested(TriePath)]
    cells: Annotated[TriePath, nested(TriePath)] | None = None
    value: (
        Annotated[bytes, bytes_between(limits.VALUE_INLINE_BYTES_MAX + 1, limits.VALUE_BYTES_MAX)] | None
    ) = None


def _trie_path(node: _Node | None, path: bytes) -> TriePath:
    siblings: list[bytes] = []
    while isinstance(node, _Inner):
        nibble = _nibble(path, len(siblings))
        beside = [_hash_of(child) for index, child in enumerate(node.children) if index != nibble]
        siblings.append(b"".join(beside))
        node = node.children[nibble]
    return TriePath(tuple(siblings), () if node is None else tuple(entry.packed for entry in node.entries))


def _follow(root: bytes, trie_path: TriePath, key: bytes, field: str) -> tuple[Any, ...] | None:
    """The key's entry, or None for a proved absence. Raises Invalid unless the path leads to `root`."""
    path, depth = content_id(key), len(trie_path.siblings)
    paths = [content_id(entry[0]) for entry in trie_path.bucket]
    if any(not a < b for a, b in pairwise(paths)):
        raise Invalid(f"{field}.bucket", "entries must ascend by the hash of their key without equals")
    # A bucket of another place of the trie would prove the absence of a key that cannot be in it.
    if any(_nibble(other, i) != _nibble(path, i) for other in paths for i in range(depth)):
        raise Invalid(f"{field}.bucket", "holds an entry that is not on the path")
    digest = (
        _bucket_hash([codec.encode(entry) for entry in trie_path.bucket]) if trie_path.bucket else ZERO_HASH
    )
    for level in range(depth - 1, -1, -1):
        split = _nibble(path, level) * HASH_BYTES
        beside = trie_path.siblings[level]
        digest = content_id(_INNER_DOMAIN + beside[:split] + digest + beside[split:])
    if digest != root:
        raise Invalid(field, f"leads to root {digest.hex()}, not {root.hex()}")
    return next((entry for entry in trie_path.bucket if entry[0] == key), None)


def verify_state_proof(root: bytes, namespace: str, key: bytes, proof: StateProof) -> bytes | None:
    """The proved value of a cell under `root`, or None where its absence is proved. Else raises Invalid."""
    above = _follow(root, proof.top, _namespace(namespace)[0], "state_proof.top")
    if above is None:
        if proof.cells is not None or proof.value is not None:
            raise Invalid("state_proof.cells", "must be absent when the namespace is")
        return None
    if proof.cells is None or above[1] != _INLINE:
        raise Invalid("state_proof.cells", "is missing")
    entry = _follow(above[2], proof.cells, key, "state_proof.cells")
    if entry is not None and entry[1] == _BESIDE:
        if proof.value is None or len(proof.value) != entry[3] or content_id(proof.value) != entry[2]:
            raise Invalid("state_proof.value", "is not the value that the entry names")
        return proof.value
    if proof.value is not None:
        raise Invalid("state_proof.value", "must be absent unless the entry keeps its value beside")
    if entry is None:
        return None
    value: bytes = entry[2]
    return value

"""Strict canonical CBOR, BLAKE3 content ids, Merkle roots: the only place where a record becomes bytes.

Hides: the CBOR library and the hash library.
Guarantees: `decode` accepts exactly the bytes that `encode` can produce (RFC 8949 core deterministic, text keys only,
no floats, tags, undefined, indefinite lengths or duplicate keys, depth <= 32, integers of 64 bits signed).
Implements docs/protocol.md, sections "Encoding", "Hashes" and "Merkle trees".
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import cbor2
from blake3 import blake3

from runtime.errors import Invalid
from runtime.limits import CBOR_ITEMS_MAX, COUNT_MAX, DEPTH_MAX, NAME_CHARS_MAX

Value: TypeAlias = Any
"""A CBOR value of the profile: dict[str, Value], list[Value], str, bytes, int, bool, None."""

HASH_BYTES = 32
INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1
ZERO_HASH = bytes(HASH_BYTES)


# --- canonical CBOR ----------------------------------------------------------------------------------------


def _ordered(value: Value, depth: int, field: str) -> Value:
    """`value` with every map in canonical key order, after checking that the profile allows it."""
    kind = type(value)
    if kind is str or kind is bytes or kind is bool or value is None:
        if kind is str:
            _check_text(value, field)
        return value
    if kind is int:
        if not INT_MIN <= value <= INT_MAX:
            raise Invalid(field, "integer outside -2^63..2^63-1")
        return value
    if depth >= DEPTH_MAX:
        raise Invalid(field, f"nested deeper than {DEPTH_MAX}")
    if kind is list or kind is tuple:
        return [_ordered(item, depth + 1, field) for item in value]
    if kind is dict:
        for key in value:
            if type(key) is not str:
                raise Invalid(field, "map key that is no text")
            _check_text(key, field)
        # Length of the encoded key first, then bytes: for text keys this is RFC 8949 core order.
        keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
        return {key: _ordered(value[key], depth + 1, f"{field}.{shortened(key)}") for key in keys}
    raise Invalid(field, f"{kind.__name__} is not in the profile")


def shortened(key: str) -> str:
    """A map key as far as a message names it: a stranger's key may be as long as its bytes allow."""
    return key[:NAME_CHARS_MAX]


def _check_text(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Invalid(field, "text that is no UTF-8") from None


def encode(value: Value, field: str = "value") -> bytes:
    """The one encoding of `value`. Raises Invalid for anything outside the profile.

    Records give their maps in canonical order: what is in order already is not made anew.
    """
    try:
        return cbor2.dumps(
            value if _in_order(value, 0, field, _Budget(COUNT_MAX)) else _ordered(value, 0, field)
        )
    except UnicodeEncodeError:
        raise Invalid(field, "text that is no UTF-8") from None


def encode_checked(value: Value, field: str = "value") -> bytes:
    """As `encode`, of a map in canonical order whose values are known to be scalars of the profile."""
    del field
    return cbor2.dumps(value)


def _refuse_tag(_content: Value, _immutable: bool) -> Value:
    raise ValueError("a tag")


# Refused before the library makes sense of a tag's content: one decimal fraction of 900 kB costs it a minute.
# Every tag that it knows is below 2^16; of others it makes an object that the walk refuses.
_NO_TAGS = dict.fromkeys(range(1 << 16), _refuse_tag)


def decode(data: bytes, bytes_max: int, field: str = "value", *, items_max: int = CBOR_ITEMS_MAX) -> Value:
    """The value whose one encoding is `data`. Raises Invalid, naming `field`, for all other bytes.

    Decode, walk the value, encode again, compare: re-encoding alone lets float and undefined through. `items_max`:
    keys, values and elements in all, since an item of one byte costs a reader a hundred.
    """
    if len(data) > bytes_max:
        raise Invalid(field, f"{len(data)} bytes, at most {bytes_max}")
    try:
        value = cbor2.loads(
            data,
            max_depth=DEPTH_MAX + 1,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,  # numbers as keys can be made to collide, text cannot
            semantic_decoders=_NO_TAGS,
        )
    # The decoder raises many kinds (also MemoryError and OverflowError for forged lengths): all mean bad bytes.
    except (
        cbor2.CBORDecodeError,
        ValueError,
        TypeError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        raise Invalid(field, f"no canonical CBOR: {_why_unread(error, len(data))}") from None
    in_order = _in_order(value, 0, field, _Budget(items_max))
    encoded = cbor2.dumps(value)
    if encoded != data:
        if data.startswith(encoded):
            raise Invalid(field, f"{len(data) - len(encoded)} bytes after the end of the CBOR value")
        raise Invalid(field, _NOT_CANONICAL)
    if not in_order:
        raise Invalid(field, _NOT_CANONICAL)
    return value


def _why_unread(error: Exception, size: int) -> str:
    if isinstance(error, cbor2.CBORDecodeEOF):
        return f"ends too early, at byte {size}"
    if isinstance(error.__cause__, UnicodeDecodeError):
        return "a text is not UTF-8"
    if isinstance(error, OverflowError | MemoryError):
        return "a length is beyond what is there"
    return "not CBOR, or what the profile has not (tags, indefinite lengths, keys twice or no text, too deep)"


_NOT_CANONICAL = "CBOR that is not canonical"


@dataclass(slots=True)
class _Budget:
    """What a walk may still meet."""

    items: int

    def spend(self, count: int, field: str) -> None:
        self.items -= count
        if self.items < 0:
            raise Invalid(field, "more items than allowed (cbor_items_max, or the record's own limit)")


def _in_order(value: Value, depth: int, field: str, budget: _Budget) -> bool:
    """Whether every map is in canonical order. Raises Invalid for what the profile has not; text may be no UTF-8.

    The same walk as `_ordered` without making the value anew: a stranger's megabyte of empty arrays is paid for here.
    """
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is int:
        if not INT_MIN <= value <= INT_MAX:
            raise Invalid(field, "integer outside -2^63..2^63-1")
        return True
    if kind is not list and kind is not dict and kind is not tuple:
        raise Invalid(field, f"{kind.__name__} is not in the profile")
    if depth >= DEPTH_MAX:
        raise Invalid(field, f"nested deeper than {DEPTH_MAX}")
    if kind is dict:
        return _map_in_order(value, depth, field, budget)
    budget.spend(len(value), field)
    in_order = True
    for item in value:
        kind = type(item)
        if kind in _PLAIN or (kind is int and INT_MIN <= item <= INT_MAX):
            continue
        if not _in_order(item, depth + 1, field, budget):
            in_order = False
    return in_order


def _map_in_order(value: dict[Any, Value], depth: int, field: str, budget: _Budget) -> bool:
    """Text keys, ascending by length and then by bytes: RFC 8949 section 4.2.1 for text."""
    budget.spend(2 * len(value), field)
    in_order, before, size_before = True, "", -1
    for key, item in value.items():
        if type(key) is not str:
            raise Invalid(field, "map key that is no text")
        size = len(key) if key.isascii() else len(key.encode())
        # Of equal lengths, text compares by code points as UTF-8 does by bytes.
        if size < size_before or (size == size_before and key <= before):
            in_order = False
        before, size_before = key, size
        kind = type(item)
        if kind in _PLAIN or (kind is int and INT_MIN <= item <= INT_MAX):
            continue
        if not _in_order(item, depth + 1, f"{field}.{shortened(key)}", budget):
            in_order = False
    return in_order


def count_items(value: Value) -> int:
    """Keys, values and elements inside a value of the profile, at any depth; 0 for what is no map or list."""
    if type(value) is dict:
        return 2 * len(value) + sum(count_items(item) for item in value.values())
    if type(value) in (list, tuple):
        return len(value) + sum(count_items(item) for item in value)
    return 0


_PLAIN = frozenset((str, bytes, bool, type(None)))  # nothing in these can be outside of the profile


def array_of(items: Sequence[bytes]) -> bytes:
    """The canonical array whose items' canonical encodings are given."""
    count = len(items)
    width = next(width for width in (0, 1, 2, 4) if count < (24 if width == 0 else 1 << 8 * width))
    head = (
        bytes([0x80 | count])
        if width == 0
        else bytes([0x98 + (1, 2, 4).index(width)]) + count.to_bytes(width, "big")
    )
    return head + b"".join(items)


# --- content ids -------------------------------------------------------------------------------------------


def content_id(data: bytes) -> bytes:
    """BLAKE3-256 of a blob, 32 bytes."""
    return blake3(data).digest()


def content_id_of(parts: Iterable[bytes]) -> bytes:
    """The content id of a blob that comes in parts, in bounded memory."""
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def preimage(record: str, body: bytes) -> bytes:
    """`"aw/<record>/1" 00 || canonical CBOR`: what is hashed, and what is stored under that hash."""
    return b"aw/" + record.encode() + b"/1\x00" + body


def unwrap_preimage(record: str, blob: bytes) -> bytes:
    """The canonical CBOR inside a record's preimage. Raises Invalid when it is another record's."""
    head = preimage(record, b"")
    if not blob.startswith(head):
        raise Invalid(record, f"blob does not begin with {head!r}")
    return blob[len(head) :]


CID_PREFIX = bytes.fromhex("01551e20")  # CIDv1, raw, blake3-256, 32 bytes
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


def base32(data: bytes) -> str:
    """RFC 4648 base32, lower case, no padding."""
    return base64.b32encode(data).decode().rstrip("=").lower()


def unbase32(text: str, field: str) -> bytes:
    """Inverse of `base32`; raises Invalid for other characters or left-over bits that are not zero."""
    bits, count, data = 0, 0, bytearray()
    for char in text:
        index = _BASE32.find(char)
        if index < 0:
            raise Invalid(field, f"{char!r} is no base32 character")
        bits, count = bits << 5 | index, count + 5
        if count >= 8:
            count -= 8
            data.append(bits >> count & 255)
            bits &= (1 << count) - 1
    if count >= 5 or bits:
        raise Invalid(field, "base32 with left-over bits")
    return bytes(data)


def cid_text(content: bytes) -> str:
    """CIDv1 view of a content id: `b` + base32 of 01 55 1e 20 || digest."""
    return "b" + base32(CID_PREFIX + content)


def parse_content_id(text: str) -> bytes:
    """Content id from 64 hex digits or from its CIDv1 text. Raises Invalid."""
    if len(text) == 64:
        try:
            return bytes.fromhex(text)
        except ValueError:
            raise Invalid("content_id", "64 characters that are no hex digits") from None
    if text.startswith("b"):
        raw = unbase32(text[1:], "content_id")
        if raw[:4] == CID_PREFIX and len(raw) == 36:
            return raw[4:]
    raise Invalid("content_id", "neither 64 hex digits nor a CIDv1 (raw, blake3)")


# --- Merkle trees (RFC 6962 shape) -------------------------------------------------------------------------

_MERKLE = b"aw/merkle/1\x00"
EMPTY_ROOT = blake3(_MERKLE + b"\x02").digest()


def merkle_leaf(item: bytes) -> bytes:
    """Hash of one leaf."""
    return blake3(_MERKLE + b"\x00" + item).digest()


def merkle_node(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node."""
    return blake3(_MERKLE + b"\x01" + left + right).digest()


def _fold(hashes: list[bytes]) -> bytes:
    # Joining neighbours level by level, an odd one moving up, is the split at the largest power of two below n.
    while len(hashes) > 1:
        joined = [merkle_node(hashes[i], hashes[i + 1]) for i in range(0, len(hashes) - 1, 2)]
        if len(hashes) % 2:
            joined.append(hashes[-1])
        hashes = joined
    return hashes[0]


def merkle_root(items: Sequence[bytes]) -> bytes:
    """Root over `items`, 32 bytes; EMPTY_ROOT for none."""
    return _fold([merkle_leaf(item) for item in items]) if items else EMPTY_ROOT


def merkle_paths(items: Sequence[bytes], indexes: Sequence[int]) -> list[list[bytes]]:
    """For each index the siblings of that leaf, from the leaf upwards (RFC 6962 audit paths); hashes all once."""
    for index in indexes:
        if not 0 <= index < len(items):
            raise Invalid("index", f"{index} is not below the count {len(items)}")
    hashes, paths = [merkle_leaf(item) for item in items], [list[bytes]() for _ in indexes]
    places = list(indexes)
    while len(hashes) > 1:
        for path, place in zip(paths, places, strict=True):
            if place ^ 1 < len(hashes):
                path.append(hashes[place ^ 1])
        joined = [merkle_node(hashes[i], hashes[i + 1]) for i in range(0, len(hashes) - 1, 2)]
        if len(hashes) % 2:
            joined.append(hashes[-1])
        hashes, places = joined, [place // 2 for place in places]
    return paths


def merkle_path(items: Sequence[bytes], index: int) -> list[bytes]:
    """Siblings of leaf `index`, from the leaf upwards."""
    return merkle_paths(items, [index])[0]


def merkle_root_from_path(item: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes:
    """Root that `path` leads to for `item` at `index` of `count` leaves. Raises Invalid for a path of wrong length."""
    if not 0 <= index < count:
        raise Invalid("proof.index", f"{index} is not below the count {count}")
    digest, left = merkle_leaf(item), list(path)
    while count > 1:
        if index ^ 1 < count:
            if not left:
                raise Invalid("proof.path", "too short")
            sibling = left.pop(0)
            digest = merkle_node(sibling, digest) if index % 2 else merkle_node(digest, sibling)
        index, count = index // 2, (count + 1) // 2
    if left:
        raise Invalid("proof.path", "too long")
    return digest


@dataclass(frozen=True, slots=True)
class MountainRange:
    """An append-only Merkle tree kept as its peaks: `peaks[i]` is the root of a full subtree or empty.

    `count` leaves so far; its binary digits say which heights have a peak. root() equals merkle_root(all items).
    """

    count: int = 0
    peaks: tuple[bytes, ...] = ()  # largest subtree first

    def __post_init__(self) -> None:
        if not 0 <= self.count <= COUNT_MAX or len(self.peaks) != self.count.bit_count():
            raise Invalid("peaks", f"{len(self.peaks)} peaks do not fit {self.count} leaves")

    def append(self, item: bytes) -> MountainRange:
        """The range with one more leaf."""
        digest, peaks, count = merkle_leaf(item), list(self.peaks), self.count
        while count & 1:
            digest, count = merkle_node(peaks.pop(), digest), count >> 1
        return MountainRange(self.count + 1, (*peaks, digest))

    def root(self) -> bytes:
        """32 bytes; EMPTY_ROOT for no leaf."""
        if not self.peaks:
            return EMPTY_ROOT
        digest = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            digest = merkle_node(peak, digest)
        return digest

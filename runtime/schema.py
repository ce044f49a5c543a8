"""Field kinds: how one field of a record is checked, packed into a CBOR value, and read back.

Hides: the walk over a record's annotations. A record is a frozen dataclass whose fields are annotated with a kind,
so that its shape, bounds and bytes stand in one place.
Guarantees: whoever holds a record holds a well-formed one: construction runs every check, and so does decoding.
Implements docs/protocol.md, section "Records".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Self, TypeAlias, get_args, get_origin, get_type_hints

from runtime import codec, limits
from runtime.errors import Invalid, UnknownVersion
from runtime.keys import KEY_ID_BYTES, KEY_ID_PREFIX, SIGNATURE_BYTES

VERSION = 1
RECORDS_CACHED_MAX = (
    512  # decoded ones, of at most RECORD_CACHED_BYTES_MAX: about 5 MB, 64 MB of the worst kind
)
RECORD_CACHED_BYTES_MAX = 2_048
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}", re.ASCII)
_WORLD_ID = re.compile(r"[a-z2-7]{32}", re.ASCII)


def _same(value: Any) -> codec.Value:
    return value


def _as_read(value: codec.Value, _field: str) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of field. `check(value, field)` raises Invalid; `pack` and `unpack` go to and from CBOR values."""

    check: Callable[[Any, str], None]
    pack: Callable[[Any], codec.Value] = _same
    unpack: Callable[[codec.Value, str], Any] = _as_read
    plain: bool = False  # what passes the check is a scalar that the encoding has as it is


# --- scalars -----------------------------------------------------------------------------------------------


def bytes_of(count: int) -> Kind:
    """Exactly `count` bytes."""

    def check(value: Any, field: str) -> None:
        if type(value) is not bytes or len(value) != count:
            raise Invalid(field, f"must be {count} bytes")

    return Kind(check, plain=True)


def int_between(low: int, high: int) -> Kind:
    """An integer in low..high, both included; a bool is none."""

    def check(value: Any, field: str) -> None:
        if type(value) is not int or not low <= value <= high:
            raise Invalid(field, f"must be an integer {low}..{high}")

    return Kind(check, plain=True)


def text_matching(pattern: re.Pattern[str]) -> Kind:
    """Text that matches the pattern as a whole."""

    def check(value: Any, field: str) -> None:
        if type(value) is not str or pattern.fullmatch(value) is None:
            raise Invalid(field, f"must match {pattern.pattern}")

    return Kind(check, plain=True)


def bytes_between(low: int, high: int) -> Kind:
    """A byte string of low..high bytes."""

    def check(value: Any, field: str) -> None:
        if type(value) is not bytes or not low <= len(value) <= high:
            raise Invalid(field, f"must be {low}..{high} bytes")

    return Kind(check, plain=True)


def text_upto(high: int) -> Kind:
    """Text of at most `high` UTF-8 bytes."""

    def check(value: Any, field: str) -> None:
        if type(value) is not str or len(value.encode()) > high:
            raise Invalid(field, f"must be text of at most {high} bytes")

    return Kind(check)


def one_of(*words: str) -> Kind:
    """One of the given words."""

    def check(value: Any, field: str) -> None:
        if type(value) is not str or value not in words:
            raise Invalid(field, f"must be one of {', '.join(words)}")

    return Kind(check, plain=True)


def _check_bool(value: Any, field: str) -> None:
    if type(value) is not bool:
        raise Invalid(field, "must be true or false")


def _check_key_id(value: Any, field: str) -> None:
    if type(value) is not bytes or len(value) != KEY_ID_BYTES or value[:6] != KEY_ID_PREFIX:
        raise Invalid(field, "must be the 38 bytes of an Ed25519 peer id")


Hash: TypeAlias = Annotated[bytes, bytes_of(codec.HASH_BYTES)]
Signature: TypeAlias = Annotated[bytes, bytes_of(SIGNATURE_BYTES)]
KeyId: TypeAlias = Annotated[bytes, Kind(_check_key_id, plain=True)]
WorldId: TypeAlias = Annotated[str, text_matching(_WORLD_ID)]
Name: TypeAlias = Annotated[str, text_matching(_NAME)]
Count: TypeAlias = Annotated[int, int_between(0, limits.COUNT_MAX)]
Height: TypeAlias = Annotated[int, int_between(1, limits.COUNT_MAX)]
Amount: TypeAlias = Annotated[int, int_between(0, limits.AMOUNT_MAX)]
Coordinate: TypeAlias = Annotated[int, int_between(-limits.COORDINATE_CM_MAX, limits.COORDINATE_CM_MAX)]
Flag: TypeAlias = Annotated[bool, Kind(_check_bool, plain=True)]

HASH: Kind = get_args(Hash)[1]
SIGNATURE: Kind = get_args(Signature)[1]
KEY_ID: Kind = get_args(KeyId)[1]
WORLD_ID: Kind = get_args(WorldId)[1]
NAME: Kind = get_args(Name)[1]
AMOUNT: Kind = get_args(Amount)[1]
COUNT: Kind = get_args(Count)[1]
FLAG: Kind = get_args(Flag)[1]


# --- compounds ---------------------------------------------------------------------------------------------


def list_of(kind: Kind, low: int, high: int, *, ascending: bool = False) -> Kind:
    """A tuple of low..high items; `ascending` demands rising order without equals."""

    def check(value: Any, field: str) -> None:
        if type(value) is not tuple or not low <= len(value) <= high:
            raise Invalid(field, f"must be a list of {low}..{high} items")
        for index, item in enumerate(value):
            kind.check(item, f"{field}[{index}]")
            if ascending and index and not value[index - 1] < item:
                raise Invalid(f"{field}[{index}]", "must be greater than the item before it")

    def unpack(value: codec.Value, field: str) -> Any:
        if type(value) is not list or len(value) > high:
            raise Invalid(field, f"must be a list of {low}..{high} items")
        return tuple(kind.unpack(item, f"{field}[{index}]") for index, item in enumerate(value))

    return Kind(check, lambda value: [kind.pack(item) for item in value], unpack)


def tuple_of(*kinds: Kind) -> Kind:
    """A tuple of exactly these kinds."""

    def check(value: Any, field: str) -> None:
        if type(value) is not tuple or len(value) != len(kinds):
            raise Invalid(field, f"must be a list of {len(kinds)} items")
        for index, (kind, item) in enumerate(zip(kinds, value, strict=True)):
            kind.check(item, f"{field}[{index}]")

    def unpack(value: codec.Value, field: str) -> Any:
        if type(value) is not list or len(value) != len(kinds):
            raise Invalid(field, f"must be a list of {len(kinds)} items")
        return tuple(
            kind.unpack(item, f"{field}[{i}]")
            for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )

    def pack(value: Any) -> codec.Value:
        return [kind.pack(item) for kind, item in zip(kinds, value, strict=True)]

    return Kind(check, pack, unpack)


def nested(record: type[Record]) -> Kind:
    """Another record, as its map."""

    def check(value: Any, field: str) -> None:
        if type(value) is not record:
            raise Invalid(field, f"must be a {record.NAME}")

    return Kind(check, lambda value: value.to_value(), record.from_value)


# --- records -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layout:
    """What is asked of a record's fields again and again, worked out once for each class."""

    checks: tuple[tuple[str, Callable[[Any, str], None], bool, str], ...]  # name, check, optional, path
    packs: tuple[tuple[str, Callable[[Any], codec.Value] | None], ...]  # in canonical order; None: as it is
    reads: tuple[tuple[str, Callable[[codec.Value, str], Any] | None, bool], ...]  # None: as it is
    plain: bool  # all fields are


_LAYOUTS: dict[type, _Layout] = {}


def _layout(record: type[Record]) -> _Layout:
    """The layout of a class, from its annotations."""
    if record in _LAYOUTS:
        return _LAYOUTS[record]
    hints = get_type_hints(record, include_extras=True)
    kinds: dict[str, tuple[Kind, bool]] = {}
    for item in fields(record):  # type: ignore[arg-type]  # every Record subclass is a dataclass
        hint, optional = hints[item.name], False
        if get_origin(hint) is not Annotated:  # `Kind | None`
            inner = [arg for arg in get_args(hint) if arg is not type(None)]
            hint, optional = inner[0], True
        kinds[item.name] = next(meta for meta in get_args(hint)[1:] if isinstance(meta, Kind)), optional
    in_order = sorted(kinds, key=lambda name: (len(name), name))
    found = _LAYOUTS[record] = _Layout(
        tuple(
            (name, kind.check, optional, f"{record.NAME}.{name}") for name, (kind, optional) in kinds.items()
        ),
        tuple((name, None if kinds[name][0].pack is _same else kinds[name][0].pack) for name in in_order),
        tuple(
            (name, None if kind.unpack is _as_read else kind.unpack, optional)
            for name, (kind, optional) in kinds.items()
        ),
        all(kind.plain for kind, _optional in kinds.values()),
    )
    return found


def wrong_fields(record: type[Record], values: Mapping[str, Any]) -> Iterator[Invalid]:
    """What is wrong with each of these fields by itself; making the record raises for the first one only."""
    for name, check, _optional, path in _layout(record).checks:
        if name in values:
            try:
                check(values[name], path)
            except Invalid as error:
                yield error


class Record:
    """Base of all records. A subclass is a frozen slots dataclass with NAME, BYTES_MAX and annotated fields.

    VERSIONED records carry `v`; HASHED ones have a preimage `"aw/<NAME>/1" 00 || body` and its BLAKE3 hash.
    CLOSED records refuse unknown keys. None means absent: optional fields are never null on the wire.
    """

    __slots__ = ("_bytes", "_hash")
    _bytes: bytes
    _hash: bytes
    NAME: ClassVar[str]
    BYTES_MAX: ClassVar[int]
    VERSIONED: ClassVar[bool] = True
    CLOSED: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, check, optional, path in _layout(type(self)).checks:
            value = getattr(self, name)
            if not (optional and value is None):
                check(value, path)
        self.check()

    def check(self) -> None:
        """Rules between fields; raises Invalid. The default has none."""

    def to_value(self) -> dict[str, codec.Value]:
        """The record as a CBOR map, its keys in canonical order."""
        packed: dict[str, codec.Value] = {"v": VERSION} if self.VERSIONED else {}
        for name, pack in _layout(type(self)).packs:
            item = getattr(self, name)
            if item is not None:
                packed[name] = item if pack is None else pack(item)
        return packed

    def to_bytes(self) -> bytes:
        """Canonical CBOR, kept after the first call."""
        try:
            return self._bytes
        except AttributeError:
            encode = codec.encode_checked if _layout(type(self)).plain else codec.encode
            body = encode(self.to_value(), self.NAME)
            if len(body) > self.BYTES_MAX:
                raise Invalid(self.NAME, f"{len(body)} bytes, at most {self.BYTES_MAX}") from None
            object.__setattr__(self, "_bytes", body)
            return body

    def preimage(self) -> bytes:
        """What is hashed, and the blob stored under that hash."""
        return codec.preimage(self.NAME, self.to_bytes())

    def hash(self) -> bytes:
        """BLAKE3 of the preimage, 32 bytes: the record's content id."""
        try:
            return self._hash
        except AttributeError:
            digest = codec.content_id(self.preimage())
            object.__setattr__(self, "_hash", digest)
            return digest

    @classmethod
    def from_value(cls, value: codec.Value, field: str = "") -> Self:
        """The record that a decoded map says. Raises Invalid, or UnknownVersion for another `v`."""
        field = field or cls.NAME
        if type(value) is not dict:
            raise Invalid(field, "must be a map")
        if cls.VERSIONED:
            version = value.get("v")
            if type(version) is not int:
                raise Invalid(f"{field}.v", "must be an integer")
            if version != VERSION:
                raise UnknownVersion(field, version)
        read: dict[str, Any] = {}
        for name, unpack, optional in _layout(cls).reads:
            if name in value:
                item = value[name]
                read[name] = item if unpack is None else unpack(item, f"{field}.{name}")
                if item is None:
                    raise Invalid(f"{field}.{name}", "null: an optional field is absent instead")
            elif not optional:
                raise Invalid(f"{field}.{name}", "is missing")
        if cls.CLOSED and len(value) != len(read) + cls.VERSIONED:
            extra = min(name for name in value if name not in read and not (cls.VERSIONED and name == "v"))
            raise Invalid(f"{field}.{codec.shortened(extra)}", "is no field of this record")
        return cls(**read)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The record in these canonical bytes, at most BYTES_MAX.

        A node meets a small record several times: in gossip's check and as a message, in the DHT, in answers. The last
        ones are kept, with the hashes that were made of them; a record never changes.
        """
        if type(data) is bytes and len(data) <= RECORD_CACHED_BYTES_MAX:
            record: Self = _decoded(cls, data)  # type: ignore[arg-type]  # a class is hashable
            return record
        return cls._decode(data)

    @classmethod
    def _decode(cls, data: bytes) -> Self:
        record = cls.from_value(codec.decode(data, cls.BYTES_MAX, cls.NAME))
        if cls.CLOSED:
            object.__setattr__(record, "_bytes", data)
        return record

    @classmethod
    def from_preimage(cls, blob: bytes) -> Self:
        """The record in a blob that is stored under its hash."""
        return cls.from_bytes(codec.unwrap_preimage(cls.NAME, blob))


@lru_cache(RECORDS_CACHED_MAX)
def _decoded(record: type[Record], data: bytes) -> Any:
    return record._decode(data)  # noqa: SLF001  # the other half of from_bytes

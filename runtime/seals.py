"""Seals: a record that one key signs, and that key's signature over its hash.

Hides: where a signer's id stands in a record. Guarantees: a Sealed is well formed; `verify` says whether the record's
own signer signed it. Bytes: the canonical CBOR of `[record, signature]`.
Implements docs/protocol.md, section "Signatures".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Generic, TypeVar

from runtime import codec
from runtime.errors import BadSignature, Invalid
from runtime.keys import SIGNATURE_BYTES, SigningKey, verify
from runtime.schema import RECORD_CACHED_BYTES_MAX, RECORDS_CACHED_MAX, SIGNATURE, Kind, Record


class Signed(Record):
    """A record that one key signs; SIGNER names the field that says whose."""

    __slots__ = ()
    SIGNER: ClassVar[str]

    @property
    def signer(self) -> bytes:
        """38-byte key id of the one key that may sign this record."""
        identity: bytes = getattr(self, self.SIGNER)
        return identity


R = TypeVar("R", bound=Signed)
SEAL_OVERHEAD_BYTES = 1 + 2 + SIGNATURE_BYTES  # array head, byte-string head, signature


@dataclass(frozen=True, slots=True)
class Sealed(Generic[R]):
    """`[record, signature]`. Well formed, not yet verified: `verify` says whether the signer signed it."""

    record: R
    signature: bytes

    def __post_init__(self) -> None:
        SIGNATURE.check(self.signature, f"{self.record.NAME}.signature")

    def to_value(self) -> list[codec.Value]:
        return [self.record.to_value(), self.signature]

    def to_bytes(self) -> bytes:
        """Canonical CBOR of the sealed record."""
        return b"\x82" + self.record.to_bytes() + b"\x58\x40" + self.signature

    def hash(self) -> bytes:
        """Hash of the record inside (the signature is not part of it)."""
        return self.record.hash()

    def verify(self) -> None:
        """Raise BadSignature unless the record's signer signed it."""
        if not verify(self.record.signer, self.record.hash(), self.signature):
            raise BadSignature(self.record.NAME)


def seal(record: R, key: SigningKey) -> Sealed[R]:
    """Sign with the key that the record names. Raises Invalid for another key."""
    if key.identity != record.signer:
        raise Invalid(f"{record.NAME}.{record.SIGNER}", "is not the signing key's id")
    return Sealed(record, key.sign(record.hash()))


def sealed_from_value(record: type[R], value: codec.Value, field: str = "") -> Sealed[R]:
    """Read `[record, signature]` out of a decoded value."""
    field = field or record.NAME
    if type(value) is not list or len(value) != 2:
        raise Invalid(field, "must be [record, signature]")
    SIGNATURE.check(value[1], f"{field}.signature")
    return Sealed(record.from_value(value[0], field), value[1])


def sealed_from_bytes(record: type[R], data: bytes) -> Sealed[R]:
    """Read a sealed record from its canonical bytes, at most BYTES_MAX + the seal. The last small ones are kept."""
    is_kept = type(data) is bytes and len(data) <= RECORD_CACHED_BYTES_MAX
    read = _decoded if is_kept else _decode
    found: Sealed[R] = read(record, data)  # type: ignore[arg-type]  # a class is hashable
    return found


def _decode(record: type[R], data: bytes) -> Sealed[R]:
    return sealed_from_value(record, codec.decode(data, record.BYTES_MAX + SEAL_OVERHEAD_BYTES, record.NAME))


_decoded = lru_cache(RECORDS_CACHED_MAX)(_decode)


def sealed_kind(record: type[Signed]) -> Kind:
    """A sealed record as a field."""

    def check(value: Any, field: str) -> None:
        if type(value) is not Sealed or type(value.record) is not record:
            raise Invalid(field, f"must be a sealed {record.NAME}")

    return Kind(
        check, lambda value: value.to_value(), lambda value, field: sealed_from_value(record, value, field)
    )

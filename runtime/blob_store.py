"""Blobs by content id: the port that every store implements, and a store in memory.

Hides: where a blob lies. Guarantees: bytes that are returned were compared with the id they were asked by; putting over
a damaged blob heals it; a full store refuses writes, all or nothing, and goes on reading. The durable stores are
runtime/local_cas.py (files) and runtime/lmdb_blobs.py (LMDB and files).
Implements docs/protocol.md, section "Hashes".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from runtime.codec import HASH_BYTES, content_id
from runtime.errors import Corrupt, Invalid, MissingBlob, StoreFull

_REPAIR: Final = "fetch the blob again: a put over it heals it (a running node does so by itself)"


@dataclass(frozen=True, slots=True)
class BlobStat:
    """Size in bytes as the store has it, and whether prune must leave the blob: it is pinned, or a chain needs it."""

    size: int
    pinned: bool


class BlobStore(Protocol):
    """Content-addressed storage. Ids are the 32-byte BLAKE3 of the data; all calls are synchronous, from any thread."""

    def put(self, data: bytes) -> bytes:
        """Store, and give the content id. Storing twice is no mistake, and heals. Raises StoreFull."""

    def put_many(self, blobs: Iterable[bytes]) -> list[bytes]:
        """Store all or none, durably. Raises StoreFull."""

    def get(self, content: bytes) -> bytes:
        """The blob, compared with its id. Raises Missing, or Corrupt when the stored bytes are damaged."""

    def get_range(self, content: bytes, offset: int, length: int) -> bytes:
        """Bytes offset..offset+length, fewer at its end, of a blob compared with its id. Raises Missing, Corrupt.

        A large blob is read through once, and again when its file has changed or was forgotten meanwhile.
        """

    def verify(self, content: bytes) -> int:
        """Read the whole blob from where it lies and compare; gives its size. Raises Missing, Corrupt."""

    def has(self, content: bytes) -> bool:
        """Whether the blob is held (damaged or not)."""

    def stat(self, content: bytes) -> BlobStat:
        """Size and pin. Raises Missing."""

    def delete(self, content: bytes) -> bool:
        """Forget an unpinned blob; False when it was not held or is pinned."""

    def discard_damaged(self, content: bytes) -> bool:
        """Forget a blob, pinned or not, whose bytes are damaged (compared again here): its pin waits for sound ones."""

    def iterate(self, after: bytes = b"") -> Iterator[bytes]:
        """Content ids held, ascending, above `after`. What is put or deleted meanwhile may or may not be met."""

    def wanted(self, after: bytes = b"") -> Iterator[bytes]:
        """Content ids above `after` that are pinned or kept for a chain, and not held; ascending."""

    def pin(self, content: bytes) -> None:
        """Keep the blob from prune. Raises Missing, Denied (pins_max), StoreFull."""

    def unpin(self, content: bytes) -> bool:
        """Take that back; False when it was not pinned. Blobs that a chain needs stay kept all the same."""

    def pins(self) -> list[bytes]:
        """What was pinned by `pin`, ascending."""

    def prune_unpinned(self, bytes_max: int) -> int:
        """Delete blobs that nobody pinned until all blobs together are at most bytes_max; gives the bytes freed."""


def check_id(content: bytes) -> None:
    """Raises Invalid for what cannot be a content id."""
    if type(content) is not bytes or len(content) != HASH_BYTES:
        raise Invalid("content_id", f"must be {HASH_BYTES} bytes")


def damaged(content: bytes, where: str, why: str) -> Corrupt:
    """The error that says so, with what heals it."""
    return Corrupt(f"blob {content.hex()} in {where}", why, _REPAIR)


def verified(content: bytes, data: bytes, where: str) -> bytes:
    """The data, when it hashes to the id. Raises Corrupt."""
    if content_id(data) != content:
        raise damaged(content, where, f"{len(data)} bytes that hash to another id")
    return data


class MemoryBlobStore:
    """Blobs in a dict, for tests and simulation; `bytes_max` plays the disk that is full."""

    def __init__(self, bytes_max: int | None = None) -> None:
        self.bytes_max = bytes_max
        self._blobs: dict[bytes, bytes] = {}
        self._pins: set[bytes] = set()
        self._kept: set[bytes] = set()

    def put(self, data: bytes) -> bytes:
        return self.put_many([data])[0]

    def put_many(self, blobs: Iterable[bytes], *, keep: bool = False) -> list[bytes]:
        """`keep`: a chain needs them, prune leaves them."""
        found = {content_id(data): bytes(data) for data in blobs}
        fresh = sum(len(data) for content, data in found.items() if content not in self._blobs)
        if self.bytes_max is not None and self.size() + fresh > self.bytes_max:
            raise StoreFull("memory store", f"bytes_max {self.bytes_max}")
        self._blobs.update(found)
        if keep:
            self._kept.update(found)
        return list(found)

    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(len(data) for data in self._blobs.values())

    def _held(self, content: bytes) -> bytes:
        check_id(content)
        if content not in self._blobs:
            raise MissingBlob(content)
        return self._blobs[content]

    def get(self, content: bytes) -> bytes:
        return verified(content, self._held(content), "memory")

    def get_range(self, content: bytes, offset: int, length: int) -> bytes:
        return self.get(content)[offset : offset + length]

    def verify(self, content: bytes) -> int:
        return len(self.get(content))

    def has(self, content: bytes) -> bool:
        check_id(content)
        return content in self._blobs

    def stat(self, content: bytes) -> BlobStat:
        return BlobStat(len(self._held(content)), self._is_pinned(content))

    def _is_pinned(self, content: bytes) -> bool:
        return content in self._pins or content in self._kept

    def delete(self, content: bytes) -> bool:
        check_id(content)
        return not self._is_pinned(content) and self._blobs.pop(content, None) is not None

    def discard_damaged(self, content: bytes) -> bool:
        if not self.has(content) or content_id(self._blobs[content]) == content:
            return False
        del self._blobs[content]
        return True

    def iterate(self, after: bytes = b"") -> Iterator[bytes]:
        yield from sorted(content for content in self._blobs if content > after)

    def wanted(self, after: bytes = b"") -> Iterator[bytes]:
        needed = sorted(self._pins | self._kept)
        yield from (content for content in needed if content > after and content not in self._blobs)

    def pin(self, content: bytes) -> None:
        self._held(content)
        self._pins.add(content)

    def unpin(self, content: bytes) -> bool:
        check_id(content)
        held = content in self._pins
        self._pins.discard(content)
        return held

    def pins(self) -> list[bytes]:
        return sorted(self._pins)

    def prune_unpinned(self, bytes_max: int) -> int:
        size, freed = self.size(), 0
        for content in self.iterate():
            if size - freed <= bytes_max:
                break
            length = len(self._blobs[content])
            if self.delete(content):
                freed += length
        return freed

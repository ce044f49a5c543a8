"""Blobs by content id: the port, a store in memory, and one on LMDB and files.

Hides: where a blob lies. Guarantees: a blob that is returned hashes to the id it was asked by; putting over a damaged
blob heals it; a put that returned is durable (LmdbBlobStore); a full disk refuses writes and goes on reading.
Implements docs/protocol.md, section "Hashes"; figures behind the choice of LMDB are in docs/dependencies.md.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import lmdb

from runtime.codec import content_id
from runtime.errors import Corrupt, Invalid, Missing, StoreFull

FILE_BYTES_MIN: Final = 64 * 1024  # blobs from this size on are files
SIZE_BYTES: Final = 8
_REPAIR: Final = "fetch the blob again: a put over it heals it (a running node does so by itself)"


@dataclass(frozen=True, slots=True)
class BlobStat:
    """Size in bytes, and whether prune must leave the blob."""

    size: int
    pinned: bool


class BlobStore(Protocol):
    """Content-addressed storage. Ids are the 32-byte BLAKE3 of the data; all calls are synchronous."""

    def put(self, data: bytes) -> bytes:
        """Store, and give the content id. Storing twice is no mistake. Raises StoreFull."""

    def put_many(self, blobs: Iterable[bytes]) -> list[bytes]:
        """Store all or none, in one durable step. Raises StoreFull."""

    def get(self, content: bytes) -> bytes:
        """The blob, checked against its id. Raises Missing, or Corrupt when the stored bytes are damaged."""

    def get_range(self, content: bytes, offset: int, length: int) -> bytes:
        """Bytes offset..offset+length of a blob, fewer at its end; not checked: the reader checks the whole."""

    def has(self, content: bytes) -> bool:
        """Whether the blob is held (damaged or not)."""

    def stat(self, content: bytes) -> BlobStat:
        """Size and pin. Raises Missing."""

    def delete(self, content: bytes) -> bool:
        """Forget an unpinned blob; False when it was not held or is pinned."""

    def iterate(self) -> Iterator[bytes]:
        """Content ids held, ascending."""

    def pin(self, content: bytes) -> None:
        """Keep the blob from prune. Raises Missing."""

    def unpin(self, content: bytes) -> bool:
        """Allow prune again; False when it was not pinned."""

    def pins(self) -> list[bytes]:
        """Pinned content ids, ascending."""

    def prune_unpinned(self, bytes_max: int) -> int:
        """Delete unpinned blobs until all blobs together are at most bytes_max; gives the bytes freed."""


def _check_id(content: bytes) -> None:
    if type(content) is not bytes or len(content) != 32:
        raise Invalid("content_id", "must be 32 bytes")


def _verified(content: bytes, data: bytes, where: str) -> bytes:
    if content_id(data) != content:
        raise Corrupt(
            f"blob {content.hex()} in {where}", f"{len(data)} bytes that hash to another id", _REPAIR
        )
    return data


class MemoryBlobStore:
    """Blobs in a dict, for tests and simulation; `bytes_max` plays the disk that is full."""

    def __init__(self, bytes_max: int | None = None) -> None:
        self.bytes_max = bytes_max
        self._blobs: dict[bytes, bytes] = {}
        self._pins: set[bytes] = set()

    def put(self, data: bytes) -> bytes:
        return self.put_many([data])[0]

    def put_many(self, blobs: Iterable[bytes]) -> list[bytes]:
        found = {content_id(data): bytes(data) for data in blobs}
        fresh = sum(len(data) for content, data in found.items() if content not in self._blobs)
        if self.bytes_max is not None and self._size() + fresh > self.bytes_max:
            raise StoreFull("memory store", f"bytes_max {self.bytes_max}")
        self._blobs.update(found)
        return list(found)

    def _size(self) -> int:
        return sum(len(data) for data in self._blobs.values())

    def get(self, content: bytes) -> bytes:
        _check_id(content)
        if content not in self._blobs:
            raise Missing("blob", content.hex())
        return _verified(content, self._blobs[content], "memory")

    def get_range(self, content: bytes, offset: int, length: int) -> bytes:
        _check_id(content)
        if content not in self._blobs:
            raise Missing("blob", content.hex())
        return self._blobs[content][offset : offset + length]

    def has(self, content: bytes) -> bool:
        _check_id(content)
        return content in self._blobs

    def stat(self, content: bytes) -> BlobStat:
        _check_id(content)
        if content not in self._blobs:
            raise Missing("blob", content.hex())
        return BlobStat(len(self._blobs[content]), content in self._pins)

    def delete(self, content: bytes) -> bool:
        _check_id(content)
        return content not in self._pins and self._blobs.pop(content, None) is not None

    def iterate(self) -> Iterator[bytes]:
        yield from sorted(self._blobs)

    def pin(self, content: bytes) -> None:
        if not self.has(content):
            raise Missing("blob", content.hex())
        self._pins.add(content)

    def unpin(self, content: bytes) -> bool:
        _check_id(content)
        held = content in self._pins
        self._pins.discard(content)
        return held

    def pins(self) -> list[bytes]:
        return sorted(self._pins)

    def prune_unpinned(self, bytes_max: int) -> int:
        size, freed = self._size(), 0
        for content in list(self._blobs):  # oldest first
            if size - freed <= bytes_max:
                break
            length = len(self._blobs[content])
            if self.delete(content):
                freed += length
        return freed


class LmdbBlobStore:
    """Small blobs in LMDB, larger ones as files; pins in LMDB. Shares its environment with world_db.

    A blob of FILE_BYTES_MIN or more is written and fsynced as a file before the transaction that names it, so that a
    crash leaves at worst a file that nothing names: the next put of the same bytes takes it over.
    """

    def __init__(self, env: lmdb.Environment, root: Path) -> None:
        self._env = env
        self._root = root
        self._small = env.open_db(b"blobs")
        self._files = env.open_db(b"blob_files")  # content id -> size, big-endian
        self._pinned = env.open_db(b"pins")
        root.mkdir(parents=True, exist_ok=True)

    def _path(self, content: bytes) -> Path:
        name = content.hex()
        return self._root / name[:2] / f"{name}.blob"

    def put(self, data: bytes) -> bytes:
        return self.put_many([data])[0]

    def put_many(self, blobs: Iterable[bytes]) -> list[bytes]:
        found = {content_id(data): data for data in blobs}
        self.write_files(found)
        try:
            with self._env.begin(write=True) as txn:
                self.put_rows(txn, found)
        except lmdb.MapFullError as error:
            raise StoreFull(str(self._root), "the database map is full (disk_bytes_max)") from error
        except lmdb.DiskError as error:
            raise StoreFull(str(self._root), str(error)) from error
        return list(found)

    def write_files(self, found: dict[bytes, bytes]) -> None:
        """First half of a put: large blobs, durable as files. Raises StoreFull."""
        for content, data in found.items():
            if len(data) >= FILE_BYTES_MIN:
                self._write_file(self._path(content), data)

    def _write_file(self, path: Path, data: bytes) -> None:
        if path.exists() and path.read_bytes() == data:
            return
        try:
            path.parent.mkdir(exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise StoreFull(str(path.parent), str(error)) from error
            raise

    def put_rows(self, txn: lmdb.Transaction, found: dict[bytes, bytes]) -> None:
        """Second half of a put, inside the caller's transaction: small blobs, and the names of large ones."""
        for content, data in found.items():
            if len(data) >= FILE_BYTES_MIN:
                txn.put(content, len(data).to_bytes(SIZE_BYTES, "big"), db=self._files)
            else:
                txn.put(content, bytes(data), db=self._small)

    def get(self, content: bytes) -> bytes:
        _check_id(content)
        with self._env.begin() as txn:
            small = txn.get(content, db=self._small)
            size = txn.get(content, db=self._files)
        if small is not None:
            return _verified(content, bytes(small), "the database")
        if size is None:
            raise Missing("blob", content.hex())
        path = self._path(content)
        try:
            return _verified(content, path.read_bytes(), str(path))
        except FileNotFoundError:
            raise Corrupt(f"blob {content.hex()}", f"{path} is gone", _REPAIR) from None

    def get_range(self, content: bytes, offset: int, length: int) -> bytes:
        _check_id(content)
        with self._env.begin(buffers=True) as txn:
            small = txn.get(content, db=self._small)
            if small is not None:
                return bytes(small[offset : offset + length])
            if txn.get(content, db=self._files) is None:
                raise Missing("blob", content.hex())
        try:
            with self._path(content).open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except FileNotFoundError:
            raise Corrupt(f"blob {content.hex()}", "its file is gone", _REPAIR) from None

    def has(self, content: bytes) -> bool:
        _check_id(content)
        with self._env.begin(buffers=True) as txn:
            return (
                txn.get(content, db=self._small) is not None or txn.get(content, db=self._files) is not None
            )

    def stat(self, content: bytes) -> BlobStat:
        _check_id(content)
        with self._env.begin(buffers=True) as txn:
            pinned = txn.get(content, db=self._pinned) is not None
            small = txn.get(content, db=self._small)
            if small is not None:
                return BlobStat(len(small), pinned)
            size = txn.get(content, db=self._files)
            if size is None:
                raise Missing("blob", content.hex())
            return BlobStat(int.from_bytes(size, "big"), pinned)

    def delete(self, content: bytes) -> bool:
        _check_id(content)
        with self._env.begin(write=True) as txn:
            if txn.get(content, db=self._pinned) is not None:
                return False
            small = txn.delete(content, db=self._small)
            large = txn.delete(content, db=self._files)
        if large:
            self._path(content).unlink(missing_ok=True)
        return bool(small or large)

    def iterate(self) -> Iterator[bytes]:
        with self._env.begin() as txn:
            found = [bytes(key) for key in txn.cursor(self._small).iternext(values=False)]
            found += [bytes(key) for key in txn.cursor(self._files).iternext(values=False)]
        yield from sorted(found)

    def pin(self, content: bytes) -> None:
        if not self.has(content):
            raise Missing("blob", content.hex())
        with self._env.begin(write=True) as txn:
            txn.put(content, b"", db=self._pinned)

    def unpin(self, content: bytes) -> bool:
        _check_id(content)
        with self._env.begin(write=True) as txn:
            return bool(txn.delete(content, db=self._pinned))

    def pins(self) -> list[bytes]:
        with self._env.begin() as txn:
            return [bytes(key) for key in txn.cursor(self._pinned).iternext(values=False)]

    def prune_unpinned(self, bytes_max: int) -> int:
        sizes = {content: self.stat(content).size for content in self.iterate()}
        total, freed = sum(sizes.values()), 0
        for content, size in sizes.items():
            if total - freed <= bytes_max:
                break
            if self.delete(content):
                freed += size
        return freed

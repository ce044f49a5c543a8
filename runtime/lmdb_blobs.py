"""Blobs on LMDB and files: small ones in the database, large ones in a LocalCasStore, all under one budget.

Hides: which blob lies where. Guarantees: blobs and the rows that name them are one durable transaction (with
world_db.py, whose environment this shares); a blob that a chain needs is kept, in that same transaction, from every
prune; past `bytes_max` writes are refused and reads go on.
Implements docs/protocol.md, section "Hashes"; figures behind the choice of LMDB are in docs/dependencies.md.
"""

from __future__ import annotations

import errno
import heapq
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import lmdb

from runtime.blob_store import BlobStat, check_id, verified
from runtime.codec import content_id
from runtime.errors import Corrupt, Missing, MissingBlob, StoreFull
from runtime.local_cas import LocalCasStore

FILE_BYTES_MIN: Final = 64 * 1024  # blobs from this size on are files
SHORT_OF_BYTES: Final = 4 << 20  # above what one transaction usually writes
_IDS_PER_READ: Final = 1_024
_DELETES_PER_COMMIT: Final = 1_024


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """LMDB's errors as ours: StoreFull for want of space, Corrupt for a database that does not hold together."""
    try:
        yield
    except lmdb.MapFullError as error:
        raise StoreFull(str(path), "disk_bytes_max: the database cannot grow further") from error
    except lmdb.DiskError as error:
        raise StoreFull(str(path), f"the disk: {error}") from error
    except lmdb.Error as error:
        # LMDB tells a write that came out short, as the last one on a full disk does, as an input/output error.
        if os.strerror(errno.EIO) in str(error) and shutil.disk_usage(path).free < SHORT_OF_BYTES:
            raise StoreFull(str(path), "the disk: No space left on device") from error
        raise Corrupt(str(path), f"the database failed ({error})", damaged_database(path)) from error


def damaged_database(path: Path) -> str:
    """The command that lets a node start without its database; docs/operations.md says what then is lost."""
    return f"mv {path} {path}.damaged"


class LmdbBlobStore:
    """Blobs in LMDB up to FILE_BYTES_MIN, larger ones as files. Pins are the file store's, for both kinds.

    A large blob is durable as a file before the transaction that names it, so that a crash leaves at worst a file that
    nothing needs. `kept` holds the ids that chains need: written with the chain's rows, asked by whoever deletes.
    """

    def __init__(self, env: lmdb.Environment, files: LocalCasStore, bytes_max: int | None = None) -> None:
        """`bytes_max`: of the database's used pages and of all files together; None: no limit."""
        self._env = env
        self._where = Path(env.path())
        self._files = files
        self._bytes_max = bytes_max
        self._small: Any = env.open_db(b"blobs")
        self._kept: Any = env.open_db(b"kept")  # content id -> nothing
        self._tables: list[Any] = [self._small, self._kept]

    # --- budget --------------------------------------------------------------------------------------------

    def count_in(self, tables: Iterable[Any]) -> None:
        """Other tables of the same environment, which take from the same budget."""
        self._tables += tables

    def bytes_used(self, txn: lmdb.Transaction) -> int:
        """Used pages as this transaction sees them, and files. Free pages are used again, so they do not count."""
        pages, page_bytes = 2, 4_096  # two pages say where the rest is
        for table in self._tables:
            stat = txn.stat(table)
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
            page_bytes = stat["psize"]
        return pages * page_bytes + self._files.bytes_held

    def admit(self, txn: lmdb.Transaction, more: int = 0) -> None:
        """Raises StoreFull when the transaction, or `more` bytes beside it, lead past the budget."""
        if self._bytes_max is not None:
            used = self.bytes_used(txn)
            if used + more > self._bytes_max:
                raise StoreFull(
                    str(self._where.parent),
                    f"disk_bytes_max is {self._bytes_max:,}, {used:,} are in use and {more:,} more are needed",
                )

    # --- writing -------------------------------------------------------------------------------------------

    def put(self, data: bytes) -> bytes:
        return self.put_many([data])[0]

    def put_many(self, blobs: Iterable[bytes]) -> list[bytes]:
        found = {content_id(data): data for data in blobs}
        self.write_files(found)
        with translated(self._where), self._env.begin(write=True) as txn:
            self.put_rows(txn, found, keep=False)
            self.admit(txn)
        return list(found)

    def write_files(self, found: dict[bytes, bytes]) -> None:
        """First half of a put: large blobs, durable as files. Raises StoreFull."""
        large = [data for content, data in found.items() if len(data) >= FILE_BYTES_MIN]
        if large:
            more = sum(len(data) for data in large if not self._files.has(content_id(data)))
            with self._env.begin() as txn:
                self.admit(txn, more)
            self._files.put_many(large)

    def put_rows(self, txn: lmdb.Transaction, found: dict[bytes, bytes], *, keep: bool) -> None:
        """Second half of a put, inside the caller's transaction: small blobs, and which of all of them are kept."""
        for content, data in found.items():
            if len(data) < FILE_BYTES_MIN:
                txn.put(content, data, db=self._small)
            elif not self._files.has(content):  # a prune came between the halves; none can any more
                self._files.put(data)
            if keep:
                txn.put(content, b"", db=self._kept)

    # --- reading -------------------------------------------------------------------------------------------

    def _small_blob(self, content: bytes) -> bytes | None:
        check_id(content)
        with translated(self._where), self._env.begin() as txn:
            small = txn.get(content, db=self._small)
        return None if small is None else verified(content, bytes(small), "the database")

    def get(self, content: bytes) -> bytes:
        small = self._small_blob(content)
        return self._files.get(content) if small is None else small

    def get_range(self, content: bytes, offset: int, length: int) -> bytes:
        small = self._small_blob(content)
        if small is None:
            return self._files.get_range(content, offset, length)
        return small[offset : offset + length]

    def verify(self, content: bytes) -> int:
        small = self._small_blob(content)
        return self._files.verify(content) if small is None else len(small)

    def has(self, content: bytes) -> bool:
        check_id(content)
        with translated(self._where), self._env.begin(buffers=True) as txn:
            if txn.get(content, db=self._small) is not None:
                return True
        return self._files.has(content)

    def stat(self, content: bytes) -> BlobStat:
        check_id(content)
        with translated(self._where), self._env.begin(buffers=True) as txn:
            small = txn.get(content, db=self._small)
            size = None if small is None else len(small)
            pinned = self._is_pinned(txn, content)
        return BlobStat(self._files.stat(content).size if size is None else size, pinned)

    def _is_pinned(self, txn: lmdb.Transaction, content: bytes) -> bool:
        return content in self._files.pin_file or txn.get(content, db=self._kept) is not None

    def iterate(self, after: bytes = b"") -> Iterator[bytes]:
        yield from heapq.merge(self._ids(self._small, after), self._files.iterate(after))

    def wanted(self, after: bytes = b"") -> Iterator[bytes]:
        pinned = (content for content in self._files.pin_file if content > after)
        last = b""
        for content in heapq.merge(self._ids(self._kept, after), pinned):
            if content != last and not self.has(content):
                yield content
            last = content

    def _ids(self, table: Any, after: bytes) -> Iterator[bytes]:
        """A transaction for some ids at a time: one that stays open would keep old pages from being used again."""
        while True:
            found: list[bytes] = []
            with translated(self._where), self._env.begin() as txn, txn.cursor(table) as cursor:
                held = cursor.set_range(after + b"\x00") if after else cursor.first()
                while held and len(found) < _IDS_PER_READ:
                    found.append(bytes(cursor.key()))
                    held = cursor.next()
            yield from found
            if len(found) < _IDS_PER_READ:
                return
            after = found[-1]

    # --- forgetting ----------------------------------------------------------------------------------------

    def delete(self, content: bytes) -> bool:
        check_id(content)
        with translated(self._where), self._env.begin(write=True) as txn:
            return not self._is_pinned(txn, content) and self._drop(txn, content)

    def _drop(self, txn: lmdb.Transaction, content: bytes) -> bool:
        # Files go inside the transaction too: whoever puts asks for them inside one (put_rows).
        return bool(txn.delete(content, db=self._small)) | self._files.discard(content)

    def discard_damaged(self, content: bytes) -> bool:
        try:
            self.verify(content)
        except Missing:
            return False
        except Corrupt:
            with translated(self._where), self._env.begin(write=True) as txn:
                # Once more: whoever had the transaction before may have put the sound blob back.
                return self._is_damaged(txn, content) and self._drop(txn, content)
        return False

    def _is_damaged(self, txn: lmdb.Transaction, content: bytes) -> bool:
        small = txn.get(content, db=self._small)
        try:
            if small is None:
                self._files.verify(content)
            else:
                verified(content, bytes(small), "the database")
        except Missing:
            return False
        except Corrupt:
            return True
        return False

    def pin(self, content: bytes) -> None:
        check_id(content)
        with translated(self._where), self._env.begin(write=True) as txn:  # deletes are in one too
            if txn.get(content, db=self._small) is None and not self._files.has(content):
                raise MissingBlob(content)
            self._files.pin_file.add(content)

    def unpin(self, content: bytes) -> bool:
        return self._files.unpin(content)

    def pins(self) -> list[bytes]:
        return self._files.pins()

    def prune_unpinned(self, bytes_max: int) -> int:
        size, freed, waiting = self._bytes_of_blobs(), 0, list[bytes]()
        for content in self.iterate():
            if size - freed <= bytes_max:
                break
            with translated(self._where), self._env.begin(buffers=True) as txn:
                small = txn.get(content, db=self._small)
                length = None if small is None else len(small)
                if self._is_pinned(txn, content):
                    continue
            freed += length or self._files.size(content) or 0
            waiting.append(content)
            if len(waiting) == _DELETES_PER_COMMIT:
                self._delete_many(waiting)
                waiting = []
        self._delete_many(waiting)
        return size - self._bytes_of_blobs()

    def _delete_many(self, contents: list[bytes]) -> None:
        """What was pinned or kept meanwhile stays."""
        with translated(self._where), self._env.begin(write=True) as txn:
            for content in contents:
                if not self._is_pinned(txn, content):
                    self._drop(txn, content)

    def _bytes_of_blobs(self) -> int:
        with translated(self._where), self._env.begin(buffers=True) as txn:
            cursor = txn.cursor(self._small)
            small = sum(len(value) for value in cursor.iternext(keys=False, values=True))
        return small + self._files.bytes_held

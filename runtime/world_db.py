"""The node's tables: one durable transaction for blobs and rows together, with compare-and-set.

Hides: LMDB, and the sum that every row carries. Guarantees: `commit` is all or nothing and on disk when it returns; an
expectation that does not hold changes nothing; a row that is read is what was written, or Corrupt; a database that
cannot be opened says what to do. Rows are opaque here: world_tables.py types them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

import lmdb

from runtime.blob_store import BlobStore, MemoryBlobStore
from runtime.codec import content_id
from runtime.durable import is_full, make_folder
from runtime.errors import Corrupt, Mismatch, StoreFull
from runtime.lmdb_blobs import LmdbBlobStore, damaged_database, translated
from runtime.local_cas import LocalCasStore

SCHEMA: Final = b"aw/db/3"
DISK_BYTES_DEFAULT: Final = 64 << 30
# Address space beyond the budget: what deletes, and so gives space back, needs new pages before old ones are free.
HEADROOM_BYTES: Final = 64 << 20
READERS_MAX: Final = 256
# LMDB maps its lock file: on a full disk, touching a page that was never allocated would kill the process.
LOCK_FILE_BYTES: Final = 64 * READERS_MAX + 4_096
ROW_SUM_BYTES: Final = 8
SCAN_ROWS_MAX: Final = 65_536


class Table(StrEnum):
    """Names of the tables; every key begins with the 32 bytes of its world id."""

    BLOCKS = "blocks"  # height -> block hash
    BATCHES = "batches"  # height -> sealed batch
    COMMITS = "commits"  # height -> commit (a record: its seal is made when it is answered)
    PLACES = "places"  # envelope hash -> where a block took or refused it
    NONCES = "nonces"  # actor -> number of envelopes taken
    CURSORS = "cursors"  # name -> height
    HEADS = "heads"  # the newest head
    LEASES = "leases"  # the newest lease, and which store holds the order
    OUTBOX = "outbox"  # envelope hash -> accepted envelope
    OUTBOX_ORDER = "outbox_order"  # (actor, nonce) -> envelope hash
    OUTBOX_EXPIRY = "outbox_expiry"  # (expiry height, envelope hash) -> nothing
    EVIDENCE = "evidence"  # content id -> preimage of the record, and whether it is proved
    PROVIDED = "provided"  # content id -> when it is due
    AUTHORITIES = "authorities"  # the newest authority set that was taken up
    ORDERS = "orders"  # height -> sealed batch and commit of what was executed here
    VOIDED = "voided"  # (height, batch hash) of applied batches that an epoch did not keep -> 1 when submitted again


@dataclass(frozen=True, slots=True)
class Put:
    """Write one row."""

    table: Table
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove one row; a row that is not there is no mistake."""

    table: Table
    key: bytes


@dataclass(frozen=True, slots=True)
class Expect:
    """What a row must be for the transaction to happen; None: absent."""

    table: Table
    key: bytes
    value: bytes | None


Row = Put | Delete


class WorldDb(Protocol):
    """Tables and blobs of one node. `commit` may run in a worker thread, one at a time; reads anywhere."""

    @property
    def blobs(self) -> BlobStore: ...

    def get(self, table: Table, key: bytes) -> bytes | None:
        """One row."""

    def scan(
        self,
        table: Table,
        start: bytes = b"",
        end: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int = SCAN_ROWS_MAX,
    ) -> list[tuple[bytes, bytes]]:
        """Rows with start <= key < end, ascending (or descending), at most `limit`."""

    def commit(
        self,
        rows: Sequence[Row],
        blobs: Iterable[bytes] = (),
        *,
        keep: bool = False,
        expect: Sequence[Expect] = (),
    ) -> None:
        """All of it durably, or nothing. Raises Mismatch (an expectation does not hold) or StoreFull.

        `keep`: the blobs are of a chain that this node serves, prune leaves them.
        """

    def disk_bytes(self) -> int:
        """What the node's data takes of disk_bytes_max now."""

    def close(self) -> None: ...


def _mismatch(expected: Expect) -> Mismatch:
    return Mismatch(f"{expected.table} row", "is not what the transaction expects")


class MemoryWorldDb:
    """The same port in dicts, for tests and simulation. What was committed survives a simulated crash."""

    def __init__(self, blobs: MemoryBlobStore | None = None) -> None:
        self._blobs = blobs or MemoryBlobStore()
        self._tables: dict[Table, dict[bytes, bytes]] = {table: {} for table in Table}
        self.commits = 0

    @property
    def blobs(self) -> MemoryBlobStore:
        return self._blobs

    def get(self, table: Table, key: bytes) -> bytes | None:
        return self._tables[table].get(key)

    def scan(
        self,
        table: Table,
        start: bytes = b"",
        end: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int = SCAN_ROWS_MAX,
    ) -> list[tuple[bytes, bytes]]:
        keys = [key for key in self._tables[table] if start <= key and (end is None or key < end)]
        keys.sort(reverse=reverse)
        return [(key, self._tables[table][key]) for key in keys[:limit]]

    def commit(
        self,
        rows: Sequence[Row],
        blobs: Iterable[bytes] = (),
        *,
        keep: bool = False,
        expect: Sequence[Expect] = (),
    ) -> None:
        for expected in expect:
            if self._tables[expected.table].get(expected.key) != expected.value:
                raise _mismatch(expected)
        self._blobs.put_many(blobs, keep=keep)
        for row in rows:
            if isinstance(row, Put):
                self._tables[row.table][row.key] = row.value
            else:
                self._tables[row.table].pop(row.key, None)
        self.commits += 1

    def disk_bytes(self) -> int:
        rows = sum(len(key) + len(value) for table in self._tables.values() for key, value in table.items())
        return rows + self._blobs.size()

    def close(self) -> None:
        """Nothing to close."""


def sum_of_row(table: str, key: bytes, value: bytes) -> bytes:
    """What stands behind a row's value: LMDB sees no flipped bit, and a number has no hash of its own."""
    return content_id(table.encode() + b"\x00" + key + b"\x00" + value)[:ROW_SUM_BYTES]


def value_of_row(table: str, key: bytes, stored: bytes, path: Path) -> bytes:
    """The value, when the sum behind it holds. Raises Corrupt."""
    value = stored[:-ROW_SUM_BYTES]
    if stored[-ROW_SUM_BYTES:] != sum_of_row(table, key, value):
        where = f"row {key.hex()} of table {table} in {path}"
        raise Corrupt(where, "is not what was written", damaged_database(path))
    return value


class LmdbWorldDb:
    """One LMDB environment at `<data dir>/db`, large blobs at `<data dir>/blobs`, together at most disk_bytes_max."""

    def __init__(self, data_dir: Path, disk_bytes_max: int = DISK_BYTES_DEFAULT) -> None:
        """Raises Corrupt, with the command that helps, and StoreFull when not even the lock file has room.

        A database whose pages are damaged can kill the process that maps it: runtime/db_check.py looks first.
        """
        path = data_dir / "db"
        self._path = path
        files = LocalCasStore(data_dir)
        _make_room(path)
        with _opening(path):
            self._env = lmdb.open(
                str(path),
                map_size=disk_bytes_max + HEADROOM_BYTES,
                max_dbs=len(Table) + 8,
                max_readers=READERS_MAX,
                sync=True,
            )
        try:
            with _opening(path):
                meta = self._env.open_db(b"meta")
                with self._env.begin(write=True) as txn:
                    schema = txn.get(b"schema", db=meta)
                    if schema is None:
                        txn.put(b"schema", SCHEMA, db=meta)
                if schema not in {None, SCHEMA}:
                    why = f"has schema {schema!r}, this version knows {SCHEMA!r}"
                    raise Corrupt(str(path), why, damaged_database(path))
                self._dbs = {table: self._env.open_db(table.value.encode()) for table in Table}
                self._blobs = LmdbBlobStore(self._env, files, disk_bytes_max)
                self._blobs.count_in([meta, *self._dbs.values()])
        except BaseException:
            self._env.close()
            raise

    @property
    def blobs(self) -> LmdbBlobStore:
        return self._blobs

    def get(self, table: Table, key: bytes) -> bytes | None:
        with translated(self._path), self._env.begin() as txn:
            value = txn.get(key, db=self._dbs[table])
        return None if value is None else value_of_row(table, key, bytes(value), self._path)

    def scan(
        self,
        table: Table,
        start: bytes = b"",
        end: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int = SCAN_ROWS_MAX,
    ) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        with translated(self._path), self._env.begin() as txn, txn.cursor(self._dbs[table]) as cursor:
            for key, value in _walk(cursor, start, end, reverse=reverse):
                if len(found) == limit:
                    break
                found.append((key, value_of_row(table, key, value, self._path)))
        return found

    def commit(
        self,
        rows: Sequence[Row],
        blobs: Iterable[bytes] = (),
        *,
        keep: bool = False,
        expect: Sequence[Expect] = (),
    ) -> None:
        found = {content_id(data): data for data in blobs}
        self._blobs.write_files(found)
        with translated(self._path), self._env.begin(write=True) as txn:
            for expected in expect:
                held = txn.get(expected.key, db=self._dbs[expected.table])
                if _stored(expected) != (None if held is None else bytes(held)):
                    raise _mismatch(expected)  # leaving the block by an error aborts the transaction
            self._blobs.put_rows(txn, found, keep=keep)
            grows = bool(found)
            for row in rows:
                if isinstance(row, Put):
                    stored = row.value + sum_of_row(row.table, row.key, row.value)
                    txn.put(row.key, stored, db=self._dbs[row.table])
                    grows = True
                else:
                    txn.delete(row.key, db=self._dbs[row.table])
            if grows:  # what only deletes is the way back from a full disk
                self._blobs.admit(txn)

    def disk_bytes(self) -> int:
        with translated(self._path), self._env.begin() as txn:
            return self._blobs.bytes_used(txn)

    def close(self) -> None:
        self._env.close()


def _stored(expected: Expect) -> bytes | None:
    if expected.value is None:
        return None
    return expected.value + sum_of_row(expected.table, expected.key, expected.value)


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    """What LMDB says of a file that it cannot take."""
    try:
        yield
    except lmdb.DiskError as error:
        raise StoreFull(str(path), f"the disk: {error}") from error
    except lmdb.Error as error:
        why = f"cannot be opened as a database ({error})"
        raise Corrupt(str(path), why, damaged_database(path)) from error


def _make_room(path: Path) -> None:
    """The folder, and a lock file that is on disk as a whole. Raises StoreFull."""
    try:
        make_folder(path)
        with (path / "lock.mdb").open("ab") as lock:
            os.posix_fallocate(lock.fileno(), 0, LOCK_FILE_BYTES)
    except (NotADirectoryError, FileExistsError) as error:
        raise Corrupt(str(path), "is a file, not a folder", damaged_database(path)) from error
    except OSError as error:
        if is_full(error):
            raise StoreFull(str(path), f"the disk: {error.strerror}") from error
        raise


def _walk(
    cursor: lmdb.Cursor, start: bytes, end: bytes | None, *, reverse: bool
) -> Iterable[tuple[bytes, bytes]]:
    """Key and value pairs with start <= key < end, in the asked direction."""
    if not reverse:
        found = cursor.set_range(start) if start else cursor.first()
        while found and (end is None or bytes(cursor.key()) < end):
            yield bytes(cursor.key()), bytes(cursor.value())
            found = cursor.next()
        return
    found = cursor.last() if end is None or not cursor.set_range(end) else cursor.prev()
    while found and bytes(cursor.key()) >= start:
        yield bytes(cursor.key()), bytes(cursor.value())
        found = cursor.prev()

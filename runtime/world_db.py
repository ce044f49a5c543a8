"""The node's tables: one durable transaction for blobs and rows together, with compare-and-set.

Hides: LMDB. Guarantees: `commit` is all or nothing and on disk when it returns; an expectation that does not hold
changes nothing; a database that cannot be opened says what to do. Rows are opaque here: world_tables.py types them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

import lmdb

from runtime.blob_store import BlobStore, LmdbBlobStore, MemoryBlobStore
from runtime.codec import content_id
from runtime.errors import Corrupt, Mismatch, StoreFull

SCHEMA: Final = b"aw/db/1"
MAP_BYTES_DEFAULT: Final = 64 << 30  # address space, not disk: the file grows as it is written
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
    EVIDENCE = "evidence"  # content id -> record
    PROVIDED = "provided"  # content id -> when it is due


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
        self, rows: Sequence[Row], blobs: Iterable[bytes] = (), *, expect: Sequence[Expect] = ()
    ) -> None:
        """All of it durably, or nothing. Raises Mismatch (an expectation does not hold) or StoreFull."""

    def disk_bytes(self) -> int:
        """What the node's data takes on disk."""

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
        self, rows: Sequence[Row], blobs: Iterable[bytes] = (), *, expect: Sequence[Expect] = ()
    ) -> None:
        for expected in expect:
            if self._tables[expected.table].get(expected.key) != expected.value:
                raise _mismatch(expected)
        self._blobs.put_many(blobs)
        for row in rows:
            if isinstance(row, Put):
                self._tables[row.table][row.key] = row.value
            else:
                self._tables[row.table].pop(row.key, None)
        self.commits += 1

    def disk_bytes(self) -> int:
        rows = sum(len(key) + len(value) for table in self._tables.values() for key, value in table.items())
        return rows + sum(self._blobs.stat(content).size for content in self._blobs.iterate())

    def close(self) -> None:
        """Nothing to close."""


class LmdbWorldDb:
    """One LMDB environment at `<data dir>/db`, large blobs at `<data dir>/blobs`."""

    def __init__(self, data_dir: Path, map_bytes: int = MAP_BYTES_DEFAULT) -> None:
        path = data_dir / "db"
        path.mkdir(parents=True, exist_ok=True)
        self._path, self._data_dir = path, data_dir
        repair = f"move {path} away and start again: the node fetches what it needs from its peers"
        try:
            self._env = lmdb.open(
                str(path), map_size=map_bytes, max_dbs=len(Table) + 8, max_readers=256, sync=True
            )
            meta = self._env.open_db(b"meta")
            with self._env.begin(write=True) as txn:
                schema = txn.get(b"schema", db=meta)
                if schema is None:
                    txn.put(b"schema", SCHEMA, db=meta)
            self._dbs = {table: self._env.open_db(table.value.encode()) for table in Table}
        except lmdb.Error as error:
            raise Corrupt(str(path), f"cannot be opened as a database ({error})", repair) from error
        if schema not in {None, SCHEMA}:
            self._env.close()
            raise Corrupt(str(path), f"has schema {schema!r}, this version knows {SCHEMA!r}", repair)
        self._blobs = LmdbBlobStore(self._env, data_dir / "blobs")

    @property
    def blobs(self) -> LmdbBlobStore:
        return self._blobs

    def get(self, table: Table, key: bytes) -> bytes | None:
        with self._env.begin() as txn:
            value = txn.get(key, db=self._dbs[table])
        return None if value is None else bytes(value)

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
        with self._env.begin() as txn, txn.cursor(self._dbs[table]) as cursor:
            for key, value in _walk(cursor, start, end, reverse=reverse):
                if len(found) == limit:
                    break
                found.append((key, value))
        return found

    def commit(
        self, rows: Sequence[Row], blobs: Iterable[bytes] = (), *, expect: Sequence[Expect] = ()
    ) -> None:
        found = {content_id(data): data for data in blobs}
        self._blobs.write_files(found)
        try:
            with self._env.begin(write=True) as txn:
                for expected in expect:
                    held = txn.get(expected.key, db=self._dbs[expected.table])
                    if (None if held is None else bytes(held)) != expected.value:
                        raise _mismatch(expected)  # leaving the block by an error aborts the transaction
                self._blobs.put_rows(txn, found)
                for row in rows:
                    if isinstance(row, Put):
                        txn.put(row.key, row.value, db=self._dbs[row.table])
                    else:
                        txn.delete(row.key, db=self._dbs[row.table])
        except lmdb.MapFullError as error:
            raise StoreFull(str(self._path), "the database map is full (disk_bytes_max)") from error
        except lmdb.DiskError as error:
            raise StoreFull(str(self._path), str(error)) from error

    def disk_bytes(self) -> int:
        return sum(
            file.stat().st_blocks * 512
            for folder in (self._path, self._data_dir / "blobs")
            for file in folder.rglob("*")
        )

    def close(self) -> None:
        self._env.close()


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

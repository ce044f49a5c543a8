"""What the coordinator remembers: the newest lease, the last batch with its commit, and the commits before it.

Hides: where it is kept. Guarantees: `put_*` writes all of it durably, or nothing, and only while the store still is
what was read; so of any number of processes that hold the same key, one writes a height. What is stored is the record
*to be* signed: the key signs after the transaction, and signing a record again gives the same bytes.
Implements docs/protocol.md, section "Order".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from runtime import limits
from runtime.errors import Busy, Denied, Mismatch
from runtime.records import ActionBatch, Commit, LeaseGrant, Sealed
from runtime.services.context import Context
from runtime.world_db import Expect, Row
from runtime.world_tables import WorldTables


@dataclass(frozen=True, slots=True)
class Kept:
    """One consistent reading. `batch` and `commit` are of the last height, both None before height 1.

    `epoch` is the one whose order this is; 0 before the first that was resumed.
    """

    lease: LeaseGrant | None = None
    batch: Sealed[ActionBatch] | None = None
    commit: Commit | None = None
    epoch: int = 0

    @property
    def height(self) -> int:
        """The last certified height; 0 before the first."""
        return 0 if self.commit is None else self.commit.height


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a new epoch keeps: the batch of the height that it resumes from, under a commit of that epoch."""

    batch: Sealed[ActionBatch]
    actions: bytes
    commit: Commit


class Overtaken(Busy):
    """Another process wrote since the store was read: nothing was written; read and decide again."""

    def __init__(self) -> None:
        super().__init__("lease_store_tries_max", limits.BATCH_INTERVAL_MS)


class LeaseStore(Protocol):
    """The memory of one world's coordinator. All methods raise Unavailable when the store does not answer.

    After Unavailable of a `put_*` it is unknown whether it was written: the next `read` tells.
    """

    async def read(self) -> Kept:
        """The newest state; never one that is older than what any process was told is written."""

    async def put_lease(self, kept: Kept, lease: LeaseGrant) -> Kept:
        """Make `lease` the newest. Raises Overtaken, StoreFull."""

    async def put_commit(
        self, kept: Kept, batch: Sealed[ActionBatch], actions: bytes, commit: Commit
    ) -> Kept:
        """Make batch, actions and commit those of the last height, under the lease that was read.

        Raises Overtaken, StoreFull.
        """

    async def put_refreshed(self, kept: Kept, commit: Commit) -> Kept:
        """The last commit with a newer as_of_ms. Raises Overtaken, StoreFull."""

    async def put_resumed(self, kept: Kept, epoch: int, last: Resumed | None) -> Kept:
        """The order that `epoch` begins with: `last` (None: from the genesis on), and nothing above it.

        Raises Overtaken, StoreFull.
        """

    async def certified(self, height: int) -> tuple[Sealed[ActionBatch], Commit] | None:
        """The batch and commit of a height; its actions are then in the node's blob store. None: not held."""


LeaseStoreOf = Callable[[Context, WorldTables], LeaseStore]


class EmbeddedLeaseStore:
    """In the node's own database: one durable transaction with expectations."""

    NAME = "embedded"

    def __init__(self, context: Context, tables: WorldTables) -> None:
        claim(context, tables, self.NAME)
        self._context = context
        self._tables = tables

    async def read(self) -> Kept:
        tables, height = self._tables, self._tables.committed_height()
        return Kept(tables.lease(), tables.batch(height), tables.commit(height), tables.order_epoch())

    async def put_lease(self, kept: Kept, lease: LeaseGrant) -> Kept:
        await self._write(kept, self._tables.put_lease(lease))
        return replace(kept, lease=lease)

    async def put_commit(
        self, kept: Kept, batch: Sealed[ActionBatch], actions: bytes, commit: Commit
    ) -> Kept:
        blobs = (actions, batch.record.preimage())
        await self._write(kept, self._tables.put_certified(batch, commit), blobs)
        return replace(kept, batch=batch, commit=commit)

    async def put_refreshed(self, kept: Kept, commit: Commit) -> Kept:
        assert kept.batch is not None
        await self._write(kept, self._tables.put_certified(kept.batch, commit))
        return replace(kept, commit=commit)

    async def put_resumed(self, kept: Kept, epoch: int, last: Resumed | None) -> Kept:
        rows, blobs = resumed_rows(self._tables, epoch, last)
        await self._write(kept, rows, blobs)
        return resumed(kept, epoch, last)

    async def certified(self, height: int) -> tuple[Sealed[ActionBatch], Commit] | None:
        batch, commit = self._tables.batch(height), self._tables.commit(height)
        return None if batch is None or commit is None else (batch, commit)

    async def _write(self, kept: Kept, rows: Sequence[Row], blobs: Sequence[bytes] = ()) -> None:
        expect: list[Expect] = self._tables.expect_order(kept.epoch, kept.lease, kept.commit)
        try:
            await self._context.offload(
                lambda: self._context.db.commit(rows, blobs, keep=True, expect=expect)
            )
        except Mismatch:
            raise Overtaken from None


def resumed(kept: Kept, epoch: int, last: Resumed | None) -> Kept:
    """What a store holds after put_resumed."""
    if last is None:
        return Kept(kept.lease, epoch=epoch)
    return Kept(kept.lease, last.batch, last.commit, epoch)


def resumed_rows(
    tables: WorldTables, epoch: int, last: Resumed | None
) -> tuple[list[Row], tuple[bytes, ...]]:
    """Rows and blobs of put_resumed in a node's own tables."""
    if last is None:
        return tables.put_resumed(epoch, 0, None), ()
    rows = tables.put_resumed(epoch, last.commit.height, (last.batch, last.commit))
    return rows, (last.batch.record.preimage(), last.actions)


def claim(context: Context, tables: WorldTables, name: str) -> None:
    """Note where this world's memory is. Raises Denied when it is elsewhere: two memories certify two histories."""
    noted = tables.lease_store()
    if noted is None:
        context.db.commit(tables.put_lease_store(name))
    elif noted != name:
        raise Denied(
            "coordinator.store",
            f"{name!r}, but what this key has certified in world {tables.world_id} is kept in {noted!r}: "
            "a coordinator that forgets certifies a second history",
        )

"""One world's chain as this node holds it: what was applied, and the one transaction that applies the next block.

Hides: which rows a block touches. Guarantees: blobs, rows and cursor of a block are one durable transaction, and only
then is anybody told; heights are applied in order, once. Restoring replays the own blobs from genesis.
Implements docs/protocol.md, section "Results"; design: store, then provide, then announce.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from runtime import chain, limits, world
from runtime.errors import Corrupt, Missing, MissingBlob
from runtime.records import (
    ActionBatch,
    Envelope,
    Genesis,
    Receipt,
    WorldBlock,
    WorldHeadAnnounce,
    decode_envelopes,
)
from runtime.services.context import Context, Signal
from runtime.services.trail import station
from runtime.world_tables import WorldTables

T = TypeVar("T")
_log = logging.getLogger(__name__)
_REPAIR: Final = (
    "aw node --bootstrap ADDR of a peer that holds the world; without one, a backup of the data dir"
)

Progress = Callable[[int, int], None]
"""Called with (done, total) heights while something slow goes on."""
BringBack = Callable[[bytes], Awaitable[None]]
"""Has a lost blob in the store again when it returns. Raises Missing when nobody gives it."""


@dataclass(frozen=True, slots=True)
class Applied:
    """A block that this node has taken up, and what it came from. `tip` is None where nothing was executed."""

    block: WorldBlock
    batch: ActionBatch
    envelopes: tuple[Envelope, ...]
    receipts: tuple[Receipt, ...]
    blobs: tuple[bytes, ...]
    tip: chain.Tip | None


class Replica:
    """The node's copy of one world. `cursor` names what applying means here: stored, executed or verified.

    `tip` holds the state when the node executes; `applied` wakes after each block. One task calls `apply`.
    """

    def __init__(self, context: Context, genesis: Genesis, tables: WorldTables, cursor: str) -> None:
        self._context = context
        self.genesis = genesis
        self.world_id = genesis.header.world_id
        self.tables = tables
        self.cursor = cursor
        self.executes = cursor != "stored"
        self.applied = Signal()
        self._recent: deque[Applied] = deque(maxlen=limits.SYNC_BLOCKS_AHEAD_MAX)
        self.tip: chain.Tip | None = chain.genesis_tip(genesis) if self.executes else None
        header_hash = genesis.header.hash()
        self.height = 0
        self.block_hash = header_hash
        self.batch_hash = header_hash
        self.timestamp_ms = genesis.header.created_ms
        self.head: WorldHeadAnnounce | None = None  # the newest head whose block is applied here

    async def restore(self, progress: Progress, bring_back: BringBack) -> None:
        """Bring the memory to where the disk is: one row where nothing is executed, else a replay from genesis.

        What is damaged is fetched again, what follows from a replay is written again. Raises Corrupt when nobody has
        what is missing, or the own blobs do not give the block that was stored.
        """
        target = self.tables.cursor(self.cursor)
        for head in (self.tables.applied_head(), self.tables.head()):
            if head is not None and self.tables.block_hash(head.commit.record.height) == head.block_hash:
                self.head = head
        if not self.executes:
            if target:
                self._move(await self._brought_back(lambda: self._load(target), bring_back), None)
            return
        for height in range(1, target + 1):
            block, batch, envelopes = await self._brought_back(partial(self._inputs, height), bring_back)
            built = await self._context.offload(partial(self._replay, block, batch, envelopes))
            # Small and shared blobs may have been damaged too: what a replay gives need not be fetched.
            lost = [
                data for content, data in built.blobs.items() if self._context.blobs.find(content) is None
            ]
            if lost:
                await self._context.store(f"height {height}", (), lost, keep=True)
                self._context.counters["store.rebuilt"] += len(lost)
            self._move(
                Applied(block, batch, tuple(envelopes), built.outcome.receipts, (), built.tip), built.tip
            )
            progress(height, target)

    async def _brought_back(self, load: Callable[[], T], bring_back: BringBack) -> T:
        """What `load` gives, after every blob that it misses was brought back."""
        while True:
            try:
                return load()
            except MissingBlob as missing:
                try:
                    await bring_back(missing.content)
                except Missing as error:
                    raise Corrupt(f"world {self.world_id}", str(error), _REPAIR) from error

    def _replay(self, block: WorldBlock, batch: ActionBatch, envelopes: list[Envelope]) -> chain.Built:
        assert self.tip is not None
        built = chain.build_block(self.genesis, self.tip, batch, envelopes, world.check_signatures(envelopes))
        if built.block != block:
            raise Corrupt(
                f"block {block.height} of world {self.world_id}",
                "a replay of the stored batches gives another block",
                "move the data directory away and start again: the node fetches what it needs",
            )
        return built

    def _inputs(self, height: int) -> tuple[WorldBlock, ActionBatch, list[Envelope]]:
        """What a block says and what it is made of. Raises MissingBlob, and Corrupt without its row."""
        block_hash = self.tables.block_hash(height)
        if block_hash is None:
            raise Corrupt(f"height {height} of world {self.world_id}", "its row is missing", _REPAIR)
        blobs = self._context.blobs
        block = WorldBlock.from_preimage(blobs.get(block_hash))
        batch = ActionBatch.from_preimage(blobs.get(block.batch_hash))
        return block, batch, self.decode_actions(blobs.get(batch.actions_ref))

    def _load(self, height: int) -> Applied:
        block, batch, envelopes = self._inputs(height)
        receipts = chain.decode_receipts(self._context.blobs.get(block.receipts_ref))
        return Applied(block, batch, tuple(envelopes), receipts, (), None)

    def decode_actions(self, actions: bytes) -> list[Envelope]:
        """The envelopes of an actions blob, within this world's limits. Raises Invalid."""
        bounds = self.genesis.body.limits
        return decode_envelopes(actions, bounds.batch_bytes_max, bounds.batch_envelopes_max, "actions")

    async def apply(self, applied: Applied) -> None:
        """Make a block the newest: one transaction, then the memory, then the listeners.

        A full disk is waited out: the node serves on, and goes on from here when space returns.
        """
        assert applied.block.height == self.height + 1, "blocks are applied in order"
        rows = self.tables.applied_rows(
            self.cursor, applied.block, list(applied.envelopes), list(applied.receipts)
        )
        await self._context.store(f"height {applied.block.height}", rows, applied.blobs, keep=True)
        self._move(applied, applied.tip)
        self._context.counters["replica.applied"] += 1
        self._tell(applied)
        self.applied.wake()

    def _tell(self, applied: Applied) -> None:
        """The cursor's name is the station; `outcome` says whether the kernel took the envelope."""
        if not _log.isEnabledFor(logging.DEBUG):
            return
        taken = {receipt.envelope_hash for receipt in applied.receipts if receipt.index is not None}
        for envelope in applied.envelopes:
            outcome = "taken" if envelope.hash() in taken else "refused"
            height = applied.block.height
            station(_log, self.cursor, self.world_id, (envelope,), height=height, outcome=outcome)

    def _move(self, applied: Applied, tip: chain.Tip | None) -> None:
        self.tip = tip
        self.height = applied.block.height
        self.block_hash = applied.block.hash()
        self.batch_hash = applied.block.batch_hash
        self.timestamp_ms = applied.block.timestamp_ms
        self._recent.append(applied)

    def reached(self, head: WorldHeadAnnounce) -> None:
        """Note that this head's block is applied: proofs are given against it."""
        self.head = head

    def tip_at(self, height: int) -> chain.Tip | None:
        """The state after a recent height; None where it is not held."""
        if height == self.height:
            return self.tip
        return next((applied.tip for applied in self._recent if applied.block.height == height), None)

    def since(self, height: int) -> Sequence[Applied]:
        """At most SYNC_BLOCKS_AHEAD_MAX blocks above `height`, oldest first, from memory or disk. Raises Missing."""
        last = min(self.height, height + limits.SYNC_BLOCKS_AHEAD_MAX)
        held = {applied.block.height: applied for applied in self._recent}
        return [held.get(at) or self._load(at) for at in range(height + 1, last + 1)]

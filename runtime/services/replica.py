"""One world's chain as this node holds it: what was applied, and the one transaction that applies the next block.

Hides: which rows a block touches. Guarantees: blobs, rows and cursor of a block are one durable transaction, and only
then is anybody told; heights are applied in order, once. Restoring replays the own blobs from genesis.
Implements docs/protocol.md, section "Results"; design: store, then provide, then announce.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

from runtime import chain, limits, world
from runtime.errors import Corrupt, Missing, MissingBlob
from runtime.heads import head_order
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
from runtime.world_db import Row
from runtime.world_tables import WorldTables

T = TypeVar("T")
REPLAYED_HEIGHTS_MAX: Final = 64  # at a time, when the memory is restored
REPLAYED_ENVELOPES: Final = 256  # at a time, and what the last batch has beyond them
CONTENTS_REMEMBERED_MAX: Final = 4  # whoever reads what blocks took follows at once; older ones are on disk
_log = logging.getLogger(__name__)
_REPAIR: Final = (
    "aw node --bootstrap ADDR of a peer that holds the world; without one, a backup of the data dir"
)

Progress = Callable[[int, int], None]
"""Called with (done, total) heights while something slow goes on."""
BringBack = Callable[[bytes], Awaitable[None]]
"""Has a lost blob in the store again when it returns. Raises Missing when nobody gives it."""


async def _nobody(content: bytes) -> None:
    raise Missing("blob", content.hex())


@dataclass(frozen=True, slots=True)
class Applied:
    """A block that this node has taken up, and what it came from. `tip` is None where nothing was executed."""

    block: WorldBlock
    batch: ActionBatch
    envelopes: tuple[Envelope, ...]
    receipts: tuple[Receipt, ...]
    blobs: tuple[bytes, ...]
    tip: chain.Tip | None

    def without_contents(self) -> Applied:
        """Block and state only: the envelopes of a block of strangers' may take a hundred times their bytes."""
        return replace(self, envelopes=(), receipts=(), blobs=())


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
        self._recent: deque[Applied] = deque(maxlen=limits.SYNC_BLOCKS_AHEAD_MAX)  # without contents
        self._newest: deque[Applied] = deque(maxlen=CONTENTS_REMEMBERED_MAX)
        self._bring_back: BringBack = _nobody
        self._begin()
        self.epoch = 0  # whose chain the applied blocks are of; a later set in force: see resume.py
        self.head: WorldHeadAnnounce | None = None  # the newest head whose block is applied here

    def _begin(self) -> None:
        """Before height 1: the header stands for block and batch."""
        header = self.genesis.header
        self.tip: chain.Tip | None = chain.genesis_tip(self.genesis) if self.executes else None
        self.height = 0
        self.block_hash = self.batch_hash = header.hash()
        self.timestamp_ms = header.created_ms
        self.block: WorldBlock | None = None  # the newest applied one

    async def restore(self, progress: Progress, bring_back: BringBack = _nobody) -> None:
        """Bring the memory to where the disk is: one row where nothing is executed, else a replay from genesis.

        What is damaged is fetched again, what follows from a replay is written again. Raises Corrupt when nobody has
        what is missing, or the own blobs do not give the block that was stored.
        """
        self._bring_back = bring_back
        self.epoch = self.tables.epoch()
        for head in (self.tables.applied_head(), self.tables.head()):
            if head is None or self.tables.block_hash(head.commit.record.height) != head.block_hash:
                continue
            if self.head is None or head_order(head) > head_order(self.head):
                self.head = head
        await self._restore_to(self.tables.cursor(self.cursor), progress)

    async def _restore_to(self, target: int, progress: Progress) -> None:
        self._begin()
        if not self.executes:
            if target:
                self._move(await self._brought_back(partial(self._load, target)), None)
            return
        while self.height < target:
            replayed, rebuilt = await self._brought_back(partial(self._replay_some, target))
            if rebuilt:
                await self._context.store(f"height {replayed[-1].block.height}", (), rebuilt, keep=True)
                self._context.counters["store.rebuilt"] += len(rebuilt)
            for applied in replayed:
                self._move(applied, applied.tip)
            progress(self.height, target)

    async def _brought_back(self, load: Callable[[], T]) -> T:
        """What `load` gives, after every blob that it misses was brought back."""
        while True:
            try:
                return await self._context.offload(load)
            except MissingBlob as missing:
                try:
                    await self._bring_back(missing.content)
                except Missing as error:
                    raise Corrupt(f"world {self.world_id}", str(error), _REPAIR) from error

    def _replay_some(self, target: int) -> tuple[list[Applied], list[bytes]]:
        """The next heights up to `target`, and the blobs of theirs that were damaged: a replay need not fetch those.

        Some at a time: each way to the worker thread and back costs as much as a small block.
        Raises MissingBlob when the very next height misses one, and Corrupt.
        """
        replayed: list[Applied] = []
        rebuilt: list[bytes] = []
        tip, envelopes_left = self.tip, REPLAYED_ENVELOPES
        last = min(target, self.height + REPLAYED_HEIGHTS_MAX)
        for height in range(self.height + 1, last + 1):
            assert tip is not None
            try:
                block, batch, envelopes = self._inputs(height)
            except MissingBlob:
                if not replayed:
                    raise
                break  # the next call begins with it
            built = self._replay(tip, block, batch, envelopes)
            rebuilt += [
                data for content, data in built.blobs.items() if self._context.blobs.find(content) is None
            ]
            tip = built.tip
            replayed.append(Applied(block, batch, tuple(envelopes), built.outcome.receipts, (), tip))
            envelopes_left -= len(envelopes)
            if envelopes_left <= 0:
                break
        return replayed, rebuilt

    def _replay(
        self, tip: chain.Tip, block: WorldBlock, batch: ActionBatch, envelopes: list[Envelope]
    ) -> chain.Built:
        built = chain.build_block(self.genesis, tip, batch, envelopes, world.check_signatures(envelopes))
        if built.block != block:
            raise Corrupt(
                f"block {block.height} of world {self.world_id}",
                "a replay of the stored batches gives another block",
                "move the data directory away and start again: the node fetches what it needs",
            )
        return built

    def _inputs(self, height: int) -> tuple[WorldBlock, ActionBatch, list[Envelope]]:
        """What a block says and what it is made of. Raises MissingBlob, and Corrupt without its row."""
        block, blobs = self._block(height), self._context.blobs
        batch = ActionBatch.from_preimage(blobs.get(block.batch_hash))
        return block, batch, self.decode_actions(blobs.get(batch.actions_ref))

    def _block(self, height: int) -> WorldBlock:
        block_hash = self.tables.block_hash(height)
        if block_hash is None:
            raise Corrupt(f"height {height} of world {self.world_id}", "its row is missing", _REPAIR)
        return WorldBlock.from_preimage(self._context.blobs.get(block_hash))

    def _load(self, height: int) -> Applied:
        block, batch, envelopes = self._inputs(height)
        receipts = chain.decode_receipts(self._context.blobs.get(block.receipts_ref))
        return Applied(block, batch, tuple(envelopes), receipts, (), None)

    def decode_actions(self, actions: bytes) -> list[Envelope]:
        """The envelopes of an actions blob, within this world's limits. Raises Invalid."""
        bounds = self.genesis.body.limits
        return decode_envelopes(actions, bounds.batch_bytes_max, bounds.batch_envelopes_max, "actions")

    def block_at(self, height: int) -> WorldBlock:
        """The applied block at a height of 1..height."""
        if self.block is not None and height == self.height:
            return self.block
        return self._block(height)

    async def apply(self, applied: Applied, more: Sequence[Row] = ()) -> None:
        """Make a block the newest: one transaction (with `more` rows), then the memory, then the listeners.

        A full disk is waited out: the node serves on, and goes on from here when space returns.
        """
        assert applied.block.height == self.height + 1, "blocks are applied in order"
        rows = self.tables.applied_rows(
            self.cursor, applied.block, list(applied.envelopes), list(applied.receipts)
        )
        what = f"height {applied.block.height}"
        await self._context.store(what, [*rows, *more], applied.blobs, keep=True)
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

    async def take_back(self, height: int, epoch: int) -> None:
        """Go back to `height`, of which on `epoch` keeps nothing: one transaction, then the memory, then the listeners.

        What the blocks above took is untaken, and their batches are noted as voided; their blobs stay.
        """
        assert height <= self.height
        voided = [self._load(at) for at in range(self.height, height, -1)]
        rows = self.tables.taken_back_rows(
            height, epoch, [(one.block, one.envelopes, one.receipts) for one in voided]
        )
        await self._context.store(f"going back to height {height}", rows, (), keep=True)
        self.epoch, self.head = epoch, None
        if voided:
            _log.warning("world %s: back from height %d to %d", self.world_id, self.height, height)
            self._context.counters["replica.taken_back"] += len(voided)
            await self._rewind(height)
        self.applied.wake()

    async def _rewind(self, height: int) -> None:
        """The memory after `height`: from what is remembered, else by replay."""
        remembered = next((one for one in self._recent if one.block.height == height), None)
        kept = [one for one in self._recent if one.block.height < height]
        self._recent.clear()
        self._newest.clear()
        if remembered is None or (self.executes and remembered.tip is None):
            await self._restore_to(height, lambda done, total: None)
            return
        self._recent.extend(kept)
        self._move(remembered, remembered.tip)
        self._newest.clear()  # what is remembered of it has no contents

    def _move(self, applied: Applied, tip: chain.Tip | None) -> None:
        self.tip = tip
        self.block = applied.block
        self.height = applied.block.height
        self.block_hash = applied.block.hash()
        self.batch_hash = applied.block.batch_hash
        self.timestamp_ms = applied.block.timestamp_ms
        self._recent.append(applied.without_contents())
        self._newest.append(replace(applied, blobs=()))

    def reached(self, head: WorldHeadAnnounce) -> None:
        """Note that this head's block is applied: proofs are given against it."""
        self.head = head

    def execute_again(self, before: chain.Tip, block: WorldBlock) -> WorldBlock:
        """The block that the stored batch of an applied block gives on the tip before it."""
        applied = self._load(block.height)
        envelopes = list(applied.envelopes)
        signatures = world.check_signatures(envelopes)
        return chain.build_block(self.genesis, before, applied.batch, envelopes, signatures).block

    def tip_at(self, height: int) -> chain.Tip | None:
        """The state after a recent height; None where it is not held."""
        if height == self.height:
            return self.tip
        if height == 0 and self.executes:
            return chain.genesis_tip(self.genesis)
        return next((applied.tip for applied in self._recent if applied.block.height == height), None)

    def since(self, height: int) -> Sequence[Applied]:
        """At most SYNC_BLOCKS_AHEAD_MAX blocks above `height`, oldest first, from memory or disk. Raises Missing."""
        last = min(self.height, height + limits.SYNC_BLOCKS_AHEAD_MAX)
        held = {applied.block.height: applied for applied in self._newest}
        return [held.get(at) or self._load(at) for at in range(height + 1, last + 1)]

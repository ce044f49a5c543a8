"""What any node answers from its own disk: genesis, heads, blocks, batches, blobs, proofs, and its own account.

Hides: nothing of the network. Guarantees: only what is durable is served; a blob is checked against its hash when it
is read; every answer is bounded. Implements docs/protocol.md, section "Methods" (reading).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import trio

from p2p import names
from p2p.network import Gauge, PeerId, SendPart
from runtime import chain, codec, limits, state
from runtime.epoch_tables import EpochTables
from runtime.errors import Busy, Invalid, Missing
from runtime.history import History
from runtime.messages import (
    BatchAnswer,
    BatchRequest,
    BlobEnd,
    BlobRequest,
    BlockAnswer,
    BlockRequest,
    BlocksRequest,
    Body,
    BundleAnswer,
    BundleRequest,
    CommitAnswer,
    Empty,
    GaugeReading,
    GenesisAnswer,
    HasBlobsAnswer,
    HasBlobsRequest,
    HeadAnswer,
    HelloAnswer,
    ProvedReceipt,
    ReceiptAnswer,
    ReceiptRequest,
    StateProofAnswer,
    StateProofRequest,
    StatusAnswer,
    WorldRequest,
    WorldStatus,
)
from runtime.records import ActionBatch, Genesis, WorldBlock, WorldHeadAnnounce
from runtime.services.authorities import Authorities
from runtime.services.context import Context
from runtime.services.heads import HeadTracker
from runtime.services.methods import Handlers
from runtime.services.replica import Replica
from runtime.world_tables import WorldTables

BLOCKS_PER_PART: int = 128
GAUGES_MAX: int = 1_024


class NodeDesk:
    """Answers that name no world: hello, status, blobs."""

    def __init__(
        self,
        context: Context,
        roles: tuple[str, ...],
        worlds: Callable[[], tuple[WorldStatus, ...]],
        limits_in_force: dict[str, int],
        versions: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._context = context
        self._versions = versions
        self._started_s = trio.current_time()
        self._roles = roles
        self._worlds = worlds
        self._limits = limits_in_force

    def handlers(self) -> Handlers:
        return {
            "hello": self.hello,
            "status": self.status,
            "fetch_blob": self.fetch_blob,
            "has_blobs": self.has_blobs,
        }

    async def hello(self, caller: PeerId, request: Empty) -> HelloAnswer:
        del caller, request
        return HelloAnswer(
            versions=(1,),
            max_in_flight=names.IN_FLIGHT_PER_SESSION_MAX,
            worlds=tuple(status.world_id for status in self._worlds()),
        )

    async def status(self, caller: PeerId, request: Empty) -> StatusAnswer:
        del caller, request
        return await self.account()

    async def account(self) -> StatusAnswer:
        """What this node says of itself: heights, counters, depths with their limits."""
        context = self._context
        disk_bytes = await context.offload(context.db.disk_bytes)
        name = "disk_bytes_max"
        gauges = [
            Gauge("disk_bytes", disk_bytes, name if name in self._limits else "", self._limits.get(name, 0)),
            *context.network.gauges(),
            *context.gauges.read(),
        ]
        counters = {**context.network.counters(), **context.dht.counters(), **context.counters}
        counters["store.disk_bytes"] = disk_bytes
        counters["store.lost_blobs"] = len(context.blobs.lost)
        return StatusAnswer(
            peer_id=context.peer_id,
            roles=self._roles,
            worlds=self._worlds(),
            peers=tuple(context.network.peers()),
            counters=dict(sorted(counters.items())),
            limits=self._limits,
            gauges=tuple(_reading(gauge) for gauge in gauges[:GAUGES_MAX]),
            uptime_ms=int((trio.current_time() - self._started_s) * 1_000),
            versions=dict(self._versions),
        )

    async def fetch_blob(self, caller: PeerId, request: BlobRequest, send: SendPart) -> Body:
        """Parts of at most PART_BYTES_MAX raw bytes, then the blob's whole size."""
        del caller
        context, content, offset = self._context, request.content_hash, request.offset or 0
        size = context.db.blobs.stat(content).size
        end = size if request.length is None else min(size, offset + request.length)
        if offset > size:
            raise Invalid("fetch_blob.offset", f"{offset} is beyond the size {size}")
        while offset < end:
            part = partial(context.blobs.get_range, content, offset, min(names.PART_BYTES_MAX, end - offset))
            # A blob of several parts is compared as a whole before the first one leaves: no work for the event loop.
            await send(part() if size <= names.PART_BYTES_MAX else await context.offload(part))
            offset = min(end, offset + names.PART_BYTES_MAX)
        return BlobEnd(size=size)

    async def has_blobs(self, caller: PeerId, request: HasBlobsRequest) -> HasBlobsAnswer:
        del caller
        return HasBlobsAnswer(
            has=tuple(self._context.db.blobs.has(content_id) for content_id in request.hashes)
        )


def _reading(gauge: Gauge) -> GaugeReading:
    return GaugeReading(
        name=gauge.name,
        value=gauge.value,
        labels=dict(gauge.labels),
        limit=gauge.limit or None,
        limit_value=gauge.limit_value if gauge.limit else None,
    )


class WorldDesk:
    """Answers about one world, from its tables and its newest applied block."""

    def __init__(
        self,
        context: Context,
        genesis: Genesis,
        authorities: Authorities,
        tables: WorldTables,
        epoch_tables: EpochTables,
        tracker: HeadTracker,
        replica: Replica | None,
    ) -> None:
        self._context = context
        self._genesis = genesis
        self._authorities = authorities
        self._tables = tables
        self._epoch_tables = epoch_tables
        self._tracker = tracker
        self._replica = replica
        self._history = History(lambda first, count: tables.block_hashes(first + 1, first + count))
        self._proving = 0

    def handlers(self) -> Handlers:
        return {
            "get_genesis": self.get_genesis,
            "get_world_head": self.get_world_head,
            "get_block": self.get_block,
            "get_blocks": self.get_blocks,
            "get_bundle": self.get_bundle,
            "get_receipt": self.get_receipt,
            "get_state_proof": self.get_state_proof,
        }

    def order_handlers(self) -> Handlers:
        """What is answered of the order where no coordinator runs."""
        return {"get_commit": self.get_commit, "get_batch": self.get_batch}

    async def get_genesis(self, caller: PeerId, request: WorldRequest) -> GenesisAnswer:
        del caller, request
        return GenesisAnswer(genesis=self._genesis)

    async def get_world_head(self, caller: PeerId, request: WorldRequest) -> HeadAnswer:
        del caller, request
        return HeadAnswer(head=self._tracker.head)

    async def get_commit(self, caller: PeerId, request: WorldRequest) -> CommitAnswer:
        """The set in force, and its newest commit known here; mounted where no coordinator has a fresher one."""
        del caller, request
        head = self._tracker.head
        if head is not None and head.commit.record.epoch != self._authorities.epoch:
            head = None  # of a set that is being taken up just now
        return CommitAnswer(
            authorities=self._authorities.signed, commit=None if head is None else head.commit
        )

    def _block(self, height: int) -> WorldBlock:
        block_hash = self._tables.block_hash(height)
        if block_hash is None:
            raise Missing("block", str(height))
        return WorldBlock.from_preimage(self._context.blobs.get(block_hash))

    async def get_block(self, caller: PeerId, request: BlockRequest) -> BlockAnswer:
        del caller
        if request.height is not None:
            return BlockAnswer(block=self._block(request.height))
        assert request.block_hash is not None  # BlockRequest.check: exactly one of the two
        block = WorldBlock.from_preimage(self._context.blobs.get(request.block_hash))
        if block.world_id != request.world_id:
            raise Missing("block", request.block_hash.hex())
        return BlockAnswer(block=block)

    async def get_blocks(self, caller: PeerId, request: BlocksRequest, send: SendPart) -> Body:
        """Lists of consecutive blocks; ends early where this node's chain ends."""
        del caller
        last = request.from_height + request.count - 1
        for low in range(request.from_height, last + 1, BLOCKS_PER_PART):
            blocks = []
            for height in range(low, min(low + BLOCKS_PER_PART - 1, last) + 1):
                if self._tables.block_hash(height) is None:
                    break
                blocks.append(self._block(height).to_bytes())
            if not blocks:
                break
            await send(codec.array_of(blocks))
        return Empty()

    async def get_batch(self, caller: PeerId, request: BatchRequest) -> BatchAnswer:
        """What was executed here; a coordinator answers what it has certified first."""
        del caller
        return self.executed_batch(request.height)

    def executed_batch(self, height: int) -> BatchAnswer:
        """A batch that was executed here, with the commit that it came with. Raises Missing."""
        order = self._epoch_tables.order(height)
        if order is None:
            raise Missing("batch", str(height))
        batch, commit = order
        return BatchAnswer(batch=batch, commit=commit)

    async def get_bundle(self, caller: PeerId, request: BundleRequest) -> BundleAnswer:
        """What a follower needs of one height, in one frame while it fits; the rest is asked for blob by blob."""
        del caller
        record = self._context.blobs.get(request.block_hash)
        block = WorldBlock.from_preimage(record)
        if block.world_id != request.world_id:
            raise Missing("block", request.block_hash.hex())
        found = [record]
        if (batch := self._fitting(block.batch_hash, found)) is not None:
            wanted = [ActionBatch.from_preimage(batch).actions_ref]
            wanted += [block.receipts_ref, block.journal_ref] if request.lists else []
            while wanted and self._fitting(wanted.pop(0), found) is not None:
                pass
        return BundleAnswer(blobs=tuple(found))

    def _fitting(self, content_id: bytes, found: list[bytes]) -> bytes | None:
        """A blob, appended to what was found; None when it has no room there or is not held."""
        blobs = self._context.db.blobs
        room = limits.BUNDLE_BYTES_MAX - sum(len(blob) for blob in found)
        if not blobs.has(content_id) or blobs.stat(content_id).size > room:
            return None
        blob = self._context.blobs.find(content_id)
        if blob is not None:
            found.append(blob)
        return blob

    # --- proofs --------------------------------------------------------------------------------------------

    def _head_at_hand(self) -> tuple[WorldHeadAnnounce, WorldBlock]:
        """The newest head whose block this node has applied."""
        head = None if self._replica is None else self._replica.head
        if head is None:
            raise Missing("head", f"for an applied height of world {self._genesis.header.world_id}")
        return head, self._block(head.commit.record.height)

    async def get_receipt(self, caller: PeerId, request: ReceiptRequest) -> ReceiptAnswer:
        """Every receipt of an envelope, with its paths up to the head's block."""
        del caller
        place = self._tables.place(request.envelope_hash)
        head, head_block = self._head_at_hand()
        if place is None or place.height > head_block.height:
            raise Missing("receipt", request.envelope_hash.hex())
        block = self._block(place.height)
        if self._proving >= limits.PROOFS_AT_ONCE_MAX:
            raise Busy("proofs_at_once_max", limits.BATCH_INTERVAL_MS)
        self._proving += 1
        try:
            # A block may have 16,384 receipts: reading and hashing them is no work for the event loop.
            proved = await self._context.offload(partial(self._prove_receipts, block, request.envelope_hash))
            path: tuple[bytes, ...] = ()
            if block.height < head_block.height:
                path = await self._context.offload(
                    partial(self._history.path, block.height, head_block.height)
                )
        finally:
            self._proving -= 1
        own = tuple(each for each in proved if each.receipt.envelope_hash == request.envelope_hash)
        return ReceiptAnswer(
            head=head,
            head_block=head_block,
            block=block,
            history_path=path,
            receipts=own,
            after=proved[-1] if len(proved) > len(own) else None,
        )

    def _prove_receipts(self, block: WorldBlock, envelope_hash: bytes) -> tuple[ProvedReceipt, ...]:
        """The envelope's receipts, and the one behind them where they are not the list's last."""
        listed = chain.decode_receipts(self._context.blobs.get(block.receipts_ref))
        asked = [index for index, receipt in enumerate(listed) if receipt.envelope_hash == envelope_hash]
        if asked and asked[-1] + 1 < len(listed):
            asked.append(asked[-1] + 1)
        paths = codec.merkle_paths([receipt.to_bytes() for receipt in listed], asked)
        return tuple(
            ProvedReceipt(receipt=listed[index], index=index, count=len(listed), path=tuple(path))
            for index, path in zip(asked, paths, strict=True)
        )

    async def get_state_proof(self, caller: PeerId, request: StateProofRequest) -> StateProofAnswer:
        """One cell under the state root of the newest block that this node has executed and holds a head for."""
        del caller
        head, block = self._head_at_hand()
        tip = None if self._replica is None else self._replica.tip_at(block.height)
        if tip is None:
            raise Missing("state", f"of height {block.height}: this node does not execute")
        proof: state.StateProof = tip.state.prove(request.namespace, request.key)
        return StateProofAnswer(head=head, block=block, proof=proof.to_bytes())

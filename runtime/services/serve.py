"""What any node answers from its own disk: genesis, heads, blocks, batches, blobs, proofs, and its own account.

Hides: nothing of the network. Guarantees: only what is durable is served; a blob is checked against its hash when it
is read; every answer is bounded. Implements docs/protocol.md, section "Methods" (reading).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from p2p import names
from p2p.network import PeerId, SendPart
from runtime import chain, codec, state
from runtime.errors import Invalid, Missing
from runtime.messages import (
    BlobEnd,
    BlobRequest,
    BlockAnswer,
    BlockRequest,
    BlocksRequest,
    Body,
    CommitAnswer,
    Empty,
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
from runtime.records import Genesis, SignedAuthorities, WorldBlock, WorldHeadAnnounce
from runtime.services.context import Context
from runtime.services.heads import HeadTracker
from runtime.services.methods import Handlers
from runtime.services.replica import Replica
from runtime.world_tables import WorldTables

BLOCKS_PER_PART: int = 128


class NodeDesk:
    """Answers that name no world: hello, status, blobs."""

    def __init__(
        self,
        context: Context,
        roles: tuple[str, ...],
        worlds: Callable[[], tuple[WorldStatus, ...]],
        limits_in_force: dict[str, int],
    ) -> None:
        self._context = context
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
        context = self._context
        counters = {**context.network.counters(), **context.dht.counters(), **context.counters}
        return StatusAnswer(
            peer_id=context.peer_id,
            roles=self._roles,
            worlds=self._worlds(),
            peers=tuple(context.network.peers()),
            counters=dict(sorted(counters.items())),
            limits=self._limits,
        )

    async def fetch_blob(self, caller: PeerId, request: BlobRequest, send: SendPart) -> Body:
        """Parts of at most PART_BYTES_MAX raw bytes, then the blob's whole size."""
        del caller
        blobs = self._context.db.blobs
        size = blobs.stat(request.content_hash).size
        offset = request.offset or 0
        end = size if request.length is None else min(size, offset + request.length)
        if offset > size:
            raise Invalid("fetch_blob.offset", f"{offset} is beyond the size {size}")
        while offset < end:
            length = min(names.PART_BYTES_MAX, end - offset)
            await send(blobs.get_range(request.content_hash, offset, length))
            offset += length
        return BlobEnd(size=size)

    async def has_blobs(self, caller: PeerId, request: HasBlobsRequest) -> HasBlobsAnswer:
        del caller
        return HasBlobsAnswer(
            has=tuple(self._context.db.blobs.has(content_id) for content_id in request.hashes)
        )


class WorldDesk:
    """Answers about one world, from its tables and its newest applied block."""

    def __init__(
        self,
        context: Context,
        genesis: Genesis,
        authorities: SignedAuthorities,
        tables: WorldTables,
        tracker: HeadTracker,
        replica: Replica | None,
    ) -> None:
        self._context = context
        self._genesis = genesis
        self._authorities = authorities
        self._tables = tables
        self._tracker = tracker
        self._replica = replica

    def handlers(self) -> Handlers:
        return {
            "get_genesis": self.get_genesis,
            "get_world_head": self.get_world_head,
            "get_block": self.get_block,
            "get_blocks": self.get_blocks,
            "get_receipt": self.get_receipt,
            "get_state_proof": self.get_state_proof,
        }

    async def get_genesis(self, caller: PeerId, request: WorldRequest) -> GenesisAnswer:
        del caller, request
        return GenesisAnswer(genesis=self._genesis)

    async def get_world_head(self, caller: PeerId, request: WorldRequest) -> HeadAnswer:
        del caller, request
        return HeadAnswer(head=self._tracker.head)

    async def get_commit(self, caller: PeerId, request: WorldRequest) -> CommitAnswer:
        """The newest commit known here; mounted where no coordinator answers with a fresher one."""
        del caller, request
        head = self._tracker.head
        return CommitAnswer(authorities=self._authorities, commit=None if head is None else head.commit)

    def _block(self, height: int) -> WorldBlock:
        block_hash = self._tables.block_hash(height)
        if block_hash is None:
            raise Missing("block", str(height))
        return WorldBlock.from_preimage(self._context.db.blobs.get(block_hash))

    async def get_block(self, caller: PeerId, request: BlockRequest) -> BlockAnswer:
        del caller
        if request.height is not None:
            return BlockAnswer(block=self._block(request.height))
        assert request.block_hash is not None  # BlockRequest.check: exactly one of the two
        block = WorldBlock.from_preimage(self._context.db.blobs.get(request.block_hash))
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
        # A block may have 16,384 receipts: reading and hashing them is no work for the event loop.
        proved = await self._context.offload(partial(self._prove_receipts, block, request.envelope_hash))
        return ReceiptAnswer(
            head=head,
            head_block=head_block,
            block=block,
            history_path=await self._history_path(block.height, head_block.height),
            receipts=proved,
        )

    def _prove_receipts(self, block: WorldBlock, envelope_hash: bytes) -> tuple[ProvedReceipt, ...]:
        listed = chain.decode_receipts(self._context.db.blobs.get(block.receipts_ref))
        asked = [index for index, receipt in enumerate(listed) if receipt.envelope_hash == envelope_hash]
        paths = codec.merkle_paths([receipt.to_bytes() for receipt in listed], asked)
        return tuple(
            ProvedReceipt(receipt=listed[index], index=index, count=len(listed), path=tuple(path))
            for index, path in zip(asked, paths, strict=True)
        )

    async def _history_path(self, height: int, head_height: int) -> tuple[bytes, ...]:
        if height == head_height:
            return ()

        def path() -> tuple[bytes, ...]:
            hashes = self._tables.block_hashes(1, head_height - 1)
            return chain.prove_history(hashes, height)

        return await self._context.offload(path)

    async def get_state_proof(self, caller: PeerId, request: StateProofRequest) -> StateProofAnswer:
        """One cell under the state root of the newest block that this node has executed and holds a head for."""
        del caller
        head, block = self._head_at_hand()
        tip = None if self._replica is None else self._replica.tip_at(block.height)
        if tip is None:
            raise Missing("state", f"of height {block.height}: this node does not execute")
        proof: state.StateProof = tip.state.prove(request.namespace, request.key)
        return StateProofAnswer(head=head, block=block, proof=proof.to_bytes())

"""The executor: runs committed batches, stores, attests, provides, announces - in that order.

Hides: where a committed batch comes from (handed over, gossiped, or asked for). Guarantees: nothing is executed
without a commit of the certifier in force; a block, its blobs and the cursor are one transaction; an attestation
leaves only after what it vouches for is durable; a lost hand-over costs a timer, no more.
Implements docs/protocol.md, sections "Results" and "Head" (publishing).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from p2p.errors import NetworkError
from p2p.network import Gauge, PeerId, Subscription
from runtime import chain, codec, limits, rules, world
from runtime.errors import Busy, Corrupt, Denied, Invalid, UnknownVersion, WorldError
from runtime.messages import (
    BatchAnswer,
    BatchRequest,
    Body,
    CommitAnswer,
    Empty,
    ExecuteBatchRequest,
    WorldRequest,
)
from runtime.records import (
    ActionBatch,
    AuthoritySet,
    BlockAnnounce,
    BlockAttestation,
    Commit,
    Sealed,
    SignedAuthorities,
    WorldHeadAnnounce,
    seal,
)
from runtime.services.blobs import fetch_blob
from runtime.services.context import Context, Signal
from runtime.services.fetch import TRY_MS, Sources, ask_first, call
from runtime.services.heads import HeadTracker
from runtime.services.methods import Handlers
from runtime.services.publish import keep_newest
from runtime.services.replica import Applied, Replica

CATCH_UP_MS: Final = 1_000


@dataclass(frozen=True, slots=True)
class _Committed:
    batch: Sealed[ActionBatch]
    commit: Sealed[Commit]
    actions: bytes


class Executor:
    """The executor role of one world. It owns the replica: the only task that applies blocks on this node."""

    def __init__(
        self,
        context: Context,
        replica: Replica,
        tracker: HeadTracker,
        sources: Sources,
        authorities: SignedAuthorities,
    ) -> None:
        self._context = context
        self._replica = replica
        self._tracker = tracker
        self._sources = sources
        self._signed_authorities = authorities
        self._authorities: AuthoritySet = authorities.authorities
        self._ready: dict[int, _Committed] = {}  # by height, at most COMMIT_LEAD_MAX
        self._known_height = 0  # highest height that a commit was seen for
        self._missed_height = 0  # highest height that had to be asked for
        self._arrived = Signal()
        self._announced = Signal()
        self._announcement: tuple[Applied, Sealed[Commit]] | None = None

    def handlers(self) -> Handlers:
        return {"execute_batch": self.hand_over}

    def gauges(self) -> list[Gauge]:
        """Committed batches at hand that wait to be executed."""
        return [Gauge("ready_batches", len(self._ready), "commit_lead_max", limits.COMMIT_LEAD_MAX)]

    async def hand_over(self, caller: PeerId, request: ExecuteBatchRequest) -> Body:
        """Take a committed batch from a proposer; answered when it is queued, not when it is executed."""
        if caller not in self._authorities.proposers:
            raise Denied("execute_batch", "only a proposer of the set may hand over batches")
        self._take(_Committed(request.batch, request.commit, request.actions))
        return Empty()

    def _take(self, committed: _Committed) -> None:
        """Queue a batch that this world's certifier has committed. Raises Invalid for anything else.

        The actions must be the batch's: only then may a malformed one be held against the certifier.
        """
        height, batch = committed.commit.record.height, committed.batch.record
        chain.check_commit(self._authorities, committed.commit, batch, world_id=self._replica.world_id)
        if codec.content_id(committed.actions) != batch.actions_ref:
            raise Invalid("actions", f"are not blob {batch.actions_ref.hex()} (actions_ref)")
        self._known_height = max(self._known_height, height)
        if height <= self._replica.height or height in self._ready:
            return
        if height > self._replica.height + limits.COMMIT_LEAD_MAX:
            raise Busy("commit_lead_max", limits.BATCH_INTERVAL_MS)
        self._ready[height] = committed
        self._arrived.wake()

    # --- loops ---------------------------------------------------------------------------------------------

    async def run(
        self,
        batches: Subscription,
        blocks: Subscription,
        heads: Subscription,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Execute, catch up, announce; ends only by cancellation, or by Corrupt when attested history differs."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._execute)
            nursery.start_soon(self._hear, batches)
            nursery.start_soon(self._catch_up)
            nursery.start_soon(self._announce, blocks, heads)
            nursery.start_soon(keep_newest, self._context, self._tracker, lambda: self._tracker.head)
            task_status.started()

    async def _execute(self) -> None:
        while True:
            committed = self._ready.pop(self._replica.height + 1, None)
            if committed is None or self._tracker.follower.is_halted:
                await self._arrived.wait()
                continue
            try:
                applied = await self._context.offload(partial(self._step, committed))
            except (Invalid, UnknownVersion) as error:
                # A committed batch that is malformed: only a new epoch with `resume` goes on from here.
                raise Corrupt(
                    f"batch {committed.commit.record.height}", f"committed but malformed: {error}"
                ) from error
            await self._replica.apply(applied)
            self._context.counters["executor.blocks"] += 1
            self._context.counters["executor.envelopes"] += len(applied.envelopes)
            self._announcement = (applied, committed.commit)
            self._announced.wake()

    def _step(self, committed: _Committed) -> Applied:
        replica = self._replica
        assert replica.tip is not None
        envelopes = chain.check_batch_form(
            replica.genesis,
            replica.height,
            replica.batch_hash,
            replica.timestamp_ms,
            committed.batch.record,
            committed.actions,
        )
        signatures = world.check_signatures(envelopes)
        built = chain.build_block(replica.genesis, replica.tip, committed.batch.record, envelopes, signatures)
        return Applied(
            block=built.block,
            batch=committed.batch.record,
            envelopes=tuple(envelopes),
            receipts=built.outcome.receipts,
            blobs=(*built.blobs.values(), committed.batch.record.preimage(), committed.actions),
            tip=built.tip,
        )

    async def _hear(self, batches: Subscription) -> None:
        """Gossip only tells that a height exists; its envelopes come by hand-over or are asked for."""
        while True:
            message = await batches.receive()
            batch, commit = rules.check_batch_message(message.data, self._replica.world_id)
            try:
                chain.check_commit(self._authorities, commit, batch.record, world_id=self._replica.world_id)
            except WorldError:
                self._context.counters["executor.foreign_commit"] += 1
                continue
            self._known_height = max(self._known_height, commit.record.height)

    async def _catch_up(self) -> None:
        """Ask for what was not handed over: at start, and whenever a height is known but not at hand."""
        while True:
            height = self._replica.height
            try:
                await self._learn_commit()
                while self._known_height > self._replica.height:
                    # Later heights may be at hand already: it is the next one that everything waits for.
                    if (missing := self._replica.height + 1) not in self._ready:
                        self._context.counters["executor.gap_heights_found"] += missing > self._missed_height
                        self._missed_height = max(self._missed_height, missing)
                        await self._fetch_committed(missing)
                    await self._replica.applied.wait_at_most(CATCH_UP_MS / 1_000)
            except Corrupt:
                raise
            except (NetworkError, WorldError):  # whoever was asked did not help: others, or later
                self._context.counters["executor.catch_up_failed"] += 1
            if self._replica.height == height:
                await self._arrived.wait_at_most(self._context.jittered_s(CATCH_UP_MS))
            await trio.sleep(self._context.jittered_s(CATCH_UP_MS))

    async def _learn_commit(self) -> None:
        answer = await self._newest_commit()
        if answer.commit is not None:
            self._known_height = max(self._known_height, answer.commit.record.height)

    async def _newest_commit(self) -> CommitAnswer:
        request = WorldRequest(world_id=self._replica.world_id)
        answer = await call(
            self._context,
            self._authorities.certifier,
            "get_commit",
            request,
            CommitAnswer,
            deadline_ms=TRY_MS,
        )
        if answer.commit is not None:
            chain.check_commit(self._authorities, answer.commit, world_id=self._replica.world_id)
        return answer

    async def _fetch_committed(self, height: int) -> None:
        request = BatchRequest(world_id=self._replica.world_id, height=height)

        def check(answer: BatchAnswer) -> None:
            chain.check_commit(
                self._authorities, answer.commit, answer.batch.record, world_id=self._replica.world_id
            )
            if answer.commit.record.height != height:
                raise Invalid("get_batch.commit", f"is not of height {height}")

        found = await ask_first(self._sources, "get_batch", request, BatchAnswer, check)
        bytes_max = self._replica.genesis.body.limits.batch_bytes_max
        actions = await fetch_blob(self._sources, found.batch.record.actions_ref, bytes_max)
        self._take(_Committed(found.batch, found.commit, actions))
        self._context.counters["executor.gap_heights_repaired"] += 1

    # --- telling the world ---------------------------------------------------------------------------------

    async def _announce(self, blocks: Subscription, heads: Subscription) -> None:
        """Vouch for each newest block and gossip it; a burst announces its last block only."""
        while True:
            while (announcement := self._announcement) is not None:
                self._announcement = None
                applied, commit = announcement
                attestation = seal(self._attestation(applied), self._context.key)
                head = self._head(commit, attestation)
                self._replica.reached(head)
                self._tracker.offer(head)
                self._tracker.follower.applied(head)
                await self._tracker.keep()
                await blocks.publish(BlockAnnounce(applied.block, attestation).to_bytes())
                await heads.publish(head.to_bytes())
                self._context.counters["executor.announced"] += 1
            await self._announced.wait()

    def _attestation(self, applied: Applied) -> BlockAttestation:
        return BlockAttestation(
            world_id=self._replica.world_id,
            epoch=self._authorities.epoch,
            height=applied.block.height,
            block_hash=applied.block.hash(),
            executor_id=self._context.peer_id,
        )

    def _head(self, commit: Sealed[Commit], attestation: Sealed[BlockAttestation]) -> WorldHeadAnnounce:
        return WorldHeadAnnounce(
            header=self._replica.genesis.header,
            authorities=self._signed_authorities,
            commit=commit,
            attestations=(attestation,),
            block_hash=attestation.record.block_hash,
        )

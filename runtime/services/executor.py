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

from p2p import names
from p2p.errors import NetworkError
from p2p.network import PeerId, Subscription
from runtime import chain, limits, rules, world
from runtime.errors import Busy, Corrupt, Denied, Invalid, WorldError
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
from runtime.services.context import Context, Signal
from runtime.services.fetch import TRY_MS, Sources, ask_first, call, fetch_blob, fetch_from
from runtime.services.heads import HeadTracker
from runtime.services.methods import Handlers
from runtime.services.replica import Applied, Replica

CATCH_UP_MS: Final = 1_000
HAND_OVER_GRACE_MS: Final = 300  # what was heard of comes by itself within it, if it comes at all
CERTIFIER_TRY_MS: Final = 2_000
DHT_PUT_MS: Final = 1_000


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
        self._ready: dict[int, _Committed] = {}  # by height until applied, at most COMMIT_LEAD_MAX
        self._known_height = 0  # highest height that a commit was seen for
        self._heard = Signal()  # of a greater one
        self._arrived = Signal()
        self._announced = Signal()
        self._announcement: tuple[Applied, Sealed[Commit]] | None = None

    def handlers(self) -> Handlers:
        return {"execute_batch": self.hand_over}

    async def hand_over(self, caller: PeerId, request: ExecuteBatchRequest) -> Body:
        """Take a committed batch from a proposer; answered when it is queued, not when it is executed."""
        if caller not in self._authorities.proposers:
            raise Denied("execute_batch", "only a proposer of the set may hand over batches")
        self._take(_Committed(request.batch, request.commit, request.actions))
        return Empty()

    def _take(self, committed: _Committed) -> None:
        height = committed.commit.record.height
        chain.check_commit(self._authorities, committed.commit, committed.batch.record)
        self._hear_of(height)
        if height <= self._replica.height or height in self._ready:
            return
        if height > self._replica.height + limits.COMMIT_LEAD_MAX:
            raise Busy("commit_lead_max", limits.BATCH_INTERVAL_MS)
        self._ready[height] = committed
        self._arrived.wake()

    def _hear_of(self, height: int) -> None:
        if height > self._known_height:
            self._known_height = height
            self._heard.wake()

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
            nursery.start_soon(self._publish)
            task_status.started()

    async def _execute(self) -> None:
        while True:
            committed = self._ready.get(self._replica.height + 1)
            if committed is None or self._tracker.follower.is_halted:
                await self._arrived.wait()
                continue
            try:
                applied = await self._context.offload(partial(self._step, committed))
            except Invalid as error:
                # A committed batch that is malformed: only a new epoch with `resume` goes on from here.
                raise Corrupt(
                    f"batch {committed.commit.record.height}", f"committed but malformed: {error}"
                ) from error
            await self._replica.apply(applied)
            del self._ready[applied.block.height]
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
                chain.check_commit(self._authorities, commit, batch.record)
            except WorldError:
                self._context.counters["executor.foreign_commit"] += 1
                continue
            self._hear_of(commit.record.height)

    async def _catch_up(self) -> None:
        """Ask for what was not handed over: a height that was heard of and stays away, and by a timer for any."""
        is_told = False
        while True:
            height = self._replica.height
            try:
                if is_told:
                    await self._replica.applied.wait_at_most(HAND_OVER_GRACE_MS / 1_000)
                else:
                    await self._learn_commit()
                if self._replica.height == height:
                    await self._fetch_known()
            except Corrupt:
                raise
            except (NetworkError, WorldError):  # whoever was asked did not help: others, or later
                self._context.counters["executor.catch_up_failed"] += 1
                await trio.sleep(self._context.jittered_s(CATCH_UP_MS))
            is_told = self._known_height > self._replica.height or await self._heard.wait_at_most(
                self._context.jittered_s(CATCH_UP_MS)
            )

    async def _fetch_known(self) -> None:
        while self._known_height > self._replica.height and not self._tracker.follower.is_halted:
            # Later heights may be at hand already: it is the next one that everything waits for.
            if self._replica.height + 1 not in self._ready:
                await self._fetch_committed(self._replica.height + 1)
            await self._replica.applied.wait_at_most(CATCH_UP_MS / 1_000)

    async def _learn_commit(self) -> None:
        answer = await self._newest_commit()
        if answer.commit is None:
            return
        self._hear_of(answer.commit.record.height)
        self._announce_again(answer.commit)

    def _announce_again(self, commit: Sealed[Commit]) -> None:
        """The last block, when this node died between applying and announcing it, and nothing came after."""
        replica, head = self._replica, self._replica.head
        is_last = commit.record.height == replica.height and commit.record.batch_hash == replica.batch_hash
        if is_last and (head is None or head.commit.record.height < replica.height):
            self._announcement = (replica.since(replica.height - 1)[0], commit)
            self._announced.wake()

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
        """From the certifier, who has what nobody executed yet; else from anybody."""
        request = BatchRequest(world_id=self._replica.world_id, height=height)
        certifier = self._authorities.certifier

        def check(answer: BatchAnswer) -> None:
            chain.check_commit(self._authorities, answer.commit, answer.batch.record)
            if answer.commit.record.height != height:
                raise Invalid("get_batch.commit", f"is not of height {height}")

        bytes_max = self._replica.genesis.body.limits.batch_bytes_max
        try:
            found = await call(
                self._context, certifier, "get_batch", request, BatchAnswer, deadline_ms=CERTIFIER_TRY_MS
            )
            check(found)
            actions = await fetch_from(self._context, certifier, found.batch.record.actions_ref, bytes_max)
        except (NetworkError, WorldError):
            self._context.counters["executor.certifier_did_not_help"] += 1
            found = await ask_first(self._sources, "get_batch", request, BatchAnswer, check)
            actions = await fetch_blob(self._sources, found.batch.record.actions_ref, bytes_max)
        self._take(_Committed(found.batch, found.commit, actions))
        self._context.counters["executor.fetched"] += 1

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

    async def _publish(self) -> None:
        """Put the newest head into the DHT, at most once a second, with the freshest commit that can be had."""
        put_height, put_at = 0, trio.current_time()
        while True:
            head = self._tracker.head
            stale = trio.current_time() - put_at > limits.COMMIT_REFRESH_MS / 1_000
            if head is not None and (head.commit.record.height > put_height or stale):
                fresh = await self._tracker.freshest(head)
                try:
                    await self._context.dht.put_record(
                        names.head_key(self._replica.world_id), fresh.to_bytes()
                    )
                    put_height, put_at = fresh.commit.record.height, trio.current_time()
                    self._context.counters["executor.head_put"] += 1
                except NetworkError:
                    self._context.counters["executor.head_put_failed"] += 1
            await trio.sleep(DHT_PUT_MS / 1_000)

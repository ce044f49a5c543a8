"""The executor: runs committed batches, stores, attests, provides, announces - in that order.

Hides: where a committed batch comes from (handed over, gossiped, or asked for). Guarantees: nothing is executed
without a commit of the certifier in force; a block, its blobs and the cursor are one transaction; an attestation
leaves only after what it vouches for is durable; a lost hand-over costs a timer, no more.
Implements docs/protocol.md, sections "Results" and "Head" (publishing).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from p2p.errors import NetworkError
from p2p.network import Gauge, PeerId, Subscription
from runtime import chain, codec, limits, rules, world
from runtime.epoch_tables import EpochTables
from runtime.errors import Busy, Corrupt, Denied, Invalid, Missing, WorldError
from runtime.evidence import MalformedBatch, WrongRootProof, compare_root
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
    BlockAnnounce,
    BlockAttestation,
    Commit,
    Sealed,
    WorldBlock,
    WorldHeadAnnounce,
    seal,
)
from runtime.services.authorities import Authorities
from runtime.services.blobs import fetch_blob, fetch_from
from runtime.services.context import Context, Signal
from runtime.services.evidence import EvidenceKeeper, tell_roots
from runtime.services.fetch import TRY_MS, Sources, ask_first, call
from runtime.services.follow import look_for_fork
from runtime.services.heads import HeadTracker
from runtime.services.methods import Handlers
from runtime.services.publish import keep_newest
from runtime.services.replica import Applied, Replica
from runtime.services.resume import fetch_batch, is_resumed, resume

CATCH_UP_MS: Final = 1_000
HAND_OVER_GRACE_MS: Final = 300  # what was heard of comes by itself within it, if it comes at all
CERTIFIER_TRY_MS: Final = 2_000
FETCHED_AT_ONCE_MAX: Final = 8  # heights
FORK_LOOK_MS: Final = 5_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Committed:
    """What to execute at a height. `order` is absent below a resume height: there the roots' word stands for it."""

    batch: ActionBatch
    actions: bytes
    order: tuple[Sealed[ActionBatch], Sealed[Commit]] | None = None


class Executor:
    """The executor role of one world. It owns the replica: the only task that applies blocks on this node."""

    def __init__(
        self,
        context: Context,
        replica: Replica,
        tracker: HeadTracker,
        sources: Sources,
        authorities: Authorities,
        evidence: EvidenceKeeper,
        tables: EpochTables,
    ) -> None:
        self._context = context
        self._replica = replica
        self._tracker = tracker
        self._sources = sources
        self._authorities = authorities
        self._evidence = evidence
        self._tables = tables
        self._ready: dict[int, _Committed] = {}  # by height until applied, at most COMMIT_LEAD_MAX
        self._known_height = 0  # highest height that a commit of this epoch was seen for
        self._heard = Signal()  # of a greater one
        self._resumed: dict[int, bytes] = {}  # batch hashes up to the height that the epoch resumes from
        self._missed_height = 0  # highest height that had to be asked for
        self._arrived = Signal()
        self._announced = Signal()
        self._to_announce: Sealed[Commit] | None = None  # of the newest applied height
        self._told = (0, 0)  # epoch and height of the newest block that was vouched for

    def handlers(self) -> Handlers:
        return {"execute_batch": self.hand_over}

    def gauges(self) -> list[Gauge]:
        """Committed batches at hand that wait to be executed."""
        return [Gauge("ready_batches", len(self._ready), "commit_lead_max", limits.COMMIT_LEAD_MAX)]

    async def hand_over(self, caller: PeerId, request: ExecuteBatchRequest) -> Body:
        """Take a committed batch from a proposer; answered when it is queued, not when it is executed."""
        if caller not in self._authorities.current.proposers:
            raise Denied("execute_batch", "only a proposer of the set may hand over batches")
        self._take(request.batch, request.commit, request.actions)
        return Empty()

    def _take(self, batch: Sealed[ActionBatch], commit: Sealed[Commit], actions: bytes) -> None:
        """Queue a batch that this world's certifier has committed. Raises Invalid for anything else.

        The actions must be the batch's: only then may a malformed one be held against the certifier.
        """
        height, current = commit.record.height, self._authorities.current
        chain.check_commit(current, commit, batch.record, world_id=self._replica.world_id)
        if codec.content_id(actions) != batch.record.actions_ref:
            raise Invalid("actions", f"are not blob {batch.record.actions_ref.hex()} (actions_ref)")
        self._saw(commit)
        if height <= self._replica.height or height in self._ready:
            return
        if height > self._replica.height + limits.COMMIT_LEAD_MAX:
            raise Busy("commit_lead_max", limits.BATCH_INTERVAL_MS)
        self._ready[height] = _Committed(batch.record, actions, (batch, commit))
        self._arrived.wake()

    def _saw(self, commit: Sealed[Commit]) -> None:
        """A commit of the set in force: its height is there to be executed, or to be vouched for."""
        self._tracker.saw_commit(commit)
        self._hear_of(commit.record.height)
        at_hand = commit.record.height == self._replica.height and self._is_resumed()
        if at_hand and commit.record.batch_hash == self._replica.batch_hash:
            self._announce_soon(commit)

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
            nursery.start_soon(self._watch_epoch)
            nursery.start_soon(self._execute)
            nursery.start_soon(self._hear, batches)
            nursery.start_soon(self._catch_up)
            nursery.start_soon(self._watch_for_fork)
            nursery.start_soon(self._watch_applied)
            nursery.start_soon(self._cross_check)
            nursery.start_soon(self._announce, blocks, heads)
            nursery.start_soon(keep_newest, self._context, self._tracker, lambda: self._tracker.head)
            task_status.started()

    async def _execute(self) -> None:
        while True:
            if not self._is_resumed():
                await self._resume()
            height = self._replica.height + 1
            committed = None if self._authorities.is_halted else self._ready.get(height)
            if committed is None:
                await self._arrived.wait()
                continue
            try:
                applied = await self._context.offload(partial(self._step, committed))
            except Invalid as error:
                del self._ready[height]
                await self._accuse_certifier(committed, error)
                continue
            if not self._is_resumed():  # another epoch began meanwhile: what it keeps is executed again
                continue
            kept = () if committed.order is None else self._tables.put_order(*committed.order)
            await self._replica.apply(applied, kept)
            del self._ready[height]
            self._context.counters["executor.blocks"] += 1
            self._context.counters["executor.envelopes"] += len(applied.envelopes)
            if committed.order is not None:
                self._announce_soon(committed.order[1])

    def _is_resumed(self) -> bool:
        """Whether the replica is on the chain of the set in force, and it is known what of that is still to execute."""
        current = self._authorities.current
        if not is_resumed(self._replica, current):
            return False
        next_height = self._replica.height + 1
        return current.resume is None or next_height > current.resume.height or next_height in self._resumed

    async def _resume(self) -> None:
        """Go over to the chain of a new epoch: what was at hand is of the old one."""
        self._ready.clear()
        self._resumed = {}  # of another chain, which may be asked for while the new one is looked up
        self._known_height = self._missed_height = 0
        self._resumed = await resume(self._replica, self._authorities, self._sources, whole=True)
        self._hear_of(max(self._resumed, default=0))
        self._arrived.wake()

    async def _watch_epoch(self) -> None:
        while True:
            await self._authorities.changed.wait()
            self._arrived.wake()

    async def _accuse_certifier(self, committed: _Committed, error: Invalid) -> None:
        """A committed batch that cannot follow here: it is malformed, or it follows another one that was committed."""
        self._context.counters["executor.not_executable"] += 1
        _log.error("height %d was committed and cannot be executed: %s", committed.batch.height, error)
        if committed.order is None:
            return  # the roots resume from it: only they can mend it
        own = self._tables.order(self._replica.height)
        if committed.batch.prev_batch_hash != self._replica.batch_hash:
            if own is not None:
                await look_for_fork(own[1], self._tracker, self._sources)
            return
        blobs = self._context.db.blobs
        parent = (
            ActionBatch.from_preimage(blobs.get(self._replica.batch_hash)) if self._replica.height else None
        )
        try:
            self._evidence.report(
                MalformedBatch(committed.order[1], committed.batch, committed.actions, parent)
            )
        except Invalid as why:  # of an epoch that has ended meanwhile
            _log.warning("height %d: no evidence of it: %s", committed.batch.height, why)

    def _step(self, committed: _Committed) -> Applied:
        replica = self._replica
        assert replica.tip is not None
        envelopes = chain.check_batch_form(
            replica.genesis,
            replica.height,
            replica.batch_hash,
            replica.timestamp_ms,
            committed.batch,
            committed.actions,
        )
        signatures = world.check_signatures(envelopes)
        built = chain.build_block(replica.genesis, replica.tip, committed.batch, envelopes, signatures)
        return Applied(
            block=built.block,
            batch=committed.batch,
            envelopes=tuple(envelopes),
            receipts=built.outcome.receipts,
            blobs=(*built.blobs.values(), committed.batch.preimage(), committed.actions),
            tip=built.tip,
        )

    async def _hear(self, batches: Subscription) -> None:
        """Gossip only tells that a height exists; its envelopes come by hand-over or are asked for."""
        while True:
            message = await batches.receive()
            batch, commit = rules.check_batch_message(message.data, self._replica.world_id)
            try:
                chain.check_commit(
                    self._authorities.current, commit, batch.record, world_id=self._replica.world_id
                )
            except WorldError:
                self._context.counters["executor.foreign_commit"] += 1
                continue
            self._saw(commit)

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
        while self._known_height > self._replica.height and not self._authorities.is_halted:
            # Later heights may be at hand already: it is the next one that everything waits for.
            if (missing := self._replica.height + 1) not in self._ready:
                await self._fetch_ahead(missing)
            if self._replica.height < missing:
                await self._replica.applied.wait_at_most(CATCH_UP_MS / 1_000)

    async def _fetch_ahead(self, missing: int) -> None:
        """The next height, and beside it those after it that are known and not at hand: one by one is a trip each.

        Raises what the next one failed with, p2p errors or WorldError; the others' turns come.
        """
        last = min(self._known_height, missing + FETCHED_AT_ONCE_MAX - 1)
        asked = [height for height in range(missing, last + 1) if height not in self._ready]
        found = sum(height > self._missed_height for height in asked)
        self._context.counters["executor.gap_heights_found"] += found
        self._missed_height = max(self._missed_height, *asked)
        failed: dict[int, NetworkError | WorldError] = {}

        async def fetch(height: int) -> None:
            try:
                await self._fetch_committed(height)
            except Corrupt:
                raise
            except (NetworkError, WorldError) as error:
                failed[height] = error

        async with trio.open_nursery() as nursery:
            for height in asked:
                nursery.start_soon(fetch, height)
        if missing in failed:
            raise failed[missing]

    async def _watch_for_fork(self) -> None:
        """A head above all that the certifier tells here is of a chain that is not seen here: look who is wrong.

        A task of its own: everybody is asked, also who is silent, and what is certified must not wait for them.
        """
        while True:
            await trio.sleep(self._context.jittered_s(FORK_LOOK_MS))
            head, at = self._tracker.head, self._replica.height
            if head is None or head.commit.record.height <= max(at, self._known_height):
                continue
            own = self._tables.order(at)
            if own is not None and own[1].record.epoch == self._authorities.epoch:
                await look_for_fork(own[1], self._tracker, self._sources)

    async def _learn_commit(self) -> None:
        answer = await self._newest_commit()
        if answer.commit is not None:
            self._saw(answer.commit)

    async def _newest_commit(self) -> CommitAnswer:
        request = WorldRequest(world_id=self._replica.world_id)
        answer = await call(
            self._context,
            self._authorities.current.certifier,
            "get_commit",
            request,
            CommitAnswer,
            deadline_ms=TRY_MS,
        )
        self._authorities.offer(answer.authorities)
        if answer.commit is not None:
            chain.check_commit(self._authorities.current, answer.commit, world_id=self._replica.world_id)
        return answer

    async def _fetch_committed(self, height: int) -> None:
        """From the certifier, who has what nobody executed yet; else from anybody."""
        if height in self._resumed:
            await self._fetch_resumed(height)
            return
        request = BatchRequest(world_id=self._replica.world_id, height=height)

        def check(answer: BatchAnswer) -> None:
            chain.check_commit(
                self._authorities.current, answer.commit, answer.batch.record, world_id=self._replica.world_id
            )
            if answer.commit.record.height != height:
                raise Invalid("get_batch.commit", f"is not of height {height}")

        certifier = self._authorities.current.certifier
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
        self._take(found.batch, found.commit, actions)
        self._context.counters["executor.gap_heights_repaired"] += 1

    async def _fetch_resumed(self, height: int) -> None:
        """A batch that the new epoch keeps: known by its hash, with no need of a commit of an epoch that is over."""
        epoch, kept = self._authorities.epoch, self._resumed
        batch = await fetch_batch(self._sources, height, kept[height])
        bytes_max = self._replica.genesis.body.limits.batch_bytes_max
        actions = await fetch_blob(self._sources, batch.actions_ref, bytes_max)
        if epoch == self._authorities.epoch and kept is self._resumed and height > self._replica.height:
            self._ready[height] = _Committed(batch, actions)
            self._arrived.wake()

    # --- checking the others -------------------------------------------------------------------------------

    async def _watch_applied(self) -> None:
        while True:
            await self._replica.applied.wait()
            self._tracker.claimed.wake()

    async def _cross_check(self) -> None:
        """What other executors vouch for must be what was computed here, from the same batch."""
        while True:
            claims = self._tracker.claims
            due = [claim for claim in claims if claim.block.height <= self._replica.height]
            for (
                claim
            ) in due:  # all of them before the first wait: `claims` is bounded, and more come meanwhile
                claims.remove(claim)
            for claim in due:
                if claim.block.height <= self._replica.height and self._is_wrong(claim):
                    await self._check_again(claim.block)
            if not due:
                await self._tracker.claimed.wait()

    def _is_wrong(self, claim: BlockAnnounce) -> bool:
        """Whether an executor of the set vouches for another result of the same batch; then it is told to everybody."""
        proof = WrongRootProof(claim.attestation, claim.block)
        try:
            own = self._replica.block_at(claim.block.height)
            if not compare_root(proof, own):
                return False
            is_news = self._evidence.report(proof)
        except Missing:  # a damaged blob, which is fetched again: there is nothing to compare with
            self._context.counters["executor.claims_not_compared"] += 1
            return False
        except Invalid:  # it agrees, or is by nobody who counts in this epoch
            return False
        if is_news:
            tell_roots(proof, own)
        return is_news  # whoever was found wrong once costs no more work

    async def _check_again(self, claimed: WorldBlock) -> None:
        """Another executor disagrees: execute the height once more, and stop when the own result does not stand."""
        self._context.counters["executor.disagreements"] += 1
        own, epoch = self._replica.block_at(claimed.height), self._replica.epoch
        before = self._replica.tip_at(claimed.height - 1)
        if before is None:  # too long ago: a restart executes everything again
            return
        try:
            again = await self._context.offload(partial(self._replica.execute_again, before, own))
        except WorldError as error:
            # A damaged blob, or a height that has been taken back meanwhile: a restart executes everything again.
            if self._replica.epoch == epoch and not isinstance(error, Missing):
                raise
            self._context.counters["executor.claims_not_compared"] += 1
            return
        if again != own and self._replica.epoch == epoch:
            raise Corrupt(
                f"block {own.height} of world {self._replica.world_id}",
                f"has state root {own.state_root.hex()}, executed again {again.state_root.hex()},"
                f" another executor says {claimed.state_root.hex()}",
                "check this machine's memory and disk, then move the data directory away and start again",
            )

    # --- telling the world ---------------------------------------------------------------------------------

    async def _announce(self, blocks: Subscription, heads: Subscription) -> None:
        """Vouch for each newest block and gossip it; of a burst the last one, and a few a second while it goes on."""
        told_s = -math.inf
        while True:
            while self._to_announce is not None:
                await self._catches_up_until(told_s + limits.BATCH_INTERVAL_MS / 1_000)
                commit, self._to_announce = self._to_announce, None
                block = self._replica.block
                if block is None or not self._may_vouch(commit, block):
                    continue
                told_s = trio.current_time()
                self._told = (commit.record.epoch, block.height)
                attestation = seal(self._attestation(block), self._context.key)
                head = self._head(commit, attestation)
                self._replica.reached(head)
                self._tracker.offer(head)
                self._tracker.follower.applied(head)
                await self._tracker.keep(head)
                await blocks.publish(BlockAnnounce(block, attestation).to_bytes())
                await heads.publish(head.to_bytes())
                self._context.counters["executor.announced"] += 1
            await self._announced.wait()

    async def _catches_up_until(self, deadline_s: float) -> None:
        """While heights are known above the applied one: what is behind is no news, and telling it costs every node."""
        while self._known_height > self._replica.height + 1 and trio.current_time() < deadline_s:
            await self._replica.applied.wait_at_most(deadline_s - trio.current_time())

    def _announce_soon(self, commit: Sealed[Commit]) -> None:
        """Vouch for the newest block, once in each epoch: one that a new epoch resumes from is attested again."""
        if (commit.record.epoch, commit.record.height) > self._told:
            self._to_announce = commit
            self._announced.wake()

    def _may_vouch(self, commit: Sealed[Commit], block: WorldBlock) -> bool:
        """Whether this node is an executor of a running epoch, and the commit is of this block's batch."""
        current, record = self._authorities.current, commit.record
        is_named = self._context.peer_id in current.executors and not self._authorities.is_halted
        is_its = (record.height, record.batch_hash) == (block.height, block.batch_hash)
        return is_named and is_its and record.epoch == current.epoch and is_resumed(self._replica, current)

    def _attestation(self, block: WorldBlock) -> BlockAttestation:
        return BlockAttestation(
            world_id=self._replica.world_id,
            epoch=self._authorities.epoch,
            height=block.height,
            block_hash=block.hash(),
            executor_id=self._context.peer_id,
        )

    def _head(self, commit: Sealed[Commit], attestation: Sealed[BlockAttestation]) -> WorldHeadAnnounce:
        return WorldHeadAnnounce(
            header=self._replica.genesis.header,
            authorities=self._authorities.signed,
            commit=commit,
            attestations=(attestation,),
            block_hash=attestation.record.block_hash,
        )

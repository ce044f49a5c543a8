"""The sequencer: holds the mempool, keeps the lease, cuts batches, has them certified, hands them over.

Hides: when to cut. Guarantees: one task owns the mempool and the batch in flight; a signed batch leaves only after its
bytes are durable; an envelope leaves the mempool only by a commit, an expiry or a told eviction; losing the lease
loses nothing, since the envelopes are in the gateways' outboxes.
Implements docs/protocol.md, section "Order" (the proposer's side).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import trio

from p2p.errors import NetworkError, RequestFailed
from p2p.network import Gauge, PeerId, Subscription
from runtime import chain, codec, limits, rules
from runtime.errors import Corrupt, Ignored, WorldError
from runtime.messages import (
    CommitBatchAnswer,
    CommitBatchRequest,
    Empty,
    ExecuteBatchRequest,
    LeaseAcquireRequest,
    LeaseAnswer,
    LeaseTermRequest,
    SubmitAnswer,
    SubmitRequest,
    SubmitResult,
    encode_batch_message,
)
from runtime.records import (
    ActionBatch,
    AuthoritySet,
    Commit,
    Envelope,
    LeaseGrant,
    Sealed,
    encode_envelopes,
    seal,
)
from runtime.sequencing import ActionMempool, Gap
from runtime.services.authorities import Authorities
from runtime.services.context import Context
from runtime.services.evidence import EvidenceKeeper
from runtime.services.fetch import call, sleep_ms
from runtime.services.gateway import refusal
from runtime.services.methods import Handlers
from runtime.services.replica import Replica
from runtime.services.resume import is_resumed
from runtime.services.trail import station

HAND_OVER_WAITING_MAX: Final = limits.COMMIT_LEAD_MAX
HAND_OVER_MS: Final = 5_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Parent:
    """What the next batch builds on."""

    height: int
    batch_hash: bytes
    timestamp_ms: int


class Sequencer:
    """The sequencer role of one world. Safety is the coordinator's: this one may be slow, paused or wrong."""

    def __init__(
        self,
        context: Context,
        replica: Replica,
        epochs: Authorities,
        evidence: EvidenceKeeper,
    ) -> None:
        if context.peer_id not in epochs.current.proposers:
            _log.warning("this node's identity is no proposer of epoch %d: it waits", epochs.epoch)
        self._context = context
        self._replica = replica
        self._world_id = replica.world_id
        self._epochs = epochs
        self._evidence = evidence
        self._epoch = replica.epoch  # that mempool, lease and parent are of
        self._mempool = ActionMempool()
        self._lease: LeaseGrant | None = None
        self._renew_at = 0.0  # trio's clock
        self._is_new_leader = True
        self._newest: Sealed[Commit] | None = None
        self._parent: _Parent | None = None  # None: to be learned from the coordinator
        self._cut_at_ms = 0
        self._settled_height = replica.height
        self._committed, self._to_hand_over = trio.open_memory_channel[ExecuteBatchRequest](
            HAND_OVER_WAITING_MAX
        )

    @property
    def _authorities(self) -> AuthoritySet:
        return self._epochs.current

    def handlers(self) -> Handlers:
        return {"submit_actions": self.submit}

    # --- taking in -----------------------------------------------------------------------------------------

    async def submit(self, caller: PeerId, request: SubmitRequest) -> SubmitAnswer:
        """Envelopes that a gateway hands over: held in memory, no promise."""
        bytes_max = self._replica.genesis.body.limits.envelope_bytes_max

        def faults() -> list[WorldError | None]:
            found: list[WorldError | None] = []
            for envelope in request.envelopes:
                try:
                    rules.check_envelope(envelope, self._world_id, bytes_max)
                    found.append(None)
                except WorldError as error:
                    found.append(error)
            return found

        results = []
        for envelope, fault in zip(request.envelopes, await self._context.offload(faults), strict=True):
            problem = fault or self._hold(envelope, caller)
            results.append(SubmitResult(outcome="pooled") if problem is None else refusal(problem))
        return SubmitAnswer(results=tuple(results))

    def pool(self, envelopes: Sequence[Envelope]) -> None:
        """Envelopes that the gateway of this very node has accepted."""
        for envelope in envelopes:
            self._hold(envelope, self._context.peer_id)

    def gauges(self) -> list[Gauge]:
        """What waits for a batch, and batches that wait to be handed over."""
        pool, handing = self._mempool, self._committed.statistics().current_buffer_used
        return [
            Gauge("mempool_envelopes", len(pool), "mempool_envelopes_max", limits.MEMPOOL_ENVELOPES_MAX),
            Gauge("mempool_bytes", pool.size_bytes, "mempool_bytes_max", limits.MEMPOOL_BYTES_MAX),
            Gauge("hand_over_batches", handing, "commit_lead_max", HAND_OVER_WAITING_MAX),
            Gauge("leading", int(self._lease is not None)),
        ]

    def gaps(self) -> list[Gap]:
        """Nonces that envelopes held here wait for, and that no applied block has taken."""
        nonce = self._replica.tables.nonce
        return [gap for gap in self._mempool.gaps() if gap.nonce >= nonce(gap.actor_id)]

    def held(self, actor_id: bytes, nonce: int) -> Envelope | None:
        """The envelope that waits here at an actor's nonce."""
        return self._mempool.held(actor_id, nonce)

    def mend(self, envelope: Envelope, peer: PeerId) -> bool:
        """Hold a checked envelope that was asked for; whether it was missing."""
        was_held = envelope.hash() in self._mempool
        return self._hold(envelope, peer) is None and not was_held and envelope.hash() in self._mempool

    def _hold(self, envelope: Envelope, peer: PeerId) -> WorldError | None:
        try:
            evicted = self._mempool.add(envelope, peer, self._replica.tables.nonce(envelope.record.actor_id))
        except WorldError as error:
            self._context.counters[f"mempool.refused.{type(error).__name__}"] += 1
            return None if isinstance(error, Ignored) else error
        self._context.counters["mempool.added"] += 1
        self._context.counters["mempool.evicted"] += len(evicted)
        station(_log, "pooled", self._world_id, (envelope,))
        station(_log, "evicted", self._world_id, evicted)
        return None

    async def _hear(self, actions: Subscription) -> NoReturn:
        bytes_max = self._replica.genesis.body.limits.envelope_bytes_max
        while True:
            message = await actions.receive()
            for envelope in rules.check_action_message(message.data, self._world_id, bytes_max):
                self._hold(envelope, message.forwarder)

    # --- leading -------------------------------------------------------------------------------------------

    async def run(
        self,
        actions: Subscription,
        batches: Subscription,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Hear, lead, hand over; gives the lease back when it is cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hear, actions)
            nursery.start_soon(self._hand_over, batches)
            task_status.started()
            try:
                while True:
                    await self._tick()
                    await sleep_ms(limits.BATCH_INTERVAL_MS)
            finally:
                with trio.move_on_after(1, shield=True):
                    await self._release()

    async def _tick(self) -> None:
        """One round: keep the lease, learn what was applied, cut, have it certified."""
        try:
            if not self._may_lead() or not await self._leads():
                return
            self._learn()
            while (envelopes := self._cut()) is not None:
                await self._certify(envelopes)
                if len(self._mempool) == 0:
                    break
        except RequestFailed as failure:
            self._context.counters[f"sequencer.failed.{failure.code.name}"] += 1
            if not failure.retryable:
                self._lease = self._parent = None  # another leads, or another batch stands: begin anew
        except Corrupt:
            raise
        except (NetworkError, WorldError):
            self._context.counters["sequencer.coordinator_not_reached"] += 1
            self._parent = None  # the batch may or may not be certified: learn it with the next lease
            self._lease = None

    def _may_lead(self) -> bool:
        """Whether the epoch runs, its chain is applied here, and its set names this node; a new epoch is begun anew."""
        current = self._authorities
        if current.epoch != self._epoch:
            if not is_resumed(self._replica, current):
                return False
            self._begin_epoch(current.epoch)
        return not self._epochs.is_halted and self._context.peer_id in current.proposers

    def _begin_epoch(self, epoch: int) -> None:
        """Lease and parent ended with the old epoch; what waits is judged again by what is taken now."""
        self._epoch = epoch
        self._lease = self._parent = self._newest = None
        self._is_new_leader = True
        self._settled_height = self._replica.height
        waiting, self._mempool = self._mempool.waiting(), ActionMempool()
        for envelope, peer in waiting:
            self._hold(envelope, peer)

    async def _leads(self) -> bool:
        """Hold the lease, renewing it at a third of its TTL. Raises p2p errors."""
        now = trio.current_time()
        if self._lease is not None and now < self._renew_at:
            return True
        certifier = self._authorities.certifier
        if self._lease is not None and self._parent is not None:
            renewal = LeaseTermRequest(world_id=self._world_id, term=self._lease.term)
            answer = await call(self._context, certifier, "lease_renew", renewal, LeaseAnswer)
        else:
            request = LeaseAcquireRequest(world_id=self._world_id, commit=self._newest)
            answer = await call(self._context, certifier, "lease_acquire", request, LeaseAnswer)
            self._take_up(answer)
        if answer.lease is None or answer.lease.record.holder_id != self._context.peer_id:
            self._lease = None
            return False
        answer.lease.verify()
        self._evidence.saw_lease(answer.lease)
        self._lease = answer.lease.record
        self._renew_at = now + limits.LEASE_RENEW_MS / 1_000
        return True

    def _take_up(self, answer: LeaseAnswer) -> None:
        """Build on the last commit, whoever led when it was made; executors ask for what was not handed over."""
        self._is_new_leader = True
        header = self._replica.genesis.header
        if answer.batch is None or answer.commit is None:
            self._parent = _Parent(0, header.hash(), header.created_ms)
            return
        chain.check_commit(self._authorities, answer.commit, answer.batch.record, world_id=self._world_id)
        record = answer.batch.record
        self._newest = answer.commit
        self._parent = _Parent(record.height, answer.batch.hash(), record.timestamp_ms)

    def _learn(self) -> None:
        """Nonces as applied blocks left them, and the end of what can no longer be taken."""
        tables = self._replica.tables
        for applied in self._replica.since(self._settled_height):
            self._mempool.settled(applied.envelopes)
            taken = {receipt.envelope_hash for receipt in applied.receipts if receipt.index is not None}
            for envelope in applied.envelopes:
                actor = envelope.record.actor_id
                self._mempool.applied(actor, tables.nonce(actor))
                if envelope.hash() not in taken:
                    self._mempool.correct(actor, tables.nonce(actor))
            self._settled_height = applied.block.height
        assert self._parent is not None
        expired = self._mempool.expire(self._parent.height + 1)
        self._context.counters["mempool.expired"] += len(expired)
        station(_log, "expired", self._world_id, expired, height=self._parent.height + 1)

    def _cut(self) -> list[Envelope] | None:
        """The next batch's envelopes; an empty list when only waiting ones are held for too long; None for no batch."""
        assert self._parent is not None
        behind = self._parent.height - self._replica.height
        if behind >= limits.COMMIT_LEAD_MAX or (self._is_new_leader and behind):
            return (
                None  # a new leader does not know what the batches before it took until they are applied here
            )
        self._is_new_leader = False
        now_ms = self._context.now_ms()
        cut = self._mempool.cut_batch(self._parent.height + 1, now_ms, self._replica.genesis.body.limits)
        if cut:
            self._cut_at_ms = now_ms
            return cut
        if len(self._mempool) and now_ms - self._cut_at_ms >= limits.EMPTY_BATCH_MS:
            self._cut_at_ms = now_ms
            return []
        return None

    async def _certify(self, envelopes: list[Envelope]) -> None:
        """Store, sign, have it certified, queue the hand-over. Raises p2p errors."""
        assert self._parent is not None
        assert self._lease is not None
        actions = encode_envelopes(envelopes)
        record = ActionBatch(
            world_id=self._world_id,
            epoch=self._authorities.epoch,
            term=self._lease.term,
            height=self._parent.height + 1,
            prev_batch_hash=self._parent.batch_hash,
            envelope_count=len(envelopes),
            actions_root=codec.merkle_root([envelope.to_bytes() for envelope in envelopes]),
            actions_ref=codec.content_id(actions),
            proposer_id=self._context.peer_id,
            timestamp_ms=max(self._context.now_ms(), self._parent.timestamp_ms),
        )
        await self._context.offload(lambda: self._context.db.commit((), (actions, record.preimage())))
        station(_log, "cut", self._world_id, envelopes, height=record.height)
        batch = seal(record, self._context.key)
        request = CommitBatchRequest(
            world_id=self._world_id, batch=batch, actions=actions, commit=self._newest
        )
        answer = await call(
            self._context, self._authorities.certifier, "commit_batch", request, CommitBatchAnswer
        )
        chain.check_commit(self._authorities, answer.commit, record, world_id=self._world_id)
        self._newest = answer.commit
        self._parent = _Parent(record.height, batch.hash(), record.timestamp_ms)
        self._mempool.settled(envelopes)
        station(_log, "committed", self._world_id, envelopes, height=record.height)
        self._context.counters["sequencer.batches"] += 1
        await self._committed.send(
            ExecuteBatchRequest(world_id=self._world_id, batch=batch, commit=answer.commit, actions=actions)
        )

    async def _hand_over(self, batches: Subscription) -> NoReturn:
        """Tell everybody, and give it to the executors; they ask for it themselves when this fails."""
        while True:
            request = await self._to_hand_over.receive()
            await batches.publish(encode_batch_message(request.batch, request.commit))
            for executor in self._authorities.executors:
                try:
                    await call(
                        self._context, executor, "execute_batch", request, Empty, deadline_ms=HAND_OVER_MS
                    )
                except (NetworkError, WorldError) as error:
                    self._context.counters["sequencer.hand_over_failed"] += 1
                    _log.info("height %d not handed over: %s", request.commit.record.height, error)

    async def _release(self) -> None:
        if self._lease is None:
            return
        request = LeaseTermRequest(world_id=self._world_id, term=self._lease.term)
        try:
            await call(self._context, self._authorities.certifier, "lease_release", request, LeaseAnswer)
        except (NetworkError, WorldError) as error:
            _log.info("lease not given back, it ends by itself: %s", error)

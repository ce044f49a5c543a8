"""The sequencer: holds the mempool, keeps the lease, cuts batches, has them certified, hands them over.

Hides: when to cut, and who leads: a standby hears and learns the same, and asks for the lease when it should be over.
Guarantees: one task owns the mempool and the batch in flight; a signed batch leaves only after its bytes are durable;
an envelope leaves the mempool only by a commit, an expiry or a told eviction; losing the lease loses nothing, since
the envelopes are in the gateways' outboxes. It may die at any await: what was certified by then is the coordinator's to
tell, and whether an answer was lost is learned with the next lease, before anything else is cut.
Implements docs/protocol.md, section "Order" (the proposer's side).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import trio

from p2p.errors import Code, NetworkError, RequestFailed
from p2p.network import Gauge, PeerId, Subscription
from runtime import chain, codec, limits, rules
from runtime.errors import Corrupt, Ignored, Missing, WorldError
from runtime.messages import (
    Body,
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
from runtime.sequencing import ActionMempool, Gap, check_timely
from runtime.services.authorities import Authorities
from runtime.services.blobs import fetch_from
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
LEASE_CALL_MS: Final = limits.LEASE_RENEW_MS  # an answer that takes longer is asked for again
COMMIT_CALL_MS: Final = limits.LEASE_TTL_MS
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Parent:
    """What the next batch builds on."""

    height: int
    batch_hash: bytes
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class _Ordered:
    """A committed batch to tell of. `actions` is None where another leader had it certified."""

    batch: Sealed[ActionBatch]
    commit: Sealed[Commit]
    actions: bytes | None


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
        self._renew_at = 0.0  # trio's clock, like `_ask_at`
        self._ask_at = 0.0  # before that, asking for the lease is in vain
        self._is_new_leader = True
        self._newest: Sealed[Commit] | None = None
        self._parent: _Parent | None = None  # None: to be learned from the coordinator
        self._cut_at_ms = 0
        self._settled_height = replica.height
        self._committed, self._to_tell = trio.open_memory_channel[_Ordered](HAND_OVER_WAITING_MAX)

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
        replica, record = self._replica, envelope.record
        height = replica.height if self._parent is None else max(replica.height, self._parent.height)
        try:
            # Gossip brings what no gateway has judged. A gateway that knows more than this node sends again.
            check_timely(record, height, self._context.now_ms(), replica.genesis.body.limits)
            evicted = self._mempool.add(envelope, peer, replica.tables.nonce(record.actor_id))
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
            nursery.start_soon(self._tell, batches, nursery)
            task_status.started()
            try:
                while True:
                    await self._tick()
                    await sleep_ms(limits.BATCH_INTERVAL_MS)
            finally:
                with trio.move_on_after(1, shield=True):
                    await self._release()

    async def _tick(self) -> None:
        """One round: learn what was applied, keep the lease, cut, have it certified."""
        if not self._follows_epoch():
            return
        try:
            self._learn()
            if not self._may_lead() or not await self._leads():
                return
            while (envelopes := self._cut()) is not None:
                await self._certify(envelopes)
                if len(self._mempool) == 0:
                    break
        except RequestFailed as failure:
            self._context.counters[f"sequencer.failed.{failure.code.name}"] += 1
            if failure.code not in {Code.ERR_BUSY, Code.ERR_RATE_LIMITED}:
                self._begin_anew(failure.retry_after_ms)
        except Corrupt:
            raise
        except Missing:  # a damaged blob, which is fetched again
            self._context.counters["sequencer.blocks_missing"] += 1
        except (NetworkError, WorldError):
            self._context.counters["sequencer.coordinator_not_reached"] += 1
            self._begin_anew(0)

    def _begin_anew(self, wait_ms: int) -> None:
        """Another leads, or a batch may or may not be certified: the next lease tells what to build on."""
        self._lease = self._parent = None
        self._ask_at = trio.current_time() + min(wait_ms, limits.LEASE_RENEW_MS) / 1_000

    def _follows_epoch(self) -> bool:
        """Whether the chain of the epoch in force is applied here; a new epoch is begun anew."""
        current = self._authorities
        if current.epoch != self._epoch:
            if not is_resumed(self._replica, current):
                return False
            self._begin_epoch(current.epoch)
        return True

    def _may_lead(self) -> bool:
        """Whether the epoch runs, and its set names this node."""
        return not self._epochs.is_halted and self._context.peer_id in self._authorities.proposers

    def _begin_epoch(self, epoch: int) -> None:
        """Lease and parent ended with the old epoch; what waits is judged again by what is taken now."""
        self._epoch = epoch
        self._begin_anew(0)
        self._newest = None
        self._is_new_leader = True
        self._settled_height = self._replica.height
        waiting, self._mempool = self._mempool.waiting(), ActionMempool()
        for envelope, peer in waiting:
            self._hold(envelope, peer)

    async def _leads(self) -> bool:
        """Hold the lease, renewing it at a third of its TTL. Raises p2p errors."""
        now = trio.current_time()
        if self._lease is None or self._parent is None:
            return now >= self._ask_at and await self._acquire(now)
        if now >= self._renew_at:
            renewal = LeaseTermRequest(world_id=self._world_id, term=self._lease.term)
            self._keep_lease(await self._call_certifier("lease_renew", renewal), now)
        return self._lease is not None

    async def _acquire(self, now: float) -> bool:
        """Ask for the lease; while another holds it, again when it should be over, or has been given back."""
        request = LeaseAcquireRequest(world_id=self._world_id, commit=self._newest_commit())
        try:
            answer = await self._call_certifier("lease_acquire", request)
        except RequestFailed as failure:
            if failure.code is not Code.ERR_BUSY:
                raise
            jitter_ms = self._context.rng.randrange(limits.BATCH_INTERVAL_MS // 4)
            self._begin_anew(failure.retry_after_ms + jitter_ms)
            return False
        self._keep_lease(answer, now)
        if self._lease is None:
            return False
        self._take_up(answer)
        return True

    async def _call_certifier(self, method: str, request: Body) -> LeaseAnswer:
        certifier = self._authorities.certifier
        return await call(self._context, certifier, method, request, LeaseAnswer, deadline_ms=LEASE_CALL_MS)

    def _keep_lease(self, answer: LeaseAnswer, asked_at: float) -> None:
        """Take the lease out of an answer; none when it is not ours."""
        if answer.lease is None or answer.lease.record.holder_id != self._context.peer_id:
            self._lease = None
            return
        answer.lease.verify()
        self._evidence.saw_lease(answer.lease)
        self._lease = answer.lease.record
        self._renew_at = asked_at + limits.LEASE_RENEW_MS / 1_000

    def _newest_commit(self) -> Sealed[Commit] | None:
        """The newest commit of this epoch that was seen, so that a coordinator that has forgotten learns of it."""
        head = self._replica.head
        seen = [commit for commit in (self._newest, None if head is None else head.commit) if commit]
        of_epoch = [commit for commit in seen if commit.record.epoch == self._epoch]
        return max(of_epoch, key=lambda commit: commit.record.height, default=None)

    def _take_up(self, answer: LeaseAnswer) -> None:
        """Build on the last commit, whoever led when it was made, and hand it over: its leader may have died before."""
        self._is_new_leader = True
        header = self._replica.genesis.header
        if answer.batch is None or answer.commit is None:
            self._parent = _Parent(0, header.hash(), header.created_ms)
            return
        chain.check_commit(self._authorities, answer.commit, answer.batch.record, world_id=self._world_id)
        record = answer.batch.record
        self._newest = answer.commit
        self._parent = _Parent(record.height, answer.batch.hash(), record.timestamp_ms)
        # What an epoch keeps of an earlier one is known to whoever has taken it up; its seal may even be lost.
        if record.height > self._replica.height and record.epoch == self._epoch:
            self._queue(_Ordered(answer.batch, answer.commit, None))

    def _learn(self) -> None:
        """Nonces as applied blocks left them, and the end of what can no longer be taken; a standby learns it too."""
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
        ordered = self._replica.height if self._parent is None else self._parent.height
        expired = self._mempool.expire(ordered + 1)
        self._context.counters["mempool.expired"] += len(expired)
        station(_log, "expired", self._world_id, expired, height=ordered + 1)

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
            world_id=self._world_id, batch=batch, actions=actions, commit=self._newest_commit()
        )
        answer = await call(
            self._context,
            self._authorities.certifier,
            "commit_batch",
            request,
            CommitBatchAnswer,
            deadline_ms=COMMIT_CALL_MS,
        )
        chain.check_commit(self._authorities, answer.commit, record, world_id=self._world_id)
        self._newest = answer.commit
        self._parent = _Parent(record.height, batch.hash(), record.timestamp_ms)
        self._mempool.settled(envelopes)
        station(_log, "committed", self._world_id, envelopes, height=record.height)
        self._context.counters["sequencer.batches"] += 1
        self._queue(_Ordered(batch, answer.commit, actions))

    # --- handing over --------------------------------------------------------------------------------------

    def _queue(self, ordered: _Ordered) -> None:
        """To be told. What does not fit is not waited for: executors ask for what they miss."""
        try:
            self._committed.send_nowait(ordered)
        except trio.WouldBlock:
            self._context.counters["sequencer.hand_over_dropped"] += 1

    async def _tell(self, batches: Subscription, nursery: trio.Nursery) -> NoReturn:
        """Tell everybody, and give it to each executor: one that is slow or dead keeps none of the others waiting."""
        queues: dict[PeerId, trio.MemorySendChannel[ExecuteBatchRequest]] = {}
        while True:
            ordered = await self._to_tell.receive()
            await batches.publish(encode_batch_message(ordered.batch, ordered.commit))
            request = await self._request_for(ordered)
            if request is None:
                continue
            executors = self._authorities.executors
            for gone in queues.keys() - set(executors):
                queues.pop(gone).close()
            for executor in executors:
                if executor not in queues:
                    queues[executor], receive = trio.open_memory_channel[ExecuteBatchRequest](
                        HAND_OVER_WAITING_MAX
                    )
                    nursery.start_soon(self._hand_over, executor, receive)
            for queue in queues.values():
                try:
                    queue.send_nowait(request)
                except trio.WouldBlock:
                    self._context.counters["sequencer.hand_over_dropped"] += 1

    async def _request_for(self, ordered: _Ordered) -> ExecuteBatchRequest | None:
        """The hand-over; the actions of another leader's batch come from the certifier. None: it does not give them."""
        actions, record = ordered.actions, ordered.batch.record
        if actions is None:
            bytes_max = self._replica.genesis.body.limits.batch_bytes_max
            certifier = self._authorities.certifier
            try:
                actions = await fetch_from(self._context, certifier, record.actions_ref, bytes_max)
            except (NetworkError, WorldError) as error:
                self._context.counters["sequencer.hand_over_failed"] += 1
                _log.info("height %d of another leader not handed over: %s", record.height, error)
                return None
        return ExecuteBatchRequest(
            world_id=self._world_id, batch=ordered.batch, commit=ordered.commit, actions=actions
        )

    async def _hand_over(
        self, executor: PeerId, requests: trio.MemoryReceiveChannel[ExecuteBatchRequest]
    ) -> None:
        """One executor's queue, until a new epoch no longer names it."""
        async for request in requests:
            try:
                await call(self._context, executor, "execute_batch", request, Empty, deadline_ms=HAND_OVER_MS)
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

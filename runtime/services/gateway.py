"""The gateway: accepts signed envelopes, keeps them on disk, and sends them until a verified block has taken them.

Hides: the outbox and who leads. Guarantees: an Acceptance leaves only after its envelope is durable; a refusal is told
at once and with its reason; an accepted envelope is sent again, also after a restart, until it is taken or provably
dead (its nonce was taken by another, or it expired untaken).
Implements docs/protocol.md, sections "Actions" (acceptance) and "Methods" (submit_actions, action_status).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from p2p.errors import NetworkError
from p2p.network import Gauge, PeerId, Subscription
from runtime import codec, limits, rules
from runtime.errors import Busy, Denied, Ignored, NonceDenied, StoreFull, WorldError
from runtime.messages import (
    ActionStatusAnswer,
    ActionStatusRequest,
    LeaseAnswer,
    SubmitAnswer,
    SubmitRequest,
    SubmitResult,
    WorldRequest,
)
from runtime.records import Acceptance, Envelope, seal
from runtime.sequencing import check_timely
from runtime.services.authorities import Authorities
from runtime.services.context import Context, Signal
from runtime.services.evidence import EvidenceKeeper
from runtime.services.fetch import call, sleep_ms
from runtime.services.methods import Handlers
from runtime.services.replica import Replica
from runtime.services.trail import station

RESEND_ENVELOPES_MAX: Final = 4_096  # of one round
RESEND_BYTES_MAX: Final = 4 << 20
RESEND_CHUNK_BYTES_MAX: Final = 512 * 1024
RESEND_CALL_MS: Final = (
    limits.LEASE_RENEW_MS
)  # a leader that is dead or paused must not hold up its successor
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Promise:
    """An envelope on its way to disk."""

    envelope_hash: bytes
    stored: trio.Event = field(default_factory=trio.Event)  # or not: whoever waited looks


class Gateway:
    """The gateway role of one world."""

    def __init__(
        self,
        context: Context,
        replica: Replica,
        epochs: Authorities,
        evidence: EvidenceKeeper,
        pool: Callable[[Sequence[Envelope]], object] | None,
    ) -> None:
        """`pool` hands fresh envelopes to a sequencer on this node: gossip does not come back to its sender."""
        self._context = context
        self._replica = replica
        self._world_id = replica.world_id
        self._tables = replica.tables
        self._epochs = epochs
        self._evidence = evidence
        self._pool = pool
        self._promising: dict[tuple[bytes, int], _Promise] = {}  # by (actor, nonce)
        self._resent_after = b""  # the actor that the last round ended with
        self._fresh: list[Envelope] = []  # accepted since the last gossip round; bounded by the outbox
        self._arrived = Signal()

    def handlers(self) -> Handlers:
        return {"submit_actions": self.submit, "action_status": self.status}

    def gauges(self) -> list[Gauge]:
        """What is promised, and what of it was not gossiped yet."""
        return [
            Gauge(
                "outbox_envelopes",
                self._tables.outbox_count(),
                "outbox_envelopes_max",
                limits.OUTBOX_ENVELOPES_MAX,
            ),
            Gauge(
                "gateway_unsent_envelopes",
                len(self._fresh),
                "outbox_envelopes_max",
                limits.OUTBOX_ENVELOPES_MAX,
            ),
        ]

    # --- accepting -----------------------------------------------------------------------------------------

    async def submit(self, caller: PeerId, request: SubmitRequest) -> SubmitAnswer:
        """Judge, store in one transaction, then promise; in an epoch that is over nothing is promised."""
        del caller  # keys are free: fairness is a matter of quotas, not of names
        self._epochs.require_running()
        envelopes = request.envelopes
        verdicts = await self._context.offload(
            lambda: [self._signature_fault(envelope) for envelope in envelopes]
        )
        results: list[SubmitResult | None] = []
        accepted: list[Envelope] = []
        mine: list[tuple[bytes, int]] = []
        free_nonces: dict[bytes, int] = {}
        others: list[tuple[int, _Promise]] = []  # the same envelope twice: one promise, stored once
        for index, (envelope, fault) in enumerate(zip(envelopes, verdicts, strict=True)):
            key, digest = (envelope.record.actor_id, envelope.record.nonce), envelope.hash()
            promise = self._promising.get(key)
            try:
                if fault is not None:
                    raise fault
                if promise is not None and promise.envelope_hash == digest:
                    others.append((index, promise))
                elif self._judge(envelope, free_nonces):
                    accepted.append(envelope)
                    mine.append(key)
                    self._promising[key] = _Promise(digest)
                results.append(None)
            except WorldError as error:
                self._context.counters[f"gateway.refused.{type(error).__name__}"] += 1
                results.append(refusal(error))
                station(_log, "refused", self._world_id, (envelope,), reason=str(error))
        now_ms = self._context.now_ms()
        full: SubmitResult | None = None
        if accepted:
            full = await self._keep(accepted, mine, now_ms)
        for index, promise in others:
            await promise.stored.wait()
            if self._tables.outbox_entry(promise.envelope_hash) is None:
                results[index] = full or refusal(Busy("outbox", limits.OUTBOX_RESEND_MS))
        unkept = {envelope.hash(): full for envelope in accepted} if full else {}
        told = [
            result or unkept.get(envelope.hash()) for envelope, result in zip(envelopes, results, strict=True)
        ]
        # A signature each: not on the event loop.
        answers = await self._context.offload(
            lambda: tuple(map(partial(self._told, now_ms), envelopes, told))
        )
        return SubmitAnswer(results=answers)

    def _told(self, now_ms: int, envelope: Envelope, refused: SubmitResult | None) -> SubmitResult:
        if refused is not None:
            return refused
        acceptance = seal(self._acceptance(envelope, now_ms), self._context.key)
        return SubmitResult(outcome="accepted", acceptance=acceptance)

    async def _keep(
        self, accepted: list[Envelope], mine: list[tuple[bytes, int]], now_ms: int
    ) -> SubmitResult | None:
        """Make the outbox durable, then have it gossiped; the refusal when there is no room for it."""
        rows = self._tables.put_outbox(accepted, now_ms)
        try:
            await self._context.offload(lambda: self._context.db.commit(rows))
        except StoreFull as error:
            self._context.counters["store.full"] += 1
            self._context.counters["gateway.refused.StoreFull"] += len(accepted)
            return refusal(error)
        finally:
            for key in mine:
                self._promising.pop(key).stored.set()
        self._tables.outbox_changed(len(accepted))
        self._context.counters["gateway.accepted"] += len(accepted)
        station(_log, "accepted", self._world_id, accepted)
        self._fresh += accepted
        self._arrived.wake()
        return None

    def _signature_fault(self, envelope: Envelope) -> WorldError | None:
        try:
            rules.check_envelope(
                envelope, self._world_id, self._replica.genesis.body.limits.envelope_bytes_max
            )
        except WorldError as error:
            return error
        return None

    def _judge(self, envelope: Envelope, free_nonces: dict[bytes, int]) -> bool:
        """True for one to store, False for one that is durable already. Raises the reason of a refusal."""
        record, digest = envelope.record, envelope.hash()
        if self._tables.outbox_entry(digest) is not None or self._tables.is_taken(digest):
            return False
        height, bounds = self._replica.height, self._replica.genesis.body.limits
        if record.expires_at_height <= height:
            raise Denied(
                "envelope.expires_at_height", f"{record.expires_at_height} is not above height {height}"
            )
        check_timely(record, height, self._context.now_ms(), bounds)
        next_nonce = self._tables.nonce(record.actor_id)
        if record.nonce < next_nonce:
            if self._tables.is_taken(digest):  # by a block that was written since it was looked for
                return False
            raise NonceDenied(record.nonce, "taken", self._free_nonce(record.actor_id, free_nonces))
        if record.nonce >= next_nonce + limits.MEMPOOL_NONCES_AHEAD_MAX:
            raise Busy("mempool_nonces_ahead_max", limits.BATCH_INTERVAL_MS)
        key = (record.actor_id, record.nonce)
        promise = self._promising.get(key)
        rival = self._tables.outbox_by_nonce(*key) if promise is None else promise.envelope_hash
        if rival is not None and rival != digest:
            raise NonceDenied(
                record.nonce,
                f"promised to envelope {rival.hex()}",
                self._free_nonce(record.actor_id, free_nonces),
            )
        if record.expires_at_height > height + self._may_wait_blocks(bounds.expiry_blocks_max):
            raise Busy("outbox_envelopes_max", limits.OUTBOX_RESEND_MS)
        return True

    def _may_wait_blocks(self, blocks_max: int) -> int:
        """For how many blocks a new promise may last: fewer and fewer as the outbox is more than half full, then none.

        Whoever fills it with what no block takes then fills it for a few blocks, not for as long as an envelope lives.
        """
        room = max(0, limits.OUTBOX_ENVELOPES_MAX - self._tables.outbox_count())
        return min(blocks_max, 2 * blocks_max * room // limits.OUTBOX_ENVELOPES_MAX)

    def _free_nonce(self, actor_id: bytes, found: dict[bytes, int]) -> int:
        """The first nonce of an actor that no block has taken and no promise here names; looked for once a request."""
        if actor_id in found:
            return found[actor_id]
        nonce = self._tables.nonce(actor_id)
        promised = self._tables.outbox_nonces(actor_id, nonce, limits.MEMPOOL_NONCES_AHEAD_MAX)
        while nonce in promised or (actor_id, nonce) in self._promising:
            nonce += 1
        found[actor_id] = nonce
        return nonce

    def _acceptance(self, envelope: Envelope, now_ms: int) -> Acceptance:
        return Acceptance(
            world_id=self._world_id,
            envelope_hash=envelope.hash(),
            gateway_id=self._context.peer_id,
            accepted_at_ms=now_ms,
            stage="local",
        )

    async def status(self, caller: PeerId, request: ActionStatusRequest) -> ActionStatusAnswer:
        """What became of an envelope, by this node's applied blocks and its outbox."""
        del caller
        entry = self._tables.outbox_entry(request.envelope_hash)
        is_dead = entry is not None and self._is_dead(entry.envelope)
        # A block may be written between two reads: read last, its place is there when anything of that block was seen.
        place = self._tables.place(request.envelope_hash)
        if place is not None and (
            place.taken or entry is None or is_dead
        ):  # what a block refused may yet be taken
            return ActionStatusAnswer(
                stage="taken" if place.taken else "refused", height=place.height, index=place.index
            )
        if entry is None:
            return ActionStatusAnswer(stage="unknown")
        # And once more: a new epoch may have taken a block back between the reads, and with it what made it dead.
        is_dead = is_dead and self._is_dead(entry.envelope)
        return ActionStatusAnswer(stage="dead" if is_dead else "pending")

    def promised(self, actor_id: bytes, nonce: int) -> Envelope | None:
        """The envelope that was accepted here for an actor's nonce, for whoever missed it."""
        digest = self._tables.outbox_by_nonce(actor_id, nonce)
        entry = None if digest is None else self._tables.outbox_entry(digest)
        return None if entry is None else entry.envelope

    # --- sending -------------------------------------------------------------------------------------------

    async def run(
        self, actions: Subscription, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Gossip what is fresh; send again what was not taken; clear what is done."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._gossip, actions)
            nursery.start_soon(self._resend)
            task_status.started()

    async def _gossip(self, actions: Subscription) -> None:
        while True:
            while self._fresh:
                chunk, self._fresh = _head_chunk(self._fresh)
                if self._pool is not None:
                    self._pool(chunk)
                await actions.publish(codec.array_of([envelope.to_bytes() for envelope in chunk]))
                self._context.counters["gateway.gossiped"] += len(chunk)
                station(_log, "gossiped", self._world_id, chunk)
            await self._arrived.wait()

    async def _resend(self) -> None:
        while True:
            await sleep_ms(limits.OUTBOX_RESEND_MS)
            self._tables.outbox_changed(-await self._context.offload(self._sweep))
            due, self._resent_after = await self._context.offload(
                partial(
                    self._tables.outbox_sendable,
                    self._resent_after,
                    self._context.now_ms() - limits.OUTBOX_RESEND_MS,
                    RESEND_ENVELOPES_MAX,
                    RESEND_BYTES_MAX,
                )
            )
            if due and not self._epochs.is_halted:
                await self._hand_over(due)

    async def _hand_over(self, envelopes: list[Envelope]) -> None:
        """Send to the lease holder by rr, in chunks that fit a frame; what fails is sent again next round."""
        try:
            lease = await call(
                self._context,
                self._epochs.current.certifier,
                "lease_get",
                WorldRequest(world_id=self._world_id),
                LeaseAnswer,
                deadline_ms=RESEND_CALL_MS,
            )
            if lease.lease is None:
                return
            self._evidence.saw_lease(lease.lease)
            if lease.lease.record.holder_id == self._context.peer_id and self._pool is not None:
                self._pool(envelopes)  # by rr it would come back here, where it is promised already
                self._context.counters["gateway.resent"] += len(envelopes)
                station(_log, "resent", self._world_id, envelopes)
                return
            for chunk in _chunks(envelopes):
                request = SubmitRequest(world_id=self._world_id, envelopes=tuple(chunk))
                await call(
                    self._context,
                    lease.lease.record.holder_id,
                    "submit_actions",
                    request,
                    SubmitAnswer,
                    deadline_ms=RESEND_CALL_MS,
                )
                self._context.counters["gateway.resent"] += len(chunk)
                station(_log, "resent", self._world_id, chunk)
        except (NetworkError, WorldError):
            self._context.counters["gateway.resend_failed"] += 1

    def _sweep(self) -> int:
        """Drop outbox entries whose end is verified: taken or dead, and past their expiry; gives how many."""
        height = self._replica.height
        done = [entry.envelope for entry in self._tables.outbox_expiring(height)]
        if done:
            try:
                self._context.db.commit(self._tables.drop_outbox(done))
            except StoreFull:  # what is done is cleared when there is room to say so
                self._context.counters["store.full"] += 1
                return 0
        return len(done)

    def _is_dead(self, envelope: Envelope) -> bool:
        record = envelope.record
        return record.expires_at_height <= self._replica.height or record.nonce < self._tables.nonce(
            record.actor_id
        )


def _head_chunk(envelopes: list[Envelope]) -> tuple[list[Envelope], list[Envelope]]:
    """As many envelopes as one gossip message takes, and the rest."""
    size, items, count = 3, 0, 0
    for envelope in envelopes[: limits.GOSSIP_ACTION_ENVELOPES_MAX]:
        size += len(envelope.to_bytes())
        items += 1 + codec.count_items(envelope.to_value())
        if count and (size > limits.GOSSIP_ACTION_BYTES_MAX or items > limits.GOSSIP_ACTION_ITEMS_MAX):
            break
        count += 1
    return envelopes[:count], envelopes[count:]


def _chunks(envelopes: list[Envelope]) -> list[list[Envelope]]:
    chunks: list[list[Envelope]] = [[]]
    size = 0
    for envelope in envelopes:
        length = len(envelope.to_bytes())
        if chunks[-1] and (
            size + length > RESEND_CHUNK_BYTES_MAX or len(chunks[-1]) == limits.SUBMIT_ENVELOPES_MAX
        ):
            chunks.append([])
            size = 0
        chunks[-1].append(envelope)
        size += length
    return chunks


def refusal(error: WorldError) -> SubmitResult:
    """A refusal as its result: the class is the reason's word, the text is for people."""
    retry_after_ms = error.retry_after_ms if isinstance(error, Busy) else None
    if isinstance(error, StoreFull):
        retry_after_ms = limits.STORE_FULL_RETRY_MS
    next_nonce = error.next_nonce if isinstance(error, NonceDenied) else None
    reason = "Duplicate" if isinstance(error, Ignored) else type(error).__name__
    return SubmitResult(
        outcome="refused",
        reason=reason,
        message=str(error)[:500],
        retry_after_ms=retry_after_ms,
        next_nonce=next_nonce,
    )

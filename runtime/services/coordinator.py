"""The coordinator: grants the lease and certifies the order, one durable compare-and-set per height.

Hides: the certifier key. Guarantees: a commit or a lease leaves only after it is on disk; two commits of one epoch and
height cannot exist; what is decided here is decided by the pure functions of runtime/sequencing.py.
Implements docs/protocol.md, section "Order"; safety does not depend on any clock.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Generic, NoReturn, TypeVar

import trio

from p2p.network import Gauge, PeerId
from runtime import limits
from runtime.errors import Busy, Corrupt, Denied, Missing, WorldError
from runtime.messages import (
    BatchAnswer,
    BatchRequest,
    CommitAnswer,
    CommitBatchAnswer,
    CommitBatchRequest,
    LeaseAcquireRequest,
    LeaseAnswer,
    LeaseTermRequest,
    WorldRequest,
)
from runtime.records import ActionBatch, AuthoritySet, Commit, Genesis, LeaseGrant, Resume, Sealed, seal
from runtime.sequencing import Certified, LeaseManager, certify, check_memory, refreshed, resumed_commit
from runtime.services.authorities import Authorities
from runtime.services.blobs import fetch_blob
from runtime.services.context import Context
from runtime.services.fetch import Sources, ask_first
from runtime.services.heads import HeadTracker
from runtime.services.methods import Handlers
from runtime.services.resume import RESUME_RETRY_MS, fetch_batch
from runtime.world_tables import WorldTables

REQUESTS_WAITING_MAX: Final = 64
LOST_SEAL: Final = bytes(64)  # a committed batch is believed for its commit, not for its seal
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(slots=True)
class _Job(Generic[T]):
    """One request on its way through the task that decides."""

    work: Callable[[], Awaitable[T]]
    done: trio.Event = field(default_factory=trio.Event)
    result: T | None = None
    error: Exception | None = None


class Coordinator:
    """The coordinator role of one world. One task decides, in the order in which requests come."""

    def __init__(
        self,
        context: Context,
        genesis: Genesis,
        tables: WorldTables,
        tracker: HeadTracker,
        epochs: Authorities,
        sources: Sources,
    ) -> None:
        self._context = context
        self._genesis = genesis
        self._epochs = epochs
        self._tables = tables
        self._tracker = tracker
        self._sources = sources
        self._started_at_ms = context.now_ms()
        self._send, self._jobs = trio.open_memory_channel[_Job[object]](REQUESTS_WAITING_MAX)

    def handlers(self) -> Handlers:
        return {
            "lease_acquire": self.lease_acquire,
            "lease_renew": self.lease_renew,
            "lease_release": self.lease_release,
            "lease_get": self.lease_get,
            "commit_batch": self.commit_batch,
            "get_commit": self.get_commit,
        }

    def gauges(self) -> list[Gauge]:
        """Requests that wait to be decided."""
        waiting = self._send.statistics().current_buffer_used
        return [
            Gauge(
                "coordinator_requests_waiting",
                waiting,
                "coordinator_requests_waiting_max",
                REQUESTS_WAITING_MAX,
            )
        ]

    @property
    def _authorities(self) -> AuthoritySet:
        return self._epochs.current

    @property
    def _leases(self) -> LeaseManager:
        return LeaseManager(self._genesis.header.world_id, self._authorities, self._started_at_ms)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Decide one request after the other. Raises Corrupt when this key has certified more than its store knows."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._decide_all)
            nursery.start_soon(self._watch_epoch)
            task_status.started()

    # --- epochs --------------------------------------------------------------------------------------------

    def _require_office(self) -> None:
        """Raise where this node is not to sign: Denied (another certifies), Halted, Busy (order not taken over yet)."""
        current = self._authorities
        if self._context.peer_id != current.certifier:
            raise Denied(
                "role coordinator", f"this node's identity is not the certifier of epoch {current.epoch}"
            )
        self._epochs.require_running()
        if self._tables.order_epoch() != current.epoch:
            raise Busy("epoch", RESUME_RETRY_MS)

    async def _watch_epoch(self) -> NoReturn:
        """Take over the order of each epoch in which this node certifies, as soon as its last batch can be had."""
        while True:
            current = self._authorities
            if self._context.peer_id != current.certifier:
                _log.warning("this node's identity is not the certifier of epoch %d: it waits", current.epoch)
            elif self._tables.order_epoch() != current.epoch and not self._epochs.is_halted:
                try:
                    await self._take_over(current)
                    continue
                except Corrupt:
                    raise
                except WorldError as error:
                    self._context.counters["coordinator.not_resumed"] += 1
                    _log.warning("epoch %d waits for its last batch: %s", current.epoch, error)
                await self._epochs.changed.wait_at_most(RESUME_RETRY_MS / 1_000)
                continue
            await self._epochs.changed.wait()

    async def _take_over(self, current: AuthoritySet) -> None:
        """Begin with what the roots keep: that batch under a commit of this epoch, and nothing above it."""
        resume = current.resume
        assert resume is not None  # epoch 0 needs no taking over
        blobs: tuple[bytes, ...] = ()
        batch: Sealed[ActionBatch] | None = None
        if resume.height:
            batch = await self._resumed_batch(resume)
            bytes_max = self._genesis.body.limits.batch_bytes_max
            actions = await fetch_blob(self._sources, batch.record.actions_ref, bytes_max)
            blobs = (batch.record.preimage(), actions)

        async def work() -> None:
            if self._epochs.current is not current or self._epochs.is_halted:
                return
            last = None
            if batch is not None:
                commit = resumed_commit(current, batch.record, self._context.now_ms())
                last = (batch, seal(commit, self._context.key))
            rows = self._tables.put_resumed(current.epoch, resume.height, last)
            await self._context.offload(lambda: self._context.db.commit(rows, blobs, keep=True))
            _log.warning("epoch %d: certifying from height %d on", current.epoch, resume.height)

        await self._decide(work)

    async def _resumed_batch(self, resume: Resume) -> Sealed[ActionBatch]:
        """The batch that is kept, from here or from whoever has it; a lost seal is no obstacle: its hash is signed."""
        own = self._tables.batch(resume.height)
        if own is not None and own.hash() == resume.batch_hash:
            return own

        def check(answer: BatchAnswer) -> None:
            if answer.batch.hash() != resume.batch_hash:
                raise Missing("batch", resume.batch_hash.hex())
            if answer.batch.signature == LOST_SEAL:
                raise Missing("seal of batch", resume.batch_hash.hex())
            answer.batch.verify()

        request = BatchRequest(world_id=self._genesis.header.world_id, height=resume.height)
        try:
            return (await ask_first(self._sources, "get_batch", request, BatchAnswer, check)).batch
        except Missing:
            batch = await fetch_batch(self._sources, resume.height, resume.batch_hash)
            return Sealed(batch, LOST_SEAL)

    async def _decide_all(self) -> NoReturn:
        while True:
            job = await self._jobs.receive()
            try:
                job.result = await job.work()
            except Exception as error:  # it is the caller's: handed over, not swallowed
                job.error = error
                if isinstance(error, Corrupt):
                    raise
            finally:
                job.done.set()

    async def _decide(self, work: Callable[[], Awaitable[T]]) -> T:
        job: _Job[T] = _Job(work)
        try:
            self._send.send_nowait(job)  # type: ignore[arg-type]  # the channel carries jobs of any result
        except trio.WouldBlock:
            raise Busy("coordinator_requests_waiting_max", limits.BATCH_INTERVAL_MS) from None
        await job.done.wait()
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]  # set whenever there is no error

    def _check_proposer(self, caller: PeerId) -> None:
        """Before anything is queued: strangers must not stand in line with the one that leads."""
        if caller not in self._authorities.proposers:
            raise Denied("proposer", "only a proposer of the set may ask this of the coordinator")

    # --- lease ---------------------------------------------------------------------------------------------

    def _stored_lease(self) -> LeaseGrant | None:
        lease = self._tables.lease()
        return None if lease is None else lease.record

    async def lease_acquire(self, caller: PeerId, request: LeaseAcquireRequest) -> LeaseAnswer:
        """A new term for the caller, and the batch to build on."""

        self._check_proposer(caller)

        async def work() -> LeaseAnswer:
            self._require_office()
            self._check_memory(request.commit)
            last = self._tables.last_commit()
            term_min = 1 if last is None else last[0].record.term + 1
            grant = self._leases.acquire(self._stored_lease(), caller, self._context.now_ms(), term_min)
            await self._keep(grant)
            return self._lease_answer()

        return await self._decide(work)

    async def lease_renew(self, caller: PeerId, request: LeaseTermRequest) -> LeaseAnswer:
        self._check_proposer(caller)

        async def work() -> LeaseAnswer:
            self._require_office()
            await self._keep(
                self._leases.renew(self._stored_lease(), caller, request.term, self._context.now_ms())
            )
            return self._lease_answer()

        return await self._decide(work)

    async def lease_release(self, caller: PeerId, request: LeaseTermRequest) -> LeaseAnswer:
        self._check_proposer(caller)

        async def work() -> LeaseAnswer:
            self._require_office()
            await self._keep(
                self._leases.release(self._stored_lease(), caller, request.term, self._context.now_ms())
            )
            return self._lease_answer()

        return await self._decide(work)

    async def lease_get(self, caller: PeerId, request: WorldRequest) -> LeaseAnswer:
        """Who leads now, if anybody does."""
        del caller, request
        return self._lease_answer()

    def _lease_answer(self) -> LeaseAnswer:
        lease, last = self._tables.lease(), self._last()
        bound = lease is not None and self._leases.remaining_ms(lease.record, self._context.now_ms()) > 0
        return LeaseAnswer(
            lease=lease if bound else None,
            batch=None if last is None else last[0],
            commit=None if last is None else last[1],
        )

    def _last(self) -> tuple[Sealed[ActionBatch], Sealed[Commit]] | None:
        """The last batch with its commit, of the epoch in force."""
        last = self._tables.last_commit()
        return last if last is not None and last[1].record.epoch == self._authorities.epoch else None

    async def _keep(self, grant: LeaseGrant) -> None:
        rows, expect = self._tables.put_lease(seal(grant, self._context.key))
        await self._context.offload(lambda: self._context.db.commit(rows, expect=expect))

    # --- order ---------------------------------------------------------------------------------------------

    async def commit_batch(self, caller: PeerId, request: CommitBatchRequest) -> CommitBatchAnswer:
        """Certify the batch at the next height, or give the commit that it has already."""

        self._check_proposer(caller)

        async def work() -> CommitBatchAnswer:
            self._require_office()
            self._check_memory(request.commit)
            return CommitBatchAnswer(commit=await self._certified(caller, request))

        return await self._decide(work)

    async def _certified(self, caller: PeerId, request: CommitBatchRequest) -> Sealed[Commit]:
        last = self._tables.last_commit()
        lease = self._stored_lease()
        if lease is not None and not self._leases.remaining_ms(lease, self._context.now_ms()):
            lease = None
        so_far = Certified(
            batch=None if last is None else last[0].record,
            commit=None if last is None else last[1],
            lease=lease,
            attested_height=self._tracker.height,
        )
        now_ms = self._context.now_ms()
        commit = await self._context.offload(
            lambda: certify(
                self._genesis, self._authorities, so_far, caller, request.batch, request.actions, now_ms
            )
        )
        if commit is None:
            assert last is not None
            return last[1]
        sealed = seal(commit, self._context.key)
        rows, expect = self._tables.put_commit(request.batch, sealed)
        blobs = (request.actions, request.batch.record.preimage())
        await self._context.offload(lambda: self._context.db.commit(rows, blobs, keep=True, expect=expect))
        self._tracker.saw_commit(sealed)
        self._context.counters["coordinator.commits"] += 1
        told = {"event": "certified", "world": commit.world_id, "height": commit.height}
        _log.debug("certified", extra=told | {"batch": commit.batch_hash})
        return sealed

    async def get_commit(self, caller: PeerId, request: WorldRequest) -> CommitAnswer:
        """The last commit, signed again when its time is old: it is still the last."""
        del caller, request
        authorities, last = self._epochs.signed, self._last()
        if last is None:
            return CommitAnswer(authorities=authorities)
        if refreshed(last[1].record, self._context.now_ms()) is None or self._epochs.is_halted:
            return CommitAnswer(authorities=authorities, commit=last[1])

        async def work() -> CommitAnswer:
            newest = self._last()
            if newest is None or self._epochs.is_halted:
                return CommitAnswer(authorities=self._epochs.signed)
            record = refreshed(newest[1].record, self._context.now_ms())
            sealed = newest[1] if record is None else seal(record, self._context.key)
            if record is not None:
                rows = self._tables.put_refreshed(sealed)
                await self._context.offload(lambda: self._context.db.commit(rows))
            return CommitAnswer(authorities=self._epochs.signed, commit=sealed)

        return await self._decide(work)

    def _check_memory(self, seen: Sealed[Commit] | None) -> None:
        head = self._tracker.head
        for commit in (seen, None if head is None else head.commit):
            check_memory(
                self._authorities, self._genesis.header.world_id, self._tables.committed_height(), commit
            )
        if seen is not None and seen.record.epoch == self._authorities.epoch:
            self._tracker.saw_commit(
                seen
            )  # another one of a height certified here is a fork by this very key

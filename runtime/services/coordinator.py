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
from runtime.errors import Busy, Corrupt, Denied
from runtime.messages import (
    CommitAnswer,
    CommitBatchAnswer,
    CommitBatchRequest,
    LeaseAcquireRequest,
    LeaseAnswer,
    LeaseTermRequest,
    WorldRequest,
)
from runtime.records import Commit, Genesis, LeaseGrant, Sealed, SignedAuthorities, seal
from runtime.sequencing import Certified, LeaseManager, certify, check_memory, refreshed
from runtime.services.context import Context
from runtime.services.heads import HeadTracker
from runtime.services.methods import Handlers
from runtime.world_tables import WorldTables

REQUESTS_WAITING_MAX: Final = 64
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

    def __init__(self, context: Context, genesis: Genesis, tables: WorldTables, tracker: HeadTracker) -> None:
        if context.peer_id != genesis.authorities.certifier:
            raise Denied("role coordinator", "this node's identity is not the certifier of the world")
        self._context = context
        self._genesis = genesis
        self._authorities = genesis.authorities
        self._tables = tables
        self._tracker = tracker
        self._leases = LeaseManager(genesis.header.world_id, genesis.authorities, context.now_ms())
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

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Decide one request after the other. Raises Corrupt when this key has certified more than its store knows."""
        task_status.started()
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
            await self._keep(
                self._leases.renew(self._stored_lease(), caller, request.term, self._context.now_ms())
            )
            return self._lease_answer()

        return await self._decide(work)

    async def lease_release(self, caller: PeerId, request: LeaseTermRequest) -> LeaseAnswer:
        self._check_proposer(caller)

        async def work() -> LeaseAnswer:
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
        lease, last = self._tables.lease(), self._tables.last_commit()
        bound = lease is not None and self._leases.remaining_ms(lease.record, self._context.now_ms()) > 0
        return LeaseAnswer(
            lease=lease if bound else None,
            batch=None if last is None else last[0],
            commit=None if last is None else last[1],
        )

    async def _keep(self, grant: LeaseGrant) -> None:
        rows, expect = self._tables.put_lease(seal(grant, self._context.key))
        await self._context.offload(lambda: self._context.db.commit(rows, expect=expect))

    # --- order ---------------------------------------------------------------------------------------------

    async def commit_batch(self, caller: PeerId, request: CommitBatchRequest) -> CommitBatchAnswer:
        """Certify the batch at the next height, or give the commit that it has already."""

        self._check_proposer(caller)

        async def work() -> CommitBatchAnswer:
            self._check_memory(request.commit)
            return CommitBatchAnswer(commit=await self._certified(caller, request))

        return await self._decide(work)

    async def _certified(self, caller: PeerId, request: CommitBatchRequest) -> Sealed[Commit]:
        if self._tracker.follower.is_halted:
            raise Denied(
                "commit_batch", "the certifier has signed two commits of one height: only a new epoch goes on"
            )
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
        self._context.counters["coordinator.commits"] += 1
        told = {"event": "certified", "world": commit.world_id, "height": commit.height}
        _log.debug("certified", extra=told | {"batch": commit.batch_hash})
        return sealed

    async def get_commit(self, caller: PeerId, request: WorldRequest) -> CommitAnswer:
        """The last commit, signed again when its time is old: it is still the last."""
        del caller, request
        last = self._tables.last_commit()
        authorities = SignedAuthorities(self._authorities)
        if last is None:
            return CommitAnswer(authorities=authorities)
        if refreshed(last[1].record, self._context.now_ms()) is None or self._tracker.follower.is_halted:
            return CommitAnswer(authorities=authorities, commit=last[1])

        async def work() -> CommitAnswer:
            newest = self._tables.last_commit()
            assert newest is not None
            record = refreshed(newest[1].record, self._context.now_ms())
            sealed = newest[1] if record is None else seal(record, self._context.key)
            if record is not None:
                rows = self._tables.put_refreshed(sealed)
                await self._context.offload(lambda: self._context.db.commit(rows))
            return CommitAnswer(authorities=authorities, commit=sealed)

        return await self._decide(work)

    def _check_memory(self, seen: Sealed[Commit] | None) -> None:
        head = self._tracker.head
        for commit in (seen, None if head is None else head.commit):
            check_memory(
                self._authorities, self._genesis.header.world_id, self._tables.committed_height(), commit
            )

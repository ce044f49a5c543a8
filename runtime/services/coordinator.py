"""The coordinator: grants the lease and certifies the order, one durable compare-and-set per height.

Hides: the certifier key. Guarantees: the key signs only what its LeaseStore holds already; two commits of one epoch and
height cannot exist, also where two processes run with this key on one etcd; what is decided here is decided by the pure
functions of runtime/sequencing.py. Implements docs/protocol.md, section "Order"; safety does not depend on any clock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Generic, NoReturn, TypeVar

import trio

from p2p.network import PeerId
from runtime import limits
from runtime.errors import Busy, Corrupt, Denied, Missing
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
from runtime.records import Commit, Genesis, LeaseGrant, Sealed, SignedAuthorities, seal
from runtime.sequencing import Certified, LeaseManager, certify, check_memory, refreshed
from runtime.services.context import Context
from runtime.services.heads import HeadTracker
from runtime.services.lease_store import Kept, LeaseStore, Overtaken
from runtime.services.methods import Handlers

REQUESTS_WAITING_MAX: Final = 64
STORE_TRIES_MAX: Final = 3
T = TypeVar("T")


@dataclass(slots=True)
class _Job(Generic[T]):
    """One request on its way through the task that decides."""

    work: Callable[[Kept], Awaitable[T]]
    done: trio.Event = field(default_factory=trio.Event)
    result: T | None = None
    error: Exception | None = None


class Coordinator:
    """The coordinator role of one world. One task decides, in the order in which requests come."""

    def __init__(self, context: Context, genesis: Genesis, store: LeaseStore, tracker: HeadTracker) -> None:
        if context.peer_id != genesis.authorities.certifier:
            raise Denied("role coordinator", "this node's identity is not the certifier of the world")
        self._context = context
        self._genesis = genesis
        self._authorities = genesis.authorities
        self._store = store
        self._tracker = tracker
        self.kept = Kept()  # as last read or written; for `status`, not for decisions
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
            "get_batch": self.get_batch,
        }

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Decide one request after the other. Raises Corrupt when this key has certified more than its store knows."""
        task_status.started()
        while True:
            job = await self._jobs.receive()
            try:
                job.result = await self._done(job)
            except Exception as error:  # it is the caller's: handed over, not swallowed
                job.error = error
                if isinstance(error, Corrupt):
                    raise
            finally:
                job.done.set()

    async def _done(self, job: _Job[T]) -> T:
        """Read the store and decide; again when another process of this key was quicker. Raises Busy."""
        for _ in range(STORE_TRIES_MAX):
            kept = await self._read()
            try:
                return await job.work(kept)
            except Overtaken:
                self._context.counters["coordinator.overtaken"] += 1
        raise Busy("lease_store_tries_max", limits.BATCH_INTERVAL_MS)

    async def _read(self) -> Kept:
        self.kept = await self._store.read()
        return self.kept

    async def _decide(self, work: Callable[[Kept], Awaitable[T]]) -> T:
        job: _Job[T] = _Job(work)
        try:
            self._send.send_nowait(job)  # type: ignore[arg-type]  # the channel carries jobs of any result
        except trio.WouldBlock:
            raise Busy("coordinator_requests_waiting_max", limits.BATCH_INTERVAL_MS) from None
        await job.done.wait()
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]  # set whenever there is no error

    # --- lease ---------------------------------------------------------------------------------------------

    async def lease_acquire(self, caller: PeerId, request: LeaseAcquireRequest) -> LeaseAnswer:
        """A new term for the caller, and the batch to build on."""

        async def work(kept: Kept) -> LeaseAnswer:
            self._check_memory(kept, request.commit)
            term_min = 1 if kept.batch is None else kept.batch.record.term + 1
            grant = self._leases.acquire(kept.lease, caller, self._context.now_ms(), term_min)
            return await self._granted(kept, grant)

        return await self._decide(work)

    async def lease_renew(self, caller: PeerId, request: LeaseTermRequest) -> LeaseAnswer:
        async def work(kept: Kept) -> LeaseAnswer:
            grant = self._leases.renew(kept.lease, caller, request.term, self._context.now_ms())
            return await self._granted(kept, grant)

        return await self._decide(work)

    async def lease_release(self, caller: PeerId, request: LeaseTermRequest) -> LeaseAnswer:
        async def work(kept: Kept) -> LeaseAnswer:
            grant = self._leases.release(kept.lease, caller, request.term, self._context.now_ms())
            return await self._granted(kept, grant)

        return await self._decide(work)

    async def lease_get(self, caller: PeerId, request: WorldRequest) -> LeaseAnswer:
        """Who leads now, if anybody does."""
        del caller, request
        return self._lease_answer(await self._read())

    async def _granted(self, kept: Kept, grant: LeaseGrant) -> LeaseAnswer:
        self.kept = await self._store.put_lease(kept, grant)
        return self._lease_answer(self.kept)

    def _lease_answer(self, kept: Kept) -> LeaseAnswer:
        is_bound = self._leases.remaining_ms(kept.lease, self._context.now_ms()) > 0
        return LeaseAnswer(
            lease=seal(kept.lease, self._context.key) if is_bound and kept.lease is not None else None,
            batch=kept.batch,
            commit=self._sealed(kept.commit),
        )

    # --- order ---------------------------------------------------------------------------------------------

    async def commit_batch(self, caller: PeerId, request: CommitBatchRequest) -> CommitBatchAnswer:
        """Certify the batch at the next height, or give the commit that it has already."""

        async def work(kept: Kept) -> CommitBatchAnswer:
            self._check_memory(kept, request.commit)
            commit = await self._certified(kept, caller, request)
            return CommitBatchAnswer(commit=seal(commit, self._context.key))

        return await self._decide(work)

    async def _certified(self, kept: Kept, caller: PeerId, request: CommitBatchRequest) -> Commit:
        if self._tracker.follower.is_halted:
            raise Denied(
                "commit_batch", "the certifier has signed two commits of one height: only a new epoch goes on"
            )
        now_ms = self._context.now_ms()
        so_far = Certified(
            batch=None if kept.batch is None else kept.batch.record,
            commit=self._sealed(kept.commit),
            lease=kept.lease if self._leases.remaining_ms(kept.lease, now_ms) else None,
            attested_height=self._tracker.height,
        )
        commit = await self._context.offload(
            lambda: certify(
                self._genesis, self._authorities, so_far, caller, request.batch, request.actions, now_ms
            )
        )
        if commit is None:
            assert kept.commit is not None
            return kept.commit
        self.kept = await self._store.put_commit(kept, request.batch, request.actions, commit)
        self._context.counters["coordinator.commits"] += 1
        return commit

    async def get_batch(self, caller: PeerId, request: BatchRequest) -> BatchAnswer:
        """A certified batch; whoever asks fetches its actions as a blob."""
        del caller
        found = await self._store.certified(request.height)
        if found is None:
            raise Missing("batch", str(request.height))
        batch, commit = found
        return BatchAnswer(batch=batch, commit=seal(commit, self._context.key))

    async def get_commit(self, caller: PeerId, request: WorldRequest) -> CommitAnswer:
        """The last commit, signed again when its time is old: it is still the last."""
        del caller, request
        kept = await self._read()
        if self._refreshed(kept) is not None and not self._tracker.follower.is_halted:
            kept = await self._decide(self._refresh)
        return CommitAnswer(
            authorities=SignedAuthorities(self._authorities), commit=self._sealed(kept.commit)
        )

    def _refreshed(self, kept: Kept) -> Commit | None:
        return None if kept.commit is None else refreshed(kept.commit, self._context.now_ms())

    async def _refresh(self, kept: Kept) -> Kept:
        commit = self._refreshed(kept)
        if commit is not None:
            self.kept = await self._store.put_refreshed(kept, commit)
        return self.kept

    def _sealed(self, commit: Commit | None) -> Sealed[Commit] | None:
        return None if commit is None else seal(commit, self._context.key)

    def _check_memory(self, kept: Kept, seen: Sealed[Commit] | None) -> None:
        head = self._tracker.head
        for commit in (seen, None if head is None else head.commit):
            check_memory(self._authorities, self._genesis.header.world_id, kept.height, commit)

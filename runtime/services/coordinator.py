"""The coordinator: grants the lease and certifies the order, one durable compare-and-set per height.

Hides: the certifier key. Guarantees: the key signs only what its LeaseStore holds already; two commits of one epoch and
height cannot exist, also where two processes run with this key on one etcd; what is decided here is decided by the pure
functions of runtime/sequencing.py. Implements docs/protocol.md, section "Order"; safety does not depend on any clock.
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
from runtime.services.lease_store import Kept, LeaseStore, Overtaken, Resumed
from runtime.services.methods import Handlers
from runtime.services.resume import RESUME_RETRY_MS, fetch_batch

REQUESTS_WAITING_MAX: Final = 64
STORE_TRIES_MAX: Final = 3
LOST_SEAL: Final = bytes(64)  # a committed batch is believed for its commit, not for its seal
_log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R", LeaseGrant, Commit)


@dataclass(slots=True)
class _Job(Generic[T]):
    """One request on its way through the task that decides."""

    work: Callable[[Kept], Awaitable[T]]
    done: trio.Event = field(default_factory=trio.Event)
    result: T | None = None
    error: Exception | None = None


class Coordinator:
    """The coordinator role of one world. One task decides, in the order in which requests come."""

    def __init__(
        self,
        context: Context,
        genesis: Genesis,
        store: LeaseStore,
        tracker: HeadTracker,
        epochs: Authorities,
        sources: Sources,
        executed: Callable[[int], BatchAnswer],
    ) -> None:
        """`executed` answers a batch that this node has executed, for heights of which the store holds no commit."""
        self._context = context
        self._genesis = genesis
        self._epochs = epochs
        self._store = store
        self._tracker = tracker
        self._sources = sources
        self._executed = executed
        self.kept = Kept()  # as last read or written; for `status`, not for decisions
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
            "get_batch": self.get_batch,
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
            nursery.start_soon(self._watch_memory)
            task_status.started()

    # --- epochs --------------------------------------------------------------------------------------------

    def _require_office(self, kept: Kept) -> None:
        """Raise where this node is not to sign: Denied (another certifies), Halted, Busy (order not taken over yet)."""
        current = self._authorities
        if self._context.peer_id != current.certifier:
            raise Denied(
                "role coordinator", f"this node's identity is not the certifier of epoch {current.epoch}"
            )
        self._epochs.require_running()
        if kept.epoch != current.epoch:
            raise Busy("epoch", RESUME_RETRY_MS)

    async def _watch_epoch(self) -> NoReturn:
        """Take over the order of each epoch in which this node certifies, as soon as its last batch can be had."""
        while True:
            current = self._authorities
            if self._context.peer_id != current.certifier:
                _log.warning("this node's identity is not the certifier of epoch %d: it waits", current.epoch)
            elif not self._epochs.is_halted:
                try:
                    if current.epoch and (await self._read()).epoch < current.epoch:
                        await self._take_over(current)
                        continue
                except Corrupt:
                    raise
                except WorldError as error:
                    self._context.counters["coordinator.not_resumed"] += 1
                    _log.warning("epoch %d is not taken over yet: %s", current.epoch, error)
                    await self._epochs.changed.wait_at_most(RESUME_RETRY_MS / 1_000)
                    continue
            await self._epochs.changed.wait()

    async def _watch_memory(self) -> NoReturn:
        """A commit of this key above its own store, in whatever head it is met, means that memory was lost."""
        while True:
            head = self._tracker.head
            if head is not None and self._context.peer_id == self._authorities.certifier:
                try:
                    # Read after the head was seen: its commit was on disk before anybody could build on it.
                    self._check_memory(await self._read(), head.commit)
                except Corrupt:
                    raise
                except WorldError:  # the store does not answer: then nothing is signed either
                    self._context.counters["coordinator.memory_not_checked"] += 1
            if self._tracker.head is head:
                await self._tracker.changed.wait()

    async def _take_over(self, current: AuthoritySet) -> None:
        """Begin with what the roots keep: that batch under a commit of this epoch, and nothing above it."""
        resume = current.resume
        assert resume is not None  # epoch 0 needs no taking over
        last: Resumed | None = None
        if resume.height:
            batch = await self._resumed_batch(resume)
            bytes_max = self._genesis.body.limits.batch_bytes_max
            actions = await fetch_blob(self._sources, batch.record.actions_ref, bytes_max)
            last = Resumed(batch, actions, resumed_commit(current, batch.record, self._context.now_ms()))

        async def work(kept: Kept) -> None:
            is_over = self._epochs.current is not current or self._epochs.is_halted
            if is_over or kept.epoch >= current.epoch:  # another process of this key may have been quicker
                return
            self.kept = await self._store.put_resumed(kept, current.epoch, last)
            _log.warning("epoch %d: certifying from height %d on", current.epoch, resume.height)

        await self._decide(work)

    async def _resumed_batch(self, resume: Resume) -> Sealed[ActionBatch]:
        """The batch that is kept, from here or from whoever has it; a lost seal is no obstacle: its hash is signed."""
        own = await self._store.certified(resume.height)
        if own is not None and own[0].hash() == resume.batch_hash:
            return own[0]

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

    def _check_proposer(self, caller: PeerId) -> None:
        """Before anything is queued: strangers must not stand in line with the one that leads."""
        if caller not in self._authorities.proposers:
            raise Denied("proposer", "only a proposer of the set may ask this of the coordinator")

    # --- lease ---------------------------------------------------------------------------------------------

    async def lease_acquire(self, caller: PeerId, request: LeaseAcquireRequest) -> LeaseAnswer:
        """A new term for the caller, and the batch to build on."""
        self._check_proposer(caller)

        async def work(kept: Kept) -> LeaseAnswer:
            self._require_office(kept)
            self._check_memory(kept, request.commit)
            term_min = 1 if kept.batch is None else kept.batch.record.term + 1
            grant = self._leases.acquire(kept.lease, caller, self._context.now_ms(), term_min)
            return await self._granted(kept, grant)

        return await self._decide(work)

    async def lease_renew(self, caller: PeerId, request: LeaseTermRequest) -> LeaseAnswer:
        self._check_proposer(caller)

        async def work(kept: Kept) -> LeaseAnswer:
            self._require_office(kept)
            grant = self._leases.renew(kept.lease, caller, request.term, self._context.now_ms())
            return await self._granted(kept, grant)

        return await self._decide(work)

    async def lease_release(self, caller: PeerId, request: LeaseTermRequest) -> LeaseAnswer:
        self._check_proposer(caller)

        async def work(kept: Kept) -> LeaseAnswer:
            self._require_office(kept)
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
        lease, commit = kept.lease, self._last(kept)
        is_bound = self._leases.remaining_ms(lease, self._context.now_ms()) > 0
        return LeaseAnswer(
            lease=self._sealed(lease) if is_bound else None,
            batch=None if commit is None else kept.batch,
            commit=commit,
        )

    def _sealed(self, record: R | None) -> Sealed[R] | None:
        """Signed, where it is this node's key that signs it: a store that is shared holds what another's has signed."""
        is_own = record is not None and record.certifier_id == self._context.peer_id
        return seal(record, self._context.key) if record is not None and is_own else None

    def _last(self, kept: Kept) -> Sealed[Commit] | None:
        """The last commit, of the epoch in force."""
        sealed = self._sealed(kept.commit)
        return sealed if sealed is not None and sealed.record.epoch == self._authorities.epoch else None

    # --- order ---------------------------------------------------------------------------------------------

    async def commit_batch(self, caller: PeerId, request: CommitBatchRequest) -> CommitBatchAnswer:
        """Certify the batch at the next height, or give the commit that it has already."""

        self._check_proposer(caller)

        async def work(kept: Kept) -> CommitBatchAnswer:
            self._require_office(kept)
            self._check_memory(kept, request.commit)
            return CommitBatchAnswer(commit=await self._certified(kept, caller, request))

        return await self._decide(work)

    async def _certified(self, kept: Kept, caller: PeerId, request: CommitBatchRequest) -> Sealed[Commit]:
        now_ms, last = self._context.now_ms(), self._sealed(kept.commit)
        so_far = Certified(
            batch=None if kept.batch is None else kept.batch.record,
            commit=last,
            lease=kept.lease if self._leases.remaining_ms(kept.lease, now_ms) else None,
            attested_height=self._tracker.height,
        )
        commit = await self._context.offload(
            lambda: certify(
                self._genesis, self._authorities, so_far, caller, request.batch, request.actions, now_ms
            )
        )
        if commit is None:
            assert last is not None
            return last
        self.kept = await self._store.put_commit(kept, request.batch, request.actions, commit)
        sealed = seal(commit, self._context.key)
        self._tracker.saw_commit(sealed)
        self._context.counters["coordinator.commits"] += 1
        told = {"event": "certified", "world": commit.world_id, "height": commit.height}
        _log.debug("certified", extra=told | {"batch": commit.batch_hash})
        return sealed

    async def get_batch(self, caller: PeerId, request: BatchRequest) -> BatchAnswer:
        """A certified batch, else one that was executed here; whoever asks fetches its actions as a blob."""
        del caller
        batch, commit = await self._store.certified(request.height) or (None, None)
        sealed = self._sealed(commit)
        if batch is None or sealed is None:
            return self._executed(request.height)
        return BatchAnswer(batch=batch, commit=sealed)

    async def get_commit(self, caller: PeerId, request: WorldRequest) -> CommitAnswer:
        """The last commit, signed again when its time is old: it is still the last."""
        del caller, request
        kept = await self._read()
        if self._refreshed(kept) is not None:
            kept = await self._decide(self._refresh)
        return CommitAnswer(authorities=self._epochs.signed, commit=self._last(kept))

    def _refreshed(self, kept: Kept) -> Commit | None:
        """The last commit with a newer time, where this node is to sign one."""
        last = self._last(kept)
        return (
            None if last is None or self._epochs.is_halted else refreshed(last.record, self._context.now_ms())
        )

    async def _refresh(self, kept: Kept) -> Kept:
        commit = self._refreshed(kept)
        if commit is not None:
            self.kept = await self._store.put_refreshed(kept, commit)
        return self.kept

    def _check_memory(self, kept: Kept, seen: Sealed[Commit] | None) -> None:
        """`seen`: a commit that was met before the store was read. A later one may be newer than what was read."""
        check_memory(self._authorities, self._genesis.header.world_id, kept.height, seen)
        if seen is not None and seen.record.epoch == self._authorities.epoch:
            # Another one of a height certified here is a fork by this very key.
            self._tracker.saw_commit(seen)

"""What every LeaseStore does, on the node's database and on a real etcd; and the coordinator on top of it."""

from __future__ import annotations

import base64
import os
import random
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import trio

from bootstrap.demo.etcd_process import MISSING, EtcdProcess, open_etcd
from p2p.errors import Code
from runtime import codec, limits
from runtime.epoch_tables import EpochTables
from runtime.errors import Busy, Corrupt, Denied, Mismatch, Missing, Unavailable
from runtime.messages import (
    BatchAnswer,
    BatchRequest,
    CommitBatchRequest,
    LeaseAcquireRequest,
    LeaseTermRequest,
    WorldRequest,
)
from runtime.records import ActionBatch, Commit, LeaseGrant, Resume, Sealed, SignedAuthorities, seal
from runtime.services import as_failure
from runtime.services import etcd as etcd_module
from runtime.services.authorities import Authorities
from runtime.services.context import Context
from runtime.services.coordinator import Coordinator
from runtime.services.etcd import ACTIONS_KEPT_MAX, EtcdClient, EtcdLeaseStore, open_http
from runtime.services.evidence import EvidenceKeeper
from runtime.services.fetch import Sources
from runtime.services.heads import HeadTracker
from runtime.services.lease_store import EmbeddedLeaseStore, Kept, LeaseStore, Overtaken, Resumed, claim
from runtime.world_db import LmdbWorldDb
from runtime.world_tables import WorldTables

T = TypeVar("T")
pytestmark = pytest.mark.timeout(120)
NEEDS_ETCD = pytest.mark.skipif(shutil.which("etcd") is None and "CI" not in os.environ, reason=MISSING)
BOTH = ("embedded", pytest.param("etcd", marks=NEEDS_ETCD))


@dataclass
class Place:
    """Where a coordinator's memory is: `open` is one process that uses it, after a restart of it too."""

    world: Any
    directory: Path
    stack: AsyncExitStack
    etcd: EtcdProcess | None
    now_ms: int = 1_000_500
    databases: dict[str, LmdbWorldDb] = field(default_factory=dict)

    async def open(self, process: str = "one") -> tuple[Context, LeaseStore]:
        """A store as one process sees it. On etcd each process has a database of its own."""
        name = "shared" if self.etcd is None else process
        if name not in self.databases:  # LMDB: opened once in a process
            (self.directory / name).mkdir()
            self.databases[name] = self.stack.enter_context(closing(LmdbWorldDb(self.directory / name)))
        db = self.databases[name]
        unused = cast("Any", None)
        key = self.world.certifier
        context = Context(unused, unused, unused, db, key, lambda: self.now_ms, random.Random(0), _in_thread)
        tables = WorldTables(db, self.world.world_id)
        if self.etcd is None:
            return context, EmbeddedLeaseStore(context, tables)
        http = await self.stack.enter_async_context(open_http())
        return context, EtcdLeaseStore(context, tables, EtcdClient(http, [self.etcd.endpoint]))

    async def pair(self) -> tuple[LeaseStore, LeaseStore]:
        """Two processes with the same key on the same memory; embedded, it is one database opened once."""
        context, one = await self.open("one")
        if self.etcd is None:
            return one, EmbeddedLeaseStore(context, WorldTables(context.db, self.world.world_id))
        return one, (await self.open("two"))[1]

    def lease(self, term: int = 1, granted_at_ms: int = 1_000_000) -> LeaseGrant:
        return LeaseGrant(
            world_id=self.world.world_id,
            epoch=0,
            term=term,
            holder_id=self.world.proposer.identity,
            granted_at_ms=granted_at_ms,
            ttl_ms=limits.LEASE_TTL_MS,
            certifier_id=self.world.certifier.identity,
        )

    def resumed(self, kept: Kept, epoch: int) -> Resumed:
        """The last batch that is kept, for an epoch that resumes from it."""
        assert kept.batch is not None
        assert kept.commit is not None
        return Resumed(kept.batch, b"\x80", replace(kept.commit, epoch=epoch, as_of_ms=self.now_ms + 1))

    def batch(
        self, kept: Kept, actions: bytes = b"\x80", term: int = 1, stamp_ms: int = 1_000_100
    ) -> tuple[Sealed[ActionBatch], bytes, Commit]:
        """The next batch after what is kept, with its actions and the commit to store."""
        header = self.world.genesis.header
        record = ActionBatch(
            world_id=self.world.world_id,
            epoch=kept.epoch,
            term=term,
            height=kept.height + 1,
            prev_batch_hash=header.hash() if kept.batch is None else kept.batch.hash(),
            envelope_count=0,
            actions_root=codec.merkle_root([]),
            actions_ref=codec.content_id(actions),
            proposer_id=self.world.proposer.identity,
            timestamp_ms=stamp_ms,
        )
        batch = seal(record, self.world.proposer)
        commit = Commit(
            world_id=record.world_id,
            epoch=kept.epoch,
            term=term,
            height=record.height,
            batch_hash=batch.hash(),
            certifier_id=self.world.certifier.identity,
            as_of_ms=self.now_ms,
        )
        return batch, actions, commit


async def _in_thread(work: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(work)


@asynccontextmanager
async def _opened(kind: str, tmp_path: Path, world: Any) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(open_etcd(tmp_path / "server")) if kind == "etcd" else None
        yield Place(world, tmp_path, stack, etcd)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes its time for a megabyte on disk; whoever tests deadlines sets a short one."""
    monkeypatch.setattr(etcd_module, "ETCD_TRY_MS", 20_000)


@pytest.fixture(params=BOTH)
async def place(
    request: pytest.FixtureRequest, tmp_path: Path, small_world: Callable[..., Any]
) -> AsyncIterator[Place]:
    async with _opened(request.param, tmp_path, small_world()) as opened:
        yield opened


@pytest.fixture
async def on_etcd(tmp_path: Path, small_world: Callable[..., Any]) -> AsyncIterator[Place]:
    async with _opened("etcd", tmp_path, small_world()) as opened:
        yield opened


class TestStore:
    async def test_an_empty_store_holds_nothing(self, place: Place) -> None:
        _context, store = await place.open()
        assert await store.read() == Kept()
        assert (await store.read()).height == 0
        assert await store.certified(1) is None

    async def test_what_is_written_is_read_by_every_process(self, place: Place) -> None:
        one, two = await place.pair()
        kept = await one.put_lease(Kept(), place.lease())
        assert kept == Kept(place.lease())
        assert await two.read() == kept
        batch, actions, commit = place.batch(kept)
        kept = await one.put_commit(kept, batch, actions, commit)
        assert kept == Kept(place.lease(), batch, commit)
        assert await one.read() == await two.read() == kept
        assert await two.certified(1) == (batch, commit)

    async def test_only_one_of_two_processes_writes_a_height(self, place: Place) -> None:
        one, two = await place.pair()
        kept = await one.put_lease(Kept(), place.lease())
        first, second = place.batch(kept), place.batch(kept, stamp_ms=1_000_200)
        assert first[0].hash() != second[0].hash()
        written: list[int] = []

        async def write(number: int, store: LeaseStore, parts: tuple[Any, ...]) -> None:
            try:
                await store.put_commit(kept, *parts)
            except Overtaken:
                return
            written.append(number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, 0, one, first)
            nursery.start_soon(write, 1, two, second)
        assert len(written) == 1
        stands = (first, second)[written[0]]
        for store in (one, two):
            assert await store.certified(1) == (stands[0], stands[2])
            assert (await store.read()).commit == stands[2]

    async def test_a_lease_that_moved_on_stops_a_commit_under_the_old_one(self, place: Place) -> None:
        one, two = await place.pair()
        kept = await one.put_lease(Kept(), place.lease())
        await two.put_lease(kept, place.lease(term=2))
        with pytest.raises(Overtaken):
            await one.put_commit(kept, *place.batch(kept))
        with pytest.raises(Overtaken):
            await one.put_lease(kept, place.lease(granted_at_ms=1_000_001))
        assert await one.read() == Kept(place.lease(term=2))
        assert await one.certified(1) is None

    async def test_a_commit_stops_a_lease_that_was_judged_before_it(self, place: Place) -> None:
        one, two = await place.pair()
        kept = await one.put_lease(Kept(), place.lease())
        await two.put_commit(kept, *place.batch(kept))
        with pytest.raises(Overtaken):
            await one.put_lease(kept, place.lease(term=2))
        with pytest.raises(Overtaken):
            await one.put_commit(kept, *place.batch(kept, stamp_ms=1_000_300))

    async def test_a_refreshed_commit_is_the_same_one_later(self, place: Place) -> None:
        one, two = await place.pair()
        kept = await one.put_commit(Kept(), *place.batch(Kept()))
        assert kept.commit is not None
        fresh = replace(kept.commit, as_of_ms=kept.commit.as_of_ms + 10_000)
        assert (await one.put_refreshed(kept, fresh)).commit == fresh
        assert (await two.read()).commit == fresh
        with pytest.raises(Overtaken):
            await two.put_refreshed(kept, replace(fresh, as_of_ms=fresh.as_of_ms + 1))
        with pytest.raises(Overtaken):
            await two.put_commit(kept, *place.batch(kept))

    async def test_an_epoch_begins_with_what_it_keeps_and_nothing_above(self, place: Place) -> None:
        one, two = await place.pair()
        kept = at_two = await one.put_lease(Kept(), place.lease())
        for height in range(1, 5):
            kept = await one.put_commit(kept, *place.batch(kept, stamp_ms=1_000_100 + height))
            at_two = kept if height == 2 else at_two
        first = await two.certified(1)
        last = place.resumed(at_two, epoch=3)
        begun = await one.put_resumed(kept, 3, last)
        assert begun == Kept(place.lease(), last.batch, last.commit, 3)
        for store in (one, two):
            assert await store.read() == begun
            assert await store.certified(2) == (last.batch, last.commit)
            assert await store.certified(1) == first, "what the epoch keeps stays"
            assert await store.certified(3) is None
            assert await store.certified(4) is None
        with pytest.raises(Overtaken):  # who judged by the old epoch writes nothing
            await two.put_commit(kept, *place.batch(kept))
        with pytest.raises(Overtaken):
            await two.put_commit(at_two, *place.batch(at_two))
        with pytest.raises(Overtaken):
            await two.put_resumed(kept, 3, last)
        batch, actions, commit = place.batch(begun, stamp_ms=1_000_900)
        assert await two.put_commit(begun, batch, actions, commit) == await one.read()
        assert await one.certified(3) == await two.certified(3) == (batch, commit)

    async def test_an_epoch_that_keeps_nothing_begins_with_the_genesis(self, place: Place) -> None:
        one, two = await place.pair()
        kept = await one.put_lease(Kept(), place.lease())
        kept = await one.put_commit(kept, *place.batch(kept))
        assert await one.put_resumed(kept, 1, None) == Kept(place.lease(), epoch=1)
        assert await two.read() == Kept(place.lease(), epoch=1)
        assert await two.certified(1) is None
        with pytest.raises(Overtaken):
            await two.put_lease(kept, place.lease(term=2))

    async def test_only_the_epoch_may_be_what_moved_on(self, place: Place) -> None:
        one, two = await place.pair()
        await one.put_resumed(Kept(), 1, None)
        with pytest.raises(Overtaken):
            await two.put_lease(Kept(), place.lease())
        with pytest.raises(Overtaken):
            await two.put_commit(Kept(), *place.batch(Kept()))
        assert await two.read() == Kept(epoch=1)

    async def test_a_resumed_batch_is_held_with_its_actions(self, place: Place) -> None:
        """A coordinator that never saw the epochs before begins with what it fetched."""
        context, store = await place.open()
        seen = Kept(None, *place.batch(Kept())[::2])
        last = place.resumed(seen, epoch=2)
        assert await store.put_resumed(Kept(), 2, last) == await store.read()
        assert context.db.blobs.get(last.batch.record.actions_ref) == last.actions
        assert context.db.blobs.get(last.batch.hash()) == last.batch.record.preimage()

    async def test_the_largest_batch_fits(self, place: Place) -> None:
        """960 KiB of actions in one transaction: base64 in JSON is 1.3 MiB, but etcd's limit counts raw bytes."""
        context, store = await place.open()
        actions = random.Random(1).randbytes(limits.BATCH_BYTES_CEILING)
        kept = await store.put_commit(Kept(), *place.batch(Kept(), actions))
        assert context.db.blobs.get(codec.content_id(actions)) == actions
        assert (await store.read()) == kept

    async def test_a_store_that_was_chosen_is_not_left_for_another(
        self, place: Place, tmp_path: Path
    ) -> None:
        context, store = await place.open()
        other = WorldTables(context.db, place.world.world_id)
        is_embedded = isinstance(store, EmbeddedLeaseStore)
        with pytest.raises(Denied, match="coordinator.store"):
            claim(context, other, EtcdLeaseStore.NAME if is_embedded else EmbeddedLeaseStore.NAME)


def executed_nothing(height: int) -> BatchAnswer:
    raise Missing("batch", str(height))


async def coordinator_of(
    place: Place, process: str, nursery: trio.Nursery, installed: SignedAuthorities | None = None
) -> Coordinator:
    """A running coordinator on a process's own database, and on etcd where there is one."""
    context, store = await place.open(process)
    genesis, world_id = place.world.genesis, place.world.world_id
    tables, sources = EpochTables(context.db, world_id), Sources(context, world_id)
    authorities = Authorities(context, genesis, tables)
    if installed is not None:
        await authorities.install(installed)
    evidence = EvidenceKeeper(context, genesis, tables, authorities, sources, None)
    tracker = HeadTracker(context, genesis, WorldTables(context.db, world_id), authorities, evidence)
    coordinator = Coordinator(context, genesis, store, tracker, authorities, sources, executed_nothing)
    await nursery.start(coordinator.run)
    return coordinator


def next_epoch(place: Place, kept: Kept) -> SignedAuthorities:
    """A set of the next epoch, with the same keys, that resumes from the last batch of `kept`."""
    world = place.world
    assert kept.batch is not None
    made = replace(
        world.genesis.authorities,
        epoch=kept.epoch + 1,
        world_id=world.world_id,
        resume=Resume(kept.height, kept.batch.hash()),
    )
    index = world.genesis.header.root_keys.index(world.root.identity)
    return SignedAuthorities(made, ((index, world.root.sign(made.hash())),))


class TestCoordinator:
    def request(self, place: Place, kept: Kept, term: int, stamp_ms: int) -> CommitBatchRequest:
        batch, actions, _commit = place.batch(kept, term=term, stamp_ms=stamp_ms)
        return CommitBatchRequest(world_id=place.world.world_id, batch=batch, actions=actions)

    async def test_lease_commit_and_batch_are_signed_and_the_same_again(self, place: Place) -> None:
        caller, world_id = place.world.proposer.identity, place.world.world_id
        async with trio.open_nursery() as nursery:
            one = await coordinator_of(place, "one", nursery)
            lease = (await one.lease_acquire(caller, LeaseAcquireRequest(world_id=world_id))).lease
            assert lease is not None
            lease.verify()
            request = self.request(place, Kept(), lease.record.term, 1_000_100)
            commit = (await one.commit_batch(caller, request)).commit
            commit.verify()
            assert (await one.commit_batch(caller, request)).commit == commit
            with pytest.raises(Mismatch) as caught:
                await one.commit_batch(caller, self.request(place, Kept(), lease.record.term, 1_000_200))
            assert caught.value.detail == commit.to_bytes()
            answer = await one.get_batch(caller, BatchRequest(world_id=world_id, height=1))
            assert (answer.batch, answer.commit) == (request.batch, commit)
            with pytest.raises(Missing):
                await one.get_batch(caller, BatchRequest(world_id=world_id, height=2))
            renewal = LeaseTermRequest(world_id=world_id, term=lease.record.term)
            renewed = await one.lease_renew(caller, renewal)
            assert (renewed.batch, renewed.commit) == (request.batch, commit)
            assert (await one.lease_release(caller, renewal)).lease is None
            assert one.kept.height == 1
            place.now_ms += limits.COMMIT_REFRESH_MS
            fresh = (await one.get_commit(caller, WorldRequest(world_id=world_id))).commit
            assert fresh is not None
            fresh.verify()
            assert fresh.record.as_of_ms == place.now_ms
            nursery.cancel_scope.cancel()

    async def test_a_new_epoch_is_taken_over_once_and_certified_in(self, place: Place) -> None:
        caller, world_id = place.world.proposer.identity, place.world.world_id
        _context, store = await place.open("before")
        kept = at_one = await store.put_commit(Kept(), *place.batch(Kept()))
        kept = await store.put_commit(kept, *place.batch(kept))
        signed = next_epoch(place, at_one)
        async with trio.open_nursery() as nursery:
            one = await coordinator_of(place, "one", nursery, signed)
            with trio.fail_after(30):
                while (await store.read()).epoch == 0:
                    await trio.sleep(0.01)
            answer = await one.get_commit(caller, WorldRequest(world_id=world_id))
            assert answer.commit is not None
            answer.commit.verify()
            assert (answer.commit.record.epoch, answer.commit.record.height) == (1, 1)
            with pytest.raises(Missing):
                await one.get_batch(caller, BatchRequest(world_id=world_id, height=2))
            lease = (await one.lease_acquire(caller, LeaseAcquireRequest(world_id=world_id))).lease
            assert lease is not None
            assert lease.record.epoch == 1
            request = self.request(place, one.kept, lease.record.term, 1_000_200)
            commit = (await one.commit_batch(caller, request)).commit
            assert (commit.record.epoch, commit.record.height) == (1, 2)
            nursery.cancel_scope.cancel()

    @NEEDS_ETCD
    async def test_a_process_that_knows_only_the_old_epoch_signs_nothing_in_it(self, on_etcd: Place) -> None:
        caller, world_id = on_etcd.world.proposer.identity, on_etcd.world.world_id
        _context, store = await on_etcd.open("before")
        kept = await store.put_commit(Kept(), *on_etcd.batch(Kept()))
        async with trio.open_nursery() as nursery:
            late = await coordinator_of(on_etcd, "late", nursery)
            await store.put_resumed(kept, 1, on_etcd.resumed(kept, 1))
            with pytest.raises(Busy, match="epoch"):
                await late.lease_acquire(caller, LeaseAcquireRequest(world_id=world_id))
            assert (await late.get_commit(caller, WorldRequest(world_id=world_id))).commit is None
            nursery.cancel_scope.cancel()

    @NEEDS_ETCD
    async def test_two_processes_with_one_key_never_sign_two_commits_of_a_height(
        self, on_etcd: Place
    ) -> None:
        caller, world_id = on_etcd.world.proposer.identity, on_etcd.world.world_id
        signed: dict[int, set[bytes]] = {}

        async def offer(to: Coordinator, kept: Kept, term: int, stamp_ms: int) -> None:
            try:
                answer = await to.commit_batch(caller, self.request(on_etcd, kept, term, stamp_ms))
            except (Mismatch, Busy):
                return
            answer.commit.verify()
            signed.setdefault(answer.commit.record.height, set()).add(answer.commit.record.batch_hash)

        async with trio.open_nursery() as nursery:
            both = [await coordinator_of(on_etcd, name, nursery) for name in ("one", "two")]
            lease = (await both[0].lease_acquire(caller, LeaseAcquireRequest(world_id=world_id))).lease
            assert lease is not None
            for height in range(1, 11):
                kept = Kept() if height == 1 else both[height % 2].kept
                async with trio.open_nursery() as racers:
                    for number in range(4):
                        stamp_ms = 1_000_100 + height * 10 + number
                        racers.start_soon(offer, both[number % 2], kept, lease.record.term, stamp_ms)
                await both[0].lease_get(caller, WorldRequest(world_id=world_id))
                await both[1].lease_get(caller, WorldRequest(world_id=world_id))
            nursery.cancel_scope.cancel()
        assert sorted(signed) == list(range(1, 11))
        assert {len(hashes) for hashes in signed.values()} == {1}

    @NEEDS_ETCD
    async def test_an_etcd_that_is_away_costs_answers_and_no_signature(
        self, on_etcd: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(etcd_module, "ETCD_TRY_MS", 300)
        caller, world_id = on_etcd.world.proposer.identity, on_etcd.world.world_id
        assert on_etcd.etcd is not None
        async with trio.open_nursery() as nursery:
            one = await coordinator_of(on_etcd, "one", nursery)
            lease = (await one.lease_acquire(caller, LeaseAcquireRequest(world_id=world_id))).lease
            assert lease is not None
            await on_etcd.etcd.end()
            request = self.request(on_etcd, Kept(), lease.record.term, 1_000_100)
            asks: list[Callable[[], Awaitable[object]]] = [
                lambda: one.commit_batch(caller, request),
                lambda: one.lease_renew(caller, LeaseTermRequest(world_id=world_id, term=1)),
                lambda: one.lease_get(caller, WorldRequest(world_id=world_id)),
                lambda: one.get_commit(caller, WorldRequest(world_id=world_id)),
            ]
            for ask in asks:
                with pytest.raises(Unavailable, match="etcd"):
                    await ask()
            await on_etcd.etcd.start()
            commit = (await one.commit_batch(caller, request)).commit
            commit.verify()
            nursery.cancel_scope.cancel()

    async def test_a_memory_that_was_lost_stops_the_coordinator(self, place: Place) -> None:
        caller, world_id = place.world.proposer.identity, place.world.world_id
        _batch, _actions, commit = place.batch(Kept())
        seen = seal(commit, place.world.certifier)
        with pytest.RaisesGroup(pytest.RaisesExc(Corrupt, match="ends at height 0"), flatten_subgroups=True):
            async with trio.open_nursery() as nursery:
                one = await coordinator_of(place, "one", nursery)
                with pytest.raises(Corrupt):
                    await one.lease_acquire(caller, LeaseAcquireRequest(world_id=world_id, commit=seen))
                await trio.sleep_forever()


@NEEDS_ETCD
class TestEtcd:
    async def test_a_new_machine_finds_the_order_and_the_actions(self, on_etcd: Place) -> None:
        _context, one = await on_etcd.open("one")
        batch, actions, commit = on_etcd.batch(Kept(), b"\x81\x40")
        await one.put_commit(Kept(), batch, actions, commit)
        context, two = await on_etcd.open("a new machine")
        assert not context.db.blobs.has(batch.record.actions_ref)
        assert await two.certified(1) == (batch, commit)
        assert context.db.blobs.get(batch.record.actions_ref) == actions
        assert context.db.blobs.get(batch.hash()) == batch.record.preimage()

    async def test_what_is_kept_is_bounded(self, on_etcd: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "COMMITS_KEPT_MAX", ACTIONS_KEPT_MAX + 3)
        _context, store = await on_etcd.open("one")
        kept = Kept()
        for _ in range(ACTIONS_KEPT_MAX + 5):
            kept = await store.put_commit(kept, *on_etcd.batch(kept))
        assert await store.certified(1) is not None, "this machine has them all"
        context, other = await on_etcd.open("a new machine")
        assert await other.certified(2) is None
        assert await other.certified(3) is not None
        assert not context.db.blobs.has(codec.content_id(b"\x80"))
        assert await other.certified(6) is not None
        assert context.db.blobs.has(codec.content_id(b"\x80"))

    async def test_an_etcd_that_is_stopped_or_gone_is_unavailable_within_the_deadline(
        self, on_etcd: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(etcd_module, "ETCD_TRY_MS", 300)
        _context, store = await on_etcd.open()
        kept = await store.put_lease(Kept(), on_etcd.lease())
        assert on_etcd.etcd is not None
        on_etcd.etcd.signal(signal.SIGSTOP)
        for call in (store.read, lambda: store.put_commit(kept, *on_etcd.batch(kept))):
            with pytest.raises(Unavailable, match="no answer within 300 ms") as caught:
                await call()
            failure = as_failure(caught.value)
            assert (failure.code, failure.retryable) == (Code.ERR_NOT_AVAILABLE, True)
            assert failure.retry_after_ms > 0
        await on_etcd.etcd.end()
        with pytest.raises(Unavailable):
            await store.read()
        await on_etcd.etcd.start()
        # What was asked of it while it was stopped may have been done when it woke: reading tells which.
        assert (await store.read()).lease == on_etcd.lease()

    async def test_the_next_endpoint_is_asked(self, on_etcd: Place) -> None:
        assert on_etcd.etcd is not None
        http = await on_etcd.stack.enter_async_context(open_http())
        client = EtcdClient(http, ["http://127.0.0.1:9", on_etcd.etcd.endpoint])
        assert "header" in await client.call("range", {"key": "YQ=="})
        with pytest.raises(Unavailable, match="etcdserver|key is not provided"):
            await client.call("range", {})

    async def test_a_row_that_does_not_read_is_corrupt(self, on_etcd: Place) -> None:
        assert on_etcd.etcd is not None
        _context, store = await on_etcd.open()
        http = await on_etcd.stack.enter_async_context(open_http())
        client = EtcdClient(http, [on_etcd.etcd.endpoint])
        for name in ("lease", "last", "epoch"):
            key = _base64(f"aw/{on_etcd.world.world_id}/{name}")
            await client.call("put", {"key": key, "value": _base64("rubbish")})
            with pytest.raises(Corrupt, match=f"{on_etcd.world.world_id}/{name}"):
                await store.read()
            await client.call("deleterange", {"key": key})
        assert await store.read() == Kept()


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()

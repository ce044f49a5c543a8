"""Blobs that a node holds: never given out damaged, read through at a bounded rate, fetched again, pruned when full."""

from __future__ import annotations

import random
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from runtime import limits
from runtime.codec import content_id
from runtime.errors import Corrupt, Missing, MissingBlob, StoreFull
from runtime.messages import BlobRequest
from runtime.services import custody
from runtime.services.context import Context
from runtime.services.replica import Applied, Replica
from runtime.services.serve import NodeDesk
from runtime.world_db import Delete, MemoryWorldDb, Put, Table
from runtime.world_tables import WorldTables

DATA = [bytes([n]) * 1_000 for n in range(20)]


async def at_once(work: Callable[[], Any]) -> Any:
    await trio.lowlevel.checkpoint()
    return work()


def make_context(db: MemoryWorldDb) -> Context:
    nothing: Any = None
    return Context(nothing, nothing, nothing, db, nothing, lambda: 0, random.Random(0), at_once)


@pytest.fixture
def db() -> MemoryWorldDb:
    return MemoryWorldDb()


@pytest.fixture
def context(db: MemoryWorldDb) -> Context:
    return make_context(db)


def damage(db: MemoryWorldDb, content: bytes) -> None:
    db.blobs._blobs[content] = b"!" + db.blobs._blobs[content][1:]


async def for_a_while(seconds: float, loop: Callable[..., Awaitable[Any]], *args: Any) -> None:
    with trio.move_on_after(seconds):
        await loop(*args)


def test_damage_is_missing_to_every_reader_and_counted_once(db: MemoryWorldDb, context: Context) -> None:
    reads: list[Callable[[bytes], Any]] = [
        context.blobs.get,
        context.blobs.verify,
        lambda content: context.blobs.get_range(content, 0, 1),
    ]
    for number, read in enumerate(reads, 1):
        content = db.blobs.put(DATA[number])
        damage(db, content)
        with pytest.raises(MissingBlob):
            read(content)
        assert not db.blobs.has(content)
        assert context.blobs.find(content) is None
        assert context.counters["store.damaged"] == number
    assert list(context.blobs.lost) == [content_id(data) for data in DATA[1:4]]


def test_two_who_read_the_same_damage_at_once_count_it_once(
    db: MemoryWorldDb, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = db.blobs.put(DATA[0])
    damage(db, content)
    read, both = db.blobs.get, threading.Barrier(2)

    def get(content: bytes) -> bytes:
        try:
            return read(content)
        except Corrupt:
            both.wait(timeout=10)
            raise

    monkeypatch.setattr(db.blobs, "get", get)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(context.blobs.find, [content, content])) == [None, None]
    assert context.counters["store.damaged"] == 1


def test_who_read_damage_before_it_was_mended_leaves_the_sound_blob(
    db: MemoryWorldDb, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = db.blobs.put(DATA[0])

    def get(content: bytes) -> bytes:
        raise Corrupt("blob", content.hex())

    monkeypatch.setattr(db.blobs, "get", get)
    assert context.blobs.find(content) is None
    assert db.blobs.has(content)
    assert (context.counters["store.damaged"], list(context.blobs.lost)) == (0, [])


async def test_a_damaged_blob_is_not_served(db: MemoryWorldDb, context: Context) -> None:
    desk = NodeDesk(context, (), tuple, {})
    large = b"L" * 600_000
    for data in (DATA[0], large):
        content = db.blobs.put(data)
        sent: list[bytes] = []

        async def send(part: bytes, sent: list[bytes] = sent) -> None:
            sent.append(part)

        await desk.fetch_blob(b"", BlobRequest(content_hash=content), send)
        assert b"".join(sent) == data
        sent.clear()
        damage(db, content)
        with pytest.raises(Missing):
            await desk.fetch_blob(b"", BlobRequest(content_hash=content), send)
        assert sent == []


async def test_the_scrub_finds_damage_and_what_is_needed_and_not_held(
    db: MemoryWorldDb, context: Context, autojump_clock: trio.testing.MockClock
) -> None:
    db.commit([], DATA[:10], keep=True)
    db.commit([], DATA[10:])
    damage(db, content_id(DATA[3]))
    damage(db, content_id(DATA[13]))
    del db.blobs._blobs[content_id(DATA[4])]
    await for_a_while(50, custody.scrub, context, 100_000, 3_600_000)
    assert context.counters["scrub.rounds"] == 1
    assert context.counters["scrub.blobs"] == 17
    assert context.counters["scrub.bytes"] == 17_000
    assert context.counters["store.damaged"] == 2
    assert set(context.blobs.lost) == {content_id(DATA[n]) for n in (3, 4, 13)}


@pytest.mark.parametrize(("bytes_per_s", "seconds"), [(100_000, 80), (1_000_000, 8)])
async def test_the_scrub_keeps_its_pace(
    db: MemoryWorldDb,
    context: Context,
    autojump_clock: trio.testing.MockClock,
    bytes_per_s: int,
    seconds: float,
) -> None:
    db.blobs.put_many([n.to_bytes(4, "big") * 25_000 for n in range(80)])  # 8 MB
    await for_a_while(seconds * 0.9, custody.scrub, context, bytes_per_s, 1_000)
    assert context.counters["scrub.rounds"] == 0
    assert context.counters["scrub.bytes"] < bytes_per_s * seconds * 0.95
    await for_a_while(seconds * 1.1, custody.scrub, context, bytes_per_s, 1_000)
    assert context.counters["scrub.rounds"] == 1


async def test_what_was_lost_is_fetched_again_when_somebody_gives_it(
    db: MemoryWorldDb,
    context: Context,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = content_id(DATA[0])
    db.commit([], DATA[:1], keep=True)
    damage(db, content)
    assert context.blobs.find(content) is None
    tries = 0

    async def fetch(sources: Any, asked: bytes) -> bytes:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise MissingBlob(asked)
        return DATA[0]

    monkeypatch.setattr(custody, "fetch_blob", fetch)
    nothing: Any = None
    await for_a_while(60, custody.heal, context, nothing)
    assert tries == 4
    assert db.blobs.get(content) == DATA[0]
    assert db.blobs.stat(content).pinned
    assert not context.blobs.lost
    assert context.counters["store.healed"] == 1
    assert context.counters["store.heal_failed"] == 3


async def test_room_is_made_only_when_it_is_short_and_only_of_what_nobody_needs(
    db: MemoryWorldDb, context: Context, autojump_clock: trio.testing.MockClock
) -> None:
    db.commit([], DATA[:5], keep=True)
    db.commit([], DATA[5:10])
    db.blobs.pin(content_id(DATA[5]))
    await for_a_while(60, custody.keep_room, context, 100_000)
    assert context.counters["store.pruned_bytes"] == 0
    await for_a_while(60, custody.keep_room, context, 10_000)
    assert context.counters["store.pruned_bytes"] == 4_000
    assert sorted(db.blobs.iterate()) == sorted(content_id(data) for data in DATA[:6])


async def test_a_write_that_must_not_be_lost_waits_for_space(
    context: Context, db: MemoryWorldDb, autojump_clock: trio.testing.MockClock
) -> None:
    db.blobs.bytes_max = 500
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: context.store("it", [Put(Table.CURSORS, b"k", b"v")], DATA[:1], keep=True))
        await trio.sleep(3 * limits.STORE_FULL_RETRY_MS / 1_000)
        assert context.counters["store.full"] >= 2
        assert db.get(Table.CURSORS, b"k") is None
        db.blobs.bytes_max = None
    assert db.get(Table.CURSORS, b"k") == b"v"


class TestRestore:
    """A node that starts on a damaged store."""

    @pytest.fixture
    def world(self, small_world: Any) -> Any:
        world = small_world()
        place = {"x_cm": 1, "y_cm": 1, "z_cm": 1}
        world.run(world.envelope(world.actors[0], ("register_agent", {"agent_id": "a"} | place)))
        world.run(world.envelope(world.actors[1], ("register_agent", {"agent_id": "b"} | place)))
        return world

    @pytest.fixture
    async def stored(self, world: Any, small_world: Any, db: MemoryWorldDb) -> dict[str, bytes]:
        """The two blocks applied by an executing replica; content ids of the second by name."""
        from runtime.records import ActionBatch

        replica = self.replica(world, db)
        other = small_world()
        ids: dict[str, bytes] = {}
        for built, actor, agent in zip(world.blocks, other.actors, "ab", strict=False):
            place = {"x_cm": 1, "y_cm": 1, "z_cm": 1}
            envelope = other.envelope(actor, ("register_agent", {"agent_id": agent} | place))
            batch, actions = other.batch([envelope])
            other.run(envelope)
            assert isinstance(batch, ActionBatch)
            assert batch.hash() == built.block.batch_hash
            blobs = (*built.blobs.values(), batch.preimage(), actions)
            await replica.apply(
                Applied(built.block, batch, (envelope,), built.outcome.receipts, blobs, built.tip)
            )
            ids = {
                "block": built.block.hash(),
                "batch": batch.hash(),
                "actions": batch.actions_ref,
                "receipts": built.block.receipts_ref,
                "journal": built.block.journal_ref,
            }
        return ids

    @staticmethod
    def replica(world: Any, db: MemoryWorldDb, cursor: str = "executed") -> Replica:
        return Replica(make_context(db), world.genesis, WorldTables(db, world.world_id), cursor)

    @pytest.mark.parametrize("name", ["receipts", "journal"])
    async def test_what_a_replay_gives_is_written_again(
        self, world: Any, db: MemoryWorldDb, stored: dict[str, bytes], name: str
    ) -> None:
        damage(db, stored[name])
        replica = self.replica(world, db)
        await replica.restore(lambda done, total: None, nobody)
        assert replica.block_hash == stored["block"]
        assert db.blobs.get(stored[name])
        assert db.blobs.stat(stored[name]).pinned

    @pytest.mark.parametrize("name", ["block", "batch", "actions"])
    @pytest.mark.parametrize("how", ["damaged", "gone"])
    async def test_what_it_does_not_give_is_asked_for(
        self, world: Any, db: MemoryWorldDb, stored: dict[str, bytes], name: str, how: str
    ) -> None:
        sound = db.blobs.get(stored[name])
        if how == "damaged":
            damage(db, stored[name])
        else:
            del db.blobs._blobs[stored[name]]
        with pytest.raises(Corrupt, match=stored[name].hex()) as caught:
            await self.replica(world, db).restore(lambda done, total: None, nobody)
        assert caught.value.repair

        async def bring_back(content: bytes) -> None:
            assert content == stored[name]
            db.blobs.put(sound)

        replica = self.replica(world, db)
        await replica.restore(lambda done, total: None, bring_back)
        assert replica.block_hash == stored["block"]

    async def test_a_replay_goes_to_the_worker_thread_once_for_many_small_heights(
        self, world: Any, db: MemoryWorldDb, stored: dict[str, bytes]
    ) -> None:
        trips, told = 0, list[tuple[int, int]]()

        async def counted(work: Callable[[], Any]) -> Any:
            nonlocal trips
            trips += 1
            return work()

        context = replace(make_context(db), offload=counted)
        replica = Replica(context, world.genesis, WorldTables(db, world.world_id), "executed")
        await replica.restore(lambda done, total: told.append((done, total)), nobody)
        assert (replica.block_hash, trips, told) == (stored["block"], 1, [(2, 2)])

    async def test_a_lost_row_is_refused(
        self, world: Any, db: MemoryWorldDb, stored: dict[str, bytes]
    ) -> None:
        assert stored
        key = world.world_id.encode() + (1).to_bytes(8, "big")
        db.commit([Delete(Table.BLOCKS, key)])
        with pytest.raises(Corrupt, match="height 1"):
            await self.replica(world, db).restore(lambda done, total: None, nobody)


async def nobody(content: bytes) -> None:
    raise MissingBlob(content)


async def test_a_gateway_without_room_refuses_each_envelope_and_takes_it_later(
    small_world: Any, db: MemoryWorldDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.epoch_tables import EpochTables
    from runtime.messages import SubmitRequest
    from runtime.services.authorities import Authorities
    from runtime.services.gateway import Gateway

    world = small_world()
    nothing: Any = None
    context = Context(
        nothing, nothing, nothing, db, world.executor, lambda: 1_000_000, random.Random(0), at_once
    )
    tables = WorldTables(db, world.world_id)
    replica = Replica(context, world.genesis, tables, "executed")
    authorities = Authorities(context, world.genesis, EpochTables(db, world.world_id))
    gateway = Gateway(context, replica, authorities, nothing, None)
    good = world.envelope(world.actors[0], ("x", {}))
    stale = world.envelope(world.actors[1], ("x", {}), nonce=9_999)
    request = SubmitRequest(world_id=world.world_id, envelopes=(good, stale))

    def full(*args: Any, **kwargs: Any) -> None:
        raise StoreFull("the store", "disk_bytes_max is 7")

    with monkeypatch.context() as patched:
        patched.setattr(db, "commit", full)
        for _ in range(2):
            first, second = (await gateway.submit(b"", request)).results
            assert (first.outcome, first.reason) == ("refused", "StoreFull")
            assert "disk_bytes_max" in (first.message or "")
            assert first.retry_after_ms == limits.STORE_FULL_RETRY_MS
            assert second.reason == "Busy"
        assert tables.outbox_count() == 0
    first, second = (await gateway.submit(b"", request)).results
    assert first.outcome == "accepted"
    assert tables.outbox_count() == 1

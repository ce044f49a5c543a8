"""Who puts the head into the DHT: whoever serves the world, where the DHT lacks it, and nobody against anybody."""

from __future__ import annotations

import copy
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from bootstrap.world_node import run_world
from p2p import names
from p2p.memory import InMemoryHub
from p2p.providers import CachedDht, ProviderCache
from runtime import chain, limits, rules, world
from runtime.keys import SigningKey
from runtime.messages import WorldStatus
from runtime.services import HeadRecords
from runtime.services.context import Context
from runtime.services.heads import HEAD_POLL_MS, ROUNDS_A_LOOK_UP
from runtime.services.methods import MethodTable
from runtime.services.publish import HEAD_BEHIND_MS, HEAD_LOOK_MS, is_behind
from runtime.services.serve import NodeDesk
from runtime.world_db import MemoryWorldDb, Row, Table
from runtime.world_tables import WorldTables

NOW_MS = 2_000_000


def key(number: int) -> SigningKey:
    return SigningKey(bytes([number]) * 32)


async def direct(work: Callable[[], Any]) -> Any:
    await trio.lowlevel.checkpoint()
    return work()


def run_block(small: Any, db: MemoryWorldDb, agent_id: str, *, stored: bool) -> Any:
    """One more block of the world; in the database as storage would have it, when it is `stored`."""
    agent = {"agent_id": agent_id, "x_cm": 1, "y_cm": 1, "z_cm": 1}
    envelope = small.envelope(small.actors[0], ("register_agent", agent))
    batch, actions = small.batch([envelope])
    built = chain.build_block(small.genesis, small.tip, batch, [envelope], world.check_signatures([envelope]))
    small.tip = built.tip
    if stored:
        tables = WorldTables(db, small.world_id)
        rows = tables.applied_rows("stored", built.block, [envelope], list(built.outcome.receipts))
        db.commit(rows, [*built.blobs.values(), batch.preimage(), actions])
    return built


@asynccontextmanager
async def storage_node(
    hub: InMemoryHub, small: Any, db: MemoryWorldDb, number: int, beside: Context | None = None
) -> AsyncIterator[Context]:
    signing, methods, rng = key(number), MethodTable(), random.Random(number)

    def now_ms() -> int:
        return NOW_MS + int(trio.current_time() * 1_000)

    def statuses() -> tuple[WorldStatus, ...]:
        return ()

    async with hub.open_node(signing.identity, methods.routes(), HeadRecords()) as (network, dht):
        providers = ProviderCache(signing.identity, rng)
        cached = CachedDht(dht, providers, HeadRecords(), now_ms)
        context = Context(network, cached, providers, db, signing, now_ms, rng, direct)
        methods.mount_node(NodeDesk(context, ("storage",), statuses, {}).handlers())
        if beside is not None:
            await network.connect(beside.network.addrs())
        async with trio.open_nursery() as nursery:
            run = partial(run_world, progress=lambda done, total: None)
            await nursery.start(run, context, methods, small.genesis, frozenset({"storage"}))
            yield context
            nursery.cancel_scope.cancel()


async def height_told(hub: InMemoryHub, small: Any, storage: Context) -> int:
    """Height of the head that a stranger gets from the DHT; waits until there is one."""
    async with hub.open_node(key(99).identity, {}, HeadRecords()) as (network, dht):
        await network.connect(storage.network.addrs())
        with trio.fail_after(60):
            while (record := await dht.get_record(names.head_key(small.world_id))) is None:
                await trio.sleep(0.1)
    return rules.check_head_message(record, small.world_id).commit.record.height


async def test_storage_that_is_left_alone_after_a_restart_puts_its_head(
    small_world: Any, autojump_clock: Any
) -> None:
    hub, small, db = InMemoryHub(random.Random(1)), small_world(), MemoryWorldDb()
    head = small.head_of(run_block(small, db, "a", stored=True))
    db.commit(WorldTables(db, small.world_id).put_applied_head(head))
    async with storage_node(hub, small, db, 10) as storage:
        assert await height_told(hub, small, storage) == 1


async def test_it_puts_what_it_serves_and_not_what_it_only_heard_of(
    small_world: Any, autojump_clock: Any
) -> None:
    hub, small, db = InMemoryHub(random.Random(1)), small_world(), MemoryWorldDb()
    first = small.head_of(run_block(small, db, "a", stored=True))
    second = small.head_of(run_block(small, db, "b", stored=False))
    tables = WorldTables(db, small.world_id)
    db.commit([*tables.put_head(second), *tables.put_applied_head(first)])
    async with storage_node(hub, small, db, 10) as storage:
        assert await height_told(hub, small, storage) == 1


class KilledAtTheBlock(MemoryWorldDb):
    """`left` is what the disk held at the moment at which a block came to be on it; heads alone are late each time."""

    left: MemoryWorldDb | None = None

    def commit(self, rows: Sequence[Row], *more: Any, **options: Any) -> None:
        if rows and all(row.table is Table.HEADS for row in rows):
            return
        super().commit(rows, *more, **options)
        if any(row.table is Table.CURSORS for row in rows):
            self.left = None
            self.left = copy.deepcopy(self)


async def test_whoever_is_killed_as_soon_as_it_holds_a_block_puts_the_head_of_that_block(
    small_world: Any, autojump_clock: Any
) -> None:
    hub, small, db = InMemoryHub(random.Random(1)), small_world(), MemoryWorldDb()
    head = small.head_of(run_block(small, db, "a", stored=True))
    db.commit(WorldTables(db, small.world_id).put_applied_head(head))
    killed = KilledAtTheBlock()
    async with storage_node(hub, small, db, 10) as one, storage_node(hub, small, killed, 11, beside=one):
        with trio.fail_after(60):
            while killed.left is None:
                await trio.sleep(0.01)
    async with storage_node(hub, small, killed.left, 12) as alone:
        assert await height_told(hub, small, alone) == 1


async def test_a_head_whose_block_was_here_before_it_is_kept_as_one_that_can_be_served(
    small_world: Any, autojump_clock: Any
) -> None:
    hub, small, db, bare = InMemoryHub(random.Random(1)), small_world(), MemoryWorldDb(), MemoryWorldDb()
    built = run_block(small, db, "a", stored=True)
    db.commit(WorldTables(db, small.world_id).put_applied_head(small.head_of(built)))
    run_block(small_world(), bare, "a", stored=True)
    tables = WorldTables(bare, small.world_id)
    async with storage_node(hub, small, db, 10) as one, storage_node(hub, small, bare, 11, beside=one):
        with trio.fail_after(60):
            while tables.applied_head() is None:
                await trio.sleep(0.01)
    assert tables.applied_head() == small.head_of(built)


async def test_one_of_two_puts_and_the_other_leaves_it(small_world: Any, autojump_clock: Any) -> None:
    hub, small, db = InMemoryHub(random.Random(1)), small_world(), MemoryWorldDb()
    head = small.head_of(run_block(small, db, "a", stored=True))
    db.commit(WorldTables(db, small.world_id).put_applied_head(head))
    same = MemoryWorldDb()
    small_copy = small_world()
    run_block(small_copy, same, "a", stored=True)
    same.commit(WorldTables(same, small.world_id).put_applied_head(head))
    async with storage_node(hub, small, db, 10) as one:
        assert await height_told(hub, small, one) == 1
        async with storage_node(hub, small, same, 11, beside=one) as other:
            await trio.sleep(10 * HEAD_LOOK_MS / 1_000)
            assert one.counters["publish.put"] == 1
            assert other.counters["publish.left"] >= 1
            assert other.counters["publish.put"] == 0


@pytest.mark.parametrize("is_fresh", [True, False])
async def test_the_dht_is_asked_now_and_then_where_peers_tell_of_a_fresh_head_and_always_where_it_is_old(
    small_world: Any, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch, is_fresh: bool
) -> None:
    """In a quiet world the certifier's word on the newest head is renewed; strangers can only repeat old ones."""
    if is_fresh:
        monkeypatch.setattr(limits, "HEAD_AGE_MS_MAX", 1 << 40)  # no certifier runs here
    hub, small, db = InMemoryHub(random.Random(1)), small_world(), MemoryWorldDb()
    db.commit(
        WorldTables(db, small.world_id).put_applied_head(
            small.head_of(run_block(small, db, "a", stored=True))
        )
    )
    periods = 12 * ROUNDS_A_LOOK_UP
    async with (
        storage_node(hub, small, db, 10) as one,
        storage_node(hub, small, MemoryWorldDb(), 11, beside=one) as two,
    ):
        before = two.dht.counters().get("dht.lookups", 0)
        await trio.sleep(periods * HEAD_POLL_MS / 1_000)
        polled = two.dht.counters().get("dht.lookups", 0) - before - periods * HEAD_POLL_MS // HEAD_LOOK_MS
    assert periods // ROUNDS_A_LOOK_UP // 2 < polled
    assert (polled < periods // 2) is is_fresh


def test_a_head_is_behind_by_height_or_by_what_makes_it_look_old(small_world: Any) -> None:
    small, db = small_world(), MemoryWorldDb()
    one, two = (run_block(small, db, name, stored=False) for name in "ab")
    first, second = small.head_of(one), small.head_of(two)
    at = first.commit.record.as_of_ms
    little_later = small.head_of(one, as_of_ms=at + HEAD_BEHIND_MS)
    later = small.head_of(one, as_of_ms=at + HEAD_BEHIND_MS + 1)
    assert is_behind(first, second)
    assert is_behind(later, second)
    assert not is_behind(second, later)
    assert not is_behind(first, first)
    assert not is_behind(first, little_later)
    assert is_behind(first, later)

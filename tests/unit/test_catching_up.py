"""An executor that is behind: several heights at a time, and few words about what is no news."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeVar, cast

import pytest
import trio

from runtime import limits
from runtime.epoch_tables import EpochTables
from runtime.errors import Missing
from runtime.messages import ExecuteBatchRequest
from runtime.records import BlockAnnounce, seal
from runtime.services.authorities import Authorities
from runtime.services.context import Context
from runtime.services.evidence import EvidenceKeeper
from runtime.services.executor import FETCHED_AT_ONCE_MAX, Executor
from runtime.services.fetch import Sources
from runtime.services.heads import HeadTracker
from runtime.services.replica import Replica
from runtime.world_db import MemoryWorldDb
from runtime.world_tables import WorldTables

T = TypeVar("T")
HEIGHTS = 2 * FETCHED_AT_ONCE_MAX


async def direct(work: Callable[[], T]) -> T:
    return work()


class Told:
    """A topic that keeps what is published."""

    def __init__(self) -> None:
        self.data: list[bytes] = []

    async def publish(self, data: bytes) -> None:
        self.data.append(data)


@pytest.fixture
def world(small_world: Callable[..., Any]) -> Any:
    return small_world()


@pytest.fixture
def executor(world: Any) -> Executor:
    unused = cast("Any", None)
    now_ms = world.genesis.header.created_ms + 10_000
    context = Context(
        unused, unused, unused, MemoryWorldDb(), world.executor, lambda: now_ms, random.Random(0), direct
    )
    tables, epochs = WorldTables(context.db, world.world_id), EpochTables(context.db, world.world_id)
    replica = Replica(context, world.genesis, tables, "executed")
    sources, authorities = Sources(context, world.world_id), Authorities(context, world.genesis, epochs)
    evidence = EvidenceKeeper(context, world.genesis, epochs, authorities, sources, replica)
    tracker = HeadTracker(context, world.genesis, tables, authorities, evidence)
    return Executor(context, replica, tracker, sources, authorities, evidence, epochs)


@pytest.fixture
def requests(world: Any) -> dict[int, ExecuteBatchRequest]:
    """Committed batches 1..HEIGHTS as they are handed over."""
    found = {}
    for height in range(1, HEIGHTS + 1):
        envelope = world.envelope(world.actors[0], ("say", {"text": str(height)}))
        batch, actions = world.batch([envelope])
        world.run(envelope)
        found[height] = ExecuteBatchRequest(
            world_id=world.world_id,
            batch=seal(batch, world.proposer),
            commit=world.commit(height, batch.hash()),
            actions=actions,
        )
    return found


async def test_an_executor_that_is_far_behind_asks_for_several_heights_at_a_time(
    world: Any,
    executor: Executor,
    requests: dict[int, ExecuteBatchRequest],
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: Any,
) -> None:
    """A standby that was restarted under load catches up before the leader dies, and not only after."""
    asked, at_once, most, refused = list[int](), set[int](), 0, {12}

    async def fetch_committed(height: int) -> None:
        nonlocal most
        asked.append(height)
        at_once.add(height)
        most = max(most, len(at_once))
        await trio.sleep(1)
        at_once.remove(height)
        if height in refused:
            refused.remove(height)
            raise Missing("batch", str(height))
        await executor.hand_over(world.proposer.identity, requests[height])

    monkeypatch.setattr(executor, "_fetch_committed", fetch_committed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(executor._execute)
        executor._saw(requests[HEIGHTS].commit)
        began_s = trio.current_time()
        await executor._fetch_known()
        nursery.cancel_scope.cancel()
    assert executor._replica.height == HEIGHTS
    assert most == FETCHED_AT_ONCE_MAX
    assert trio.current_time() - began_s <= 3  # two rounds, and one more for the one that was refused
    assert sorted(asked) == sorted([*requests, 12])


async def test_what_the_next_height_failed_with_is_told(
    executor: Executor,
    requests: dict[int, ExecuteBatchRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fetch_committed(height: int) -> None:
        raise Missing("batch", str(height))

    monkeypatch.setattr(executor, "_fetch_committed", fetch_committed)
    executor._saw(requests[HEIGHTS].commit)
    with pytest.raises(Missing, match="1"):
        await executor._fetch_known()


async def test_of_heights_that_are_caught_up_with_only_some_are_announced_and_the_last_one_at_once(
    world: Any, executor: Executor, requests: dict[int, ExecuteBatchRequest], autojump_clock: Any
) -> None:
    blocks, heads = Told(), Told()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(executor._execute)
        nursery.start_soon(executor._announce, blocks, heads)
        executor._saw(requests[HEIGHTS].commit)
        for request in requests.values():
            await executor.hand_over(world.proposer.identity, request)
            await trio.sleep(limits.BATCH_INTERVAL_MS / 1_000 / 5)
        nursery.cancel_scope.cancel()
    told = [BlockAnnounce.from_bytes(data).block.height for data in blocks.data]
    assert told[-1] == HEIGHTS
    assert 2 < len(told) <= 2 + HEIGHTS // 5
    assert len(heads.data) == len(told)

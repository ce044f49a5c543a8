"""What services of a node take from whom: hand-overs of false actions, queues that strangers would fill."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

import pytest
import trio

from runtime.errors import Denied, Invalid
from runtime.keys import SigningKey
from runtime.messages import CommitBatchRequest, ExecuteBatchRequest, LeaseAcquireRequest, LeaseTermRequest
from runtime.records import SignedAuthorities, seal
from runtime.services.context import Context
from runtime.services.coordinator import REQUESTS_WAITING_MAX, Coordinator
from runtime.services.executor import Executor
from runtime.services.fetch import Sources
from runtime.services.heads import HeadTracker
from runtime.services.replica import Replica
from runtime.world_db import MemoryWorldDb
from runtime.world_tables import WorldTables

T = TypeVar("T")


async def direct(work: Callable[[], T]) -> T:
    return work()


def context_of(world: Any, key: SigningKey) -> Context:
    unused = cast("Any", None)  # nobody is asked anything
    now_ms = world.genesis.header.created_ms + 10_000
    return Context(unused, unused, unused, MemoryWorldDb(), key, lambda: now_ms, random.Random(0), direct)


def executor_of(world: Any) -> tuple[Executor, Replica]:
    context = context_of(world, world.executor)
    tables = WorldTables(context.db, world.world_id)
    replica = Replica(context, world.genesis, tables, "executed")
    tracker = HeadTracker(context, world.genesis, tables)
    signed = SignedAuthorities(world.genesis.authorities)
    return Executor(context, replica, tracker, Sources(context, world.world_id), signed), replica


def hand_over_of(world: Any, **changes: Any) -> ExecuteBatchRequest:
    batch, actions = world.batch([world.envelope(world.actors[0], ("move_agent", {}))])
    request = ExecuteBatchRequest(
        world_id=world.world_id,
        batch=seal(batch, world.proposer),
        commit=world.commit(1, batch.hash()),
        actions=actions,
    )
    return replace(request, **changes)


async def test_actions_that_are_not_the_committed_ones_cost_the_hand_over_and_nothing_more(
    small_world: Callable[..., Any],
) -> None:
    world = small_world()
    executor, replica = executor_of(world)
    genuine = hand_over_of(world)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(executor._execute)
        with pytest.raises(Invalid, match="actions_ref"):
            await executor.hand_over(world.proposer.identity, replace(genuine, actions=b"\x80"))
        await executor.hand_over(world.proposer.identity, genuine)
        while replica.height == 0:
            await replica.applied.wait()
        nursery.cancel_scope.cancel()
    assert replica.batch_hash == genuine.batch.hash()


async def test_a_committed_batch_of_another_world_of_the_same_authorities_is_refused(
    small_world: Callable[..., Any],
) -> None:
    world, other = small_world(), small_world(batch_envelopes_max=7)
    assert world.world_id != other.world_id
    executor, _replica = executor_of(world)
    with pytest.raises(Invalid, match="world_id"):
        await executor.hand_over(world.proposer.identity, hand_over_of(other))


async def test_strangers_do_not_stand_in_the_coordinators_queue(small_world: Callable[..., Any]) -> None:
    world = small_world()
    context = context_of(world, world.certifier)
    tables = WorldTables(context.db, world.world_id)
    coordinator = Coordinator(context, world.genesis, tables, HeadTracker(context, world.genesis, tables))
    stranger, world_id = world.actors[0].identity, world.world_id
    batch, actions = world.batch([])
    commit = CommitBatchRequest(world_id=world_id, batch=seal(batch, world.proposer), actions=actions)
    acquire, term = LeaseAcquireRequest(world_id=world_id), LeaseTermRequest(world_id=world_id, term=1)
    # Nobody decides yet: whatever is queued stays queued.
    for _ in range(REQUESTS_WAITING_MAX + 1):
        for ask in (
            coordinator.commit_batch(stranger, commit),
            coordinator.lease_acquire(stranger, acquire),
            coordinator.lease_renew(stranger, term),
            coordinator.lease_release(stranger, term),
        ):
            with pytest.raises(Denied, match="proposer"):
                await ask
    async with trio.open_nursery() as nursery:
        await nursery.start(coordinator.run)
        answer = await coordinator.lease_acquire(world.proposer.identity, acquire)
        nursery.cancel_scope.cancel()
    assert answer.lease is not None

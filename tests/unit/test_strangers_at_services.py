"""What services of a node take from whom: hand-overs of false actions, queues that strangers would fill."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import pytest
import trio
import trio.testing

from p2p.network import Message
from runtime import chain
from runtime.epoch_tables import EpochTables
from runtime.errors import Corrupt, Denied, Halted, Invalid, Missing
from runtime.evidence import CommitFork, MalformedBatch
from runtime.keys import SigningKey
from runtime.messages import (
    BatchAnswer,
    CommitAnswer,
    CommitBatchRequest,
    ExecuteBatchRequest,
    LeaseAcquireRequest,
    LeaseTermRequest,
)
from runtime.records import BlockAnnounce, BlockAttestation, SignedAuthorities, WorldBlock, seal
from runtime.services.authorities import Authorities
from runtime.services.context import Context
from runtime.services.coordinator import REQUESTS_WAITING_MAX, Coordinator
from runtime.services.evidence import EvidenceKeeper
from runtime.services.executor import Executor
from runtime.services.fetch import Sources
from runtime.services.heads import HeadTracker
from runtime.services.lease_store import EmbeddedLeaseStore
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


@dataclass(frozen=True, slots=True)
class Parts:
    """What services of one world share."""

    tables: WorldTables
    epoch_tables: EpochTables
    sources: Sources
    authorities: Authorities
    evidence: EvidenceKeeper
    tracker: HeadTracker


def parts_of(context: Context, world: Any, replica: Replica | None = None) -> Parts:
    tables, epoch_tables = WorldTables(context.db, world.world_id), EpochTables(context.db, world.world_id)
    sources, authorities = Sources(context, world.world_id), Authorities(context, world.genesis, epoch_tables)
    evidence = EvidenceKeeper(context, world.genesis, epoch_tables, authorities, sources, replica)
    tracker = HeadTracker(context, world.genesis, tables, authorities, evidence)
    return Parts(tables, epoch_tables, sources, authorities, evidence, tracker)


def executor_of(world: Any) -> tuple[Executor, Replica, Parts]:
    context = context_of(world, world.executor)
    replica = Replica(context, world.genesis, WorldTables(context.db, world.world_id), "executed")
    parts = parts_of(context, world, replica)
    executor = Executor(
        context, replica, parts.tracker, parts.sources, parts.authorities, parts.evidence, parts.epoch_tables
    )
    return executor, replica, parts


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
    executor, replica, parts = executor_of(world)
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
    assert not parts.evidence.items()


async def test_a_malformed_batch_that_was_committed_halts_the_executor_with_evidence_against_its_certifier(
    small_world: Callable[..., Any],
) -> None:
    world = small_world()
    executor, replica, parts = executor_of(world)
    batch, actions = world.batch([], envelope_count=3)
    request = hand_over_of(
        world, batch=seal(batch, world.proposer), commit=world.commit(1, batch.hash()), actions=actions
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(executor._execute)
        await executor.hand_over(world.proposer.identity, request)
        while not parts.authorities.is_halted:
            await parts.authorities.changed.wait()
        nursery.cancel_scope.cancel()
    assert replica.height == 0
    assert isinstance(parts.authorities.halted_by, MalformedBatch)
    assert parts.authorities.halted_by.accused == world.certifier.identity


async def test_two_commits_of_one_height_handed_over_halt_the_executor(
    small_world: Callable[..., Any],
) -> None:
    world = small_world()
    executor, _replica, parts = executor_of(world)
    await executor.hand_over(world.proposer.identity, hand_over_of(world))
    other, actions = world.batch([])
    request = hand_over_of(
        world, batch=seal(other, world.proposer), commit=world.commit(1, other.hash()), actions=actions
    )
    await executor.hand_over(world.proposer.identity, request)
    assert isinstance(parts.authorities.halted_by, CommitFork)
    with pytest.raises(Halted, match="aw evidence show"):
        parts.authorities.require_running()


async def test_a_committed_batch_of_another_world_of_the_same_authorities_is_refused(
    small_world: Callable[..., Any],
) -> None:
    world, other = small_world(), small_world(batch_envelopes_max=7)
    assert world.world_id != other.world_id
    executor, _replica, _parts = executor_of(world)
    with pytest.raises(Invalid, match="world_id"):
        await executor.hand_over(world.proposer.identity, hand_over_of(other))


def nothing_executed(height: int) -> BatchAnswer:
    raise Missing("batch", str(height))


def coordinator_of(world: Any) -> tuple[Coordinator, Parts]:
    context = context_of(world, world.certifier)
    parts = parts_of(context, world)
    store = EmbeddedLeaseStore(context, parts.tables)
    coordinator = Coordinator(
        context,
        world.genesis,
        store,
        parts.tracker,
        parts.authorities,
        parts.sources,
        nothing_executed,
    )
    return coordinator, parts


async def test_a_coordinator_that_meets_a_commit_of_its_own_above_its_store_ends(
    small_world: Callable[..., Any],
) -> None:
    """Its store was lost, or is an old copy: it must not sign another commit for a height that has one."""
    world = small_world()
    coordinator, parts = coordinator_of(world)
    head = world.head_of(world.run(world.envelope(world.actors[0], ("move_agent", {}))))
    with pytest.RaisesGroup(Corrupt, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(coordinator.run)
            await trio.testing.wait_all_tasks_blocked()
            parts.tracker.offer(head)
            await trio.sleep_forever()


async def test_strangers_do_not_stand_in_the_coordinators_queue(small_world: Callable[..., Any]) -> None:
    world = small_world()
    coordinator, _parts = coordinator_of(world)
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


@dataclass(slots=True)
class Heard:
    """A subscription that has these messages, and then nothing."""

    left: list[Message]

    async def receive(self) -> Message:
        if not self.left:
            await trio.sleep_forever()
        return self.left.pop(0)


async def test_a_block_that_a_stranger_vouches_for_is_no_claim_to_compare_with(
    small_world: Callable[..., Any],
) -> None:
    world = small_world()
    _executor, _replica, parts = executor_of(world)
    block = world.run(world.envelope(world.actors[0], ("say", {"text": "x"}))).block
    announced = []
    for key in (world.actors[0], world.executor):
        attestation = BlockAttestation(
            world_id=world.world_id, epoch=0, height=1, block_hash=block.hash(), executor_id=key.identity
        )
        data = BlockAnnounce(block, seal(attestation, key)).to_bytes()
        announced.append(Message("aw.w.block", data, key.identity, key.identity))
    with trio.move_on_after(0.1):
        await parts.tracker.hear_blocks(cast("Any", Heard(announced)))
    assert [claim.attestation.record.executor_id for claim in parts.tracker.claims] == [
        world.executor.identity
    ]


def claim_of(world: Any, block: WorldBlock) -> BlockAnnounce:
    attestation = BlockAttestation(
        world_id=world.world_id,
        epoch=0,
        height=block.height,
        block_hash=block.hash(),
        executor_id=world.executor.identity,
    )
    return BlockAnnounce(block, seal(attestation, world.executor))


async def test_an_executor_that_vouches_for_many_false_blocks_at_once_ends_nobody(
    small_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    """While the first one is executed again, newer ones push the others out of the list."""
    world = small_world()
    executor, replica, parts = executor_of(world)
    checked = list[WorldBlock]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(executor._execute)
        await executor.hand_over(world.proposer.identity, hand_over_of(world))
        while replica.height == 0:
            await replica.applied.wait()
        own = replica.block
        assert own is not None
        false = [claim_of(world, replace(own, state_root=bytes([n]) * 32)) for n in range(1, 65)]
        parts.tracker.claims.extend(false)

        async def check_again(block: WorldBlock) -> None:
            checked.append(block)
            parts.tracker.claims.extend([claim_of(world, own)] * 64)

        monkeypatch.setattr(executor, "_check_again", check_again)
        nursery.start_soon(executor._cross_check)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert len(checked) == 1  # it was found false once


async def test_a_claim_about_a_block_whose_blob_is_damaged_ends_nobody(
    small_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    world = small_world()
    executor, replica, parts = executor_of(world)
    true = world.run(world.envelope(world.actors[0], ("say", {"text": "x"}))).block

    def block_at(height: int) -> WorldBlock:
        raise Missing("blob", str(height))

    monkeypatch.setattr(replica, "block_at", block_at)
    monkeypatch.setattr(replica, "height", 1)
    parts.tracker.claims.append(claim_of(world, true))
    with trio.move_on_after(1):
        await executor._cross_check()
    assert not parts.tracker.claims


async def test_batches_of_a_chain_that_the_newest_epoch_does_not_keep_are_not_executed(
    small_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were asked for just before the executor learnt what that epoch keeps."""
    world = small_world()
    executor, _replica, _parts = executor_of(world)
    batch, actions = world.batch([world.envelope(world.actors[0], ("say", {"text": "x"}))])
    executor._resumed = {1: batch.hash()}
    newest: dict[int, bytes] = {}

    async def found(*_: object) -> Any:
        executor._resumed = newest
        return batch if fetched.pop() == "batch" else actions

    fetched = ["actions", "batch"]
    monkeypatch.setattr("runtime.services.executor.fetch_batch", found)
    monkeypatch.setattr("runtime.services.executor.fetch_blob", found)
    await executor._fetch_resumed(1)
    assert not executor._ready


async def test_a_look_for_a_fork_that_nobody_answers_keeps_no_executor_from_asking_the_certifier(
    small_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    """The leader that is paused or cut off is among those who are asked; the standby has to go on meanwhile."""
    world = small_world()
    executor, replica, parts = executor_of(world)
    request = hand_over_of(world)
    looks, asked_at = list[float](), list[float]()

    async def look(*_: object) -> None:
        looks.append(trio.current_time())
        await trio.sleep_forever()

    async def newest_commit() -> CommitAnswer:
        asked_at.append(trio.current_time())
        return CommitAnswer(SignedAuthorities(world.genesis.authorities), request.commit)

    monkeypatch.setattr("runtime.services.executor.look_for_fork", look)
    monkeypatch.setattr(executor, "_newest_commit", newest_commit)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(executor._execute)
        await executor.hand_over(world.proposer.identity, request)
        while replica.height == 0:
            await replica.applied.wait()
        nursery.start_soon(executor._catch_up)
        nursery.start_soon(executor._watch_for_fork)
        parts.tracker.offer(world.head(2, bytes(32), bytes(32)))
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert len(looks) == 1
    assert len([at for at in asked_at if at > looks[0]]) > 10


async def test_to_say_which_block_a_height_has_reads_no_more_than_the_block(
    small_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = small_world()
    executor, replica, _parts = executor_of(world)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(executor._execute)
        for height in (1, 2):
            batch, actions = world.batch([world.envelope(world.actors[0], ("say", {"text": str(height)}))])
            commit = world.commit(height, batch.hash())
            request = ExecuteBatchRequest(
                world_id=world.world_id, batch=seal(batch, world.proposer), commit=commit, actions=actions
            )
            await executor.hand_over(world.proposer.identity, request)
            while replica.height < height:
                await replica.applied.wait()
            built = chain.build_block(
                world.genesis, world.tip, batch, world.form(batch, actions), [True] * batch.envelope_count
            )
            world.tip = built.tip
        nursery.cancel_scope.cancel()
    monkeypatch.setattr(replica, "decode_actions", None)
    assert replica.block_at(1).height == 1

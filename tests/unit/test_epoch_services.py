"""Sets, evidence and going back on one node: what is taken up, what it changes on disk, what a restart finds."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import pytest
import trio
import trio.testing

from p2p.errors import Unreachable
from runtime import world as kernel
from runtime.epoch_tables import EpochTables
from runtime.errors import Corrupt, Halted, Invalid
from runtime.evidence import AuthoritiesFork, WrongRootProof, attestation_fork, commit_fork
from runtime.keys import SigningKey
from runtime.messages import EvidenceItem, EvidenceRequest
from runtime.records import BlockAttestation, Resume, SignedAuthorities, seal
from runtime.services.authorities import Authorities
from runtime.services.context import Context
from runtime.services.evidence import ASK_MS, ASKED_AT_ONCE_MAX, EvidenceKeeper
from runtime.services.fetch import Sources
from runtime.services.replica import Applied, Replica
from runtime.world_db import MemoryWorldDb, Table
from runtime.world_tables import WorldTables

T = TypeVar("T")
World = Any  # tests/conftest.py: SmallWorld


async def direct(work: Callable[[], T]) -> T:
    return work()


@dataclass(slots=True)
class Node:
    """One life of a node on a database."""

    context: Context
    tables: EpochTables
    authorities: Authorities
    replica: Replica
    evidence: EvidenceKeeper


def node(world: World, db: MemoryWorldDb, cursor: str = "verified") -> Node:
    unused = cast("Any", None)  # nobody is asked anything
    context = Context(
        unused, unused, unused, db, SigningKey(b"n" * 32), lambda: 5_000_000, random.Random(0), direct
    )
    tables = EpochTables(db, world.world_id)
    authorities, sources = Authorities(context, world.genesis, tables), Sources(context, world.world_id)
    replica = Replica(context, world.genesis, WorldTables(db, world.world_id), cursor)
    evidence = EvidenceKeeper(context, world.genesis, tables, authorities, sources, replica)
    return Node(context, tables, authorities, replica, evidence)


@pytest.fixture
def small(small_world: Callable[..., World]) -> World:
    return small_world()


def signed_set(world: World, epoch: int, key: SigningKey | None = None, **changes: Any) -> SignedAuthorities:
    made = replace(
        world.genesis.authorities,
        epoch=epoch,
        world_id=world.world_id,
        resume=Resume(0, world.genesis.header.hash()),
        **changes,
    )
    index = world.genesis.header.root_keys.index(world.root.identity)
    return SignedAuthorities(made, ((index, (key or world.root).sign(made.hash())),))


async def take_up(authorities: Authorities, signed: SignedAuthorities) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(authorities.run)
        authorities.offer(signed)
        while authorities.epoch != signed.authorities.epoch:
            await authorities.changed.wait()
        nursery.cancel_scope.cancel()


# --- authorities -------------------------------------------------------------------------------------------


async def test_a_set_is_in_force_once_it_is_on_disk_and_outlives_a_restart(small: World) -> None:
    db = MemoryWorldDb()
    first = node(small, db)
    first.authorities.offer(signed_set(small, 2))
    assert first.authorities.epoch == 0  # nothing is written yet
    await take_up(first.authorities, signed_set(small, 2))
    assert node(small, db).authorities.signed == signed_set(small, 2)


async def test_an_older_set_changes_nothing_and_one_that_the_roots_did_not_sign_is_refused(
    small: World,
) -> None:
    one = node(small, MemoryWorldDb())
    await take_up(one.authorities, signed_set(small, 2))
    one.authorities.offer(signed_set(small, 1))
    one.authorities.offer(signed_set(small, 2))
    with pytest.raises(Invalid, match="signature"):
        one.authorities.offer(signed_set(small, 3, small.executor))
    with pytest.raises(Invalid, match="signatures"):
        one.authorities.offer(replace(signed_set(small, 3), signatures=()))
    assert one.authorities.signed == signed_set(small, 2)
    assert not one.authorities.is_halted


async def test_of_two_sets_of_one_epoch_the_first_is_kept_and_halts_with_both(small: World) -> None:
    one = node(small, MemoryWorldDb())
    rival = signed_set(small, 1, executors=(small.executor.identity,))
    await take_up(one.authorities, signed_set(small, 1))
    one.authorities.offer(rival)
    assert one.authorities.signed == signed_set(small, 1)
    assert isinstance(one.authorities.halted_by, AuthoritiesFork)
    with pytest.raises(Halted, match="the root keys"):
        one.authorities.require_running()
    await take_up(one.authorities, signed_set(small, 2))
    one.authorities.require_running()


async def test_two_sets_that_come_before_either_is_on_disk_halt_too(small: World) -> None:
    one = node(small, MemoryWorldDb())
    one.authorities.offer(signed_set(small, 1))
    one.authorities.offer(signed_set(small, 1, executors=(small.executor.identity,)))
    await one.authorities.install(signed_set(small, 1))
    assert one.authorities.epoch == 1
    assert one.authorities.is_halted


async def test_a_stored_set_that_the_roots_did_not_sign_is_damage(small: World) -> None:
    db = MemoryWorldDb()
    tables = EpochTables(db, small.world_id)
    db.commit(tables.put_authorities(signed_set(small, 1, small.executor)))
    with pytest.raises(Corrupt, match="authority set"):
        node(small, db)


# --- evidence ----------------------------------------------------------------------------------------------


class Silence:
    """A topic where nobody speaks, and what is published is kept."""

    def __init__(self) -> None:
        self.topic = "aw.test.evidence"
        self.published: list[bytes] = []
        self.said = trio.Event()

    async def receive(self) -> Any:
        await trio.sleep_forever()

    async def publish(self, data: bytes) -> None:
        self.published.append(data)
        self.said.set()


async def told(keeper: EvidenceKeeper) -> list[bytes]:
    """Run the keeper until it has told what it knows."""
    silence = Silence()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper._write, silence)
        await silence.said.wait()
        nursery.cancel_scope.cancel()
    return silence.published


async def served(keeper: EvidenceKeeper, world: World, content_hash: bytes | None) -> bytes:
    parts: list[bytes] = []

    async def send(part: bytes) -> None:
        parts.append(part)

    await keeper.get_evidence(b"", EvidenceRequest(world.world_id, content_hash), send)
    return b"".join(parts)


async def test_a_fork_halts_at_once_is_told_once_it_is_stored_and_halts_after_a_restart(small: World) -> None:
    db = MemoryWorldDb()
    one = node(small, db)
    fork = commit_fork(small.commit(5, bytes(32)), small.commit(5, b"1" * 32))
    assert one.evidence.take(fork)
    assert one.authorities.halted_by == fork
    assert await told(one.evidence) == [one.evidence.items()[0].to_bytes()]
    assert await served(one.evidence, small, fork.hash()) == fork.preimage()
    again = node(small, db)
    assert again.authorities.halted_by == fork
    assert again.evidence.items() == one.evidence.items()


async def test_another_fork_of_the_same_key_and_epoch_costs_nothing_more(small: World) -> None:
    one = node(small, MemoryWorldDb())
    for height in range(5, 9):
        one.evidence.take(commit_fork(small.commit(height, bytes(32)), small.commit(height, b"1" * 32)))
    assert [item.height for item in one.evidence.items()] == [5]


async def test_evidence_of_another_epoch_halts_nobody_and_false_evidence_is_refused(small: World) -> None:
    one = node(small, MemoryWorldDb())
    fork = commit_fork(small.commit(5, bytes(32)), small.commit(5, b"1" * 32))
    forged = replace(fork, first=replace(fork.first, signature=bytes(64)))
    with pytest.raises(Invalid):
        one.evidence.take(forged)
    await take_up(one.authorities, signed_set(small, 1))
    assert not one.evidence.take(fork)
    assert not one.authorities.is_halted
    assert not one.evidence.items()


def proof_of(world: World, **changes: Any) -> WrongRootProof:
    """The executor vouches for the last block that was run, changed."""
    block = replace(world.blocks[-1].block, **changes)
    record = BlockAttestation(world.world_id, 0, block.height, block.hash(), world.executor.identity)
    return WrongRootProof(seal(record, world.executor), block)


async def run_block(one: Node, world: World) -> None:
    """One more block of the small world, applied."""
    envelope = world.envelope(world.actors[0], ("dance", {}))
    batch, actions = world.batch([envelope])
    before = world.tip
    built = world.run(envelope)
    assert before.height == one.replica.height
    assert kernel.check_signatures([envelope]) == [True]
    await one.replica.apply(
        Applied(
            block=built.block,
            batch=batch,
            envelopes=(envelope,),
            receipts=built.outcome.receipts,
            blobs=(*built.blobs.values(), batch.preimage(), actions),
            tip=built.tip if one.replica.executes else None,
        )
    )


async def test_a_wrong_root_counts_where_it_was_replayed(small: World) -> None:
    one = node(small, MemoryWorldDb())
    await run_block(one, small)
    assert one.evidence.take(proof_of(small, state_root=bytes(32)))
    assert one.evidence.distrusts(small.executor.identity)
    assert not one.evidence.distrusts(small.executors[1].identity)
    assert not one.authorities.is_halted
    await take_up(one.authorities, signed_set(small, 1))
    assert not one.evidence.distrusts(small.executor.identity)  # the roots have named it again


async def test_an_honest_attestation_that_is_called_wrong_is_refused(small: World) -> None:
    for cursor in ("verified", "stored"):
        one = node(small, MemoryWorldDb(), cursor)
        world = type(small)()
        await run_block(one, world)
        with pytest.raises(Invalid, match="no fault"):
            one.evidence.take(proof_of(world))
        assert not one.evidence.items()


async def test_what_cannot_be_replayed_yet_is_kept_unproved_and_judged_when_it_can(small: World) -> None:
    ahead = type(small)()
    for wrong in (True, False):
        one, world = node(small, MemoryWorldDb()), type(small)()
        if not ahead.blocks:
            ahead.run(ahead.envelope(ahead.actors[0], ("dance", {})))
        proof = proof_of(ahead, **({"state_root": bytes(32)} if wrong else {}))
        assert one.evidence.take(proof)
        assert not one.evidence.distrusts(world.executor.identity)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.evidence._judge)
            await trio.testing.wait_all_tasks_blocked()
            await run_block(one, world)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert one.evidence.distrusts(world.executor.identity) is wrong
        assert bool(one.evidence.items()) is wrong


async def test_a_node_that_only_stores_believes_no_accusation(small: World) -> None:
    one = node(small, MemoryWorldDb(), "stored")
    await run_block(one, small)
    assert one.evidence.take(proof_of(small, state_root=bytes(32)))
    assert not one.evidence.distrusts(small.executor.identity)


async def test_two_attestations_of_one_height_are_noticed(small: World) -> None:
    one = node(small, MemoryWorldDb())
    first, second = (
        seal(BlockAttestation(small.world_id, 0, 4, bytes([n]) * 32, small.executor.identity), small.executor)
        for n in (1, 2)
    )
    one.evidence.saw_attestation(first)
    one.evidence.saw_attestation(replace(second, signature=bytes(64)))  # nobody's word
    assert not one.evidence.items()
    one.evidence.saw_attestation(second)
    assert [item.content_hash for item in one.evidence.items()] == [attestation_fork(first, second).hash()]
    assert one.evidence.distrusts(small.executor.identity)


# --- going back --------------------------------------------------------------------------------------------


def rows(db: MemoryWorldDb, *tables: Table) -> dict[Table, dict[bytes, bytes]]:
    return {table: dict(db._tables[table]) for table in tables}


CHAIN_TABLES = (Table.BLOCKS, Table.PLACES, Table.NONCES)


@pytest.mark.parametrize("cursor", ["verified", "stored"])
@pytest.mark.parametrize("height", [0, 2, 5])
async def test_going_back_leaves_what_there_was_at_that_height(
    small: World, cursor: str, height: int
) -> None:
    db, short = MemoryWorldDb(), MemoryWorldDb()
    one, other = node(small, db, cursor), node(small, short, cursor)
    twin = type(small)()
    for number in range(5):
        await run_block(one, small)
        if number < height:
            await run_block(other, twin)
    voided = [built.block.batch_hash for built in small.blocks[height:]]
    await one.replica.take_back(height, 1)
    for now in (one, node(small, db, cursor)):
        await now.replica.restore(lambda done, total: None)
        assert (now.replica.height, now.replica.epoch) == (height, 1)
        assert now.replica.block_hash == other.replica.block_hash
        assert now.replica.timestamp_ms == other.replica.timestamp_ms
        if now.replica.tip is not None:
            assert now.replica.tip.state.root() == other.replica.tip.state.root()  # type: ignore[union-attr]
    assert rows(db, *CHAIN_TABLES) == rows(short, *CHAIN_TABLES)
    assert sorted(batch for _height, batch in one.tables.voided(10)) == sorted(voided)
    for at, batch_hash in one.tables.voided(10):
        db.commit(one.tables.settle_voided(at, batch_hash))
        assert db.blobs.has(batch_hash)
    assert not one.tables.voided(10)


async def test_a_replica_goes_on_from_where_it_went_back_to(small: World) -> None:
    one = node(small, MemoryWorldDb())
    for _ in range(4):
        await run_block(one, small)
    tips = [built.tip for built in small.blocks]
    await one.replica.take_back(2, 1)
    small.tip, small.blocks = tips[1], small.blocks[:2]
    small.nonces[small.actors[0].identity] = 2
    await run_block(one, small)
    assert one.replica.height == 3
    assert one.replica.tables.nonce(small.actors[0].identity) == 3


class SilentPeers:
    """A network whose peers take a request and never answer; who was asked, and with what patience, is kept."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.waited_ms: list[int] = []

    def peers(self) -> list[bytes]:
        """Nobody to ask of one's own accord."""
        return []

    @asynccontextmanager
    async def request_parts(
        self, peer: bytes, method: str, body: bytes, *, deadline_ms: int, bytes_max: int
    ) -> AsyncIterator[Any]:
        self.asked.append(peer)
        self.waited_ms.append(deadline_ms)
        await trio.sleep(deadline_ms / 1_000)
        raise Unreachable(peer.hex(), "no answer")
        yield


def keeper_among(small: World, network: SilentPeers) -> EvidenceKeeper:
    one = node(small, MemoryWorldDb())
    context = replace(one.context, network=cast("Any", network))
    sources = Sources(context, small.world_id)
    return EvidenceKeeper(context, small.genesis, one.tables, one.authorities, sources, one.replica)


async def test_one_silent_peer_is_asked_for_little_of_what_it_announces(
    small: World, autojump_clock: trio.testing.MockClock
) -> None:
    network = SilentPeers()
    keeper = keeper_among(small, network)
    for number in range(64):
        item = EvidenceItem(kind="commit_fork", height=1, content_hash=bytes([number]) * 32)
        keeper._want(b"liar", item)
    keeper._want(b"honest", EvidenceItem(kind="commit_fork", height=1, content_hash=b"h" * 32))
    async with trio.open_nursery() as nursery:
        await nursery.start(keeper.run, Silence())
        await trio.sleep(1.5 * ASK_MS / 1_000)
        nursery.cancel_scope.cancel()
    # Those under way when it was found silent; then the rest is not asked for, and the honest one's turn has come.
    assert network.asked == [b"liar"] * ASKED_AT_ONCE_MAX + [b"honest"]


async def test_who_announces_evidence_and_is_silent_keeps_no_other_waiting(
    small: World, autojump_clock: trio.testing.MockClock
) -> None:
    network = SilentPeers()
    keeper = keeper_among(small, network)
    announced = [EvidenceItem(kind="commit_fork", height=1, content_hash=bytes([n]) * 32) for n in range(9)]
    for number, item in enumerate(announced):
        keeper._want(bytes([number]), item)
    async with trio.open_nursery() as nursery:
        await nursery.start(keeper.run, Silence())
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(network.asked) == [bytes([n]) for n in range(ASKED_AT_ONCE_MAX)]
        await trio.sleep(2.5 * ASK_MS / 1_000)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(network.asked) == [bytes([n]) for n in range(9)]
        nursery.cancel_scope.cancel()
    assert set(network.waited_ms) == {ASK_MS}

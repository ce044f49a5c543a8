"""What a gateway says of nonces: which are taken or promised, and which is the first that is free."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import pytest
import trio

from runtime import limits
from runtime.epoch_tables import EpochTables
from runtime.keys import SigningKey
from runtime.messages import ActionStatusRequest, LeaseAnswer, SubmitRequest, SubmitResult
from runtime.records import Envelope, LeaseGrant, seal
from runtime.services.authorities import Authorities
from runtime.services.context import Context
from runtime.services.evidence import EvidenceKeeper
from runtime.services.fetch import Sources
from runtime.services.gateway import Gateway
from runtime.services.replica import Replica
from runtime.world_db import Delete, MemoryWorldDb, Put, Row, Table
from runtime.world_tables import WorldTables

T = TypeVar("T")
SAY = ("say", {"text": "x"})


async def direct(work: Callable[[], T]) -> T:
    await trio.lowlevel.checkpoint()
    return work()


def submitter(
    world: Any, made: list[WorldTables] | None = None
) -> Callable[..., Awaitable[list[SubmitResult]]]:
    """A gateway on an empty disk, as a function from envelopes to results."""
    unused = cast("Any", None)  # submitting asks nobody
    key, db = SigningKey(b"g" * 32), MemoryWorldDb()
    created_ms = world.genesis.header.created_ms
    context = Context(unused, unused, unused, db, key, lambda: created_ms, random.Random(0), direct)
    tables = WorldTables(db, world.world_id)
    authorities = Authorities(context, world.genesis, EpochTables(db, world.world_id))
    gateway = Gateway(context, Replica(context, world.genesis, tables, "stored"), authorities, unused, None)

    if made is not None:
        made.append(tables)

    async def submit(*envelopes: Envelope) -> list[SubmitResult]:
        request = SubmitRequest(world_id=world.world_id, envelopes=envelopes)
        return list((await gateway.submit(key.identity, request)).results)

    return submit


async def test_the_refusal_of_a_promised_nonce_tells_the_first_free_one(
    small_world: Callable[..., Any],
) -> None:
    world = small_world()
    submit = submitter(world)
    actor = world.actors[0]
    promised = [world.envelope(actor, SAY, nonce=nonce) for nonce in (0, 1, 3)]
    assert [result.outcome for result in await submit(*promised)] == ["accepted"] * 3
    (refused,) = await submit(world.envelope(actor, ("shout", {}), nonce=0))
    assert (refused.outcome, refused.reason, refused.next_nonce) == ("refused", "NonceDenied", 2)
    (filled,) = await submit(world.envelope(actor, ("shout", {}), nonce=2))
    assert filled.outcome == "accepted"
    (again,) = await submit(world.envelope(actor, ("shout", {}), nonce=1))
    assert again.next_nonce == 4


async def test_promises_of_the_same_request_count_and_other_refusals_name_no_nonce(
    small_world: Callable[..., Any],
) -> None:
    world = small_world()
    submit = submitter(world)
    first, other = world.actors[0], world.actors[1]
    results = await submit(
        world.envelope(first, SAY, nonce=0),
        world.envelope(first, ("shout", {}), nonce=0),
        world.envelope(other, SAY, nonce=0),
        world.envelope(other, SAY, nonce=1, expires_at_height=1_000_000),
    )
    assert [(result.outcome, result.next_nonce) for result in results] == [
        ("accepted", None),
        ("refused", 1),
        ("accepted", None),
        ("refused", None),
    ]


async def test_the_same_envelope_again_is_the_same_promise_again(small_world: Callable[..., Any]) -> None:
    world = small_world()
    submit = submitter(world)
    envelope = world.envelope(world.actors[0], SAY)
    for _ in range(2):
        (result,) = await submit(envelope)
        assert result.acceptance is not None
        assert result.acceptance.record.envelope_hash == envelope.hash()


async def test_what_is_sent_again_on_the_leaders_own_node_goes_into_its_mempool(
    small_world: Callable[..., Any],
) -> None:
    # By rr it would come back to this very gateway, which has promised it already, and never be ordered.
    world = small_world()
    key, db, pooled = world.proposer, MemoryWorldDb(), list[Envelope]()

    class OnlyLease:
        async def request(self, peer: bytes, method: str, body: bytes, *, deadline_ms: int) -> bytes:
            assert (peer, method) == (world.certifier.identity, "lease_get")
            grant = LeaseGrant(world.world_id, 0, 1, key.identity, 1, 5_000, peer)
            return LeaseAnswer(lease=seal(grant, world.certifier)).to_bytes()

    unused = cast("Any", None)
    context = Context(cast("Any", OnlyLease()), unused, unused, db, key, lambda: 1, random.Random(0), direct)
    replica = Replica(context, world.genesis, WorldTables(db, world.world_id), "stored")
    tables = EpochTables(db, world.world_id)
    authorities = Authorities(context, world.genesis, tables)
    evidence = EvidenceKeeper(
        context, world.genesis, tables, authorities, Sources(context, world.world_id), replica
    )
    gateway = Gateway(context, replica, authorities, evidence, pooled.extend)
    envelope = world.envelope(world.actors[0], SAY)
    await gateway._hand_over([envelope])
    assert pooled == [envelope]
    assert context.counters["gateway.resent"] == 1


async def test_copies_in_one_request_are_one_promise_and_count_once(small_world: Callable[..., Any]) -> None:
    world = small_world()
    tables: list[WorldTables] = []
    submit = submitter(world, tables)
    envelope = world.envelope(world.actors[0], SAY)
    results = await submit(*[envelope] * 50)
    assert [result.outcome for result in results] == ["accepted"] * 50
    assert tables[0].outbox_count() == 1


async def test_a_copy_that_comes_while_the_first_is_being_stored_waits_for_its_disk(
    small_world: Callable[..., Any],
) -> None:
    world = small_world()
    tables: list[WorldTables] = []
    submit = submitter(world, tables)
    envelope = world.envelope(world.actors[0], SAY)
    results: list[SubmitResult] = []

    async def hand_in() -> None:
        results.extend(await submit(envelope))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(hand_in)
    assert [result.outcome for result in results] == ["accepted"] * 5
    assert tables[0].outbox_count() == 1


async def test_the_fuller_the_outbox_the_shorter_a_promise_may_last(
    small_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, made = small_world(expiry_blocks_max=100), list[WorldTables]()
    submit = submitter(world, made)
    monkeypatch.setattr(limits, "OUTBOX_ENVELOPES_MAX", 8)

    async def outcomes(nonce: int, *lives: int) -> list[str]:
        actor = world.actors[0]
        told = [
            await submit(world.envelope(actor, SAY, nonce=nonce, expires_at_height=life)) for life in lives
        ]
        return [result.reason or result.outcome for [result] in told]

    for nonce in range(5):
        assert await outcomes(nonce, 100) == ["accepted"]
    assert await outcomes(5, 100, 76, 75) == ["Busy", "Busy", "accepted"]
    assert await outcomes(6, 51, 50) == ["Busy", "accepted"]
    assert await outcomes(7, 25) == ["accepted"]
    assert await outcomes(8, 1) == ["Busy"]


async def test_the_first_free_nonce_is_looked_for_once_a_request(
    small_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, made = small_world(), list[WorldTables]()
    submit = submitter(world, made)
    actor = world.actors[0]
    await submit(*(world.envelope(actor, SAY, nonce=nonce) for nonce in range(20)))
    looked, nonces_of = 0, made[0].outbox_nonces

    def counted(actor_id: bytes, nonce: int, limit: int) -> set[int]:
        nonlocal looked
        looked += 1
        return nonces_of(actor_id, nonce, limit)

    monkeypatch.setattr(made[0], "outbox_nonces", counted)
    rivals = await submit(*(world.envelope(actor, ("shout", {}), nonce=nonce) for nonce in range(20)))
    assert {result.next_nonce for result in rivals} == {20}
    assert looked == 1  # and in one read, however many promises there are


class WrittenBetweenReads(MemoryWorldDb):
    """A database into which a worker thread writes a block right after the read of this number."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.block: list[Row] = []
        self._reads_left = after

    def get(self, table: Table, key: bytes) -> bytes | None:
        row = super().get(table, key)
        if self.block:
            self._reads_left -= 1
            if self._reads_left == 0:
                rows, self.block = self.block, []
                self.commit(rows)
        return row


@pytest.mark.parametrize("is_promised", [True, False])
@pytest.mark.parametrize("after", range(1, 7))
async def test_an_envelope_whose_block_is_written_meanwhile_is_neither_refused_nor_called_dead(
    small_world: Callable[..., Any], after: int, is_promised: bool
) -> None:
    world, db, key = small_world(), WrittenBetweenReads(after), SigningKey(b"g" * 32)
    envelope = world.envelope(world.actors[0], SAY)
    built = world.run(envelope)
    unused, created_ms = cast("Any", None), world.genesis.header.created_ms
    context = Context(unused, unused, unused, db, key, lambda: created_ms, random.Random(0), direct)
    tables = WorldTables(db, world.world_id)
    authorities = Authorities(context, world.genesis, EpochTables(db, world.world_id))
    gateway = Gateway(context, Replica(context, world.genesis, tables, "stored"), authorities, unused, None)
    if is_promised:
        db.commit(tables.put_outbox([envelope], created_ms))
    db.block = tables.applied_rows("stored", built.block, [envelope], list(built.outcome.receipts))
    if is_promised:
        request = ActionStatusRequest(world_id=world.world_id, envelope_hash=envelope.hash())
        assert (await gateway.status(key.identity, request)).stage in {"pending", "taken"}
    else:
        (result,) = (
            await gateway.submit(key.identity, SubmitRequest(world_id=world.world_id, envelopes=(envelope,)))
        ).results
        assert result.outcome == "accepted", result


@dataclass(slots=True)
class Desk:
    """A gateway with what it reads, on a disk of its own."""

    gateway: Gateway
    tables: WorldTables
    db: MemoryWorldDb
    created_ms: int


def desk_of(world: Any, db: MemoryWorldDb) -> Desk:
    unused, created_ms, key = cast("Any", None), world.genesis.header.created_ms, SigningKey(b"g" * 32)
    context = Context(unused, unused, unused, db, key, lambda: created_ms, random.Random(0), direct)
    tables = WorldTables(db, world.world_id)
    authorities = Authorities(context, world.genesis, EpochTables(db, world.world_id))
    gateway = Gateway(context, Replica(context, world.genesis, tables, "stored"), authorities, unused, None)
    return Desk(gateway, tables, db, created_ms)


async def test_an_envelope_that_a_block_has_refused_is_promised_only_once_it_is_kept(
    small_world: Callable[..., Any],
) -> None:
    """A block may refuse what a later one takes: whoever puts it into a batch too early, or with a false signature."""
    world, db = small_world(), MemoryWorldDb()
    desk = desk_of(world, db)
    early = world.envelope(world.actors[0], SAY, nonce=1)
    built = world.run(early)
    assert built.outcome.receipts[0].index is None  # refused as a whole
    db.commit(desk.tables.applied_rows("stored", built.block, [early], list(built.outcome.receipts)))
    request = SubmitRequest(world_id=world.world_id, envelopes=(early,))
    (result,) = (await desk.gateway.submit(world.actors[0].identity, request)).results
    assert result.outcome == "accepted"
    assert desk.tables.outbox_entry(early.hash()) is not None
    asked = ActionStatusRequest(world_id=world.world_id, envelope_hash=early.hash())
    assert (await desk.gateway.status(world.actors[0].identity, asked)).stage == "pending"


async def test_what_a_block_made_dead_that_is_taken_back_meanwhile_is_not_called_dead(
    small_world: Callable[..., Any],
) -> None:
    class TakenBackBetweenReads(MemoryWorldDb):
        """The actor's nonce is one higher the first time that it is looked at."""

        def get(self, table: Table, key: bytes) -> bytes | None:
            row = super().get(table, key)
            if rows and table is rows[0].table:
                self.commit([Delete(row.table, row.key) for row in rows])
                rows.clear()
            return row

    world, db = small_world(), TakenBackBetweenReads()
    rows: list[Put] = []
    desk = desk_of(world, db)
    envelope = world.envelope(world.actors[0], SAY)
    db.commit(desk.tables.put_outbox([envelope], desk.created_ms))
    other = world.envelope(world.actors[0], ("shout", {}), nonce=0)
    built = world.run(other)
    applied = desk.tables.applied_rows("stored", built.block, [other], list(built.outcome.receipts))
    rows += [row for row in applied if isinstance(row, Put) and row.table is Table.NONCES]
    assert rows
    db.commit(rows)
    request = ActionStatusRequest(world_id=world.world_id, envelope_hash=envelope.hash())
    assert (await desk.gateway.status(world.actors[0].identity, request)).stage == "pending"

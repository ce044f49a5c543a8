"""Gaps of nonces: when they are asked for, what is answered, and what of an answer is believed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import trio

from p2p import names
from p2p.memory import InMemoryHub
from p2p.network import PartsRoute
from runtime import codec, limits
from runtime.gaps import GapLedger
from runtime.keys import SigningKey
from runtime.messages import Empty, EnvelopesRequest
from runtime.records import Envelope
from runtime.sequencing import ActionMempool, Gap
from runtime.services import HeadRecords
from runtime.services.gaps import EnvelopeDesk, GapMender

PEER = b"p" * 38
SAY = ("say", {"text": "x"})


def gap(number: int) -> Gap:
    return Gap(bytes([number]) * 38, 0, 1, PEER)


def jitter(seed: int) -> Callable[[int], int]:
    rng = random.Random(seed)
    return lambda period_ms: period_ms * (750 + rng.randrange(501)) // 1_000


class TestLedger:
    def test_a_gap_is_asked_for_after_a_wait_and_then_ever_more_seldom(self) -> None:
        ledger, asked_at = GapLedger(jitter(1)), []
        for now_ms in range(0, 120_000, 50):
            if ledger.due([gap(1)], now_ms):
                asked_at.append(now_ms)
        assert asked_at[0] >= limits.GAP_FIRST_ASK_MS * 3 // 4
        waits = [later - earlier for earlier, later in itertools.pairwise(asked_at)]
        assert all(wait >= limits.GAP_ASK_AGAIN_MS * 3 // 4 for wait in waits)
        assert max(waits) <= limits.GAP_ASK_AGAIN_MS_MAX * 5 // 4 + 50
        assert len(asked_at) < 12
        assert ledger.found == 1

    def test_a_round_asks_for_a_bounded_number_and_the_others_follow(self) -> None:
        ledger = GapLedger(jitter(1))
        gaps = [gap(number) for number in range(3 * limits.GAPS_PER_ROUND_MAX)]
        assert ledger.due(gaps, 0) == []
        late_ms = 2 * limits.GAP_FIRST_ASK_MS
        rounds = [ledger.due(gaps, late_ms) for _ in range(4)]
        assert [len(asked) for asked in rounds] == [limits.GAPS_PER_ROUND_MAX] * 3 + [0]
        assert {one for asked in rounds for one in asked} == set(gaps)

    def test_what_is_no_gap_any_more_is_forgotten(self) -> None:
        ledger = GapLedger(jitter(1))
        ledger.due([gap(1), gap(2)], 0)
        ledger.due([gap(2)], 10)
        assert len(ledger) == 1
        ledger.due([], 20)
        assert len(ledger) == 0


def test_the_mempool_tells_every_gap_and_who_handed_in_what_follows(small_world: Callable[..., Any]) -> None:
    world, pool = small_world(), ActionMempool()
    actor = world.actors[0]
    for nonce, peer in ((2, b"a"), (3, b"b"), (6, b"c")):
        pool.add(world.envelope(actor, SAY, nonce=nonce), peer, 0)
    assert pool.gaps() == [Gap(actor.identity, 0, 2, b"a"), Gap(actor.identity, 4, 2, b"c")]


async def asked_of(desk: EnvelopeDesk, request: EnvelopesRequest) -> list[bytes]:
    parts: list[bytes] = []

    async def send(part: bytes) -> None:
        parts.append(part)

    assert isinstance(await desk.get_envelopes(PEER, request, send), Empty)
    return parts


async def test_the_desk_answers_what_it_holds_in_parts_of_bounded_size(
    small_world: Callable[..., Any],
) -> None:
    world = small_world()
    actor = world.actors[0]
    large = ("say", {"text": "x" * 15_000})
    held = {nonce: world.envelope(actor, large, large, nonce=nonce) for nonce in range(40) if nonce != 7}
    desk = EnvelopeDesk([lambda actor_id, nonce: None, lambda actor_id, nonce: held.get(nonce)])
    parts = await asked_of(desk, EnvelopesRequest(world.world_id, actor.identity, 2, 256))
    assert len(parts) > 1
    assert all(len(part) <= names.PART_BYTES_MAX for part in parts)
    told = [item for part in parts for item in codec.decode(part, names.PART_BYTES_MAX, "part")]
    assert [item[0]["nonce"] for item in told] == [nonce for nonce in range(2, 40) if nonce != 7]


Lie = Callable[[Any, list[Envelope]], list[bytes]]
LIES: dict[str, Lie] = {
    "another nonce": lambda world, good: [world.envelope(world.actors[0], SAY, nonce=9).to_bytes()],
    "another actor": lambda world, good: [world.envelope(world.actors[1], SAY, nonce=0).to_bytes()],
    "twice the same": lambda world, good: [good[0].to_bytes(), good[0].to_bytes()],
    "descending": lambda world, good: [envelope.to_bytes() for envelope in reversed(good)],
    "a broken signature": lambda world, good: [good[0].to_bytes()[:-1] + bytes([good[0].to_bytes()[-1] ^ 1])],
    "too many": lambda world, good: [
        world.envelope(world.actors[0], SAY, nonce=nonce).to_bytes() for nonce in range(3)
    ],
}


@pytest.mark.parametrize("lie", ["", *LIES])
async def test_an_answer_is_believed_as_a_whole_or_not_at_all(
    small_world: Callable[..., Any], six_nodes: Callable[..., Any], autojump_clock: Any, lie: str
) -> None:
    world = small_world()
    actor, asker = world.actors[0], SigningKey(b"a" * 32)
    good = [world.envelope(actor, SAY, nonce=nonce) for nonce in (0, 1)]
    taken: list[Envelope] = []
    answers = LIES[lie](world, good) if lie else [envelope.to_bytes() for envelope in good]
    asked = 0

    async def answer(caller: bytes, body: bytes, send: Any) -> bytes:
        nonlocal asked
        asked += 1
        await send(codec.array_of(answers))
        return Empty().to_bytes()

    def hold(envelope: Envelope, peer: bytes) -> bool:
        taken.append(envelope)
        return True

    hub, gateway = InMemoryHub(random.Random(1)), world.executor.identity
    async with (
        hub.open_node(gateway, {"get_envelopes": PartsRoute(answer)}, HeadRecords()) as (there, _),
        hub.open_node(asker.identity, {}, HeadRecords()) as (here, dht),
    ):
        await here.connect(there.addrs())
        context = six_nodes().context(asker, here, dht)
        missing = Gap(actor.identity, 0, 2, gateway)
        mender = GapMender(
            context, world.world_id, limits.ENVELOPE_BYTES_MAX, lambda: [] if taken else [missing], hold
        )
        with trio.move_on_after(20):
            await mender.run()
    assert asked == 1  # then the liar rests; of an honest one nothing is missing any more
    assert [envelope.hash() for envelope in taken] == ([] if lie else [one.hash() for one in good])
    assert context.counters["mempool.gap_false_answer"] == bool(lie)
    assert context.counters["mempool.gap_envelopes_repaired"] == (0 if lie else 2)


async def test_a_peer_without_a_gateway_is_not_asked_again_at_once(
    small_world: Callable[..., Any], six_nodes: Callable[..., Any], autojump_clock: Any
) -> None:
    world, asker = small_world(), SigningKey(b"a" * 32)
    hub, other = InMemoryHub(random.Random(1)), world.executor.identity
    async with (
        hub.open_node(other, {}, HeadRecords()) as (there, _),
        hub.open_node(asker.identity, {}, HeadRecords()) as (here, dht),
    ):
        await here.connect(there.addrs())
        context = six_nodes().context(asker, here, dht)
        missing = Gap(world.actors[0].identity, 0, 2, other)
        mender = GapMender(
            context, world.world_id, limits.ENVELOPE_BYTES_MAX, lambda: [missing], lambda envelope, peer: True
        )
        with trio.move_on_after(25):
            await mender.run()
    assert context.counters["mempool.gaps_asked"] > 2
    assert there.counters()["rr.unsupported"] == 1

"""Whom a node asks for what it lacks, when most who say that they have it are liars."""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

from p2p import names
from p2p.errors import Code, RequestFailed, RequestTimeout, Unreachable
from p2p.network import PeerInfo
from p2p.providers import CachedDht, ProviderCache
from runtime import limits
from runtime.errors import HashMismatch, Missing
from runtime.services.context import Context
from runtime.services.fetch import HEDGE_MS, RATE_WAIT_MS_MAX, REACH_MS, REST_MS_MAX, TRY_MS, Sources, ask_any
from runtime.world_db import MemoryWorldDb

T = TypeVar("T")


def peer(number: int) -> bytes:
    return names.PEER_ID_PREFIX + number.to_bytes(32, "big")


OWN, HONEST = peer(1_000), peer(999)
SYBILS = [peer(number) for number in range(1, names.PROVIDERS_PER_KEY_MAX + 1)]


def now_ms() -> int:
    return 1_700_000_000_000 + int(trio.current_time() * 1_000)


async def direct(work: Callable[[], T]) -> T:
    return work()


class Net:
    """Connected to some; a dial of anybody else ends in a black hole after its time, or after 80 s."""

    def __init__(
        self, connected: Sequence[bytes], reachable: Sequence[bytes] = (), dial_s: float = 5
    ) -> None:
        self.connected = list(connected)
        self.reachable = reachable
        self.dial_s = dial_s
        self.marked: list[bytes] = []
        self.held: frozenset[bytes] = frozenset()

    def peers(self) -> list[bytes]:
        return self.connected

    def kept(self) -> frozenset[bytes]:
        return self.held

    def praise(self, who: bytes) -> None:
        pass

    def mark(self, who: bytes, reason: str) -> None:
        self.marked.append(who)

    async def connect(self, addrs: Sequence[str]) -> bytes:
        who = next((one for one in self.reachable if names.peer_text(one) in addrs[0]), None)
        if who is not None:
            self.connected.append(who)
            return who
        await trio.sleep(self.dial_s)
        raise Unreachable("x", "no answer")


class Dht:
    def __init__(self, providers: Sequence[bytes]) -> None:
        self.providers = providers

    async def find_providers(self, content_id: bytes, count_max: int = 20) -> list[PeerInfo]:
        return [
            PeerInfo(who, (f"/ip4/192.0.2.1/tcp/1/p2p/{names.peer_text(who)}",)) for who in self.providers
        ]


def sources(net: Net, providers: Sequence[bytes]) -> Sources:
    cache = ProviderCache(OWN, random.Random(0))
    dht: Any = CachedDht(Dht(providers), cache, None, now_ms)  # type: ignore[arg-type]

    class Key:
        identity = OWN

    key: Any = Key()
    network: Any = net
    return Sources(
        Context(network, dht, cache, MemoryWorldDb(), key, now_ms, random.Random(0), direct), "w" * 32
    )


def only(honest: bytes) -> Callable[[bytes], Awaitable[str]]:
    async def ask(who: bytes) -> str:
        if who == honest:
            return "it"
        raise Missing("blob", "x")

    return ask


@pytest.fixture
def clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0)


async def test_a_connected_honest_peer_is_asked_before_twenty_strangers_who_say_that_they_provide(
    clock: trio.testing.MockClock,
) -> None:
    found = sources(Net([HONEST]), SYBILS)
    assert await ask_any(found, "blob", "x", only(HONEST)) == "it"
    assert trio.current_time() < 1


async def test_an_honest_provider_among_strangers_is_asked_in_its_turn(clock: trio.testing.MockClock) -> None:
    """It is one record of twenty, and nobody is connected to it."""
    found = sources(Net([], [HONEST]), [*SYBILS[:10], HONEST, *SYBILS[11:]])
    for _ in range(20):
        try:
            assert await ask_any(found, "blob", "x", only(HONEST)) == "it"
            break
        except Missing:
            await trio.sleep(2)
    assert trio.current_time() < 20 * REACH_MS / 1_000 + 60  # each stranger has cost its dial about once
    before = trio.current_time()
    assert await ask_any(found, "blob", "y", only(HONEST)) == "it"
    assert trio.current_time() == before  # it has helped: it comes first


async def test_reaching_a_peer_is_bounded_as_a_whole(clock: trio.testing.MockClock) -> None:
    found = sources(Net([], dial_s=80), SYBILS[:1])
    with pytest.raises(Missing):
        await ask_any(found, "blob", "x", only(HONEST))
    assert trio.current_time() == pytest.approx(REACH_MS / 1_000)


def silent_but_for(helpful: bytes, asked: dict[bytes, float]) -> Callable[[bytes], Awaitable[str]]:
    async def ask(who: bytes) -> str:
        asked[who] = trio.current_time()
        if who != helpful:
            await trio.sleep(TRY_MS / 1_000)
            raise RequestTimeout(names.peer_text(who), "x", TRY_MS)
        return "it"

    return ask


async def test_a_source_that_has_helped_and_is_silent_now_costs_a_second_once(
    clock: trio.testing.MockClock,
) -> None:
    dead, asked = peer(1), dict[bytes, float]()
    found = sources(Net([dead, HONEST]), [])
    found.praise(dead)
    assert await ask_any(found, "blob", "x", silent_but_for(HONEST, asked)) == "it"
    assert asked == {dead: 0, HONEST: HEDGE_MS / 1_000}
    assert found.is_resting(dead, now_ms())
    before = trio.current_time()
    assert await ask_any(found, "blob", "y", silent_but_for(HONEST, asked)) == "it"
    assert trio.current_time() == before


async def test_who_had_no_time_to_answer_has_not_failed(clock: trio.testing.MockClock) -> None:
    """Whoever answers just after a second would have all others rest."""
    slow = peer(1)
    found = sources(Net([slow, HONEST]), [])
    found.praise(slow)

    async def ask(who: bytes) -> str:
        await trio.sleep(1.05 if who == slow else 0.2)
        return "it"

    assert await ask_any(found, "blob", "x", ask) == "it"
    assert trio.current_time() == pytest.approx(1.05)
    assert not found.is_resting(HONEST, now_ms())


async def test_a_slow_answer_is_taken_when_nobody_else_has_one(clock: trio.testing.MockClock) -> None:
    found = sources(Net([peer(1), peer(2), HONEST]), [])
    found.praise(HONEST)

    async def ask(who: bytes) -> str:
        if who != HONEST:
            raise Missing("blob", "x")
        await trio.sleep(5)
        return "it"

    assert await ask_any(found, "blob", "x", ask) == "it"
    assert trio.current_time() == 5
    assert not found.is_resting(HONEST, now_ms())


async def test_however_many_are_silent_few_are_asked_at_a_time(clock: trio.testing.MockClock) -> None:
    asked = dict[bytes, float]()
    found = sources(Net([peer(number) for number in range(1, 8)]), [])
    with pytest.raises(Missing, match="7 peers tried"):
        await ask_any(found, "blob", "x", silent_but_for(HONEST, asked))
    assert sorted(asked.values()) == [0, 1, 2, 10, 11, 12, 20]
    assert trio.current_time() == 30


async def test_an_error_that_is_no_answer_is_not_taken_for_one(clock: trio.testing.MockClock) -> None:
    async def ask(who: bytes) -> str:
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        await ask_any(sources(Net([HONEST]), []), "blob", "x", ask)


async def test_who_fails_rests_longer_than_its_try_took_and_twice_as_long_each_time(
    clock: trio.testing.MockClock,
) -> None:
    found = sources(Net([]), [])
    rests = []
    for _ in range(12):
        found.failed(HONEST, 7_000)
        rests.append(found.rests_until_ms[HONEST] - now_ms())
    assert rests[:3] == [14_000, 28_000, 56_000]
    assert rests[-1] == REST_MS_MAX
    found.praise(HONEST)
    found.failed(HONEST, 0)
    assert found.rests_until_ms[HONEST] - now_ms() == limits.FETCH_COOLDOWN_MS


async def test_half_of_the_places_are_for_those_who_are_near_and_an_authority_is_among_them(
    clock: trio.testing.MockClock,
) -> None:
    connected = [peer(number) for number in range(100, 130)]
    net = Net([*connected, HONEST])
    net.held = frozenset({HONEST})
    asked = await sources(net, SYBILS).candidates()
    near = [who for who in asked if who in net.connected]
    assert len(asked) == limits.FETCH_PROVIDERS_MAX
    assert len(near) == limits.FETCH_PROVIDERS_MAX // 2
    assert near[0] == HONEST


async def test_a_busy_peer_rests_as_long_as_it_says_and_is_not_held_to_have_failed(
    clock: trio.testing.MockClock,
) -> None:
    found = sources(Net([HONEST]), [])

    async def busy(who: bytes) -> str:
        raise RequestFailed(Code.ERR_BUSY, "busy", retry_after_ms=9_000)

    for _ in range(3):
        with pytest.raises(Missing):
            await ask_any(found, "blob", "x", busy)
    assert found.rests_until_ms[HONEST] - now_ms() == 9_000


async def test_only_bytes_that_are_proved_false_are_a_mark(clock: trio.testing.MockClock) -> None:
    found = sources(Net([HONEST]), [])

    async def false(who: bytes) -> str:
        raise HashMismatch(bytes(32), b"\1" * 32)

    for ask in (only(peer(5)), false):
        with pytest.raises(Missing):
            await ask_any(found, "blob", "x", ask)
    net: Any = found.context.network
    assert net.marked == [HONEST]


async def test_a_source_that_always_says_soon_is_left_within_its_time(clock: trio.testing.MockClock) -> None:
    asked = 0

    async def ask(who: bytes) -> str:
        nonlocal asked
        asked += 1
        raise RequestFailed(Code.ERR_RATE_LIMITED, "too much", retry_after_ms=1)

    began = trio.current_time()
    with pytest.raises(Missing):
        await ask_any(sources(Net([HONEST]), []), "blob", "x", ask)
    assert trio.current_time() - began <= RATE_WAIT_MS_MAX / 1_000
    assert 1 < asked < 50


@pytest.mark.parametrize(
    ("retry_after_ms", "outcome"), [(3, "it"), (5_000, "Missing")], ids=["soon", "much later"]
)
async def test_a_source_that_says_when_to_come_again_is_asked_again_then(
    clock: trio.testing.MockClock, retry_after_ms: int, outcome: str
) -> None:
    """A newcomer asks faster than a source lets it: that must not cost it its only source."""
    asked_at: list[float] = []

    async def ask(who: bytes) -> str:
        asked_at.append(trio.current_time())
        if len(asked_at) < 4:
            raise RequestFailed(Code.ERR_RATE_LIMITED, "too much", retry_after_ms=retry_after_ms)
        return "it"

    of_world = sources(Net([HONEST]), [])
    if outcome == "Missing":
        with pytest.raises(Missing):
            await ask_any(of_world, "blob", "x", ask)
        assert len(asked_at) == 1
        assert of_world.is_resting(HONEST, now_ms())
    else:
        assert await ask_any(of_world, "blob", "x", ask) == outcome
        assert all(later - at >= retry_after_ms / 1_000 for at, later in itertools.pairwise(asked_at))
        assert not of_world.is_resting(HONEST, now_ms())

"""Own provider keys and their due times, seen providers, the cached DHT and the republish loop."""

from __future__ import annotations

import random

import pytest
import trio

from p2p import names, providers
from p2p.errors import RecordRefused, Unreachable
from p2p.network import PeerInfo
from p2p.providers import CachedDht, ProvidedRow, ProviderCache, republish_loop

OWN = b"own peer"
KEY = bytes(32)
TTL_MS = names.PROVIDER_CACHE_TTL_MS
PERIOD_MS = names.PROVIDER_REPUBLISH_MS


def key(number):
    return number.to_bytes(32, "big")


def info(name, *addrs):
    return PeerInfo(name, addrs)


def cache(**kwargs):
    return ProviderCache(OWN, random.Random(1), **kwargs)


# --- own keys


def test_a_registered_key_is_due_at_once_and_again_after_a_period():
    own = cache()
    assert own.next_due_ms() is None
    assert own.register(KEY, 1_000)
    assert own.due(999) == []
    assert own.due(1_000) == own.due(1_000) == [KEY]
    own.provided(KEY, 2_000)
    due_ms = own.next_due_ms()
    assert 2_000 + PERIOD_MS * 9 // 10 <= due_ms <= 2_000 + PERIOD_MS
    assert own.due(due_ms - 1) == []
    assert own.due(due_ms) == [KEY]


def test_keys_spread_out_over_the_jitter():
    own = cache()
    for number in range(50):
        own.register(key(number), 0)
        own.provided(key(number), 0)
    spread = {row.due_ms for row in own.export_rows()}
    assert len(spread) > 25
    assert PERIOD_MS * 9 // 10 <= min(spread) < max(spread) <= PERIOD_MS


def test_registering_again_does_not_hasten_a_key():
    own = cache()
    own.register(KEY, 0)
    own.provided(KEY, 0)
    assert own.register(KEY, 1)
    assert own.due(1) == []


def test_an_unregistered_key_is_never_due():
    own = cache()
    own.register(KEY, 0)
    own.unregister(KEY)
    own.unregister(key(9))
    assert own.due(10**12) == []
    assert own.next_due_ms() is None
    own.provided(KEY, 5)
    assert not own.is_registered(KEY)
    assert own.register(KEY, 7)
    assert own.due(7) == [KEY]


def test_the_longest_due_key_comes_first_and_a_failed_one_soon():
    own = cache()
    for number, at_ms in ((1, 30), (2, 10), (3, 20)):
        own.register(key(number), at_ms)
    assert own.due(100) == [key(2), key(3), key(1)]
    own.postpone(key(2), 100)
    assert own.due(100) == [key(3), key(1)]
    assert own.due(100 + providers.RETRY_MS) == [key(3), key(1), key(2)]


def test_the_number_of_own_keys_is_bounded():
    own = cache(provided_keys_max=2)
    assert [own.register(key(number), 0) for number in (1, 2, 3, 1)] == [True, True, False, True]
    own.unregister(key(1))
    assert own.register(key(3), 0)
    for turn in range(1_000):
        own.provided(key(3), turn)
        own.provided(key(2), turn)
    assert len(own._queue) < 100


def test_rows_outlive_a_restart_and_a_clock_that_went_back():
    own = cache()
    own.register(key(1), 0)
    own.register(key(2), 0)
    own.provided(key(2), 0)
    rows = own.export_rows()
    again = cache()
    assert again.import_rows(rows, 500) == 2
    assert again.export_rows() == rows
    assert again.due(500) == [key(1)]
    late = cache()
    assert late.import_rows([ProvidedRow(KEY, 10**15)], 1_000) == 1
    assert late.next_due_ms() == 1_000 + PERIOD_MS
    small = cache(provided_keys_max=1)
    assert small.import_rows(rows, 0) == 1


def test_changes_are_told_once():
    own = cache()
    own.register(key(1), 0)
    own.register(key(2), 0)
    own.unregister(key(2))
    assert own.take_changes() == ([ProvidedRow(key(1), 0)], [key(2)])
    assert own.take_changes() == ([], [])


def test_a_period_of_nothing_is_refused():
    with pytest.raises(ValueError, match="republish_ms"):
        cache(republish_ms=0)


# --- seen providers


def test_seen_providers_are_newest_first_and_end_with_their_ttl():
    seen = cache()
    seen.remember(KEY, [info(b"a")], 1_000)
    seen.remember(KEY, [info(b"b", "/addr")], 2_000)
    assert seen.cached(KEY, 2_000) == [info(b"b", "/addr"), info(b"a")]
    assert seen.cached(KEY, 1_000 + TTL_MS) == [info(b"b", "/addr")]
    assert seen.cached(KEY, 2_000 + TTL_MS) == []
    seen.remember(KEY, [info(b"a", "/new")], 2_500)
    assert seen.cached(KEY, 2_500) == [info(b"a", "/new"), info(b"b", "/addr")]


def test_at_most_eight_providers_of_a_key_are_kept():
    seen = cache()
    for number in range(20):
        seen.remember(KEY, [info(b"%d" % number)], number)
    assert [one.peer_id for one in seen.cached(KEY, 20)] == [b"%d" % number for number in range(19, 11, -1)]


def test_the_own_record_is_never_cached_and_hides_nobody():
    seen = cache()
    seen.register(KEY, 0)
    seen.remember(KEY, [info(OWN)], 0)
    assert seen.cached(KEY, 0) == []
    seen.remember(KEY, [info(OWN), info(b"a")], 0)
    assert seen.cached(KEY, 0) == [info(b"a")]


def test_a_ttl_of_nothing_is_no_cache():
    seen = cache(ttl_ms=0)
    seen.remember(KEY, [info(b"a")], 0)
    assert seen.cached(KEY, 0) == []


def test_a_provider_that_had_nothing_is_forgotten():
    seen = cache()
    seen.remember(KEY, [info(b"a"), info(b"b")], 0)
    seen.forget(KEY, b"a")
    assert seen.cached(KEY, 0) == [info(b"b")]
    seen.forget(KEY, b"b")
    seen.forget(KEY, b"b")
    assert seen.cached(KEY, 0) == []


def test_the_number_of_seen_keys_is_bounded():
    seen = cache()
    for number in range(providers.CACHED_KEYS_MAX + 10):
        seen.remember(key(number), [info(b"a")], 0)
    assert seen.cached(key(9), 0) == []
    assert seen.cached(key(10), 0) == [info(b"a")]


def test_what_was_seen_in_the_future_is_not_believed():
    seen = cache()
    seen.remember(KEY, [info(b"a")], 10_000)
    assert seen.cached(KEY, 5_000) == []


# --- the cached DHT


class Rule:
    def validate(self, key, value):
        if not value:
            raise RecordRefused(key, "empty")

    def select(self, key, values):
        return max(range(len(values)), key=lambda index: (values[index], index))


class ScriptedDht:
    """A DHT that says what the test says, and counts."""

    def __init__(self):
        self.record = None
        self.providers = []
        self.provided = []
        self.lookups = 0
        self.failing = False

    async def put_record(self, key, value):
        Rule().validate(key, value)
        self.record = value

    async def get_record(self, key):
        self.lookups += 1
        return self.record

    async def provide(self, content_id):
        if self.failing:
            raise Unreachable("12D3", "nobody there")
        self.provided.append(content_id)

    async def find_providers(self, content_id, count_max=20):
        self.lookups += 1
        return self.providers[:count_max]

    def counters(self):
        return {"dht.lookups": self.lookups}


class Clock:
    def __init__(self):
        self.ms = 1_000_000

    def __call__(self):
        return self.ms


@pytest.fixture
def world():
    dht, clock, own = ScriptedDht(), Clock(), cache()
    return dht, clock, own, CachedDht(dht, own, Rule(), clock)


async def test_the_network_is_always_asked_for_a_head(world):
    dht, _, _, cached = world
    await cached.put_record("/k", b"1")
    dht.record = b"2"
    assert await cached.get_record("/k") == b"2"
    dht.record = b"3"
    assert await cached.get_record("/k") == b"3"
    assert dht.lookups == 2


async def test_the_cached_head_is_a_floor_for_its_ttl(world):
    dht, clock, _, cached = world
    dht.record = b"5"
    assert await cached.get_record("/k") == b"5"
    for worse in (b"4", None):
        dht.record = worse
        assert await cached.get_record("/k") == b"5"
    assert cached.counters()["dht.head_floors"] == 2
    clock.ms += names.HEAD_CACHE_TTL_MS
    assert await cached.get_record("/k") is None
    dht.record = b"4"
    assert await cached.get_record("/k") == b"4"


async def test_a_head_ttl_of_nothing_is_no_floor():
    dht = ScriptedDht()
    cached = CachedDht(dht, cache(), Rule(), Clock(), head_ttl_ms=0)
    dht.record = b"5"
    assert await cached.get_record("/k") == b"5"
    dht.record = b"4"
    assert await cached.get_record("/k") == b"4"


async def test_a_refused_record_is_no_floor(world):
    _, _, _, cached = world
    with pytest.raises(RecordRefused):
        await cached.put_record("/k", b"")
    assert await cached.get_record("/k") is None


async def test_providers_are_asked_for_once_per_ttl(world):
    dht, clock, _, cached = world
    dht.providers = [info(b"a"), info(b"b")]
    assert await cached.find_providers(KEY) == [info(b"a"), info(b"b")]
    dht.providers = [info(b"c")]
    assert await cached.find_providers(KEY, 1) == [info(b"a")]
    assert dht.lookups == 1
    clock.ms += TTL_MS
    assert await cached.find_providers(KEY) == [info(b"c")]
    counters = cached.counters()
    assert (counters["dht.provider_cache_hits"], counters["dht.provider_cache_misses"]) == (1, 2)
    assert counters["dht.lookups"] == 2


async def test_finding_nobody_is_not_remembered(world):
    dht, _, _, cached = world
    assert await cached.find_providers(KEY) == []
    dht.providers = [info(b"a")]
    assert await cached.find_providers(KEY) == [info(b"a")]


async def test_providing_does_not_hide_other_providers_and_is_repeated(world):
    dht, clock, own, cached = world
    await cached.provide(KEY)
    dht.providers = [info(b"a")]
    assert await cached.find_providers(KEY) == [info(b"a")]
    assert own.due(clock()) == []
    assert own.due(clock() + PERIOD_MS) == [KEY]


async def test_a_provide_that_failed_stays_due(world):
    dht, clock, own, cached = world
    dht.failing = True
    with pytest.raises(Unreachable):
        await cached.provide(KEY)
    assert own.due(clock()) == [KEY]


# --- the loop


class Loop:
    """The republish loop under trio's mock clock; ms are trio's."""

    def __init__(self):
        self.dht = ScriptedDht()
        self.own = cache()
        self.held = {}
        self.stored = {}

    def now_ms(self):
        return int(trio.current_time() * 1000)

    async def sleep_until_ms(self, at_ms):
        await trio.sleep_until(at_ms / 1000)

    def changed(self, rows, gone):
        self.stored.update({row.content_id: row.due_ms for row in rows})
        for content_id in gone:
            self.stored.pop(content_id, None)

    async def run(self):
        await republish_loop(
            self.own,
            self.dht,
            self.now_ms,
            self.sleep_until_ms,
            lambda content_id: self.held.get(content_id, True),
            self.changed,
        )


async def test_keys_are_provided_again_and_again_until_no_longer_held(autojump_clock, nursery):
    loop = Loop()
    loop.own.register(key(1), loop.now_ms())
    nursery.start_soon(loop.run)
    await trio.sleep(1)
    assert loop.dht.provided == [key(1)]
    loop.own.register(key(2), loop.now_ms())  # while the loop sleeps
    await trio.sleep(providers.POLL_MS_MAX / 1000)
    assert loop.dht.provided == [key(1), key(2)]
    await trio.sleep(3 * PERIOD_MS / 1000)
    assert loop.dht.provided.count(key(1)) == 4
    assert sorted(loop.stored) == [key(1), key(2)]
    loop.held[key(1)] = False
    await trio.sleep(2 * PERIOD_MS / 1000)
    assert loop.dht.provided.count(key(1)) == 4
    assert loop.dht.provided.count(key(2)) > 4
    assert sorted(loop.stored) == [key(2)]


async def test_a_failing_dht_is_tried_again_soon_and_stops_nothing(autojump_clock, nursery):
    loop = Loop()
    loop.own.register(KEY, loop.now_ms())
    loop.dht.failing = True
    nursery.start_soon(loop.run)
    await trio.sleep(60)
    assert loop.dht.provided == []
    loop.dht.failing = False
    await trio.sleep(providers.RETRY_MS / 1000 + 1)
    assert loop.dht.provided == [KEY]


async def test_a_restart_goes_on_where_the_last_run_was(autojump_clock, nursery):
    loop = Loop()
    loop.own.register(KEY, loop.now_ms())
    with trio.move_on_after(10):
        await loop.run()
    assert loop.dht.provided == [KEY]
    again = Loop()
    again.own.import_rows([ProvidedRow(*row) for row in loop.stored.items()], again.now_ms())
    nursery.start_soon(again.run)
    await trio.sleep(60)
    assert again.dht.provided == []
    await trio.sleep(PERIOD_MS / 1000)
    assert again.dht.provided == [KEY]

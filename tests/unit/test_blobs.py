"""fetch_blob: the own store first, ranges from several providers, and what becomes of those that fail or lie."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from p2p import names
from p2p.memory import InMemoryHub
from p2p.providers import ProviderCache
from runtime import codec
from runtime.errors import Missing
from runtime.keys import SigningKey
from runtime.services import HeadRecords
from runtime.services.blobs import FIRST_RANGE_BYTES, RANGE_BYTES_MIN, fetch_blob
from runtime.services.context import Context
from runtime.services.fetch import Sources
from runtime.services.methods import MethodTable
from runtime.services.serve import NodeDesk
from runtime.world_db import MemoryWorldDb

WORLD = "a" * 32
SMALL = random.Random(1).randbytes(1_000)
LARGE = random.Random(2).randbytes(FIRST_RANGE_BYTES + 4 * RANGE_BYTES_MIN + 17)


async def at_once(work):
    return work()


class Provider(NodeDesk):
    """A node that notes what it was asked for, and may lie or stop."""

    lies = False
    sends_max = 1 << 30
    sleeps_s = 0.0

    async def fetch_blob(self, caller, request, send):
        self.asked.append((request.offset or 0, request.length))
        if request.offset:
            await trio.sleep(self.sleeps_s)

        async def noted(part):
            if self.sent + len(part) > self.sends_max:
                raise trio.BrokenResourceError("a bug, as a crash would look")
            self.sent += len(part)
            await send(bytes(len(part)) if self.lies and (request.offset or 0) else part)

        return await super().fetch_blob(caller, request, noted)


@asynccontextmanager
async def a_client_of(*holding):
    """Sources of a client, and providers that hold these blobs, connected to it."""
    hub, rng = InMemoryHub(random.Random(1)), random.Random(3)
    async with AsyncExitStack() as stack:
        providers, contexts = [], []
        for number, blobs in enumerate((*holding, ())):
            key, methods = SigningKey(bytes([number + 1]) * 32), MethodTable()
            network, dht = await stack.enter_async_context(
                hub.open_node(key.identity, methods.routes(), HeadRecords())
            )
            cache = ProviderCache(key.identity, rng)
            context = Context(network, dht, cache, MemoryWorldDb(), key, lambda: 1_000, rng, at_once)
            provider = Provider(context, (), tuple, {})
            provider.asked, provider.sent = [], 0
            methods.mount_node(provider.handlers())
            for blob in blobs:
                context.db.blobs.put(blob)
            providers.append(provider)
            contexts.append(context)
        for context in contexts[:-1]:
            await contexts[-1].network.connect(context.network.addrs())
        yield Sources(contexts[-1], WORLD), providers[:-1]


async def test_what_is_held_is_not_asked_for(autojump_clock):
    async with a_client_of([SMALL]) as (sources, (provider,)):
        sources.context.db.blobs.put(SMALL)
        assert await fetch_blob(sources, codec.content_id(SMALL)) == SMALL
        assert not provider.asked


@pytest.mark.parametrize(
    "blob", [b"", SMALL, LARGE[:FIRST_RANGE_BYTES], LARGE[: FIRST_RANGE_BYTES + 1], LARGE]
)
async def test_a_blob_of_any_size_comes_whole_from_one_provider(blob, autojump_clock):
    async with a_client_of([blob]) as (sources, (provider,)):
        assert await fetch_blob(sources, codec.content_id(blob)) == blob
        assert len(provider.asked) == (1 if len(blob) <= FIRST_RANGE_BYTES else 2)
        assert sources.context.counters["fetch.blobs"] == 1
        assert sources.context.counters["fetch.bytes"] == len(blob)


async def test_two_providers_share_a_large_blob(autojump_clock):
    async with a_client_of([LARGE], [LARGE]) as (sources, providers):
        assert await fetch_blob(sources, codec.content_id(LARGE)) == LARGE
        assert all(provider.sent >= RANGE_BYTES_MIN for provider in providers)
        assert sum(provider.sent for provider in providers) == len(LARGE), "no byte twice"


async def test_a_provider_that_fails_in_the_middle_costs_only_what_it_had_not_sent(autojump_clock):
    async with a_client_of([LARGE], [LARGE]) as (sources, providers):
        providers[0].sends_max = FIRST_RANGE_BYTES + RANGE_BYTES_MIN // 2
        assert await fetch_blob(sources, codec.content_id(LARGE)) == LARGE
        assert sum(provider.sent for provider in providers) == len(LARGE)
        assert sources.context.counters["fetch.ranges_failed"] == 0


async def test_what_is_given_back_when_the_others_are_done_is_fetched_all_the_same(autojump_clock):
    async with a_client_of([LARGE], [LARGE]) as (sources, providers):
        candidates = await sources.candidates()
        slow = next(p for p in providers if p._context.peer_id == candidates[1])
        slow.sleeps_s, slow.sends_max = 5.0, 0
        sources.rests_until_ms[slow._context.peer_id] = 2_000  # asked second
        assert await fetch_blob(sources, codec.content_id(LARGE)) == LARGE
        assert sources.context.counters["fetch.ranges_failed"] == 0


async def test_who_holds_nothing_of_it_is_passed_over(autojump_clock):
    async with a_client_of([SMALL], [LARGE], []) as (sources, providers):
        assert await fetch_blob(sources, codec.content_id(LARGE)) == LARGE
        assert providers[1].sent == len(LARGE)


async def test_false_ranges_are_found_and_each_is_asked_alone(autojump_clock):
    async with a_client_of([LARGE], [LARGE]) as (sources, providers):
        providers[1].lies = True
        assert await fetch_blob(sources, codec.content_id(LARGE)) == LARGE
        assert sources.context.counters["fetch.ranges_failed"] == 1


async def test_a_blob_over_the_limit_is_refused(autojump_clock):
    async with a_client_of([LARGE]) as (sources, (provider,)):
        with pytest.raises(Missing):
            await fetch_blob(sources, codec.content_id(LARGE), bytes_max=len(LARGE) - 1)
        assert provider.sent <= FIRST_RANGE_BYTES


async def test_what_nobody_has_is_missing(autojump_clock):
    async with a_client_of([SMALL], []) as (sources, _providers):
        with pytest.raises(Missing, match="2 peers tried"):
            await fetch_blob(sources, codec.content_id(LARGE))


def test_a_first_range_is_one_part():
    assert FIRST_RANGE_BYTES <= names.PART_BYTES_MAX

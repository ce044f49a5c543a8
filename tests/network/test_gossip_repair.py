"""Gossip repair over real hosts: a sequencer and an observer that miss 30 % of what is gossiped end complete."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from p2p.host import HostConfig, open_network
from p2p.identity import Identity
from runtime.services import HeadRecords

pytestmark = pytest.mark.network

PATIENCE_S = 90.0
LOST_OF_256 = 77  # 30 %


@asynccontextmanager
async def opened(seed: bytes, routes: Any) -> AsyncIterator[tuple[Any, Any]]:
    config = HostConfig(
        identity=Identity(seed),
        listen=("/ip4/127.0.0.1/tcp/0",),
        rng=random.Random(seed),
        now_ms=lambda: time.time_ns() // 1_000_000,
    )
    async with open_network(config, routes, HeadRecords()) as network:
        yield network, network.dht


@pytest.mark.parametrize("deaf", ["sequencer", "observer"])
async def test_a_node_that_misses_30_percent_of_gossip_ends_complete(
    six_nodes: Callable[..., Any], deaf: str
) -> None:
    six = six_nodes(deaf, LOST_OF_256)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(PATIENCE_S):
            for name in six.keys:
                await nursery.start(six.run_node, name, opened)
            envelopes = [one for one in six.envelopes(40) if one.record.nonce < 8]
            await six.hand_in(envelopes, pause_s=0.1)
            more = (one for one in six.envelopes(40) if one.record.nonce >= 8)
            while not six.lost.total():  # a busy machine may gossip little, and late: most is asked for then
                envelopes.append(next(more))
                await six.hand_in(envelopes[-1:], pause_s=0.1)
            for name in (deaf, "executor"):
                await six.all_taken(name, envelopes)
        nursery.cancel_scope.cancel()
    counters = six.contexts[deaf].counters
    if deaf == "sequencer":
        assert counters["mempool.gaps_found"] > 0

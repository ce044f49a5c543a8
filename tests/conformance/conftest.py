"""The networks that the conformance suite runs on.

`make_nodes(n, routes_for, record_rule)` opens n connected nodes of one kind and yields them in order. A kind
is one function in NETWORKS; everything that the suite says holds for every kind.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import pytest
import trio

from p2p.errors import RecordRefused
from p2p.memory import InMemoryHub
from p2p.network import DistributedDht, DistributedNetwork, PeerId, RecordRule, Routes

RoutesFor = Callable[[int], Routes]


class Node(NamedTuple):
    """One opened node."""

    network: DistributedNetwork
    dht: DistributedDht


class VersionRule:
    """Records `v<number>:<text>`; the greater number is better."""

    def validate(self, key: str, value: bytes) -> None:
        head, _, _ = value.partition(b":")
        if not head.startswith(b"v") or not head[1:].isdigit():
            raise RecordRefused(key, "is not v<number>:<text>")

    def select(self, key: str, values: Sequence[bytes]) -> int:
        versions = [int(value.partition(b":")[0][1:]) for value in values]
        return max(range(len(values)), key=lambda index: (versions[index], index))


def no_routes(index: int) -> Routes:
    return {}


def peer_of(index: int) -> PeerId:
    """A peer id of the right shape."""
    return bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20)) + bytes((index + 1,)) * 32


@asynccontextmanager
async def open_memory_nodes(
    count: int, routes_for: RoutesFor, record_rule: RecordRule
) -> AsyncIterator[list[Node]]:
    hub = InMemoryHub(random.Random(1))
    async with AsyncExitStack() as stack:
        nodes = []
        for index in range(count):
            opened = await stack.enter_async_context(
                hub.open_node(peer_of(index), routes_for(index), record_rule)
            )
            nodes.append(Node(*opened))
        await connect_all(nodes)
        yield nodes


async def connect_all(nodes: Sequence[Node]) -> None:
    """Every node dials every later one."""
    for index, node in enumerate(nodes):
        for other in nodes[index + 1 :]:
            await node.network.connect(other.network.addrs())


@asynccontextmanager
async def open_libp2p_nodes(
    count: int, routes_for: RoutesFor, record_rule: RecordRule
) -> AsyncIterator[list[Node]]:
    from p2p.host import HostConfig, open_network
    from p2p.identity import Identity

    async with AsyncExitStack() as stack:
        nodes = []
        for index in range(count):
            config = HostConfig(
                identity=Identity(bytes((index + 1,)) * 32),
                listen=("/ip4/127.0.0.1/tcp/0",),
                rng=random.Random(index),
                now_ms=lambda: time.time_ns() // 1_000_000,
            )
            network = await stack.enter_async_context(open_network(config, routes_for(index), record_rule))
            nodes.append(Node(network, network.dht))
        await connect_all(nodes)
        with trio.fail_after(20):
            while any(node.dht.counters().get("dht.introduced", 0) < count - 1 for node in nodes):
                await trio.sleep(0.02)  # identify comes when it comes; the counter says when
        yield nodes


OpenNodes = Callable[[int, RoutesFor, RecordRule], AbstractAsyncContextManager[list[Node]]]

NETWORKS: dict[str, OpenNodes] = {
    "libp2p": open_libp2p_nodes,
    "memory": open_memory_nodes,
}


class MakeNodes:
    """Opens nodes of one kind, with the suite's record rule unless told otherwise."""

    def __init__(self, open_nodes: OpenNodes) -> None:
        self._open_nodes = open_nodes

    def __call__(
        self, count: int, routes_for: RoutesFor = no_routes, record_rule: RecordRule | None = None
    ) -> AbstractAsyncContextManager[list[Node]]:
        return self._open_nodes(count, routes_for, record_rule or VersionRule())


@pytest.fixture(params=sorted(NETWORKS))
def make_nodes(request: pytest.FixtureRequest) -> MakeNodes:
    return MakeNodes(NETWORKS[request.param])

"""Our side of the network benchmarks: one node of this stack with an echo, a blob store and one topic.

`python -m benchmarks.ours [bytes per second]`: a pace holds what fetch_blob sends, as a slow link would.
"""

from __future__ import annotations

import random
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio

from benchmarks.side import obey, play
from bootstrap.node import in_thread, now_ms
from p2p import names
from p2p.host import HostConfig, Libp2pNetwork, open_network
from p2p.identity import Identity
from p2p.loads import RouterLimits
from p2p.network import Message, PartsRoute, PeerId, Route, Routes, SendPart, Subscription, Verdict
from p2p.providers import ProviderCache
from runtime.keys import SigningKey
from runtime.services import HeadRecords
from runtime.services.blobs import fetch_blob, fetch_from
from runtime.services.context import Context
from runtime.services.fetch import Sources
from runtime.services.methods import MethodTable
from runtime.services.serve import NodeDesk
from runtime.world_db import LmdbWorldDb, MemoryWorldDb, WorldDb

WORLD = "a" * 32
TOPIC = names.topic(WORLD, "head")
GOSSIP_AGAIN_S = 2.0  # what is lost meanwhile is said again
# A node takes 2,000 requests a second of one peer. That is policy, not speed: here it is out of the way.
LIMITS = RouterLimits(requests_per_s_max=1_000_000, request_bytes_per_s_max=1 << 30)


async def echo(caller: PeerId, body: bytes) -> bytes:
    del caller
    return body


def config(listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)) -> HostConfig:
    """A host with a key of its own."""
    return HostConfig(
        identity=Identity(secrets.token_bytes(32)),
        listen=listen,
        rng=random.Random(secrets.randbits(64)),
        now_ms=now_ms,
        router_limits=LIMITS,
    )


def paced(route: PartsRoute, bytes_per_s: int) -> PartsRoute:
    """The route, with the parts of all its streams together leaving no faster than this."""
    due = 0.0

    async def handle(caller: PeerId, body: bytes, send: SendPart) -> bytes:
        async def send_in_time(part: bytes) -> None:
            nonlocal due
            due = max(due, trio.current_time()) + len(part) / bytes_per_s
            await trio.sleep_until(due)
            await send(part)

        return await route.handler(caller, body, send_in_time)

    return PartsRoute(handle, route.request_bytes_max)


class Node:
    """The commands."""

    def __init__(self, network: Libp2pNetwork, context: Context, subscription: Subscription) -> None:
        self._network = network
        self._context = context
        self._subscription = subscription
        self._awaited: dict[bytes, trio.Event] = {}

    async def addrs(self) -> list[str]:
        return self._network.addrs()

    async def dial(self, addrs: list[str]) -> str:
        return (await self._network.connect(addrs)).hex()

    async def requests(self, peer: str, count: int, in_flight: int, size: int) -> float:
        """Requests a second over the session."""
        return await per_second(count, in_flight, partial(self._request, bytes.fromhex(peer), bytes(size)))

    async def one_shots(self, peer: str, count: int, in_flight: int, size: int) -> float:
        """Requests a second, each on a stream of its own."""
        return await per_second(count, in_flight, partial(self._one_shot, bytes.fromhex(peer), bytes(size)))

    async def _request(self, peer: PeerId, body: bytes) -> None:
        assert await self._network.request(peer, "echo", body) == body

    async def _one_shot(self, peer: PeerId, body: bytes) -> None:
        async with self._network.request_parts(peer, "echo", body) as answer:
            assert await answer.part() is None
            assert answer.last == body

    async def connect(self, addrs: list[str]) -> float:
        """Milliseconds that a fresh host needs to be connected."""
        async with open_network(config(listen=()), {}, HeadRecords()) as network:
            before = time.perf_counter()
            await network.connect(addrs)
            return (time.perf_counter() - before) * 1_000

    async def hold(self, seed: int, size: int) -> str:
        """Keep a blob of chance bytes; gives its content id."""
        return self._context.db.blobs.put(random.Random(seed).randbytes(size)).hex()

    async def fetch(self, content_id: str, size: int, times: int, only: str | None = None) -> float:
        """MB/s of fetching a blob and checking its hash, from all connected peers that help, or from one only."""
        sources = Sources(self._context, WORLD, asked_at_ms=now_ms(), fresh_ms=1 << 40)
        before = time.perf_counter()
        for _ in range(times):
            if only is None:
                data = await fetch_blob(sources, bytes.fromhex(content_id))
            else:
                data = await fetch_from(self._context, bytes.fromhex(only), bytes.fromhex(content_id), size)
            assert len(data) == size
        return size * times / (time.perf_counter() - before) / 1e6

    # --- gossip: questions, and answers by the other node --------------------------------------------------

    async def hear(self) -> None:
        """Answer every question, and note every answer."""
        while True:
            data = (await self._subscription.receive()).data
            if data[:1] == b"?":
                await self._subscription.publish(b"!" + data[1:])
            elif data[1:9] in self._awaited:
                self._awaited.pop(data[1:9]).set()

    async def gossip(self, count: int, in_flight: int, size: int) -> float:
        """Messages a second, there and back, with so many questions under way."""
        await self._say(secrets.token_bytes(8), size)  # the mesh stands
        return 2 * await per_second(count, in_flight, lambda: self._say(secrets.token_bytes(8), size))

    async def _say(self, name: bytes, size: int) -> None:
        heard = self._awaited[name] = trio.Event()
        while not heard.is_set():
            await self._subscription.publish(b"?" + name + bytes(size - 9))
            with trio.move_on_after(GOSSIP_AGAIN_S):
                await heard.wait()


async def per_second(count: int, in_flight: int, once: Callable[[], Any]) -> float:
    """How often a second `once` is done, by so many tasks."""
    left = count

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await once()

    before = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(in_flight):
            nursery.start_soon(work)
    return count / (time.perf_counter() - before)


def routes_of(methods: MethodTable, bytes_per_s: int | None) -> Routes:
    routes = {**methods.routes(), "echo": Route(echo)}
    fetch = routes["fetch_blob"]
    if bytes_per_s is not None:
        assert isinstance(fetch, PartsRoute)
        routes["fetch_blob"] = paced(fetch, bytes_per_s)
    return routes


def accept(message: Message) -> Verdict:
    del message
    return Verdict.ACCEPT


async def run(bytes_per_s: int | None) -> None:
    """One node until stdin ends."""
    methods, host = MethodTable(), config()
    async with open_network(host, routes_of(methods, bytes_per_s), HeadRecords()) as network:
        with tempfile.TemporaryDirectory(prefix="aw-bench-") as directory:
            db: WorldDb = MemoryWorldDb() if bytes_per_s is not None else LmdbWorldDb(Path(directory))
            providers = ProviderCache(network.peer_id, host.rng)
            key = SigningKey(host.identity.seed)
            context = Context(network, network.dht, providers, db, key, now_ms, host.rng, in_thread)
            methods.mount_node(NodeDesk(context, (), tuple, {}).handlers())
            node = Node(network, context, await network.join(TOPIC, accept))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.hear)
                named = ("addrs", "dial", "requests", "one_shots", "connect", "hold", "fetch", "gossip")
                await obey({name: getattr(node, name) for name in named})
                nursery.cancel_scope.cancel()
            db.close()


if __name__ == "__main__":
    play(run, int(sys.argv[1]) if len(sys.argv) > 1 else None)

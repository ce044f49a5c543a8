"""Real nodes on loopback, a stranger with a stock py-libp2p host, and honest traffic beside.

AW_WITHOUT_CURE=<name> takes one cure away for the whole run: test_cures.py shows by it that each cure is needed.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import libp2p
import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_pair
from libp2p.network.config import ConnectionConfig
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from p2p import cures, gossip_cures, stream_cures
from p2p.errors import RecordRefused
from p2p.host import HostConfig, Libp2pNetwork, open_network
from p2p.identity import Identity
from p2p.network import Message, PeerId, Route, Routes, Subscription, Verdict


def _take_away(name: str) -> None:
    """What is called by its name, and not by the table, gives way to what the library does by itself."""

    async def read(stream: Any, bytes_max: int) -> bytes:
        return bytes(await stream.read(bytes_max))

    async def write(stream: Any, data: bytes) -> None:
        await stream.write(data)

    async def never(router: Any, period_s: float) -> None:
        await trio.sleep_forever()

    stock: dict[str, tuple[Any, Any]] = {
        "ask_identify": (cures, lambda host, peer: None),
        "clear_recent_deliveries": (gossip_cures, never),
        "deliver_to": (gossip_cures, lambda pubsub, deliver: None),
        "read_promptly": (stream_cures, read),
        "write_patiently": (stream_cures, write),
    }
    if name in stock:
        module, function = stock[name]
        setattr(module, name, function)
    else:
        del cures.ALL[name]


PATIENCE_S = 60.0
WITHOUT = os.environ.get("AW_WITHOUT_CURE")
if WITHOUT:
    _take_away(WITHOUT)
    PATIENCE_S = 6.0  # what is expected to fail by hanging need not hang for long

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
TOPIC = "aw.honest.head"


class Versions:
    """Records `v<number>:<text>`; the greater number is better, the last among equals."""

    def validate(self, key: str, value: bytes) -> None:
        if not value.startswith(b"v") or not value.partition(b":")[0][1:].isdigit():
            raise RecordRefused(key, "is not v<number>:<text>")

    def select(self, key: str, values: Sequence[bytes]) -> int:
        versions = [int(value.partition(b":")[0][1:]) for value in values]
        return max(range(len(values)), key=lambda index: (versions[index], index))


async def echo(caller: PeerId, body: bytes) -> bytes:
    return body


def _innermost(error: BaseException) -> BaseException:
    """What a test shall show: groups of one, a nursery each, hide it behind pages of tracebacks."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


OpenNode = Callable[..., AbstractAsyncContextManager[Libp2pNetwork]]


@asynccontextmanager
async def _open_node(
    number: int, *, routes: Routes | None = None, listen: Sequence[str] = LOOPBACK, **config: Any
) -> AsyncIterator[Libp2pNetwork]:
    host = HostConfig(
        identity=Identity(bytes([number]) * 32),
        listen=tuple(listen),
        rng=random.Random(number),
        now_ms=lambda: time.time_ns() // 1_000_000,
        **config,
    )
    try:
        async with open_network(host, {"echo": Route(echo), **(routes or {})}, Versions()) as network:
            yield network
    except BaseExceptionGroup as group:
        raise _innermost(group) from None


@pytest.fixture
def open_node() -> OpenNode:
    """`open_node(number, routes=..., listen=..., **HostConfig)`: a node whose key is made of its number."""
    return _open_node


Until = Callable[..., Any]


@pytest.fixture
def until() -> Until:
    """`await until(condition)`: wait for something that nobody sends an event for, looking at it now and then."""

    async def wait(condition: Callable[[], object], patience_s: float = math.inf) -> None:
        with trio.fail_after(min(PATIENCE_S, patience_s)):
            while not condition():
                await trio.sleep(0.01)

    return wait


@pytest.fixture
def patience() -> Callable[[], Any]:
    """`with patience():` what is inside must end; the limit is generous and never the subject of a test."""
    return lambda: trio.fail_after(PATIENCE_S)


class Honest:
    """Requests and gossip between two honest nodes; one of them is usually the victim."""

    def __init__(self, here: Libp2pNetwork, there: Libp2pNetwork, ours: Subscription, theirs: Subscription):
        self._here, self._there, self._ours, self._theirs = here, there, ours, theirs
        self._said = 0

    async def round(self) -> None:
        """One request each way and one message each way arrive."""
        with trio.fail_after(PATIENCE_S):
            for one, other in ((self._here, self._there), (self._there, self._here)):
                assert await one.request(other.peer_id, "echo", b"honest") == b"honest"
            await self._say(self._ours, self._theirs)
            await self._say(self._theirs, self._ours)

    async def _say(self, publisher: Subscription, subscriber: Subscription) -> None:
        """The first messages before the mesh stands are lost: say it again until it arrives."""
        self._said += 1
        words = b"%d" % self._said
        while True:
            await publisher.publish(words)
            with trio.move_on_after(0.5):
                while (await subscriber.receive()).data != words:
                    pass
                return

    async def forever(self) -> None:
        while True:
            await self.round()
            await trio.sleep(0.02)  # it is company, not load


@asynccontextmanager
async def _honest_beside(victim: Libp2pNetwork) -> AsyncIterator[Honest]:
    def accept(message: Message) -> Verdict:
        return Verdict.ACCEPT

    async with _open_node(250) as friend:
        await friend.connect(victim.addrs())
        ours, theirs = await friend.join(TOPIC, accept), await victim.join(TOPIC, accept)
        honest = Honest(friend, victim, ours, theirs)
        await honest.round()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(honest.forever)
            yield honest
            nursery.cancel_scope.cancel()
        await Honest(friend, victim, ours, theirs).round()


@pytest.fixture
def honest_beside() -> Callable[[Libp2pNetwork], AbstractAsyncContextManager[Honest]]:
    """`async with honest_beside(victim):` traffic that goes on meanwhile, and once more after the block."""
    return _honest_beside


class Stranger:
    """A stock py-libp2p host: noise and yamux, nothing of ours. It writes what it likes."""

    def __init__(self, host: Any, pair: Any) -> None:
        self.host = host
        self.pair = pair
        self.peer_id: PeerId = host.get_id().to_bytes()

    async def dial(self, victim: Libp2pNetwork) -> Any:
        """A connection of the library's own."""
        peer = ID(victim.peer_id)
        addr = Multiaddr(victim.addrs()[0])
        return await self.host.get_network().dial_addr(addr, peer)

    async def raw_stream(self, victim: Libp2pNetwork) -> Any:
        """A stream on which nothing is negotiated yet."""
        connections = self.host.get_network().get_connections(ID(victim.peer_id))
        return await (connections[0] if connections else await self.dial(victim)).new_stream()

    async def stream(self, victim: Libp2pNetwork, protocol: str) -> Any:
        """A negotiated stream."""
        if not self.host.get_network().get_connections(ID(victim.peer_id)):
            await self.dial(victim)
        return await self.host.new_stream(ID(victim.peer_id), [protocol])


@asynccontextmanager
async def _open_stranger(
    number: int = 200,
    *,
    listen: Sequence[str] = LOOPBACK,
    handlers: Mapping[str, Any] | None = None,
    pair: Any = None,
) -> AsyncIterator[Stranger]:
    pair = pair or create_new_key_pair(bytes([number]) * 32)
    listen_addrs = [Multiaddr(addr) for addr in listen]
    host = libp2p.new_host(
        key_pair=pair,
        sec_opt={NOISE: NoiseTransport(pair, noise_privkey=create_x25519_pair().private_key)},
        muxer_opt={YAMUX: Yamux},  # type: ignore[dict-item]
        listen_addrs=listen_addrs or None,
        connection_config=ConnectionConfig(min_connections=0, low_watermark=0),
    )
    for protocol, handler in (handlers or {}).items():
        host.set_stream_handler(protocol, handler)  # type: ignore[arg-type]
    try:
        async with host.run(listen_addrs):
            try:
                yield Stranger(host, pair)
            finally:
                with trio.move_on_after(5, shield=True):
                    await host.close()  # leaving `run` does not close what was dialled
    except BaseExceptionGroup as group:
        raise _innermost(group) from None


@pytest.fixture
def open_stranger() -> Callable[..., AbstractAsyncContextManager[Stranger]]:
    """`open_stranger(number)`: a peer that keeps no rule."""
    return _open_stranger

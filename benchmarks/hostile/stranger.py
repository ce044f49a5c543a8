"""What every attack is made of: a stock py-libp2p host with a fresh key, the ground it stands on, its pace, its tally.

Hides: py-libp2p, and how one asks a node over /aw/rr/1 without any of our own network code. Guarantees: nothing of
p2p's host or cures is imported, so that an attacker keeps no rule of ours; an attack that meets an error begins anew.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import libp2p
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

from p2p import frames, names
from runtime import messages
from runtime.records import Genesis, WorldHeadAnnounce

DIAL_S_MAX: Final = 5.0
CLOSE_S_MAX: Final = 2.0
ASK_S_MAX: Final = 10.0
LEARN_S: Final = 5.0  # how old the head may be that a lie is made of
REST_S: Final = 0.5  # after an error, before an attack begins anew
READ_BYTES: Final = 64 * 1024
NO_STRIKE: Final = ("begun", "cut short")
_log = logging.getLogger(__name__)

Tally: TypeAlias = Counter[str]
"""What an attack has done, in words."""


def strikes(tally: Mapping[str, int]) -> int:
    """What an attack did, without its beginnings and ends."""
    return sum(count for what, count in tally.items() if not what.startswith(NO_STRIKE))


class Pace:
    """`await pace()` comes back so often a second, and never makes up for what was missed."""

    def __init__(self, per_s: float) -> None:
        self._period_s = 1 / per_s
        self._due_s = 0.0

    async def __call__(self) -> None:
        self._due_s = max(self._due_s + self._period_s, trio.current_time())
        await trio.sleep_until(self._due_s)


def prefixed(data: bytes) -> bytes:
    """A varint length and the data."""
    length, out = len(data), b""
    while length > 0x7F:
        out, length = out + bytes([length & 0x7F | 0x80]), length >> 7
    return out + bytes([length]) + data


class Stranger:
    """A host that keeps no rule. Every call raises whatever py-libp2p raises."""

    def __init__(self, host: Any, pair: Any) -> None:
        self.host = host
        self.pair = pair
        self.peer_id: bytes = host.get_id().to_bytes()

    async def dial(self, addr: str) -> Any:
        """A new connection, also where there is one."""
        with trio.fail_after(DIAL_S_MAX):
            return await self.host.get_network().dial_addr(Multiaddr(addr), peer_of(addr))

    async def connected(self, addr: str) -> Any:
        """A connection: the one that stands, or a new one."""
        held = self.host.get_network().get_connections(peer_of(addr))
        return held[0] if held else await self.dial(addr)

    async def raw_stream(self, addr: str) -> Any:
        """A stream on which nothing is negotiated."""
        return await (await self.connected(addr)).new_stream()

    async def stream(self, addr: str, protocol: str) -> Any:
        """A negotiated stream."""
        await self.connected(addr)
        with trio.fail_after(DIAL_S_MAX):
            return await self.host.new_stream(peer_of(addr), [protocol])

    async def ask(self, addr: str, method: str, body: bytes) -> bytes:
        """One request on a stream of its own; the last answer's body, or b"" for a refusal."""
        stream = await self.stream(addr, names.RR_PROTOCOL)
        await stream.write(frames.encode_request(1, method, body))
        reader = frames.FrameReader()
        with trio.fail_after(ASK_S_MAX):
            while True:
                match reader.next_frame():
                    case frames.Answer(body=answer):
                        await stream.reset()
                        return answer
                    case frames.ErrorFrame():
                        await stream.reset()
                        return b""
                    case frames.NEED_DATA:
                        reader.feed(await stream.read(READ_BYTES))


def peer_of(addr: str) -> ID:
    """The peer id that a multiaddr ends in."""
    return ID(names.peer_from_text(addr.rpartition("/p2p/")[2]))


def port_of(addr: str) -> tuple[str, int]:
    """Host and TCP port of a multiaddr."""
    parsed = Multiaddr(addr)
    return str(parsed.value_for_protocol("ip4")), int(str(parsed.value_for_protocol("tcp")))


@asynccontextmanager
async def open_stranger(
    *, listens: bool = False, handlers: Mapping[str, Any] | None = None
) -> AsyncIterator[Stranger]:
    """A stock host with a fresh key; its connections are closed hard when the block is left."""
    pair = create_new_key_pair(secrets.token_bytes(32))
    listen = [Multiaddr("/ip4/127.0.0.1/tcp/0")] if listens else []
    security: Any = {NOISE: NoiseTransport(pair, noise_privkey=create_x25519_pair().private_key)}
    muxers: Any = {YAMUX: Yamux}
    host: Any = libp2p.new_host(
        key_pair=pair,
        sec_opt=security,
        muxer_opt=muxers,
        listen_addrs=listen or None,
        connection_config=ConnectionConfig(min_connections=0, low_watermark=0),
    )
    for protocol, handler in (handlers or {}).items():
        host.set_stream_handler(protocol, handler)
    async with host.run(listen):
        try:
            yield Stranger(host, pair)
        finally:
            with trio.move_on_after(CLOSE_S_MAX, shield=True):
                for conn in list(host.get_network().get_connections()):
                    await conn.muxed_conn.secured_conn.close()
                await host.close()


@dataclass(slots=True)
class Ground:
    """Whom an attack is against, and what any stranger can learn of them."""

    addrs: Sequence[str]
    world_id: str
    rng: random.Random
    genesis: Genesis | None = None
    head: WorldHeadAnnounce | None = None
    learned: trio.Event = field(default_factory=trio.Event)

    def victim(self) -> str:
        """One of the addresses, by chance."""
        return self.rng.choice(list(self.addrs))

    def topic(self, kind: str) -> str:
        """A gossip topic of the world."""
        return names.topic(self.world_id, kind)

    async def newest_head(self) -> WorldHeadAnnounce:
        """A head that is a few seconds old, once there is one."""
        await self.learned.wait()
        assert self.head is not None
        return self.head

    async def known_genesis(self) -> Genesis:
        """The genesis, once it was learned."""
        await self.learned.wait()
        assert self.genesis is not None
        return self.genesis

    async def keep_learning(self) -> None:
        """Ask for genesis and head, again and again, as anybody may."""
        while True:
            try:
                await self._learn()
            except Exception as error:  # noqa: BLE001  # the library raises many kinds: another node, a new key
                _log.debug("learning: %s", type(error).__name__)
            await trio.sleep(LEARN_S if self.learned.is_set() else REST_S)

    async def _learn(self) -> None:
        request = messages.WorldRequest(world_id=self.world_id).to_bytes()
        async with open_stranger() as stranger:
            addr = self.victim()
            if self.genesis is None:
                answer = await stranger.ask(addr, "get_genesis", request)
                self.genesis = messages.GenesisAnswer.from_bytes(answer).genesis
            head = messages.HeadAnswer.from_bytes(await stranger.ask(addr, "get_world_head", request)).head
            if head is not None:
                self.head = head
                self.learned.set()


Attack: TypeAlias = Callable[[Ground, Tally, Pace], Awaitable[None]]
"""Runs until it is cancelled, or until the victims have had enough of it: then it begins anew."""


async def persist(attack: Attack, ground: Ground, tally: Tally, pace: Pace) -> None:
    """An attack, begun anew (with a new key) whenever it ends, until cancelled."""
    while True:
        tally["begun"] += 1
        await quietly(attack, ground, tally, pace, tally=tally)
        await trio.sleep(REST_S)


async def quietly(work: Callable[..., Awaitable[None]], *arguments: Any, tally: Tally) -> None:
    """Await it; whatever the library raises is counted: reset, closed, refused is what the victims are for."""
    try:
        await work(*arguments)
    except Exception as error:  # noqa: BLE001
        _cut_short(tally, error)
    except BaseExceptionGroup as group:
        errors, others = group.split(Exception)
        if errors is not None:
            _cut_short(tally, errors)
        if others is not None:  # Cancelled, above all
            raise others from None


async def keep_many(count_max: int, pace: Pace, tally: Tally, begin: Callable[[], Awaitable[None]]) -> None:
    """Begin one after the other, each going on beside the others, never more than `count_max`; until cancelled."""
    places = trio.Semaphore(count_max)

    async def one() -> None:
        try:
            await quietly(begin, tally=tally)
        finally:
            places.release()

    async with trio.open_nursery() as nursery:
        while True:
            await pace()
            await places.acquire()
            nursery.start_soon(one)


def _cut_short(tally: Tally, error: BaseException) -> None:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    tally[f"cut short by {type(error).__name__}"] += 1
    _log.debug("%s", error)

"""Python hosts beside the peers: one whose streams are answered by hand, and one that hears what is passed on to it.

Hides: the hosts. Guarantees: nothing is answered, checked or asked but what the scenario says; both have ended when
their block is left.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message as DhtMessage
from libp2p.peer.id import ID

from bootstrap.node import now_ms
from interop.py import raw
from p2p import frames, names
from p2p.errors import StreamBroken
from p2p.host import HostConfig, Libp2pNetwork, Libp2pStream, open_network
from p2p.identity import Identity
from p2p.network import Message, Subscription, Verdict
from runtime.services import HeadRecords

FRAME_S: Final = 20.0  # for the peer to ask
PROBE_S: Final = 0.05
READ_BYTES: Final = 64 * 1024
STREAMS_WAITING_MAX: Final = 256  # opened, and not yet taken by the scenario: more are a fault of the peer
NOTHING: Final = b"\x00"  # a frame of no bytes, which is none


class Asked:
    """A stream that a peer has opened, to be answered by hand."""

    def __init__(self, stream: Libp2pStream) -> None:
        self._stream = stream
        self._reader = frames.FrameReader()
        self.left = trio.Event()

    async def request(self) -> frames.Request:
        """The next request. Raises AssertionError for anything else, StreamBroken, TooSlowError."""
        frame = await self.frame()
        assert isinstance(frame, frames.Request), frame
        return frame

    async def frame(self) -> object:
        """The next frame, whichever. Raises StreamBroken, TooSlowError, AssertionError at the end of the stream."""
        with trio.fail_after(FRAME_S):
            while (frame := self._reader.next_frame()) is frames.NEED_DATA:
                data = await self._stream.read(READ_BYTES)
                assert data, "the stream was ended where a frame was expected"
                self._reader.feed(data)
        return frame

    async def is_silent(self, for_s: float) -> bool:
        """Whether nothing is asked for so long."""
        with trio.move_on_after(for_s):
            await self.request()
            return False
        return True

    async def given_up(self) -> None:
        """Wait until the peer has reset the stream: to end its own side is not enough. Raises TooSlowError."""
        with trio.fail_after(FRAME_S), suppress(StreamBroken):
            while await self._stream.read(READ_BYTES):
                continue
            while True:  # py-libp2p tells a reset from an end only to who writes
                await self._stream.write(NOTHING)
                await trio.sleep(PROBE_S)

    async def forget(self) -> None:
        """Read what comes until the peer ends or resets the stream."""
        with suppress(StreamBroken):
            while await self._stream.read(READ_BYTES):
                continue

    async def send(self, *frames_: bytes) -> None:
        """Bytes as they are. Raises StreamBroken."""
        await self._stream.write(b"".join(frames_))

    async def fill(self) -> None:
        """Read nothing more, of the whole connection, and talk on until it is closed."""
        await raw.fill(self._stream)

    @property
    def is_reset(self) -> bool:
        """Whether the peer has reset the stream."""
        return raw.is_reset(self._stream)

    async def end(self) -> None:
        """Nothing more is sent."""
        await self._stream.close()

    async def reset(self) -> None:
        """Give the stream up."""
        await self._stream.reset()
        self.left.set()


@dataclass(slots=True)
class Wire:
    """Where a peer can ask; `opened` counts its streams."""

    peer_id: str
    addr: str
    opened: int
    _waiting: trio.MemoryReceiveChannel[Asked]
    _network: Libp2pNetwork

    async def stream(self) -> Asked:
        """The next stream that was opened. Raises TooSlowError."""
        with trio.fail_after(FRAME_S):
            return await self._waiting.receive()

    async def ask(self, peer_id: str, *frames_: bytes) -> Asked:
        """A stream to a peer that has dialled, on which these are written. Raises Unreachable, StreamBroken,
        TooSlowError."""
        asked = Asked(await raw.open_stream(self._network, await self._caller(peer_id)))
        await asked.send(*frames_)
        return asked

    async def hold_dht(self, peer_id: str) -> Asked:
        """A DHT stream to a peer that has dialled. Raises Unreachable."""
        return await self._hold(peer_id, names.KAD_PROTOCOL)

    async def hold_gossip(self, peer_id: str) -> Asked:
        """A gossip stream to a peer that has dialled. Raises Unreachable."""
        return await self._hold(peer_id, names.GOSSIP_PROTOCOL)

    async def _hold(self, peer_id: str, protocol: str) -> Asked:
        return Asked(await raw.open_stream(self._network, await self._caller(peer_id), protocol))

    async def open_unnegotiated(self, peer_id: str) -> Asked:
        """A stream to a peer that has dialled, on which nothing was said."""
        return Asked(await raw.open_unnegotiated(self._network, await self._caller(peer_id)))

    async def ask_dht(self, peer_id: str, asked: DhtMessage, *told: DhtMessage) -> DhtMessage:
        """What a peer that has dialled answers, after it was told these. Raises Unreachable, StreamBroken,
        TooSlowError."""
        peer = await self._caller(peer_id)
        with trio.fail_after(FRAME_S):
            return await raw.ask_dht(self._network, peer, asked, *told)

    async def _caller(self, peer_id: str) -> bytes:
        """Who has dialled, once this side knows of it too."""
        peer = ID.from_base58(peer_id).to_bytes()
        with trio.fail_after(FRAME_S):
            while peer not in self._network.peers():
                await trio.sleep(PROBE_S)
        return peer

    def answer_dht(self, answer: Callable[[DhtMessage], DhtMessage]) -> None:
        """From now on this is what the DHT says here."""
        raw.answer_dht(self._network, answer)


def _config(listen: tuple[str, ...]) -> HostConfig:
    return HostConfig(
        identity=Identity(secrets.token_bytes(32)),
        listen=listen,
        rng=random.Random(secrets.randbits(128)),
        now_ms=now_ms,
    )


@asynccontextmanager
async def open_wire() -> AsyncIterator[Wire]:
    """A host that listens."""
    tell, waiting = trio.open_memory_channel[Asked](STREAMS_WAITING_MAX)
    async with open_network(_config(("/ip4/127.0.0.1/tcp/0",)), {}, HeadRecords()) as network:
        wire = Wire(names.peer_text(network.peer_id), network.addrs()[0], 0, waiting, network)

        async def take(stream: Libp2pStream) -> None:
            asked = Asked(stream)
            wire.opened += 1
            tell.send_nowait(asked)
            await asked.left.wait()

        raw.take_streams(network, take)
        yield wire


@dataclass(slots=True)
class Listener:
    """Who hears what its one neighbour passes on: topic and data of each message."""

    peer_id: str
    name: str = "a listener"
    heard: list[tuple[str, bytes]] = field(default_factory=list)


@asynccontextmanager
async def open_listener(addr: str, topics: Iterable[str]) -> AsyncIterator[Listener]:
    """A host that nobody can dial, subscribed to these, with one neighbour."""
    async with open_network(_config(()), {}, HeadRecords()) as network, trio.open_nursery() as nursery:
        neighbour = await network.connect([addr])
        raw.keep_to(network, neighbour)
        listener = Listener(names.peer_text(network.peer_id))

        def check(message: Message) -> Verdict:
            if message.forwarder == neighbour:
                listener.heard.append((message.topic, message.data))
            return Verdict.ACCEPT

        async def drain(subscription: Subscription) -> None:
            while True:
                await subscription.receive()

        for topic in topics:
            nursery.start_soon(drain, await network.join(topic, check))
        yield listener
        assert network.peers() == [neighbour], network.peers()
        nursery.cancel_scope.cancel()

"""The stock side of the network benchmarks: py-libp2p as it comes, in an interpreter that never imports p2p.

TCP, noise and yamux, as we use it; the library's own request_response helper, raw stream, Pubsub and GossipSub.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from typing import Any

import libp2p
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_pair
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.request_response import BytesCodec, RequestContext, RequestResponse
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from benchmarks.side import obey, play, stay_stock

ECHO: Any = "/bench/echo/1"
BLOB: Any = "/bench/blob/1"
TOPIC = "bench"
READ_BYTES = 64 * 1024
NAME_BYTES = 32
GOSSIP_AGAIN_S = 2.0  # what is lost meanwhile is said again
LISTEN = Multiaddr("/ip4/127.0.0.1/tcp/0")


def new_host(*, listens: bool) -> Any:
    """A host with the same transport, security and muxer as ours."""
    pair = create_new_key_pair(secrets.token_bytes(32))
    noise = NoiseTransport(pair, noise_privkey=create_x25519_pair().private_key)
    muxers: Any = {YAMUX: Yamux}
    return libp2p.new_host(
        key_pair=pair,
        sec_opt={NOISE: noise},
        muxer_opt=muxers,
        listen_addrs=[LISTEN] if listens else None,
    )


async def echo(request: bytes, context: RequestContext) -> bytes:
    del context
    return request


class Node:
    """The commands; see benchmarks/ours.py."""

    def __init__(self, host: Any, pubsub: Pubsub) -> None:
        self._host = host
        self._pubsub = pubsub
        self._helper = RequestResponse(host)
        self._helper.set_handler(ECHO, echo, BytesCodec())
        self._blobs: dict[bytes, bytes] = {}
        self._awaited: dict[bytes, trio.Event] = {}
        host.set_stream_handler(BLOB, self._serve_blob)

    async def addrs(self) -> list[str]:
        return [str(addr) for addr in self._host.get_addrs()]

    async def dial(self, addrs: list[str]) -> str:
        info = info_from_p2p_addr(Multiaddr(addrs[0]))
        await self._host.connect(info)
        return info.peer_id.to_bytes().hex()

    async def one_shots(self, peer: str, count: int, in_flight: int, size: int) -> float:
        """Requests a second by the library's helper."""
        to, body = ID(bytes.fromhex(peer)), bytes(size)

        async def once() -> None:
            assert await self._helper.send_request(to, [ECHO], body, BytesCodec()) == body

        return await per_second(count, in_flight, once)

    async def connect(self, addrs: list[str]) -> float:
        """Milliseconds that a fresh host needs to be connected."""
        host, info = new_host(listens=False), info_from_p2p_addr(Multiaddr(addrs[0]))
        async with host.run([]):
            before = time.perf_counter()
            await host.connect(info)
            elapsed = time.perf_counter() - before
            with trio.move_on_after(5):
                await host.close()
        return elapsed * 1_000

    async def hold(self, seed: int, size: int) -> str:
        """Keep chance bytes under a name of 32 bytes."""
        name = secrets.token_bytes(NAME_BYTES)
        self._blobs[name] = random.Random(seed).randbytes(size)
        return name.hex()

    async def _serve_blob(self, stream: Any) -> None:
        await stream.write(self._blobs[await stream.read(NAME_BYTES)])
        await stream.close()

    async def fetch(self, peer: str, content_id: str, size: int, times: int) -> float:
        """MB/s over a raw stream, read to the last byte; nothing is checked."""
        before = time.perf_counter()
        for _ in range(times):
            stream = await self._host.new_stream(ID(bytes.fromhex(peer)), [BLOB])
            await stream.write(bytes.fromhex(content_id))
            data = bytearray()
            while len(data) < size:
                data += await stream.read(READ_BYTES)
            await stream.close()
        return size * times / (time.perf_counter() - before) / 1e6

    async def hear(self, subscription: Any) -> None:
        """Answer every question, and note every answer."""
        while True:
            message = await subscription.get()
            data = bytes(message.data)
            if message.from_id == self._host.get_id().to_bytes():
                continue
            if data[:1] == b"?":
                await self._pubsub.publish(TOPIC, b"!" + data[1:])
            elif data[1:9] in self._awaited:
                self._awaited.pop(data[1:9]).set()

    async def gossip(self, count: int, in_flight: int, size: int) -> float:
        """Messages a second, there and back."""
        await self._say(secrets.token_bytes(8), size)
        return 2 * await per_second(count, in_flight, lambda: self._say(secrets.token_bytes(8), size))

    async def _say(self, name: bytes, size: int) -> None:
        heard = self._awaited[name] = trio.Event()
        while not heard.is_set():
            await self._pubsub.publish(TOPIC, b"?" + name + bytes(size - 9))
            with trio.move_on_after(GOSSIP_AGAIN_S):
                await heard.wait()


async def per_second(count: int, in_flight: int, once: Callable[[], Any]) -> float:
    """How often a second `once` is done, by so many tasks. As in ours.py, which this side cannot import."""
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


async def run() -> None:
    """One host until stdin ends."""
    host = new_host(listens=True)
    protocols: Any = ["/meshsub/1.1.0"]
    # As it comes, it lets a node say 10 messages a second: that is policy, not speed, and out of the way here too.
    mesh = GossipSub(protocols, degree=6, degree_low=4, degree_high=12, spam_protection_enabled=False)
    pubsub = Pubsub(host, mesh)
    async with (
        host.run([LISTEN]),
        background_trio_service(pubsub),
        background_trio_service(mesh),
        trio.open_nursery() as nursery,
    ):
        await pubsub.wait_until_ready()
        node = Node(host, pubsub)
        nursery.start_soon(node.hear, await pubsub.subscribe(TOPIC))
        named = ("addrs", "dial", "one_shots", "connect", "hold", "fetch", "gossip")
        await obey({name: getattr(node, name) for name in named})
        stay_stock()
        with trio.move_on_after(5):
            await host.close()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    stay_stock()
    play(run)

"""What takes long to carry is no sign that somebody is dead: docs/protocol.md, "Connections".

Hides: a link that carries little, made of a process in the middle, so that nobody needs to be root for it. Guarantees:
all that two peers say to each other goes over it, as neither knows of anybody else.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio
from multiaddr import Multiaddr

from interop.driver import Ground, Peer
from interop.steps import one_connection

LINE_BYTES: Final = 16
BLOB_BYTES: Final = 800 << 10  # 25 s: near handler_ms, which is all that an answer may take
STARTS: Final = 4  # at a time


@asynccontextmanager
async def slow_link(addr: str) -> AsyncIterator[str]:
    """A way to the peer at `addr` over a slow link, as a multiaddr. What is on it is lost when the block is left."""
    target = Multiaddr(addr)
    port, peer_id = target.value_for_protocol("tcp"), target.value_for_protocol("p2p")
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "interop.link", str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        here = bytearray()
        while not here.endswith(b"\n"):
            said = await process.stdout.receive_some(LINE_BYTES)
            assert said, "the link ended before it was there"
            here += said
        yield f"/ip4/127.0.0.1/tcp/{int(here)}/p2p/{peer_id}"
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def slow_links(ground: Ground, *, languages: list[str]) -> None:
    """Between every two languages, one way and then the other: blobs arrive whole, over the one connection."""
    failures: list[Exception] = []
    starting, seeds = trio.CapacityLimiter(STARTS), itertools.count(1)
    async with trio.open_nursery() as nursery:
        for pair in itertools.combinations_with_replacement(languages, 2):
            one, other = ((language, next(seeds)) for language in pair)
            nursery.start_soon(_judge, ground, starting, one, other, failures)
    if failures:
        raise ExceptionGroup("over slow links", failures)


async def _judge(
    ground: Ground,
    starting: trio.CapacityLimiter,
    one: tuple[str, int],
    other: tuple[str, int],
    failures: list[Exception],
) -> None:
    """Start two peers, by language and seed, and have them exchange blobs."""
    try:
        async with starting:
            pair = await ground.start(*one), await ground.start(*other)
        await _exchange_blobs(*pair)
    except Exception as failure:  # noqa: BLE001  # the other pairs are to be seen too
        failure.add_note(f"{one} > {other}")
        failures.append(failure)


async def _exchange_blobs(one: Peer, other: Peer) -> None:
    async with slow_link(other.addr) as addr:
        await one.do("dial", addr=addr)
        await other.event("connected", peer=one.peer_id)
        async with one_connection(one, other):
            for seed, (holder, seeker) in enumerate(((one, other), (other, one))):
                content = (await holder.do("put_blob", seed=seed, size=BLOB_BYTES))["content_hash"]
                found = await seeker.do("fetch", peer=holder.peer_id, content_hash=content)
                assert found["size"] == BLOB_BYTES, (seeker.name, holder.name, found)

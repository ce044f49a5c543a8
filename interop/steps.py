"""Steps that the scenarios are made of.

Guarantees: a step ends when both sides know what it brought about, and not before; what does not come about in time is
an AssertionError that says what was waited for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

import trio

from interop.driver import CommandFailed, Ground, Json, Peer
from interop.worlds import HandMadeWorld
from runtime import codec

Scenario: TypeAlias = Callable[[Ground, Peer, Peer], Awaitable[None]]
MESH_S: Final = 30.0
TOLD_S: Final = 0.5
SETTLE_S: Final = 60.0  # until a world that is at work has come where it was going
LOOK_S: Final = 0.05  # between two looks: what is waited for, no peer tells by itself


class Named(Protocol):
    """Whoever takes part."""

    @property
    def name(self) -> str: ...
    @property
    def peer_id(self) -> str: ...


def encoded(**fields: Any) -> bytes:
    """A request body: the canonical bytes of a map."""
    return codec.encode(fields)


def body(**fields: Any) -> str:
    """The same in hex, as commands have it."""
    return encoded(**fields).hex()


async def until(holds: Callable[[], Awaitable[bool]], what: str, within_s: float = MESH_S) -> None:
    """Look until it holds. Raises AssertionError."""
    with trio.move_on_after(within_s):
        while not await holds():
            await trio.sleep(LOOK_S)
        return
    raise AssertionError(f"{what}: not within {within_s:.0f} s")


async def connected(one: Peer, other: Peer) -> None:
    """A connection that both know of."""
    await one.do("dial", addr=other.addr)
    await other.event("connected", peer=one.peer_id)


@asynccontextmanager
async def one_connection(one: Peer, other: Peer) -> AsyncIterator[None]:
    """What is done here leaves the connection as it was: it answers afterwards, and was never another one."""
    before = len(one.events), len(other.events)
    yield
    await one.do("request", peer=other.peer_id, method="x_echo", body="a0")
    await trio.sleep(TOLD_S)  # that one has gone may be told later than that another one is there
    assert not one.lost(other, before[0]), f"{one.name} has lost {other.name}"
    assert not other.lost(one, before[1]), f"{other.name} has lost {one.name}"


async def joined(world: HandMadeWorld, topic: str, *peers: Peer) -> None:
    """All of them know the world, are subscribed, and know that the others are."""
    for peer in peers:
        await peer.do("world", genesis=world.genesis.to_bytes().hex())
        await peer.do("join", topic=topic)
    for one in peers:
        for other in peers:
            if one is not other:
                await knows_subscriber(one, other, topic)


async def knows_subscriber(one: Peer, other: Named, topic: str) -> None:
    """One knows that the other is subscribed."""

    async def knows() -> bool:
        return other.peer_id in (await one.do("mesh", topic=topic))["peers"]

    await until(knows, f"{one.name} knows that {other.name} is subscribed to {topic}")


async def in_table(one: Peer, other: Peer) -> None:
    """Both have each other in their routing tables."""
    for peer, about in ((one, other), (other, one)):

        async def has(peer: Peer = peer, about: Peer = about) -> bool:
            return about.peer_id in (await peer.do("dht_peers"))["peers"]

        await until(has, f"{peer.name} has {about.name} in its table")


async def if_held(ask: Callable[[], Awaitable[Json]]) -> Json | None:
    """The answer; None where the node that was asked does not hold it, and may later. Raises CommandFailed."""
    try:
        return await ask()
    except CommandFailed as failure:
        if failure.kind != "rr" or failure.error["name"] != "ERR_NOT_FOUND":
            raise
        return None


async def proved_receipt(peer: Peer, node: str, world_id: str, envelope_hash: str) -> Json:
    """The receipt, once the node holds a head of its block or a later one. Raises CommandFailed, AssertionError."""
    ask = partial(peer.do, "receipt_proof", peer=node, world_id=world_id, envelope_hash=envelope_hash)
    proved: Json | None = None

    async def is_held() -> bool:
        nonlocal proved
        proved = await if_held(ask)
        return proved is not None

    await until(is_held, f"{node} proves to {peer.name} the receipt of {envelope_hash}", SETTLE_S)
    assert proved is not None
    return proved

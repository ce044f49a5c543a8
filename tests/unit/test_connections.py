"""Connections as far as they need no sockets: closing all of them, introducing a peer."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import trio

from p2p.connections import HARD_CLOSE_S, INTRODUCE_AGAIN_S, Connections

PEERS = [bytes([number]) * 38 for number in range(20)]


class Conn:
    """A connection of the swarm, as far as it is looked at here."""

    def __init__(self, muxed_conn: Any) -> None:
        self.muxed_conn = muxed_conn


def connection(peer: bytes, close: Callable[[], Awaitable[None]]) -> Any:
    identity = SimpleNamespace(to_bytes=lambda: peer)
    secured = SimpleNamespace(close=close)
    return Conn(SimpleNamespace(peer_id=identity, secured_conn=secured))


def connections(conns: list[Any], introduce: Callable[[bytes, bool], Awaitable[bool]]) -> Connections:
    def of(peer: Any = None) -> list[Any]:
        return [
            conn for conn in conns if peer is None or conn.muxed_conn.peer_id.to_bytes() == peer.to_bytes()
        ]

    swarm = SimpleNamespace(get_connections=of)
    host = SimpleNamespace(get_network=lambda: swarm)
    return Connections(host, Counter(), random.Random(0), introduce, lambda _: None, lambda _: False)


async def at_once(_peer: bytes, _is_new: bool) -> bool:
    return True


async def test_those_who_do_not_read_are_closed_all_at_once(autojump_clock: Any) -> None:
    made = connections([connection(peer, trio.sleep_forever) for peer in PEERS], at_once)
    began_s = trio.current_time()
    await made.close_all()
    assert trio.current_time() - began_s <= HARD_CLOSE_S


async def test_a_peer_whose_introduction_hangs_is_introduced_by_one_task(autojump_clock: Any) -> None:
    asked: list[bytes] = []

    async def hangs_for_one(peer: bytes, is_new: bool) -> bool:
        asked.append(peer)
        if peer == PEERS[0]:
            await trio.sleep_forever()
        return True

    made = connections([connection(peer, trio.sleep_forever) for peer in PEERS[:2]], hangs_for_one)
    with trio.move_on_after(5 * INTRODUCE_AGAIN_S):
        await made.introduce_newcomers()
    assert asked.count(PEERS[0]) == 1
    assert asked.count(PEERS[1]) >= 4


async def test_a_peer_that_is_back_while_it_is_introduced_is_introduced_again_as_new(
    autojump_clock: Any,
) -> None:
    asked: list[bool] = []
    conns = [connection(PEERS[0], trio.sleep_forever)]

    async def slow(_peer: bytes, is_new: bool) -> bool:
        asked.append(is_new)
        await trio.sleep(1)
        return True

    made = connections(conns, slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.introduce_newcomers)
        await trio.sleep(0.5)
        conns.append(connection(PEERS[0], trio.sleep_forever))
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    assert asked == [True, True]

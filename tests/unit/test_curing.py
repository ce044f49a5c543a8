"""p2p/curing.py: what the cures share."""

from __future__ import annotations

from collections import Counter
from typing import Final

import pytest
import trio
import trio.testing

from p2p.curing import few_of_a_peer

REASON: Final = "too_many"


class _Peer:
    def __init__(self, name: bytes) -> None:
        self._name = name

    def to_bytes(self) -> bytes:
        return self._name


class _Connection:
    def __init__(self, name: bytes) -> None:
        self.peer_id = _Peer(name)


class _Stream:
    """A stream of a peer, as far as a handler looks at it."""

    def __init__(self, peer: bytes) -> None:
        self.muxed_conn = _Connection(peer)
        self.is_reset = False

    async def reset(self) -> None:
        self.is_reset = True


class _Handler:
    """Holds each stream until it is told to let go; `fails` raises then."""

    def __init__(self) -> None:
        self.let_go = trio.Event()
        self.fails = False
        self.served: list[_Stream] = []

    async def __call__(self, stream: _Stream) -> None:
        self.served.append(stream)
        await self.let_go.wait()
        if self.fails:
            raise OSError


async def test_a_peer_has_so_many_streams_at_a_time_and_takes_none_from_another() -> None:
    handler, dropped = _Handler(), Counter[str]()
    few = few_of_a_peer(handler, lambda: 2, dropped, REASON)
    greedy, other = [_Stream(b"greedy") for _ in range(4)], _Stream(b"other")
    async with trio.open_nursery() as nursery:
        for stream in greedy:
            nursery.start_soon(few, stream)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(few, other)
        await trio.testing.wait_all_tasks_blocked()
        assert (sum(stream.is_reset for stream in greedy), dropped[REASON]) == (2, 2)
        assert other in handler.served
        assert not other.is_reset
        handler.let_go.set()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_stream_that_ends_gives_its_place_back_however_it_ends(fails: bool) -> None:
    handler, dropped = _Handler(), Counter[str]()
    handler.fails = fails
    handler.let_go.set()
    few = few_of_a_peer(handler, lambda: 1, dropped, REASON)
    for _ in range(3):
        if fails:
            with pytest.raises(OSError):
                await few(_Stream(b"one"))
        else:
            await few(_Stream(b"one"))
    assert (len(handler.served), dropped[REASON]) == (3, 0)


async def test_a_peer_without_streams_is_forgotten() -> None:
    handler = _Handler()
    handler.let_go.set()
    few = few_of_a_peer(handler, lambda: 1, Counter(), REASON)
    for number in range(100):
        await few(_Stream(number.to_bytes(2, "big")))
    held = [cell.cell_contents for cell in few.__closure__ or () if isinstance(cell.cell_contents, Counter)]
    assert [len(counts) for counts in held] == [0, 0], "one of them counts what was dropped"

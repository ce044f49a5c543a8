"""A serving stream whose host ends at the very moment at which a request comes in."""

from __future__ import annotations

from collections import Counter

import trio
import trio.testing

from p2p import frames
from p2p.network import Route
from p2p.router import Router


class LateStream:
    """Its one read cannot be cancelled and gives a request after everything around it was."""

    def __init__(self) -> None:
        self.reading, self.answer = trio.Event(), trio.Event()

    async def read(self, bytes_max: int) -> bytes:
        self.reading.set()
        with trio.CancelScope(shield=True):
            await self.answer.wait()
        return frames.encode_request(1, "echo", b"")

    async def write(self, data: bytes) -> None:
        raise AssertionError("nothing is answered any more")

    async def close(self) -> None:
        """Nothing to end."""

    async def reset(self) -> None:
        """Nothing to give up."""


async def test_a_request_that_comes_while_the_host_ends_is_dropped() -> None:
    async def echo(caller: bytes, body: bytes) -> bytes:
        return body

    stream, router = LateStream(), Router({"echo": Route(echo)}, Counter())
    async with trio.open_nursery() as host:
        host.start_soon(router.serve, stream, b"caller")
        await stream.reading.wait()
        host.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()  # the handlers' nursery is closed by now
        stream.answer.set()

"""Streams in memory for the request / response protocol: a router that serves them, a client that opens them."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager

import pytest
import trio

from p2p import frames, names
from p2p.errors import RequestFailed, RequestTimeout, Unreachable
from p2p.memory_streams import stream_pair
from p2p.network import Route
from p2p.request_response import RequestClient, Router, RouterLimits

KEPT = b"kept"  # has a place held


class WatchedStream:
    """A stream that counts writes and notices when raw I/O is cancelled, which libp2p would not survive."""

    def __init__(self, inner):
        self._inner = inner
        self.writes = []
        self.cancelled = 0

    async def read(self, bytes_max):
        return await self._uncancelled(self._inner.read(bytes_max))

    async def write(self, data):
        self.writes.append(data)
        await self._uncancelled(self._inner.write(data))

    async def close(self):
        await self._inner.close()

    async def reset(self):
        await self._inner.reset()

    async def _uncancelled(self, work):
        try:
            return await work
        except trio.Cancelled:
            self.cancelled += 1
            raise


class Wire:
    """The far end of a stream: speaks frames by hand."""

    def __init__(self, stream):
        self.stream = stream
        self.reader = frames.FrameReader()

    async def send(self, *data):
        await self.stream.write(b"".join(data))

    async def frame(self):
        """The next frame, or None at the end."""
        while (frame := self.reader.next_frame()) is frames.NEED_DATA:
            data = await self.stream.read(65_536)
            if not data:
                return None
            self.reader.feed(data)
        return frame

    async def error_code(self):
        frame = await self.frame()
        assert isinstance(frame, frames.ErrorFrame), frame
        return frame.code


class Serving:
    """A router with its account of marks and its running streams."""

    def __init__(self, nursery, routes, limits):
        self.counters = Counter()
        self.marks = []
        self.router = Router(
            routes,
            self.counters,
            limits=limits,
            on_mark=lambda peer, reason: self.marks.append(reason),
            is_kept=lambda peer: peer == KEPT,
        )
        self.streams = []
        self._nursery = nursery

    def open(self, peer=b"caller"):
        """A new stream of `peer`: its far end, and an event for when `serve` has returned."""
        near, far = stream_pair()
        stream = WatchedStream(near)
        self.streams.append(stream)
        wire = Wire(far)
        wire.served = trio.Event()
        wire.server_stream = stream

        async def serve():
            await self.router.serve(stream, peer)
            wire.served.set()

        self._nursery.start_soon(serve)
        return wire


@asynccontextmanager
async def serve_in_memory(routes, **limits):
    async with trio.open_nursery() as nursery:
        server = Serving(nursery, routes, RouterLimits(**limits))
        yield server
        assert [stream.cancelled for stream in server.streams] == [0] * len(server.streams)
        nursery.cancel_scope.cancel()


async def _echo(caller, body):
    return body


class FarEnds:
    """Streams that the client opened, as seen by a scripted server."""

    def __init__(self):
        self.opened = 0
        self.fail_with = None
        self.wrap = WatchedStream
        self.near = []
        self._send, self._receive = trio.open_memory_channel(100)

    async def open_stream(self, peer):
        self.opened += 1
        await trio.lowlevel.checkpoint()
        if self.fail_with is not None:
            raise self.fail_with
        near, far = stream_pair()
        self.near.append(self.wrap(near))
        self._send.send_nowait(Wire(far))
        return self.near[-1]

    async def next(self):
        return await self._receive.receive()


class Asker:
    def __init__(self):
        self.far = FarEnds()
        self.counters = Counter()
        self.marks = []
        self.outcomes = {}
        self.client = RequestClient(
            self.far.open_stream,
            b"own",
            Router({"echo": Route(_echo)}, self.counters),
            self.counters,
            on_mark=lambda peer, reason: self.marks.append(reason),
        )

    async def ask(self, name, deadline_ms=names.REQUEST_TOTAL_MS, body=b""):
        """Keep what becomes of a request under its name."""
        try:
            self.outcomes[name] = await self.client.request(b"server", "echo", body, deadline_ms=deadline_ms)
        except (RequestFailed, RequestTimeout, Unreachable) as error:
            self.outcomes[name] = error


@asynccontextmanager
async def ask_in_memory():
    async with trio.open_nursery() as nursery:
        asker = Asker()
        await nursery.start(asker.client.run)
        yield asker, nursery
        assert [stream.cancelled for stream in asker.far.near] == [0] * len(asker.far.near)
        nursery.cancel_scope.cancel()


@pytest.fixture
def serving():
    """`async with serving(routes, **limits) as server`: a `Serving`, whose `open` gives the far end of a stream."""
    return serve_in_memory


@pytest.fixture
def asking():
    """`async with asking() as (asker, nursery)`: a running `Asker`, and where its requests run."""
    return ask_in_memory


@pytest.fixture
def new_asker():
    """Makes an `Asker` whose client does not run yet."""
    return Asker

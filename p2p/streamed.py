"""A streamed answer, on a stream of its own.

Hides: the stream, and the parts that wait between its owner and the caller.
Guarantees: parts in order, at most PARTS_QUEUED_MAX read ahead of the caller; a caller that leaves early, is
late or gets too much costs that stream a reset and nothing else.
Implements docs/protocol.md, section "Request / response", as the client of answers in parts.
"""

from __future__ import annotations

import contextlib
import math
from typing import Final

import trio

from p2p import frames, names, streams
from p2p.errors import (
    AnswerTooLarge,
    Code,
    FrameError,
    NetworkError,
    RequestFailed,
    RequestTimeout,
    StreamBroken,
    Unreachable,
)
from p2p.network import PeerId
from p2p.router import Router
from p2p.sessions import Outside, failure_of, gone
from p2p.streams import RawStream

PARTS_QUEUED_MAX: Final = 4  # parts read but not taken by the caller; then we stop reading
PART_COUNTS_BYTES_MIN: Final = 64  # as what a part counts at least, so that empty ones have an end


class StreamedCall:
    """A streamed answer: `part` and `last` are the caller's side, `run` is the owner of the stream."""

    def __init__(
        self, outside: Outside, peer: PeerId, method: str, body: bytes, deadline_ms: int, bytes_max: int
    ) -> None:
        self.deadline_s = trio.current_time() + deadline_ms / 1000
        self._outside = outside
        self._peer = peer
        self._method = method
        self._body = body
        self._deadline_ms = deadline_ms
        self._bytes_max = bytes_max
        self._bytes = 0
        self._counted_bytes = 0  # of parts, small ones as more
        self._send, self._receive = trio.open_memory_channel[bytes](PARTS_QUEUED_MAX)
        self._left = trio.Event()
        self._watch: streams.StreamWatch | None = None  # of the stream while it is open
        self._outcome: bytes | NetworkError | None = None

    # --- the caller's side

    async def part(self) -> bytes | None:
        """The next part; None when `last` is there. Raises what a request raises, and AnswerTooLarge."""
        with trio.move_on_at(self.deadline_s):
            with contextlib.suppress(trio.EndOfChannel):  # the end: `_outcome` says which
                return await self._receive.receive()
            if self._outcome is None:
                raise gone(self._peer, "this node is closing")
            if isinstance(self._outcome, NetworkError):
                raise self._outcome
            return None
        self._outside.counters["rr.request_timeout"] += 1
        raise RequestTimeout(names.peer_text(self._peer), self._method, self._deadline_ms)

    @property
    def last(self) -> bytes:
        """The final body; asking for it before `part` gave None is a mistake of the caller."""
        assert isinstance(self._outcome, bytes), "the answer has not come to its end"
        return self._outcome

    def leave(self) -> None:
        """The caller wants no more: the owner resets the stream unless the answer is whole."""
        self._left.set()
        self._receive.close()
        if self._watch is not None and self._outcome is None:
            self._watch.reset_at(-math.inf)

    # --- the owner's side

    async def run(self) -> None:
        """Open a stream, ask, pass parts on, and end the stream."""
        with self._send:
            try:
                data = frames.encode_request(0, self._method, self._body)
                stream = await self._outside.open_stream(self._peer)
            except FrameError as error:
                self._outcome = RequestFailed(Code.ERR_BAD_REQUEST, str(error))
                return
            except Unreachable as error:
                self._outcome = error
                return
            ended = False
            try:
                await self._converse(stream, data)
                ended = True
            finally:
                if not ended:
                    await streams.reset(stream)

    async def run_locally(self, router: Router) -> None:
        """The same from the own router, without a stream."""
        with self._send:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_when_left, nursery.cancel_scope)
                try:
                    self._outcome = await router.answer_parts_locally(
                        self._peer, self._method, self._body, self._pass_on_locally
                    )
                except RequestFailed as failure:
                    self._outcome = self._outcome or failure
                nursery.cancel_scope.cancel()

    async def _converse(self, stream: RawStream, data: bytes) -> None:
        if self._left.is_set():  # nobody wants the answer: do not have it made
            self._send.close()
            await streams.reset(stream)
            return
        watch = self._watch = streams.StreamWatch(stream)
        async with trio.open_nursery() as timers:
            timers.start_soon(watch.run)
            try:
                await stream.write(data)
                whole = await self._read_answer(stream)
            except StreamBroken:
                whole = False
            if self._outcome is None:
                self._outcome = gone(self._peer, "the stream ended inside the answer")
            self._send.close()
            if whole:
                await streams.finish(stream, watch)
            else:
                await streams.reset(stream)
            timers.cancel_scope.cancel()

    async def _cancel_when_left(self, handler: trio.CancelScope) -> None:
        await self._left.wait()
        handler.cancel()

    async def _read_answer(self, stream: RawStream) -> bool:
        """Read until the last frame; true when it came and the stream may be ended in order."""
        reader = frames.FrameReader()
        while data := await stream.read(streams.READ_BYTES_MAX):
            reader.feed(data)
            try:
                while (frame := reader.next_frame()) is not frames.NEED_DATA:
                    if not await self._take(frame):
                        return False
                    if self._outcome is not None:
                        return True
            except FrameError as error:
                self._outside.mark(self._peer, f"bad frame: {error.field}")
                return False
        return False

    async def _take(self, frame: frames.Frame) -> bool:
        """Pass a part on or keep the outcome; false when the stream is to be reset."""
        match frame:
            case frames.Part(request_id=0, body=body):
                return await self._pass_on(body)
            case frames.Answer(request_id=0, body=body):
                if not self._count(len(body)):
                    return False
                self._outcome = body
            case frames.ErrorFrame(request_id=0):
                self._outcome = failure_of(frame)
            case _:
                self._outside.mark(self._peer, "an answer to no request")
                return False
        return True

    async def _pass_on(self, part: bytes) -> bool:
        self._counted_bytes += max(len(part), PART_COUNTS_BYTES_MIN)
        if self._counted_bytes > names.ANSWER_PARTS_BYTES_MAX:
            return self._too_large(names.ANSWER_PARTS_BYTES_MAX)
        if not self._count(len(part)):
            return False
        try:
            await self._send.send(part)
        except trio.BrokenResourceError:
            return False
        return True

    async def _pass_on_locally(self, part: bytes) -> None:
        if len(part) > names.PART_BYTES_MAX:
            raise FrameError("part", f"{len(part)} bytes is over {names.PART_BYTES_MAX}")
        if not await self._pass_on(part):
            # The caller has left or will be told: the handler goes no further, and is cancelled with the
            # call.
            self._left.set()
            await trio.sleep_forever()

    def _count(self, size: int) -> bool:
        self._bytes += size
        return self._bytes <= self._bytes_max or self._too_large(self._bytes_max)

    def _too_large(self, bytes_max: int) -> bool:
        self._outcome = AnswerTooLarge(names.peer_text(self._peer), self._method, bytes_max)
        return False

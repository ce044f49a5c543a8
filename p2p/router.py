"""The serving side of /aw/rr/1: routes, admission, handlers, and the one owner of each incoming stream.

Hides: how requests of one stream run beside each other, and who may still be served.
Guarantees: a deadline, a handler's end or its bug never cancels raw stream I/O; a whole frame is answered
without waiting for the peer's end of writing; past a limit a peer is told BUSY or RATE_LIMITED and when to
come again, never banned; a handler's bug costs its own request and nothing else.
Implements docs/protocol.md, section "Request / response", as the server.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import trio

from p2p import frames, names, streams
from p2p.errors import Code, FrameError, NetworkError, RequestFailed, StreamBroken
from p2p.loads import Load, Loads, RouterLimits
from p2p.network import Gauge, PartsRoute, PeerId, Route, Routes, SendPart
from p2p.streams import RawStream

BUSY_RETRY_AFTER_MS: Final = 100
LINGER_MS_MAX: Final = 1_000  # for a peer that broke the rules: long enough to read why

Mark: TypeAlias = Callable[[PeerId, str], None]
"""Told (peer, reason) when a peer broke the rules of the wire; reasons are few and fixed."""

_log = logging.getLogger(__name__)


DEFAULT_LIMITS: Final = RouterLimits()


def nobody(peer: PeerId) -> bool:
    """Who has a place held, at a node that holds none."""
    del peer
    return False


def no_mark(peer: PeerId, reason: str) -> None:
    """The mark of a node that keeps no account of its peers."""


def untold(peer: PeerId) -> None:
    """What a node does that has nothing to do about a peer."""


@dataclass(frozen=True, slots=True)
class _Outgoing:
    """One encoded frame: `ends` is free when its write begins, `written` is set when it is done."""

    data: bytes
    ends: int | None = None
    written: trio.Event | None = None


class Router:
    """Answers requests by routes.

    One per node; `serve` is called once per incoming stream, in its own task.
    """

    def __init__(
        self,
        routes: Routes,
        counters: Counter[str],
        *,
        limits: RouterLimits = DEFAULT_LIMITS,
        on_mark: Mark = no_mark,
        is_kept: Callable[[PeerId], bool] = nobody,
        on_use: Callable[[PeerId], None] = untold,
        on_unread: Callable[[PeerId], None] = untold,
    ) -> None:
        """`on_use` is told who has sent something that is served; `on_unread`, whose connections are to be closed."""
        self._routes = dict(routes)
        self._counters = counters
        self.limits = limits
        self._on_mark = on_mark
        self._on_use = on_use
        self._on_unread = on_unread
        self.loads = Loads(limits, is_kept)

    async def serve(self, stream: RawStream, peer: PeerId) -> None:
        """Own the stream until it ends: returns when it is closed or reset, raises nothing of the peer's
        doing.
        """
        load = self.loads.of(peer, trio.current_time())
        if load.streams >= 2 * self.limits.streams_per_peer_max:
            self._counters["rr.streams_reset"] += 1
            await streams.reset(stream)
            return
        load.streams += 1
        try:
            await _Serving(self, stream, peer, load).run()
        finally:
            load.streams -= 1

    async def answer_locally(self, caller: PeerId, method: str, body: bytes) -> bytes:
        """A request of this process to itself: the same routes, limits and errors, no frames."""
        route = self.route_for(method, len(body))
        if isinstance(route, PartsRoute):
            raise RequestFailed(Code.ERR_BAD_REQUEST, f"{method} answers in parts")
        return await self.run_handler(method, route.deadline_ms, partial(route.handler, caller, body))

    async def answer_parts_locally(
        self, caller: PeerId, method: str, body: bytes, send_part: SendPart
    ) -> bytes:
        """As `answer_locally`, for a method that answers in parts; returns the last body."""
        route = self.route_for(method, len(body))
        if isinstance(route, Route):
            return await self.run_handler(method, route.deadline_ms, partial(route.handler, caller, body))
        return await self.run_handler(
            method, route.deadline_ms, partial(route.handler, caller, body, send_part)
        )

    def route_for(self, method: str, size_bytes: int) -> Route | PartsRoute:
        """The route that takes a body of this size. Raises UNSUPPORTED or BAD_REQUEST."""
        route = self._routes.get(method)
        if route is None:
            self._counters["rr.unsupported"] += 1
            raise RequestFailed(Code.ERR_UNSUPPORTED, f"no method {method[: names.METHOD_BYTES_MAX]}")
        if size_bytes > route.request_bytes_max:
            raise self.oversize(method, size_bytes, route.request_bytes_max)
        return route

    def oversize(self, method: str, size_bytes: int, bytes_max: int) -> RequestFailed:
        """A counted BAD_REQUEST to raise."""
        self._counters["rr.oversize"] += 1
        return RequestFailed(Code.ERR_BAD_REQUEST, f"{method}: {size_bytes} bytes is over {bytes_max}")

    def request_bytes_max(self, method: str) -> int:
        """The largest request frame of the method."""
        route = self._routes.get(method)
        return names.REQUEST_BYTES_MAX if route is None else route.request_bytes_max

    async def run_handler(self, method: str, deadline_ms: int, work: Callable[[], Awaitable[bytes]]) -> bytes:
        """The one place where a handler runs: deadline, and what becomes of whatever it raises."""
        with trio.move_on_after(deadline_ms / 1000):
            try:
                answer = await work()
                if not isinstance(answer, bytes):
                    raise TypeError(f"{method} answered with {type(answer).__name__}")
                if len(answer) > names.ANSWER_BYTES_MAX:
                    why = f"{len(answer)} bytes is over {names.ANSWER_BYTES_MAX}"
                    raise FrameError("answer", why)
            except RequestFailed:
                self._counters["rr.failed"] += 1
                raise
            except NetworkError as error:
                # Another peer failed the handler, which is no bug; a frame it could not have built is one.
                if isinstance(error, FrameError):
                    raise self._bug(method) from error
                self._counters["rr.failed"] += 1
                raise RequestFailed(Code.ERR_NOT_AVAILABLE, f"{method}: a peer it needs failed") from error
            except Exception as error:
                raise self._bug(method) from error
            self._counters["rr.answered"] += 1
            return answer
        self._counters["rr.handler_timeout"] += 1
        raise RequestFailed(Code.ERR_TIMEOUT, f"{method}: not done within {deadline_ms} ms")

    def _bug(self, method: str) -> RequestFailed:
        _log.exception("handler of %s failed", method)
        self._counters["rr.handler_bug"] += 1
        return RequestFailed(Code.ERR_NOT_AVAILABLE, f"{method}: internal error")

    # --- admission

    def cost_of(self, method: str) -> int:
        """As how many requests one of this method counts; an unknown method as one."""
        route = self._routes.get(method)
        return 1 if route is None else route.cost

    def admit(self, load: Load, method: str, size_bytes: int) -> None:
        """Let a request in, or raise BUSY or RATE_LIMITED."""
        now_s = trio.current_time()
        if load.in_flight >= self.limits.in_flight_per_peer_max:
            raise self.busy("too many requests in flight (in_flight_per_peer_max)")
        why = self.loads.why_busy(load)
        if why is not None:
            unread = self.loads.unread_longest(now_s)
            if unread is not None:
                self._counters["rr.unread_closed"] += 1
                self._on_unread(unread)
            raise self.busy(why)
        wait_ms = self.loads.wait_ms(load, self.cost_of(method), size_bytes, now_s)
        if wait_ms:
            self._counters["rr.rate_limited"] += 1
            raise RequestFailed(Code.ERR_RATE_LIMITED, "too much in a second", retry_after_ms=wait_ms)
        self._on_use(load.peer)

    def busy(self, why: str) -> RequestFailed:
        """A counted BUSY to raise."""
        self._counters["rr.busy"] += 1
        return RequestFailed(Code.ERR_BUSY, why, retry_after_ms=BUSY_RETRY_AFTER_MS)

    def gauges(self) -> list[Gauge]:
        """What is being answered now."""
        limits, loads = self.limits, self.loads
        return [
            Gauge(
                "rr_requests_in_flight", loads.in_flight, "in_flight_total_max", limits.in_flight_total_max
            ),
            Gauge(
                "rr_answers_waiting_bytes",
                loads.waiting_bytes,
                "answers_waiting_bytes_max",
                limits.answers_waiting_bytes_max,
            ),
            Gauge("rr_streams_open", loads.streams),
        ]

    def mark(self, peer: PeerId, reason: str) -> None:
        """The peer broke the rules of the wire."""
        self._counters["rr.bad_frame"] += 1
        self._on_mark(peer, reason)


def error_frame(request_id: int, failure: RequestFailed) -> bytes:
    """The frame that tells a failure; an overlong message is cut, an overlong detail left out."""
    text = failure.message.encode("utf-8", "replace")[: names.ERROR_MESSAGE_BYTES_MAX]
    detail = failure.detail if len(failure.detail) <= names.PART_BYTES_MAX else b""
    retry_after_ms = min(max(0, failure.retry_after_ms), names.RETRY_AFTER_MS_MAX)
    message = text.decode("utf-8", "ignore")
    return frames.encode_error(
        request_id, failure.code, message, retry_after_ms=retry_after_ms, detail=detail
    )


class _Serving:
    """One incoming stream: a reading task, a writing task, a watch, and a task for each request in flight.

    Life: session -> no_more (the peer's end, a broken rule, a streamed answer) -> handlers end -> our end of
    writing -> the peer's end, or a reset when that does not come.
    """

    def __init__(self, router: Router, stream: RawStream, peer: PeerId, load: Load) -> None:
        self._router = router
        self._limits = router.limits
        self._stream = stream
        self._peer = peer
        self._load = load
        self._refusing = load.streams > self._limits.streams_per_peer_max
        self._reader = frames.FrameReader(router.request_bytes_max)
        self._watch = streams.StreamWatch(stream)
        self._handlers_scope = trio.CancelScope()
        self._no_more = trio.Event()
        self._in_flight: set[int] = set()
        self._waiting_bytes = 0  # of frames that are queued, or being written
        self._in_parts = False
        self._broken = False
        self._done = False
        self._linger_until_s: float | None = None
        self._write_since_s: float | None = None
        self._frame_since_s: float | None = None
        self._idle_since_s = trio.current_time()
        self._idle_ms = self._limits.first_byte_ms

    async def run(self) -> None:
        send, receive = trio.open_memory_channel[_Outgoing](names.SESSION_QUEUE_FRAMES_MAX)
        try:
            async with trio.open_nursery() as timers:
                self._rearm()
                timers.start_soon(self._watch.run)
                async with trio.open_nursery() as io:
                    io.start_soon(self._write_all, receive)
                    async with send:
                        with self._handlers_scope:
                            async with trio.open_nursery() as handlers:
                                io.start_soon(self._read_all, handlers, send)
                                await self._no_more.wait()
                timers.cancel_scope.cancel()
            self._done = not self._broken
        finally:
            self._router.loads.hold(self._load, -len(self._in_flight))
            self._wait_for_reader(-self._waiting_bytes)
            self._load.writes.pop(self, None)
            if not self._done:
                await streams.reset(self._stream)

    # --- reading

    async def _read_all(self, handlers: trio.Nursery, send: trio.MemorySendChannel[_Outgoing]) -> None:
        """Read to the end; the only reader of the stream."""
        try:
            while data := await self._stream.read(streams.READ_BYTES_MAX):
                if self._in_parts:
                    await self._reset_and_mark("more after a request for parts")
                    return
                if self._no_more.is_set():
                    continue
                self._idle_ms = self._limits.idle_ms
                self._reader.feed(data)
                await self._take_frames(handlers, send)
                self._rearm()
            if self._reader.mid_frame and not self._no_more.is_set():
                self._router.mark(self._peer, "unfinished")
        except StreamBroken:
            self._break()
        self._no_more.set()

    async def _take_frames(self, handlers: trio.Nursery, send: trio.MemorySendChannel[_Outgoing]) -> None:
        while not self._no_more.is_set():
            try:
                frame = self._reader.next_frame()
            except FrameError as error:
                await self._end_for_bad_frame(send, error.request_id, f"bad frame: {error.field}")
                return
            match frame:
                case frames.Request() | frames.OversizeRequest():
                    self._frame_since_s = None
                    await self._take_request(frame, handlers, send)
                case frames.NEED_DATA:
                    if not self._reader.mid_frame:
                        self._frame_since_s = None
                    elif self._frame_since_s is None:
                        self._frame_since_s = trio.current_time()
                    return
                case _:
                    await self._end_for_bad_frame(send, None, "an answer on a serving stream")
        if self._in_parts and self._reader.mid_frame:
            await self._reset_and_mark("more after a request for parts")

    async def _take_request(
        self,
        request: frames.Request | frames.OversizeRequest,
        handlers: trio.Nursery,
        send: trio.MemorySendChannel[_Outgoing],
    ) -> None:
        # When the host ends, handlers may be gone a step before this reader is: nothing can be started in between.
        await trio.lowlevel.checkpoint_if_cancelled()
        request_id = request.request_id
        if request_id in self._in_flight:
            await self._end_for_bad_frame(send, request_id, "an id in flight used again")
            return
        try:
            route = self._admit(request)
        except RequestFailed as failure:
            await self._put(send, _Outgoing(error_frame(request_id, failure)))
            if self._refusing:
                self._end()
            return
        assert isinstance(request, frames.Request)
        self._in_flight.add(request_id)
        self._router.loads.hold(self._load, 1)
        if isinstance(route, PartsRoute):
            self._in_parts = True
            handlers.start_soon(self._answer_in_parts, route, request, send)
            self._no_more.set()
        else:
            handlers.start_soon(self._answer, route, request, send)

    def _admit(self, request: frames.Request | frames.OversizeRequest) -> Route | PartsRoute:
        router = self._router
        if self._refusing:
            raise router.busy("too many streams")
        if len(self._in_flight) >= self._limits.in_flight_per_session_max:
            raise router.busy("too many requests in flight on this stream")
        if isinstance(request, frames.OversizeRequest):
            router.admit(self._load, request.method, request.size_bytes)
            raise router.oversize(request.method, request.size_bytes, request.bytes_max)
        router.admit(self._load, request.method, len(request.body))
        route = router.route_for(request.method, len(request.body))
        if isinstance(route, PartsRoute) and self._in_flight:
            why = f"{request.method} answers in parts and needs a stream of its own"
            raise RequestFailed(Code.ERR_BAD_REQUEST, why)
        return route

    # --- answering

    async def _answer(
        self, route: Route, request: frames.Request, send: trio.MemorySendChannel[_Outgoing]
    ) -> None:
        work = partial(route.handler, self._peer, request.body)
        try:
            body = await self._router.run_handler(request.method, route.deadline_ms, work)
            data = frames.encode_answer(request.request_id, body)
        except RequestFailed as failure:
            data = error_frame(request.request_id, failure)
        await self._put(send, _Outgoing(data, ends=request.request_id))

    async def _answer_in_parts(
        self, route: PartsRoute, request: frames.Request, send: trio.MemorySendChannel[_Outgoing]
    ) -> None:
        before: trio.Event | None = None

        async def send_part(part: bytes) -> None:
            """Waits until the part before is written: at most two are ever held."""
            nonlocal before
            data = frames.encode_part(request.request_id, part)
            if before is not None:
                await before.wait()
            before = trio.Event()
            await self._put(send, _Outgoing(data, written=before))

        work = partial(route.handler, self._peer, request.body, send_part)
        try:
            body = await self._router.run_handler(request.method, route.deadline_ms, work)
            data = frames.encode_answer(request.request_id, body)
        except RequestFailed as failure:
            data = error_frame(request.request_id, failure)
        await self._put(send, _Outgoing(data, ends=request.request_id))

    # --- writing

    async def _write_all(self, receive: trio.MemoryReceiveChannel[_Outgoing]) -> None:
        """Write what comes, small frames joined; then end our writing. The only writer of the stream."""
        async with receive:
            try:
                async for first in receive:
                    # One turn of the scheduler lets other handlers finish into the same write.
                    await trio.lowlevel.checkpoint()
                    batch = _joined(first, receive)
                    self._release(batch)
                    self._write_since_s = self._load.writes[self] = trio.current_time()
                    self._rearm()
                    await self._stream.write(b"".join([item.data for item in batch]))
                    self._write_since_s = None
                    del self._load.writes[self]
                    self._settle(batch)
                if self._linger_until_s is None:
                    # A reset destroys what a slow caller has not read yet: it gets the time of a whole frame.
                    self._linger_until_s = trio.current_time() + self._limits.frame_ms / 1000
                self._rearm()
                await self._stream.close()
            except StreamBroken:
                self._break()
                await streams.reset(self._stream)

    def _release(self, batch: list[_Outgoing]) -> None:
        """Free the ids before the write: a quick peer may use the room before our task is back from it."""
        for item in batch:
            if item.ends is not None:
                self._in_flight.discard(item.ends)
                self._router.loads.hold(self._load, -1)

    def _settle(self, batch: list[_Outgoing]) -> None:
        for item in batch:
            self._wait_for_reader(-len(item.data))
            if item.written is not None:
                item.written.set()
        self._idle_since_s = trio.current_time()
        self._rearm()

    async def _put(self, send: trio.MemorySendChannel[_Outgoing], item: _Outgoing) -> None:
        """Queue it, waiting while the queue is full."""
        self._wait_for_reader(len(item.data))
        try:
            try:
                send.send_nowait(item)
            except trio.WouldBlock:
                await send.send(item)
        except trio.BrokenResourceError:
            # The writer is gone with the stream: nobody is left to be told.
            await trio.lowlevel.checkpoint()

    def _wait_for_reader(self, size_bytes: int) -> None:
        """So many bytes more of answers wait to be written; negative when they are on their way, or given up."""
        self._waiting_bytes += size_bytes
        self._router.loads.waiting_bytes += size_bytes

    # --- ending

    def _end(self) -> None:
        """Take nothing more, give up what runs, let what is queued go out."""
        self._linger_until_s = trio.current_time() + LINGER_MS_MAX / 1000
        self._no_more.set()
        self._handlers_scope.cancel()
        self._rearm()

    async def _end_for_bad_frame(
        self, send: trio.MemorySendChannel[_Outgoing], request_id: int | None, reason: str
    ) -> None:
        """Mark the peer; tell it where that is possible, then end; else reset at once."""
        if request_id is None:
            await self._reset_and_mark(reason)
            return
        self._router.mark(self._peer, reason)
        failure = RequestFailed(Code.ERR_BAD_REQUEST, reason)
        await self._put(send, _Outgoing(error_frame(request_id, failure)))
        self._end()

    async def _reset_and_mark(self, reason: str) -> None:
        self._router.mark(self._peer, reason)
        self._break()
        await streams.reset(self._stream)

    def _break(self) -> None:
        """The stream is of no more use to anyone."""
        self._broken = True
        self._no_more.set()
        self._handlers_scope.cancel()

    def _rearm(self) -> None:
        """Move the watch to the first of the deadlines that hold now."""
        limits = self._limits
        deadline_s = math.inf
        if self._linger_until_s is not None:
            deadline_s = self._linger_until_s
        elif self._frame_since_s is not None:
            deadline_s = self._frame_since_s + limits.frame_ms / 1000
        elif not self._in_flight:
            deadline_s = self._idle_since_s + self._idle_ms / 1000
        if self._write_since_s is not None and self._linger_until_s is None:
            deadline_s = min(deadline_s, self._write_since_s + limits.frame_ms / 1000)
        self._watch.reset_at(deadline_s)


def _joined(first: _Outgoing, receive: trio.MemoryReceiveChannel[_Outgoing]) -> list[_Outgoing]:
    """`first` and what else waits, up to the byte limit of one write (the last may pass it)."""
    batch, size = [first], len(first.data)
    while size < names.SESSION_WRITE_BATCH_BYTES_MAX:
        try:
            item = receive.receive_nowait()
        except (trio.WouldBlock, trio.EndOfChannel):
            break
        batch.append(item)
        size += len(item.data)
    return batch

"""The asking side of /aw/rr/1: sessions that reuse a stream per peer, and streamed answers on streams of their own.

Hides: ids, stream reuse, reconnection, and what becomes of answers that nobody waits for any more.
Guarantees: a deadline or a cancelled caller ends the waiter only, never raw stream I/O and never another request; a
request is sent at most once (it is tried again only when none of it was sent); a request to the own peer id goes to
the own router in process. Failures are p2p.errors only.
Implements docs/protocol.md, section "Request / response", as the client. The server is in router.py, and both are
to be had here.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

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
from p2p.network import Answer, PeerId
from p2p.router import DEFAULT_LIMITS, Mark, Router, RouterLimits, no_mark
from p2p.streams import RawStream

__all__ = [
    "DEFAULT_LIMITS",
    "Mark",
    "OpenStream",
    "RawStream",
    "RequestClient",
    "Router",
    "RouterLimits",
    "no_mark",
]

OpenStream: TypeAlias = Callable[[PeerId], Awaitable[RawStream]]
"""Opens a new /aw/rr/1 stream to a peer. Raises Unreachable; has its own deadline; is never cancelled by a caller."""

JOBS_QUEUED_MAX: Final = 256  # sessions and calls waiting for the client's loop; callers wait past it
ABANDONED_PER_SESSION_MAX: Final = 16  # requests given up but not answered; then a new session takes over
PARTS_QUEUED_MAX: Final = 4  # parts read but not taken by the caller; then we stop reading

_Job: TypeAlias = Callable[[], Awaitable[None]]


class RequestClient:
    """Asks peers. `run` owns every stream; `request` and `request_parts` may be called from any task."""

    def __init__(
        self,
        open_stream: OpenStream,
        own_peer_id: PeerId,
        router: Router,
        counters: Counter[str],
        *,
        on_mark: Mark = no_mark,
        idle_ms: int = names.SESSION_IDLE_MS,
    ) -> None:
        self._open_stream = open_stream
        self._own_peer_id = own_peer_id
        self._router = router
        self._counters = counters
        self._on_mark = on_mark
        self._idle_ms = idle_ms
        self._sessions: dict[PeerId, _Session] = {}
        self._jobs, self._jobs_taken = trio.open_memory_channel[_Job](JOBS_QUEUED_MAX)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run sessions and streamed calls until cancelled; after that every request is Unreachable."""
        async with self._jobs_taken, trio.open_nursery() as nursery:
            task_status.started()
            async for job in self._jobs_taken:
                nursery.start_soon(job)

    async def request(
        self, peer: PeerId, method: str, body: bytes, *, deadline_ms: int = names.REQUEST_TOTAL_MS
    ) -> bytes:
        """One request, one answer. Raises RequestFailed, Unreachable, RequestTimeout."""
        self._counters["rr.requests"] += 1
        with trio.move_on_after(deadline_ms / 1000):
            if peer == self._own_peer_id:
                return await self._request_locally(method, body)
            return await self._request_remotely(peer, method, body)
        self._counters["rr.request_timeout"] += 1
        raise RequestTimeout(names.peer_text(peer), method, deadline_ms)

    @asynccontextmanager
    async def request_parts(
        self,
        peer: PeerId,
        method: str,
        body: bytes,
        *,
        deadline_ms: int = names.REQUEST_TOTAL_MS,
        bytes_max: int = names.ANSWER_PARTS_BYTES_MAX,
    ) -> AsyncIterator[Answer]:
        """One request, a streamed answer within `deadline_ms` from now. `part()` raises what went wrong."""
        self._counters["rr.requests_parts"] += 1
        call = _PartsCall(self, peer, method, body, deadline_ms, bytes_max)
        local = peer == self._own_peer_id
        with trio.move_on_at(call.deadline_s):
            await self._start(call.run_locally if local else call.run, peer)
        try:
            yield call
        finally:
            call.leave()

    async def _request_locally(self, method: str, body: bytes) -> bytes:
        peer = self._own_peer_id
        waiter = _Waiter()

        async def answer() -> None:
            outcome: bytes | NetworkError = self._gone(peer, "this node is closing")
            try:
                outcome = await self._router.answer_locally(peer, method, body)
            except RequestFailed as failure:
                outcome = failure
            finally:
                waiter.settle(outcome)

        await self._start(answer, peer)
        return await waiter.result()

    async def _request_remotely(self, peer: PeerId, method: str, body: bytes) -> bytes:
        call = await self._ask(peer, method, body)
        if call.unsent and call.may_retry:
            self._counters["rr.retries"] += 1
            call = await self._ask(peer, method, body)
        return await call.result()

    async def _ask(self, peer: PeerId, method: str, body: bytes) -> _Call:
        """Place one call on the peer's session and wait until it is settled."""
        session = self._sessions.get(peer)
        if session is None:
            session = self._sessions[peer] = _Session(self, peer)
            try:
                await self._start(session.run, peer)
            except BaseException:
                session.end()
                raise
        try:
            call = session.new_call(method, body)
        except FrameError as error:
            raise RequestFailed(Code.ERR_BAD_REQUEST, str(error)) from error
        try:
            await session.submit(call)
            await call.done.wait()
        except trio.Cancelled:
            session.abandon(call)
            raise
        return call

    async def _start(self, job: _Job, peer: PeerId) -> None:
        try:
            await self._jobs.send(job)
        except trio.BrokenResourceError:
            raise self._gone(peer, "this node is closing") from None

    def _forget(self, session: _Session) -> None:
        if self._sessions.get(session.peer) is session:
            del self._sessions[session.peer]

    def _mark(self, peer: PeerId, reason: str) -> None:
        self._counters["rr.bad_frame"] += 1
        self._on_mark(peer, reason)

    def _gone(self, peer: PeerId, why: str) -> Unreachable:
        return Unreachable(names.peer_text(peer), why)


class _Waiter:
    """An outcome that one task sets and another waits for."""

    __slots__ = ("done", "outcome")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.outcome: bytes | NetworkError | None = None

    def settle(self, outcome: bytes | NetworkError) -> None:
        """The first outcome stays."""
        if self.outcome is None:
            self.outcome = outcome
            self.done.set()

    async def result(self) -> bytes:
        await self.done.wait()
        assert self.outcome is not None
        if isinstance(self.outcome, NetworkError):
            raise self.outcome
        return self.outcome


class _Call(_Waiter):
    """One request on a session. `unsent`: it ended and no byte of it was ever given to a stream."""

    __slots__ = ("abandoned", "data", "may_retry", "request_id", "sent")

    def __init__(self, request_id: int, data: bytes) -> None:
        super().__init__()
        self.request_id = request_id
        self.data = data
        self.sent = False
        self.abandoned = False
        self.may_retry = True

    @property
    def unsent(self) -> bool:
        return not self.sent and isinstance(self.outcome, Unreachable)


class _Session:
    """One reused stream to one peer: a reading task, a writing task, a watch and an idle timer.

    Up to IN_FLIGHT_PER_SESSION_MAX requests are on the wire; others wait in the queue, and their callers past that.
    A request whose caller left keeps its place until its answer comes, which is then discarded.
    """

    def __init__(self, client: RequestClient, peer: PeerId) -> None:
        self.peer = peer
        self._client = client
        self._open = True
        self._over = False  # the peer's end came: what is written now would never be answered
        self._send, self._receive = trio.open_memory_channel[_Call](names.SESSION_QUEUE_FRAMES_MAX)
        self._pending: deque[_Call] = deque()  # taken from the queue, not written; at most one batch
        self._in_flight: dict[int, _Call] = {}
        self._slots = trio.Semaphore(names.IN_FLIGHT_PER_SESSION_MAX)
        self._live = 0  # calls that somebody still waits for
        self._abandoned = 0  # written calls that nobody waits for
        self._next_id = 0
        self._idle_scope = trio.CancelScope()

    # --- the callers' side

    def new_call(self, method: str, body: bytes) -> _Call:
        """A call with the next free id. Raises FrameError when it fits no frame."""
        request_id = self._next_id
        while request_id in self._in_flight:
            request_id = (request_id + 1) & names.REQUEST_ID_MAX
        self._next_id = (request_id + 1) & names.REQUEST_ID_MAX
        return _Call(request_id, frames.encode_request(request_id, method, body))

    async def submit(self, call: _Call) -> None:
        """Queue the call, waiting while the queue is full; a session that has ended settles it as unsent."""
        self._live += 1
        self._set_idle_timer()
        try:
            await self._send.send(call)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            self._settle(call, self._client._gone(self.peer, "the session ended"))

    def abandon(self, call: _Call) -> None:
        """Nobody waits for the call any more."""
        if call.outcome is not None or call.abandoned:
            return
        call.abandoned = True
        self._live -= 1
        if call.sent:
            self._abandoned += 1
            if self._abandoned >= ABANDONED_PER_SESSION_MAX:
                # The peer has gone quiet: new requests shall not queue behind answers that may never come.
                self._client._counters["rr.sessions_retired"] += 1
                self._client._forget(self)
                self._open = False
        self._set_idle_timer()

    def _settle(self, call: _Call, outcome: bytes | NetworkError) -> None:
        if call.abandoned or call.outcome is not None:
            return
        self._live -= 1
        call.settle(outcome)
        self._set_idle_timer()

    def _set_idle_timer(self) -> None:
        if self._live > 0:
            self._idle_scope.deadline = math.inf
        elif self._open:
            self._idle_scope.deadline = trio.current_time() + self._client._idle_ms / 1000
        else:
            self._idle_scope.deadline = -math.inf

    # --- the owner's side

    async def run(self) -> None:
        """Open the stream, serve calls until idle, retired or broken; every call is settled at the end."""
        why = "this node is closing"
        try:
            stream = await self._client._open_stream(self.peer)
            self._client._counters["rr.sessions"] += 1
            why = "the stream ended before the answer"
            await self._converse(stream)
        except Unreachable as error:
            why = error.why
            for call in self._queued():
                call.may_retry = False
                self._settle(call, error)
        finally:
            self.end()
            for call in [*self._queued(), *self._in_flight.values()]:
                self._settle(call, self._client._gone(self.peer, why))
            self._receive.close()

    async def _converse(self, stream: RawStream) -> None:
        watch = streams.StreamWatch(stream)
        ended = False
        try:
            async with trio.open_nursery() as timers:
                timers.start_soon(watch.run)
                timers.start_soon(self._end_when_idle, watch)
                async with trio.open_nursery() as io:
                    io.start_soon(self._write_all, stream)
                    orderly = await self._read_all(stream)
                    self._over = True
                    self.end()
                    for call in self._in_flight.values():
                        self._settle(call, self._client._gone(self.peer, "the stream ended before the answer"))
                    self._slots.release()  # wakes a writer that waits for room, to find that all is over
                    if not orderly or self._in_flight:
                        await streams.reset(stream)
                timers.cancel_scope.cancel()
            ended = True
        finally:
            if not ended:
                await streams.reset(stream)

    def end(self) -> None:
        """Take no more calls; the writer sees the end of its queue and closes the stream."""
        self._open = False
        self._client._forget(self)
        self._send.close()

    def _queued(self) -> list[_Call]:
        """Take out all calls that were never written."""
        calls = list(self._pending)
        self._pending.clear()
        while True:
            try:
                calls.append(self._receive.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                return calls

    async def _end_when_idle(self, watch: streams.StreamWatch) -> None:
        while self._live or not self._idle_scope.cancelled_caught:
            self._idle_scope = trio.CancelScope()
            self._set_idle_timer()
            with self._idle_scope:
                await trio.sleep_forever()
        self.end()
        watch.reset_at(trio.current_time() + streams.LINGER_MS_MAX / 1000)

    async def _read_all(self, stream: RawStream) -> bool:
        """Settle calls as answers come; true when the peer ended in order between two frames."""
        reader = frames.FrameReader()
        try:
            while data := await stream.read(streams.READ_BYTES_MAX):
                reader.feed(data)
                while (frame := reader.next_frame()) is not frames.NEED_DATA:
                    if not self._take(frame):
                        self._client._mark(self.peer, "an answer to no request")
                        return False
        except FrameError as error:
            self._client._mark(self.peer, f"bad frame: {error.field}")
            return False
        except StreamBroken:
            return False
        return not reader.mid_frame

    def _take(self, frame: frames.Frame) -> bool:
        """Settle the call that the frame answers; false when there is none, or not of that kind."""
        if not isinstance(frame, frames.Answer | frames.ErrorFrame):
            return False
        call = self._in_flight.pop(frame.request_id, None)
        if call is None:
            return False
        self._slots.release()
        if call.abandoned:
            self._abandoned -= 1
            self._client._counters["rr.late_answers"] += 1
        self._settle(call, frame.body if isinstance(frame, frames.Answer) else _failure(frame))
        return True

    async def _write_all(self, stream: RawStream) -> None:
        """Write calls in order, as many as there is room for in one write; then end our writing."""
        try:
            while await self._fill_pending():
                await self._slots.acquire()
                # One turn of the scheduler lets other callers' requests join the same write.
                await trio.lowlevel.checkpoint()
                batch = self._next_batch()
                if batch:
                    await stream.write(b"".join(batch))
            await stream.close()
        except StreamBroken:
            await streams.reset(stream)

    async def _fill_pending(self) -> bool:
        """True when a call waits to be written; false when no more will come."""
        if not self._pending:
            try:
                self._pending.append(await self._receive.receive())
            except trio.EndOfChannel:
                return False
        return True

    def _next_batch(self) -> list[bytes]:
        """Frames for one write, with a slot for each; one slot is already ours."""
        batch: list[bytes] = []
        size = 0
        slot = True
        while size < names.SESSION_WRITE_BATCH_BYTES_MAX:
            if not self._pending:
                try:
                    self._pending.append(self._receive.receive_nowait())
                except (trio.WouldBlock, trio.EndOfChannel):
                    break
            if not slot:
                try:
                    self._slots.acquire_nowait()
                except trio.WouldBlock:
                    break
                slot = True
            call = self._pending.popleft()
            if call.abandoned:
                continue
            if self._over:
                self._settle(call, self._client._gone(self.peer, "the session ended"))
                continue
            call.sent = True
            self._in_flight[call.request_id] = call
            batch.append(call.data)
            size += len(call.data)
            slot = False
        if slot:
            self._slots.release()
        return batch


class _PartsCall:
    """A streamed answer: `part` and `last` are the caller's side, `run` is the owner of the stream."""

    def __init__(
        self, client: RequestClient, peer: PeerId, method: str, body: bytes, deadline_ms: int, bytes_max: int
    ) -> None:
        self.deadline_s = trio.current_time() + deadline_ms / 1000
        self._client = client
        self._peer = peer
        self._method = method
        self._body = body
        self._deadline_ms = deadline_ms
        self._bytes_max = bytes_max
        self._bytes = 0
        self._send, self._receive = trio.open_memory_channel[bytes](PARTS_QUEUED_MAX)
        self._left = trio.Event()
        self._outcome: bytes | NetworkError | None = None

    # --- the caller's side

    async def part(self) -> bytes | None:
        """The next part; None when `last` is there. Raises what a request raises, and AnswerTooLarge."""
        with trio.move_on_at(self.deadline_s):
            try:
                return await self._receive.receive()
            except trio.EndOfChannel:
                pass
            if self._outcome is None:
                raise self._client._gone(self._peer, "this node is closing")
            if isinstance(self._outcome, NetworkError):
                raise self._outcome
            return None
        self._client._counters["rr.request_timeout"] += 1
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

    # --- the owner's side

    async def run(self) -> None:
        """Open a stream, ask, pass parts on, and end the stream."""
        with self._send:
            try:
                data = frames.encode_request(0, self._method, self._body)
                stream = await self._client._open_stream(self._peer)
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

    async def run_locally(self) -> None:
        """The same from the own router, without a stream."""
        with self._send:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_when_left, nursery.cancel_scope)
                try:
                    self._outcome = await self._client._router.answer_parts_locally(
                        self._peer, self._method, self._body, self._pass_on_locally
                    )
                except RequestFailed as failure:
                    self._outcome = self._outcome or failure
                nursery.cancel_scope.cancel()

    async def _converse(self, stream: RawStream, data: bytes) -> None:
        watch = streams.StreamWatch(stream)
        async with trio.open_nursery() as timers:
            timers.start_soon(watch.run)
            timers.start_soon(self._reset_when_left, watch)
            try:
                await stream.write(data)
                whole = await self._read_answer(stream)
            except StreamBroken:
                whole = False
            if self._outcome is None:
                self._outcome = self._client._gone(self._peer, "the stream ended inside the answer")
            self._send.close()
            if whole:
                await streams.finish(stream, watch)
            else:
                await streams.reset(stream)
            timers.cancel_scope.cancel()

    async def _reset_when_left(self, watch: streams.StreamWatch) -> None:
        await self._left.wait()
        if self._outcome is None:
            watch.reset_at(-math.inf)

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
                self._client._mark(self._peer, f"bad frame: {error.field}")
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
                self._outcome = _failure(frame)
            case _:
                self._client._mark(self._peer, "an answer to no request")
                return False
        return True

    async def _pass_on(self, part: bytes) -> bool:
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
            # The caller has left or will be told: the handler goes no further, and is cancelled with the call.
            self._left.set()
            await trio.sleep_forever()

    def _count(self, size: int) -> bool:
        self._bytes += size
        if self._bytes <= self._bytes_max:
            return True
        self._outcome = AnswerTooLarge(names.peer_text(self._peer), self._method, self._bytes_max)
        return False


def _failure(frame: frames.ErrorFrame) -> RequestFailed:
    return RequestFailed(
        frame.code, frame.message, retry_after_ms=frame.retry_after_ms, detail=frame.detail
    )

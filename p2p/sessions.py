"""One reused stream to one peer, with many requests on it.

Hides: ids, room on the wire, joined writes, and what becomes of answers that nobody waits for any more.
Guarantees: a caller that leaves ends nothing but its own waiting; every call is settled, at the latest when
the session ends; raw reads and writes are never cancelled.
Implements docs/protocol.md, section "Request / response", as the client of one-frame answers.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import trio

from p2p import frames, names, streams
from p2p.errors import FrameError, NetworkError, RequestFailed, StreamBroken, Unreachable
from p2p.network import PeerId
from p2p.router import Mark
from p2p.streams import RawStream

OpenStream: TypeAlias = Callable[[PeerId], Awaitable[RawStream]]
"""Opens a new /aw/rr/1 stream to a peer.

Raises Unreachable; has its own deadline; is never cancelled by a caller.
"""

ABANDONED_PER_SESSION_MAX: Final = (
    16  # requests given up, not answered or not even sent; then a new session takes over
)


@dataclass(frozen=True, slots=True)
class Outside:
    """What a session or a streamed call needs of the node around it."""

    open_stream: OpenStream
    counters: Counter[str]
    on_mark: Mark

    def mark(self, peer: PeerId, reason: str) -> None:
        """The peer broke the rules of the wire."""
        self.counters["rr.bad_frame"] += 1
        self.on_mark(peer, reason)


def gone(peer: PeerId, why: str) -> Unreachable:
    """Unreachable, with the peer as people spell it."""
    return Unreachable(names.peer_text(peer), why)


def failure_of(frame: frames.ErrorFrame) -> RequestFailed:
    """What an error frame means to the caller."""
    return RequestFailed(frame.code, frame.message, retry_after_ms=frame.retry_after_ms, detail=frame.detail)


class Waiter:
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
        if self.outcome is None:
            await self.done.wait()
        assert self.outcome is not None
        if isinstance(self.outcome, NetworkError):
            raise self.outcome
        return self.outcome


class Call(Waiter):
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


class Session:
    """One reused stream to one peer: a reading task, a writing task, a watch and an idle timer.

    Up to IN_FLIGHT_PER_SESSION_MAX requests are on the wire; others wait in the queue, and their callers past
    that. A request whose caller left keeps its place until its answer comes, which is then discarded.
    """

    def __init__(
        self, outside: Outside, peer: PeerId, idle_ms: int, forget: Callable[[Session], None]
    ) -> None:
        self.peer = peer
        self._outside = outside
        self._idle_ms = idle_ms
        self._forget = forget  # told once this session shall get no more calls
        self._open = True
        self._over = False  # the peer's end came: what is written now would never be answered
        self._send, self._receive = trio.open_memory_channel[Call](names.SESSION_QUEUE_FRAMES_MAX)
        self._pending: deque[Call] = deque()  # taken from the queue, not written; at most one batch
        self._in_flight: dict[int, Call] = {}
        self._slots = trio.Semaphore(names.IN_FLIGHT_PER_SESSION_MAX)
        self._live = 0  # calls that somebody still waits for
        self._abandoned = 0  # calls, written or queued, that nobody waits for
        self._next_id = 0
        self._idle_scope = trio.CancelScope()

    # --- the callers' side

    def new_call(self, method: str, body: bytes) -> Call:
        """A call with the next free id. Raises FrameError when it fits no frame."""
        request_id = self._next_id
        while request_id in self._in_flight:
            request_id = (request_id + 1) & names.REQUEST_ID_MAX
        self._next_id = (request_id + 1) & names.REQUEST_ID_MAX
        return Call(request_id, frames.encode_request(request_id, method, body))

    async def submit(self, call: Call) -> None:
        """Queue the call, waiting while the queue is full; a session that has ended settles it as unsent."""
        self._live += 1
        self._set_idle_timer()
        try:
            try:
                self._send.send_nowait(call)  # its caller waits for the answer anyway
            except trio.WouldBlock:
                await self._send.send(call)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            self._settle(call, gone(self.peer, "the session ended"))

    def abandon(self, call: Call) -> None:
        """Nobody waits for the call any more."""
        if call.outcome is not None or call.abandoned:
            return
        call.abandoned = True
        self._live -= 1
        self._abandoned += 1
        if self._open and self._abandoned >= ABANDONED_PER_SESSION_MAX:
            # The peer has gone quiet: new requests shall not queue behind answers, or writes, that may never come.
            self._outside.counters["rr.sessions_retired"] += 1
            self._forget(self)
            self._open = False
        self._set_idle_timer()

    def _settle(self, call: Call, outcome: bytes | NetworkError) -> None:
        if call.abandoned or call.outcome is not None:
            return
        self._live -= 1
        call.settle(outcome)
        self._set_idle_timer()

    def _set_idle_timer(self) -> None:
        if self._live > 0:
            self._idle_scope.deadline = math.inf
        elif self._open:
            self._idle_scope.deadline = trio.current_time() + self._idle_ms / 1000
        else:
            self._idle_scope.deadline = -math.inf

    # --- the owner's side

    async def run(self) -> None:
        """Open the stream, serve calls until idle, retired or broken; every call is settled at the end."""
        why = "this node is closing"
        try:
            stream = await self._outside.open_stream(self.peer)
            self._outside.counters["rr.sessions"] += 1
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
                self._settle(call, gone(self.peer, why))
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
                        self._settle(call, gone(self.peer, "the stream ended before the answer"))
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
        self._forget(self)
        self._send.close()

    def _queued(self) -> list[Call]:
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
                        self._outside.mark(self.peer, "an answer to no request")
                        return False
        except FrameError as error:
            self._outside.mark(self.peer, f"bad frame: {error.field}")
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
            self._outside.counters["rr.late_answers"] += 1
        self._settle(call, frame.body if isinstance(frame, frames.Answer) else failure_of(frame))
        return True

    async def _write_all(self, stream: RawStream) -> None:
        """Write calls in order, as many as there is room for in one write; then end our writing."""
        try:
            while await self._fill_pending():
                # At least one turn of the scheduler, which lets other callers' requests join the same write.
                await self._slots.acquire()
                batch = self._next_batch()
                if batch:
                    await stream.write(b"".join(batch))
            await stream.close()
        except StreamBroken:
            # A reader may never be told that its connection is gone: nobody shall wait behind it.
            self._give_up("the stream broke")
            await streams.reset(stream)

    def _give_up(self, why: str) -> None:
        """Nothing more will be written: whoever still comes here goes to a new session."""
        self._over = True
        self.end()
        for call in [*self._queued(), *self._in_flight.values()]:
            self._settle(call, gone(self.peer, why))

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
                self._abandoned -= 1
                continue
            if self._over:
                self._settle(call, gone(self.peer, "the session ended"))
                continue
            call.sent = True
            self._in_flight[call.request_id] = call
            batch.append(call.data)
            size += len(call.data)
            slot = False
        if slot:
            self._slots.release()
        return batch

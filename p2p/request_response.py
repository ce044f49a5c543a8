"""The asking side of /aw/rr/1: sessions that reuse a stream per peer, and streamed answers on streams of
their own.

Hides: stream reuse, reconnection, and which task owns which stream (sessions.py, streamed.py).
Guarantees: a deadline or a cancelled caller ends the waiter only, never raw stream I/O and never another
request; a request is sent at most once (it is tried again only when none of it was sent); a request to the
own peer id goes to the own router in process. Failures are p2p.errors only.
Implements docs/protocol.md, section "Request / response", as the client. The server is in router.py, and both
are to be had here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeAlias

import trio

from p2p import names
from p2p.errors import Code, FrameError, NetworkError, RequestFailed, RequestTimeout
from p2p.loads import RouterLimits
from p2p.network import Answer, PeerId
from p2p.router import DEFAULT_LIMITS, Mark, Router, no_mark
from p2p.sessions import Call, OpenStream, Outside, Session, Waiter, gone
from p2p.streamed import StreamedCall
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

JOBS_QUEUED_MAX: Final = 256  # sessions and calls waiting for the client's loop; callers wait past it

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
        self._outside = Outside(open_stream, counters, on_mark)
        self._counters = counters
        self._own_peer_id = own_peer_id
        self._router = router
        self._idle_ms = idle_ms
        self._sessions: dict[PeerId, Session] = {}
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
        call = StreamedCall(self._outside, peer, method, body, deadline_ms, bytes_max)
        local = peer == self._own_peer_id
        with trio.move_on_at(call.deadline_s):
            await self._start(partial(call.run_locally, self._router) if local else call.run, peer)
        try:
            yield call
        finally:
            call.leave()

    async def _request_locally(self, method: str, body: bytes) -> bytes:
        peer = self._own_peer_id
        waiter = Waiter()

        async def answer() -> None:
            outcome: bytes | NetworkError = gone(peer, "this node is closing")
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

    async def _ask(self, peer: PeerId, method: str, body: bytes) -> Call:
        """Place one call on the peer's session and wait until it is settled."""
        session = self._sessions.get(peer)
        if session is None:
            session = self._sessions[peer] = Session(self._outside, peer, self._idle_ms, self._forget)
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
            try:
                self._jobs.send_nowait(job)
            except trio.WouldBlock:
                await self._jobs.send(job)
        except trio.BrokenResourceError:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise gone(peer, "this node is closing") from None

    def _forget(self, session: Session) -> None:
        if self._sessions.get(session.peer) is session:
            del self._sessions[session.peer]

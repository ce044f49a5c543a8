"""Streams between two tasks of one process.

Hides: the bytes on their way. Guarantees: the order of bytes, a window that makes a writer wait for a slow
reader, and the ends and breaks of the RawStream contract.
Implements p2p.streams.RawStream, for memory.py and for tests.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from p2p.errors import StreamBroken

WINDOW_BYTES_MAX: Final = 256 * 1024  # unread bytes of one direction of a stream; the writer waits past it


class _Pipe:
    """One direction of a stream: chunks that become readable at their time."""

    def __init__(self, delay_s: Callable[[], float]) -> None:
        self._delay_s = delay_s
        self._chunks: deque[tuple[float, bytes]] = deque()  # b"" is the end
        self._size = 0
        self._last_at_s = 0.0
        self._ended = False
        self._broken = False
        self._changed = trio.lowlevel.ParkingLot()  # broken, or more room: what a writer waits for
        self._next = trio.CancelScope()  # of the reader while it waits, until the next chunk's time

    async def read(self, bytes_max: int) -> bytes:
        await trio.lowlevel.checkpoint_if_cancelled()
        has_yielded = False
        while not self._broken:
            at_s, chunk = self._chunks[0] if self._chunks else (math.inf, b"")
            if at_s > trio.current_time():
                self._next = trio.CancelScope(deadline=at_s)
                with self._next:
                    await trio.sleep_forever()
                has_yielded = True
                continue
            if not has_yielded:
                await trio.lowlevel.cancel_shielded_checkpoint()
                has_yielded = True
                continue
            if not chunk:
                return b""  # stays there for the next read
            self._chunks.popleft()
            if len(chunk) > bytes_max:
                self._chunks.appendleft((at_s, chunk[bytes_max:]))
                chunk = chunk[:bytes_max]
            self._size -= len(chunk)
            self._changed.unpark_all()
            return chunk
        raise StreamBroken("the stream was reset")

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        while data:
            if self._broken or self._ended:
                raise StreamBroken("the stream was reset")
            room = WINDOW_BYTES_MAX - self._size
            if room <= 0:
                await self._changed.park()
                continue
            self._put(data[:room])
            data = data[room:]

    def end(self) -> None:
        if not self._ended and not self._broken:
            self._ended = True
            self._put(b"")

    @property
    def over(self) -> bool:
        return self._broken or self._ended

    def break_off(self) -> None:
        self._broken = True
        self._chunks.clear()
        self._next.cancel()
        self._changed.unpark_all()

    def _put(self, chunk: bytes) -> None:
        self._last_at_s = max(self._last_at_s, trio.current_time() + self._delay_s())
        if not self._chunks:
            self._next.deadline = self._last_at_s
        self._chunks.append((self._last_at_s, chunk))
        self._size += len(chunk)


class MemoryStream:
    """A RawStream whose other end is in this process."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe, breaks: Callable[[], bool]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._breaks = breaks

    async def read(self, bytes_max: int) -> bytes:
        return await self._incoming.read(bytes_max)

    async def write(self, data: bytes) -> None:
        if self._breaks():
            self.break_off()
        await self._outgoing.write(data)

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()
        self._outgoing.end()

    async def reset(self) -> None:
        self.break_off()
        await trio.lowlevel.checkpoint()

    @property
    def over(self) -> bool:
        """True when nothing will be written any more, in either direction."""
        return self._incoming.over and self._outgoing.over

    def break_off(self) -> None:
        """Both directions, both ends; what was not read is lost."""
        self._incoming.break_off()
        self._outgoing.break_off()


def stream_pair(
    delay_s: Callable[[], float] = lambda: 0.0, breaks: Callable[[], bool] = lambda: False
) -> tuple[MemoryStream, MemoryStream]:
    """The two ends of a new stream."""
    one, other = _Pipe(delay_s), _Pipe(delay_s)
    return MemoryStream(one, other, breaks), MemoryStream(other, one, breaks)

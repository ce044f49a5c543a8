"""What a session needs of a raw stream, and how a stream is ended without cancelling its I/O.

Hides: linger and reset deadlines.
Guarantees: nothing here cancels a raw read or write (a cancelled one costs a libp2p connection and all its
streams); a deadline resets the stream instead, and the blocked call then ends by itself.
Implements docs/protocol.md, section "Request / response", "Streams".
"""

from __future__ import annotations

import math
from typing import Final, Protocol

import trio

from p2p.errors import StreamBroken

READ_BYTES_MAX: Final = 64 * 1024  # asked of one raw read
RESET_MS_MAX: Final = 2_000  # a reset is local and short; past this the connection is dying anyway
LINGER_MS_MAX: Final = 5_000  # after our end of writing, for the peer's


class RawStream(Protocol):
    """A negotiated bidirectional stream. One task reads it and one writes it; anyone may reset it.

    The adapter translates every foreign error to StreamBroken. Whatever cannot be told from an orderly end is
    b"".
    """

    async def read(self, bytes_max: int) -> bytes:
        """1..bytes_max bytes as they come, b"" at the peer's end of writing. Raises StreamBroken."""

    async def write(self, data: bytes) -> None:
        """Write all of it, waiting while the peer reads slowly. Raises StreamBroken."""

    async def close(self) -> None:
        """End our writing; what was written still arrives, reading goes on.

        Idempotent. Raises StreamBroken.
        """

    async def reset(self) -> None:
        """Give up both directions. Idempotent, never raises.

        A read or write that another task is blocked in ends soon, with b"" or StreamBroken.
        """


class StreamWatch:
    """Resets a stream when its deadline passes. Whoever owns the stream moves the deadline and runs `run`."""

    __slots__ = ("_scope", "_stream", "expired")

    def __init__(self, stream: RawStream) -> None:
        self._stream = stream
        self._scope = trio.CancelScope()
        self.expired = False

    def reset_at(self, deadline_s: float) -> None:
        """Move the deadline to `trio.current_time()` seconds; math.inf is never, -math.inf is now."""
        self._scope.deadline = deadline_s

    async def run(self) -> None:
        """Wait for the deadline, then reset; cancelled by the owner when the stream is done."""
        with self._scope:
            await trio.sleep_forever()
        self.expired = True
        await reset(self._stream)


async def reset(stream: RawStream) -> None:
    """Reset now, also while being cancelled."""
    with trio.move_on_after(RESET_MS_MAX / 1000, shield=True):
        await stream.reset()


async def finish(stream: RawStream, watch: StreamWatch, linger_ms: int = LINGER_MS_MAX) -> None:
    """End our writing and discard what the peer still sends until its end, so that both sides free the
    stream.

    `watch` must be running; it resets a stream whose peer does not end within `linger_ms`.
    """
    watch.reset_at(trio.current_time() + linger_ms / 1000)
    try:
        await stream.close()
        while await stream.read(READ_BYTES_MAX):
            pass
    except StreamBroken:
        await reset(stream)
    watch.reset_at(math.inf)

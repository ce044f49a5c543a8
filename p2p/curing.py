"""What the cures of py-libp2p have in common: what they count, and how they refuse a stream. See cures.py."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import trio

RESET_S_MAX: Final = 1.0
StreamHandler: TypeAlias = Callable[[Any], Awaitable[None]]

_log = logging.getLogger(__name__)

dropped: Final[Counter[str]] = Counter()
"""What the cures of the process have dropped, by reason; of all hosts of the process together."""


async def reset_stream(stream: Any) -> None:
    """Reset, also while being cancelled; one that fails has nothing left to reset."""
    with trio.CancelScope(shield=True), trio.move_on_after(RESET_S_MAX):
        try:
            await stream.reset()
        except Exception as error:  # noqa: BLE001
            _log.debug("reset failed: %s", type(error).__name__)


def few_of_a_peer(
    handle: StreamHandler, streams_max: Callable[[], int], counters: Counter[str], reason: str
) -> StreamHandler:
    """A handler that serves so many streams of one peer at a time; the others are reset and counted."""
    served: Counter[bytes] = Counter()

    async def few(stream: Any) -> None:
        peer = stream.muxed_conn.peer_id.to_bytes()
        if served[peer] >= streams_max():
            counters[reason] += 1
            await reset_stream(stream)
            return
        served[peer] += 1
        try:
            await handle(stream)
        finally:
            served[peer] -= 1
            if not served[peer]:
                del served[peer]

    return few

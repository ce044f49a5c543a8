"""trio.run for commands that Ctrl-C ends, whatever it meets.

Hides: signals. trio raises KeyboardInterrupt wherever the program happens to be, and py-libp2p has a dozen places that
take any BaseException for a failure of what they do. Here Ctrl-C cancels, and that it came is remembered.
Guarantees: a second Ctrl-C ends the process at once; who ignores SIGINT goes on ignoring it.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import TypeVar

import trio

T = TypeVar("T")


def run(main: Callable[[], Awaitable[T]]) -> T:
    """What `await main()` gives. Raises what it raises, and KeyboardInterrupt after a SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
        return trio.run(main)
    is_interrupted = False

    async def interruptible() -> T:
        token, scope = trio.lowlevel.current_trio_token(), trio.CancelScope()

        def interrupt(number: int, frame: FrameType | None) -> None:
            nonlocal is_interrupted
            del frame
            is_interrupted = True
            signal.signal(number, signal.SIG_DFL)
            token.run_sync_soon(scope.cancel)

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            with scope:
                return await main()
        finally:
            if not is_interrupted:
                signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt

    try:
        return trio.run(interruptible)
    except Exception as error:
        if is_interrupted:  # what fails while it is being cancelled is no news
            raise KeyboardInterrupt from error
        raise

"""The exit code of the programs here. Guarantees: Ctrl-C is no failure with a traceback, but 130, as shells tell it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

INTERRUPTED: Final = 130


def exit_code(program: Callable[[], int]) -> int:
    """What the program gives, which runs by bootstrap.cli.interrupt: by then all that it started has ended."""
    try:
        return program()
    except KeyboardInterrupt:
        return INTERRUPTED

"""Ctrl-C ends a command, also where a library takes every exception for a failure of its own."""

from __future__ import annotations

import signal
from contextlib import suppress

import pytest
import trio

from bootstrap.cli import interrupt


async def met_where_all_is_caught() -> str:
    with suppress(BaseException):  # as py-libp2p does in a dozen places
        signal.raise_signal(signal.SIGINT)
    with trio.fail_after(10):
        await trio.sleep_forever()
    return "nothing came"


async def fails_when_cancelled() -> str:
    signal.raise_signal(signal.SIGINT)
    try:
        await trio.sleep_forever()
    finally:
        raise OSError("closed in the middle")


@pytest.mark.parametrize("main", [met_where_all_is_caught, fails_when_cancelled])
def test_an_interrupt_is_one_wherever_it_is_met(main):
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupt.run(main)
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_was_not_interrupted_gives_its_answer_or_its_error_and_the_handler_back():
    async def answers() -> int:
        return 7

    async def fails() -> int:
        raise OSError("as it is")

    before = signal.getsignal(signal.SIGINT)
    assert interrupt.run(answers) == 7
    with pytest.raises(OSError, match="as it is"):
        interrupt.run(fails)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_ends_the_process_by_the_default_action():
    before = signal.getsignal(signal.SIGINT)

    async def once() -> None:
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL

    try:
        interrupt.run(once)
    finally:
        signal.signal(signal.SIGINT, before)

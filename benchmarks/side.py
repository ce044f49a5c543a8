"""The other end of harness.Side: a program that obeys commands on stdin. Imports nothing of ours but this.

A stock side must never import p2p, whose cures patch classes of py-libp2p for the whole process: see `stay_stock`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

Command = Callable[..., Awaitable[Any]]


async def _ready() -> None:
    """Started: imports are done, what listens listens."""


async def obey(commands: Mapping[str, Command]) -> None:
    """Answer each line of stdin by its command's result, in order, until stdin ends."""
    table = {"ready": _ready, **commands}
    rest = b""
    stdin = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
    while data := await stdin.receive_some():
        rest += bytes(data)
        while b"\n" in rest:
            line, rest = rest.split(b"\n", 1)
            arguments = json.loads(line)
            try:
                answer = {"result": await table[arguments.pop("command")](**arguments)}
            except Exception as error:  # noqa: BLE001  # told to the harness, which ends the benchmark
                cause = innermost(error)
                answer = {"error": f"{type(cause).__name__}: {cause}"}
            print(json.dumps(answer), flush=True)


def stay_stock() -> None:
    """Raise unless this interpreter is free of p2p."""
    if any(name == "p2p" or name.startswith("p2p.") for name in sys.modules):
        raise RuntimeError("the stock side has imported p2p: it would measure our cures")


def play(run: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    """trio.run, with what went wrong told without the groups around it."""
    try:
        trio.run(run, *arguments)
    except BaseExceptionGroup as group:
        raise innermost(group) from None


def innermost(error: BaseException) -> BaseException:
    """What went wrong, without the nurseries around it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

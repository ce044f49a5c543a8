"""Runs named tests, each in a process of its own, that has loaded py-libp2p before it began.

A line of stdin is one run, as JSON: {"cure": name taken out, "test": name, "files": [...]}; the answer is one line of
stdout: {"test": its name, "code": pytest's exit code, "output": what it printed}. What patches classes for good must
not stay, and to load the libraries anew for each of thirty runs would take longer than the runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
from typing import IO, Any, NoReturn

import hypothesis
import libp2p
import pytest
from libp2p.pubsub import gossipsub

import bootstrap.world_node
import p2p.host

RUN_S_MAX = 120
LOADED = (hypothesis, libp2p, gossipsub, bootstrap.world_node, p2p.host)


def _become(order: dict[str, Any], output: IO[bytes]) -> NoReturn:
    """The rest of the life of a fork."""
    code = int(pytest.ExitCode.INTERNAL_ERROR)
    try:
        os.setpgid(0, 0)
        os.environ["AW_WITHOUT_CURE"] = order["cure"]
        for number in (1, 2):
            os.dup2(output.fileno(), number)
        loaded_early = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        code = int(
            pytest.main(["-q", "--timeout", "60", *loaded_early, "-k", order["test"], *order["files"]])
        )
        sys.stdout.flush()
    finally:
        os._exit(code)


def _kill_group(leader: int) -> None:
    """The fork and what it has started: pytest's own timeout takes the alarm clock for itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def run(order: dict[str, Any], output: IO[bytes]) -> int:
    """Exit code of pytest, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        _become(order, output)
    killer = threading.Timer(RUN_S_MAX, _kill_group, (child,))
    killer.start()
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        killer.cancel()
        killer.join()  # the next fork begins with one thread


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        with tempfile.TemporaryFile() as output:
            order = json.loads(line)
            code = run(order, output)
            output.seek(0)
            said = output.read().decode()
            print(json.dumps({"test": order["test"], "code": code, "output": said}), file=answers)


if __name__ == "__main__":
    main()

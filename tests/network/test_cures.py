"""Each cure is needed: the test that it names fails without it. When one passes, a newer py-libp2p needs it no more."""

from __future__ import annotations

import inspect
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from p2p import cures, dht_cures, gossip_cures, message_cures, stream_cures

AT_ONCE = 3
HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CURES = {
    name: function
    for module in (cures, stream_cures, message_cures, gossip_cures, dht_cures)
    for name, function in vars(module).items()
    if inspect.isfunction(function)
    and function.__module__ == module.__name__
    and not name.startswith("_")
    and re.search(r"Tests?: ", inspect.getdoc(function) or "")
}
# Called where they are needed, and by nobody's table; conftest.py knows what the library does instead.
CALLED_BY_NAME = {"ask_identify", "clear_recent_deliveries", "deliver_to", "read_promptly", "write_patiently"}


def named_tests(cure: str) -> list[str]:
    """The tests that a cure's docstring names."""
    return re.findall(r"test_\w+", inspect.getdoc(CURES[cure]) or "")


def files_with(test: str) -> list[str]:
    """Where a test is, of those that run on real hosts."""
    files = [file for folder in (HERE, HERE.parent / "conformance") for file in folder.glob("test_*.py")]
    return sorted(str(file) for file in files if f"def {test}(" in file.read_text())


def in_a_server(orders: Sequence[tuple[str, Future[dict[str, Any]]]], taken: Iterator[int]) -> None:
    """Run what nobody has taken yet, one after the other, in forks of one loaded process."""
    command = [sys.executable, str(HERE / "without_cures.py")]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        while (number := next(taken)) < len(orders):
            cure, future = orders[number]
            if not future.set_running_or_notify_cancel():
                continue
            test = named_tests(cure)[0]
            order = {"cure": cure, "test": test, "files": files_with(test)}
            print(json.dumps(order), file=server.stdin, flush=True)
            answer = server.stdout.readline()
            if not answer:
                future.set_exception(RuntimeError(f"the server ended with {server.wait()}"))
                break
            future.set_result(json.loads(answer))
        server.terminate()


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[dict[str, Any]]]]:
    """By cure, what running its test without it gave: pytest's exit code and output.

    Most of them fail by waiting for what never comes: so a few go on at a time, from when the first is asked for.
    """
    chosen = [
        item.callspec.params["name"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and "runs" in item.fixturenames and item.module is request.module
    ]
    futures: dict[str, Future[dict[str, Any]]] = {name: Future() for name in chosen}
    taken, orders = itertools.count(), list(futures.items())
    with ThreadPoolExecutor(AT_ONCE) as servers:
        ends = [servers.submit(in_a_server, orders, taken) for _ in range(AT_ONCE)]
        yield futures
        for future in futures.values():
            future.cancel()
    for end in ends:
        end.result()


@pytest.mark.parametrize("name", sorted(CURES))
def test_a_cure_names_tests_that_exist(name):
    for test in named_tests(name):
        assert files_with(test), f"there is no {test}"


def test_every_cure_stands_in_the_table():
    assert set(CURES) - CALLED_BY_NAME == set(cures.ALL)


@pytest.mark.parametrize("name", sorted(CURES))
def test_without_a_cure_the_test_that_it_names_fails(name, runs):
    test = named_tests(name)[0]
    done = runs[name].result()
    assert done["test"] == test
    assert done["code"] == 1, f"{test} does not fail without {name}:\n{done['output'][-2_000:]}"
    assert re.search(rf"FAILED .*{test}", done["output"]), done["output"][-2_000:]

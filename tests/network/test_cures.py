"""Each cure is needed: the test that it names fails without it. When one passes, a newer py-libp2p needs it no more."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2p import cures, stream_cures

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CURES = {
    name: function
    for module in (cures, stream_cures)
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


Run = Callable[[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def run_without() -> Iterator[Run]:
    """`run_without(cure, test)`: pytest's exit code and output."""
    with subprocess.Popen(
        [sys.executable, str(HERE / "without_cures.py")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run(cure: str, test: str) -> dict[str, Any]:
            order = {"cure": cure, "test": test, "files": files_with(test)}
            print(json.dumps(order), file=server.stdin, flush=True)
            answer: dict[str, Any] = json.loads(server.stdout.readline())
            assert answer["test"] == test
            return answer

        yield run
        server.terminate()


@pytest.mark.parametrize("name", sorted(CURES))
def test_a_cure_names_tests_that_exist(name):
    for test in named_tests(name):
        assert files_with(test), f"there is no {test}"


def test_every_cure_stands_in_the_table():
    assert set(CURES) - CALLED_BY_NAME == set(cures.ALL)


@pytest.mark.parametrize("name", sorted(CURES))
def test_without_a_cure_the_test_that_it_names_fails(name, run_without):
    test = named_tests(name)[0]
    done = run_without(name, test)
    assert done["code"] == 1, f"{test} does not fail without {name}:\n{done['output'][-2_000:]}"
    assert re.search(rf"FAILED .*{test}", done["output"]), done["output"][-2_000:]

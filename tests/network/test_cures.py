"""Each cure is needed: the test that it names fails without it. When one passes, a newer py-libp2p needs it no more."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from p2p import cures, stream_cures

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RUN_S_MAX = 150


def named_tests(cure: str) -> list[str]:
    """The tests that a cure's docstring names."""
    text = inspect.getdoc(cures.ALL[cure]) or ""
    return re.findall(r"test_\w+", text)


def files_with(test: str) -> list[str]:
    """Where a test is, of those that run on real hosts."""
    files = [file for folder in (HERE, HERE.parent / "conformance") for file in folder.glob("test_*.py")]
    return sorted(str(file) for file in files if f"def {test}(" in file.read_text())


@pytest.mark.parametrize("name", sorted(cures.ALL))
def test_a_cure_says_where_the_fault_is_and_names_tests_that_exist(name):
    assert (inspect.getdoc(cures.ALL[name]) or "").strip()
    assert named_tests(name)
    for test in named_tests(name):
        assert files_with(test), f"there is no {test}"


def test_every_cure_stands_in_the_table():
    takes_part = {
        name
        for module in (cures, stream_cures)
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and not name.startswith("_")
        and re.search(r"Tests?: ", inspect.getdoc(function) or "")
    }
    called_by_name = {
        "ask_identify",
        "clear_recent_deliveries",
        "deliver_to",
        "read_promptly",
        "write_patiently",
    }
    assert takes_part - called_by_name == set(cures.ALL)


@pytest.mark.parametrize("name", sorted(cures.ALL))
def test_without_a_cure_the_test_that_it_names_fails(name):
    """In an interpreter of its own: some cures patch classes for good."""
    test = named_tests(name)[0]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--timeout",
            "60",
            "-k",
            test,
            *files_with(test),
        ],
        env=os.environ | {"AW_WITHOUT_CURE": name},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=RUN_S_MAX,
        check=False,
    )
    assert done.returncode == 1, f"{test} does not fail without {name}:\n{done.stdout[-2_000:]}"
    assert re.search(rf"FAILED .*{test}", done.stdout), done.stdout[-2_000:]

"""The demo as a user runs it: its own processes, real libp2p, a verdict."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.demo, pytest.mark.network, pytest.mark.timeout(300)]


def compressed(data: bytes) -> bytes:
    """The same bytes on every run: they are part of a test's name."""
    return gzip.compress(data, mtime=0)


def aw_demo(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bootstrap.cli", "demo", *args],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@contextmanager
def demo_under_way(*args: str) -> Iterator[subprocess.Popen[str]]:
    """The demo, while it runs; ended by SIGTERM when the test has not done so."""
    with subprocess.Popen(
        [sys.executable, "-m", "bootstrap.cli", "demo", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def node_pids(directory: Path) -> dict[str, int]:
    """Pids by node, from the locks of their data dirs."""
    return {file.parent.name: int(file.read_text()) for file in directory.glob("*/node.lock")}


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def report_of(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr[-3_000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_few_flights_end_verified_and_nothing_is_left_running(tmp_path: Path) -> None:
    arguments = ("--flights", "40", "--json", "--data-dir", str(tmp_path / "demo"))
    report = report_of(aw_demo(*arguments, COLD_STARTS="1"))  # each process as a user's starts
    assert report["verified"] is True
    assert report["flights_flown"] == 40
    assert report["actions_applied"] == report["actions_submitted"]
    assert report["actions_refused"] == {}
    assert report["actions_lost"] == 0
    assert report["executor_state_root"] == report["observer_state_root"]
    assert report["head_height"] == report["verified_height"] == report["blocks"] > 0
    assert report["receipt_proved_at_height"] == report["blocks"]
    assert len(report["processes"]) == 5
    assert len({process["pid"] for process in report["processes"]}) == 5
    assert not [process["pid"] for process in report["processes"] if is_running(process["pid"])]


def test_kill_9_of_every_role_at_three_seeded_moments_loses_nothing() -> None:
    rng, roles = random.Random(5), ["executor", "gateway", "coordinator", "observer", "storage"]
    kills = [f"--kill={role}@{9 * third + rng.uniform(1, 7):.1f}" for third in range(3) for role in roles]
    report = report_of(aw_demo("--flights", "2500", "--json", *kills))
    assert report["verified"] is True  # every commit that the observer saw, one for each height
    assert report["restarts"] == len(kills)
    assert report["actions_lost"] == 0
    assert report["actions_applied"] == report["actions_submitted"]


def test_sigterm_to_the_demo_leaves_no_process(tmp_path: Path) -> None:
    with demo_under_way("--data-dir", str(tmp_path / "demo")) as demo:
        assert demo.stderr is not None
        pids: list[int] = []
        for line in demo.stderr:
            if line.startswith("verified") and not pids:
                pids = list(node_pids(tmp_path / "demo").values())
                demo.terminate()
        assert demo.wait() == -signal.SIGTERM
    assert len(pids) == 5
    assert not [pid for pid in pids if is_running(pid)]


def test_keep_gives_the_verdict_and_runs_until_told(tmp_path: Path) -> None:
    with demo_under_way("--flights", "5", "--keep", "--json", "--data-dir", str(tmp_path / "demo")) as demo:
        assert demo.stdout is not None
        report = json.loads(demo.stdout.readline())
        pids = [process["pid"] for process in report["processes"]]
        assert [pid for pid in pids if is_running(pid)] == pids
        assert demo.poll() is None
        demo.terminate()
        assert demo.wait() == 0
    assert report["verified"] is True
    assert not [pid for pid in pids if is_running(pid)]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"not gzip at all", "gzip"),
        (compressed(b"month,day\n1,1\n"), "lacks"),
        (compressed(bytes(range(256)) * 50)[:200], "gzip"),
    ],
)
def test_a_bad_month_file_is_wrong_use_and_says_why(tmp_path: Path, data: bytes, why: str) -> None:
    month = tmp_path / "month.csv.gz"
    month.write_bytes(data)
    done = aw_demo("--data", str(month))
    assert done.returncode == 2
    assert done.stderr.startswith("error: data file")
    assert str(month) in done.stderr
    assert why in done.stderr
    assert done.stdout == ""


def test_a_data_dir_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "something").write_text("mine")
    done = aw_demo("--data-dir", str(tmp_path))
    assert done.returncode == 2
    assert "is not empty" in done.stderr

"""The demo as a user runs it: its own processes, real libp2p, a verdict."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.demo, pytest.mark.network, pytest.mark.timeout(300)]


def aw_demo(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bootstrap.cli", "demo", *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


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
    report = report_of(aw_demo("--flights", "40", "--json", "--data-dir", str(tmp_path / "demo")))
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


def test_kill_9_of_every_role_loses_nothing() -> None:
    kills = [
        f"--kill={role}@{at}"
        for at, role in enumerate(["executor", "gateway", "coordinator", "observer", "storage"], 1)
    ]
    report = report_of(aw_demo("--flights", "600", "--json", *kills))
    assert report["verified"] is True
    assert report["restarts"] == 5
    assert report["actions_lost"] == 0
    assert report["actions_applied"] == report["actions_submitted"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"not gzip at all", "gzip"),
        (gzip.compress(b"month,day\n1,1\n"), "lacks"),
        (gzip.compress(bytes(range(256)) * 50)[:200], "gzip"),
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

"""The benchmarks' statistics, rows and table; and one benchmark run quickly, from end to end."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
harness = runpy.run_path(str(ROOT / "benchmarks" / "harness.py"))
Spread, Row, Peer, Options = harness["Spread"], harness["Row"], harness["Peer"], harness["Options"]


def a_row(**changes):
    fields = {
        "row": "r",
        "what": "something",
        "unit": "MB/s",
        "ours": Spread(1.0, 30.0, 50.0),
        "peer": Peer("them", "1.2"),
        "peers": Spread(1.0, 10.0, 90.0),
        "runs": 3,
        "target": ">= 2",
    }
    return Row(**fields | changes)


def test_a_spread_is_least_middle_and_greatest():
    assert harness["spread"]([3.0, 1.0, 2.0]) == Spread(1.0, 2.0, 3.0)
    assert harness["spread"]([4.0, 1.0]) == Spread(1.0, 2.5, 4.0)
    with pytest.raises(ValueError, match="no runs"):
        harness["spread"]([])


def test_the_ratio_is_of_the_medians_not_of_the_best():
    assert a_row().ratio == 3.0


def test_a_row_has_exactly_the_fields_that_were_fixed():
    assert a_row().to_json() == {
        "row": "r",
        "what": "something",
        "unit": "MB/s",
        "ours": {"min": 1.0, "median": 30.0, "max": 50.0},
        "peer": {"name": "them", "version": "1.2", "min": 1.0, "median": 10.0, "max": 90.0},
        "ratio": 3.0,
        "runs": 3,
    }


def test_numbers_have_four_digits():
    assert harness["rounded"](12_345.678) == 12_350.0
    assert harness["rounded"](0.00123456) == 0.001235


def test_the_table_shows_ratio_and_target():
    line = harness["table"]([a_row()]).splitlines()[-1]
    assert line == "| r | something | MB/s | 1, 30, 50 | 1, 10, 90 | them 1.2 | 3 | >= 2 |"


async def test_sides_take_turns_and_the_first_round_does_not_count():
    said = []

    async def ours():
        said.append("ours")
        return float(len(said))

    async def theirs():
        said.append("theirs")
        return 1.0

    mine, peers = await harness["alternate"]("x", ours, theirs, 2)
    assert said == ["ours", "theirs"] * 3
    assert (mine, peers) == (Spread(3.0, 4.0, 5.0), Spread(1.0, 1.0, 1.0))


def test_the_options_are_json_and_quick():
    assert harness["parsed"]([]) == Options()
    assert harness["parsed"](["--json", "--quick"]) == Options(json=True, quick=True)


def test_some_files_are_chosen_by_name_and_others_are_wrong_use(capsys):
    assert harness["parsed"](["rr", "--json"], ["rr", "disk"]) == Options(json=True, files=("rr",))
    with pytest.raises(SystemExit):
        harness["parsed"](["rs"], ["rr", "disk"])
    assert "no such benchmark: rs; there are rr, disk" in capsys.readouterr().err


def test_a_benchmark_prints_rows_and_nothing_else_on_stdout():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.disk", "--json", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["row"] for row in rows] == ["disk-blobs", "disk-data"]
    assert all(row["ours"]["median"] > 0 for row in rows)

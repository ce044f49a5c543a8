"""`aw demo`: its options reach the demo as they are meant, and what cannot be meant is wrong use."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from bootstrap.cli import main
from bootstrap.demo.options import DemoOptions


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[DemoOptions]:
    seen: list[DemoOptions] = []
    module = types.ModuleType("bootstrap.demo.run")

    def run(options: DemoOptions) -> int:
        seen.append(options)
        return 1

    module.main = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bootstrap.demo.run", module)
    return seen


def test_without_options_everything_is_the_default_and_the_exit_code_is_the_demos(
    given: list[DemoOptions],
) -> None:
    assert main(["demo"]) == 1
    assert given == [DemoOptions()]


def test_every_option_reaches_the_demo(given: list[DemoOptions]) -> None:
    kills = ["--kill", "gateway@5", "--kill", "executor@7.5"]
    more = ["--flights", "9", "--data", "m.csv.gz", "--keep", "--data-dir", "d", "--seed", "3", "--json"]
    assert main(["demo", *kills, *more]) == 1
    assert given == [
        DemoOptions(
            flights=9,
            data=Path("m.csv.gz"),
            keep=True,
            data_dir=Path("d"),
            kills=(("gateway", 5.0), ("executor", 7.5)),
            seed=3,
            json=True,
        )
    ]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--kill", "gatway@5"], "'gatway' is no role; nearest: gateway"),
        (["--kill", "gateway"], "is not ROLE@SECONDS"),
        (["--kill", "gateway@-1"], "is not ROLE@SECONDS"),
        (["--kill", "gateway@nan"], "is not ROLE@SECONDS"),
        (["--flights", "0"], "'--flights'"),
    ],
)
def test_what_cannot_be_meant_is_wrong_use(
    given: list[DemoOptions], capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    assert main(["demo", *arguments]) == 2
    assert why in capsys.readouterr().err
    assert given == []


def test_all_mistakes_of_the_line_are_told_at_once(
    given: list[DemoOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--flights", "x", "--kill", "foo@3", "--kill", "executor@-1", "--seed", "-4"]) == 2
    told = capsys.readouterr().err
    for words in ("'--flights': 'x'", "'--kill': 'foo@3'", "'--kill': 'executor@-1'", "'--seed': -4"):
        assert words in told
    assert len(told.splitlines()) == 5  # one each, and one hint
    assert given == []


def test_an_unknown_option_is_told_as_such(
    given: list[DemoOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--flihgts", "3", "--seed", "-4"]) == 2
    assert "No such option '--flihgts'" in capsys.readouterr().err

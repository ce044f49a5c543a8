"""`aw node`: the effective configuration, what is refused before anything opens, the ready line, and signals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bootstrap.cli import main
from bootstrap.config import read_config


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("AW_CONFIG", "AW_DATA_DIR", "AW_ROLES"):
        monkeypatch.delenv(name, raising=False)


def test_print_config_says_where_each_value_came_from_and_is_a_config_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "node.toml").write_text(
        f'roles = ["index"]\nlog_level = "error"\n[[world]]\nid = "{"a" * 32}"\n[limits]\nknown_peers_max = 7\n'
    )
    monkeypatch.setenv("AW_LOG_LEVEL", "debug")
    assert main(["node", "--config", "node.toml", "--data-dir", 'da"ta', "--print-config"]) == 0
    shown = capsys.readouterr().out
    for line in (
        'roles = ["index"]  # node.toml',
        'log_level = "debug"  # AW_LOG_LEVEL',
        'data_dir = "da\\"ta"  # --data-dir',
        'log_format = "text"  # default',
        "[[world]]  # node.toml",
        "known_peers_max = 7  # node.toml",
    ):
        assert line in shown.splitlines()
    again = read_config(shown).config
    assert (
        again
        == read_config(
            (tmp_path / "node.toml").read_text(), flags={"data_dir": 'da"ta'}, env={"AW_LOG_LEVEL": "debug"}
        ).config
    )
    assert set(tomllib.loads(shown)["limits"]) == set(again.limits.in_force())


def test_print_config_as_json_gives_values_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["node", "--print-config", "--json", "--role", "index,storage", "--limit", "known_peers_max=9"])
        == 0
    )
    shown = json.loads(capsys.readouterr().out)
    assert shown["roles"] == {"value": ["index", "storage"], "from": "--role"}
    assert shown["limits"]["known_peers_max"] == {"value": 9, "from": "--limit"}
    assert shown["world"] == {"value": [], "from": "default"}


def test_print_config_makes_nothing(tmp_path: Path) -> None:
    assert main(["node", "--print-config"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_all_mistakes_are_told_and_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "node.toml").write_text('rolls = []\ndata_dir = "d"\n')
    arguments = ["node", "--config", "node.toml", "--role", "gatway", "--listen", "nowhere", "--limit", "x=1"]
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert {line.split(": ")[1] for line in lines} == {"node.toml", "--limit x", "--role[0]", "--listen[0]"}
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("data", [None, b"\xff\xfe"])
def test_a_config_file_that_cannot_be_read_is_wrong_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes | None
) -> None:
    if data is not None:
        (tmp_path / "node.toml").write_bytes(data)
    assert main(["node", "--config", "node.toml"]) == 2
    assert capsys.readouterr().err.startswith("error: node.toml: ")


def test_a_bad_genesis_is_told_before_the_data_dir_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.genesis").write_bytes(b"\xa0")
    assert main(["node", "--world", "bad.genesis", "--world", "none.genesis", "--data-dir", "d"]) == 2
    shown = capsys.readouterr().err
    assert "error: world genesis bad.genesis: is no genesis: " in shown
    assert "error: world genesis none.genesis: No such file" in shown
    assert not (tmp_path / "d").exists()


def test_a_bad_genesis_is_told_together_with_other_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["node", "--role", "gatway", "--world", "none.genesis"]) == 2
    shown = capsys.readouterr().err
    assert "error: --role[0]: 'gatway'" in shown
    assert "error: world genesis none.genesis: No such file" in shown


def test_print_config_checks_the_worlds_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["node", "--world", "none.genesis", "--print-config"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "error: world genesis none.genesis: No such file" in shown.err


PROGRAM = """
import sys, types
import trio

async def run_node(config, ready):
    ready({"event": "ready", "peer_id": "12D3", "addrs": ["/ip4/127.0.0.1/tcp/1"], "roles": list(config.roles),
           "worlds": [], "data_dir": str(config.data_dir)})
    try:
        await trio.sleep_forever()
    finally:
        print("flushing", flush=True)
        if "stubborn" in sys.argv:
            with trio.CancelScope(shield=True):
                await trio.sleep_forever()
        print("flushed", flush=True)

node = types.ModuleType("bootstrap.node")
node.run_node = run_node
sys.modules["bootstrap.node"] = node
from bootstrap.cli import main
sys.exit(main(["node", "--role", "index", *[word for word in sys.argv[1:] if word != "stubborn"]]))
"""


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *words], stdout=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_stops_gracefully_with_exit_0_after_the_ready_line(number: signal.Signals) -> None:
    with start("--json") as process:
        assert json.loads(line_of(process)) == {
            "event": "ready",
            "peer_id": "12D3",
            "addrs": ["/ip4/127.0.0.1/tcp/1"],
            "roles": ["index"],
            "worlds": [],
            "data_dir": "aw-data",
        }
        process.send_signal(number)
        assert (line_of(process), line_of(process)) == ("flushing", "flushed")
        assert process.wait(20) == 0


def test_a_second_signal_ends_a_node_that_hangs_at_once() -> None:
    with start("stubborn") as process:
        assert line_of(process) == "ready 12D3"
        process.send_signal(signal.SIGTERM)
        while line_of(process) != "flushing":
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM

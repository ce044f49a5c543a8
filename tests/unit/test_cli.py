"""The command line as a whole: help, the one form of errors, exit codes, completion, what is imported when."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

import bootstrap.cli
from bootstrap.cli import COMMANDS, main, program
from bootstrap.cli.failures import Exit, Failure, explain
from bootstrap.config import ConfigMistakes, Mistake
from bootstrap.data_dir import DataDirInUse, GenesisFileBad
from p2p import errors as network_errors
from p2p.errors import Code
from runtime import errors as world_errors


def test_help_lists_every_command_and_imports_no_network_library() -> None:
    code = (
        "import sys\n"
        "from bootstrap.cli import main\n"
        "code = main(['--help'])\n"
        "slow = {'libp2p', 'trio', 'multiaddr', 'cbor2', 'nacl', 'lmdb', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {slow}' if slow else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for name, (_module, _attribute, about) in COMMANDS.items():
        assert name in done.stdout
        assert about.split(",")[0] in done.stdout


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_and_importing_it_needs_no_network_library(name: str) -> None:
    code = (
        "import sys\n"
        "from bootstrap.cli import main\n"
        "code = main([sys.argv[1], '--help'])\n"
        "slow = {'libp2p', 'trio'} & set(sys.modules)\n"
        "sys.exit(f'imported {slow}' if slow else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert f"Usage: aw {name}" in done.stdout


def test_the_console_script_is_main() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["scripts"]["aw"] == "bootstrap.cli:main"
    assert bootstrap.cli.main is main


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "bootstrap.cli", "key"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Usage: aw key" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "line", "hint"),
    [
        (["nod"], "error: aw: no command 'nod'; nearest: node", "try: aw --help"),
        (["key", "new"], "error: aw key new: Missing argument 'FILE'.", "try: aw key new --help"),
        (
            ["head", "w", "--timeout", "0"],
            "error: aw head: Invalid value for '--timeout'",
            "try: aw head --help",
        ),
        (["status", "--nod", "x"], "error: aw status: No such option", "try: aw status --help"),
        (["completion", "tcsh"], "error: aw completion: Invalid value", "try: aw completion --help"),
    ],
)
def test_wrong_use_is_one_line_a_hint_and_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], line: str, hint: str
) -> None:
    assert main(arguments) == Exit.WRONG_USE
    shown = capsys.readouterr()
    assert shown.out == ""
    first, second = shown.err.splitlines()
    assert first.startswith(line)
    assert second == hint


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigMistakes([Mistake("a", "b")]), 2, "a: b"),
        (DataDirInUse(Path("d"), 7), 2, "data dir d: is in use by process 7"),
        (GenesisFileBad(Path("g"), "is no genesis: x: y"), 2, "g: is no genesis: x: y"),
        (world_errors.Corrupt("db", "is torn", "aw scrub"), 4, "db: is torn"),
        (world_errors.StoreFull("db", "disk_bytes_max"), 2, "db: no space left (disk_bytes_max)"),
        (world_errors.Diverged(3, "state_root", b"\1", b"\2"), 1, "not verified: height 3: state_root is 01"),
        (world_errors.Invalid("head.commit", "is false"), 1, "not verified: head.commit: is false"),
        (
            world_errors.Ignored("head is 9 ms old, at most 3 (head_age_max_ms)"),
            1,
            "not verified: head is 9 ms old",
        ),
        (world_errors.Missing("blob", "ab"), 3, "blob ab: nobody who was asked holds it"),
        (network_errors.Unreachable("p", "refused"), 3, "not reached: peer p not reached: refused"),
        (
            network_errors.RequestTimeout("p", "status", 5),
            3,
            "not reached: peer p: no answer to status within 5 ms",
        ),
        (
            network_errors.RequestFailed(Code.ERR_NOT_AVAILABLE, "m"),
            3,
            "the peer has no answer: ERR_NOT_AVAILABLE: m",
        ),
        (
            network_errors.RequestFailed(Code.ERR_NOT_FOUND, "m"),
            3,
            "the peer has no answer: ERR_NOT_FOUND: m",
        ),
        (
            network_errors.RequestFailed(Code.ERR_UNAUTHORIZED, "m"),
            1,
            "the peer refused: ERR_UNAUTHORIZED: m",
        ),
        (network_errors.ListenFailed("/ip4/1.2.3.4/tcp/1", "in use"), 2, "listen /ip4/1.2.3.4/tcp/1: in use"),
        (network_errors.FrameError("length", "is zero"), 3, "not reached: frame length: is zero"),
        (RuntimeError("boom"), 70, "a bug of ours: RuntimeError: boom"),
    ],
)
def test_an_error_class_decides_the_exit_code_and_the_line(error: Exception, code: int, line: str) -> None:
    (failure,) = explain(error)
    assert failure.code == code
    assert f"{failure.what}: {failure.why}".startswith(line)


def test_of_several_errors_at_once_the_gravest_is_told() -> None:
    unreachable = network_errors.Unreachable("p", "refused")
    group = ExceptionGroup("x", [unreachable, ExceptionGroup("y", [world_errors.Corrupt("db", "is torn")])])
    (failure,) = explain(group)
    assert (failure.code, failure.what) == (Exit.DAMAGED, "db")
    (bug,) = explain(ExceptionGroup("x", [unreachable, KeyError("z")]))
    assert bug.code == Exit.BUG


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    @click.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(program, "get_command", lambda ctx, name: fail)


def test_a_bug_of_ours_says_where_and_shows_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(monkeypatch, ZeroDivisionError("oh\nno"))
    assert main(["key"]) == 70
    shown = capsys.readouterr()
    assert shown.err.startswith("error: a bug of ours: ZeroDivisionError: oh no at unit/test_cli.py:")
    assert "Traceback" not in shown.err
    assert len(shown.err.splitlines()) == 2


@pytest.mark.parametrize("where", [["--debug", "key"], ["key", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, where: list[str]
) -> None:
    _failing(monkeypatch, ZeroDivisionError("oh"))
    assert main(where) == 70
    assert "Traceback" in capsys.readouterr().err


def test_all_mistakes_of_a_configuration_are_lines_and_hints_are_told_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(monkeypatch, ConfigMistakes([Mistake("a", "b"), Mistake("c", "d")]))
    assert main(["key"]) == 2
    assert capsys.readouterr().err == "error: a: b\nerror: c: d\n"


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["head", "w"], ["blob", "stat", "0" * 64], ["verify", "a" * 32]],
    ids=lambda arguments: arguments[0],
)
def test_a_hint_names_an_option_that_the_command_has(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "AW_NODE", "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
    )
    main([*arguments, "--help"])
    help_text = capsys.readouterr().out
    assert main([*arguments, "--timeout", "20"]) == 3
    told = capsys.readouterr().err
    monkeypatch.delenv("AW_NODE")
    if arguments[0] != "blob":  # which reads the store where no node is named
        assert main(arguments) == 3
        told += capsys.readouterr().err
    options = {word.strip(",") for word in told.split() if word.startswith("--")}
    assert options
    assert not [option for option in options if option not in help_text]


@pytest.mark.parametrize("arguments", [["key", "show", "k"], ["status"], ["demo"], ["node"]])
def test_an_unknown_variable_is_a_mistake_in_every_command(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AW_NODES", "x")
    assert main(arguments) == 2
    assert capsys.readouterr().err == "error: AW_NODES: unknown variable; nearest: AW_NODE\n"


def test_the_same_failure_keeps_its_code_and_hint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(monkeypatch, Failure(Exit.NOT_REACHED, "x", "y", "z"))
    assert main(["key"]) == 3
    assert capsys.readouterr().err == "error: x: y\ntry: z\n"


def test_an_unexpected_error_of_the_system_is_a_bug_too(monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, OSError(errno.EIO, "input/output error"))
    assert main(["key"]) == 70


def test_a_reader_that_goes_away_is_no_bug(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m bootstrap.cli completion bash | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() in ("0", "1")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("shell", "sign"), [("bash", "complete -o nosort"), ("zsh", "#compdef aw"), ("fish", "complete ")]
)
def test_completion_prints_the_script_of_each_shell(
    capsys: pytest.CaptureFixture[str], shell: str, sign: str
) -> None:
    assert main(["completion", shell]) == 0
    assert sign in capsys.readouterr().out


def test_the_completion_script_is_answered_with_commands_and_options() -> None:
    def complete(words: str, number: int) -> set[str]:
        env = os.environ | {"_AW_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(number)}
        command = [sys.executable, "-m", "bootstrap.cli"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
        return {line.partition(",")[2] for line in done.stdout.splitlines()}

    assert {"node", "status", "verify"} <= complete("aw ", 1)
    assert complete("aw world s", 2) == {"show"}
    assert "--bootstrap" in complete("aw verify --b", 2)


def test_the_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("aw 0.")

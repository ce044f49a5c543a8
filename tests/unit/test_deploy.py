"""deploy/: the unit and the image start the program as it is, with flags that exist, and keep its exit codes.

No container engine runs here: of the Containerfile its instructions are checked, not the image.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from bootstrap.cli import COMMANDS, main
from bootstrap.cli.failures import Exit
from bootstrap.cli.node import node
from bootstrap.config import read_config

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "aw-node.service"
CONTAINERFILE = ROOT / "deploy" / "Containerfile"
DOC = (ROOT / "docs" / "operations.md").read_text("utf-8")


def unit() -> dict[str, list[tuple[str, str]]]:
    """Sections of the unit; a key may be there several times."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for line in UNIT.read_text("utf-8").splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            key, _equals, value = line.partition("=")
            section.append((key, value))
    return sections


def test_the_unit_starts_aw_node_with_flags_that_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = dict(unit()["Service"])
    program, command, *arguments = shlex.split(service["ExecStart"])
    assert Path(program).name == "aw"
    assert command in COMMANDS
    context = node.make_context("aw node", list(arguments))
    assert str(context.params["config_file"]) == "/etc/aw/node.toml"
    assert context.params["data_dir"] == f"/var/lib/{service['StateDirectory']}"
    (tmp_path / "node.toml").write_text('roles = ["index"]\n')
    there = [str(tmp_path / "node.toml") if item == "/etc/aw/node.toml" else item for item in arguments]
    assert main([command, *there, "--print-config", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["log_format"]["value"] == "json"
    with pytest.RaisesGroup(click.NoSuchOption):
        node.make_context("aw node", [*arguments, "--no-such-flag"])


def test_what_does_not_mend_itself_is_not_started_again() -> None:
    service = dict(unit()["Service"])
    never = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert never == {Exit.WRONG_USE, Exit.DAMAGED}
    assert (service["Restart"], service["Type"], service["KillSignal"]) == ("on-failure", "exec", "SIGTERM")


def test_the_unit_gives_no_rights_that_are_not_needed() -> None:
    service = dict(unit()["Service"])
    for key in ("NoNewPrivileges", "DynamicUser", "PrivateTmp", "ProtectHome", "RestrictNamespaces"):
        assert service[key] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_itself_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text("utf-8").replace("/opt/aw/.venv/bin/aw", "/bin/true")
    (tmp_path / UNIT.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / UNIT.name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of the Containerfile, continued lines joined."""
    text = re.sub(r"\\\n", " ", CONTAINERFILE.read_text("utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in lines]


def test_the_image_is_built_from_the_lock_and_nothing_else() -> None:
    bases = [rest for name, rest in instructions() if name == "FROM"]
    assert all(base.startswith("docker.io/library/python:3.11-slim") for base in bases)
    installs = [
        part
        for name, rest in instructions()
        if name == "RUN"
        for part in rest.split("&&")
        if "pip install" in part
    ]
    assert len(installs) == 3
    assert all("--no-deps" in install for install in installs)
    assert all("--require-hashes" in install for install in installs if "-r " in install)


def test_everything_that_is_copied_into_the_image_is_in_the_repository() -> None:
    copied = [
        rest.split() for name, rest in instructions() if name == "COPY" and not rest.startswith("--from")
    ]
    sources = {source for parts in copied for source in parts[:-1]}
    assert all((ROOT / source).exists() for source in sources)
    packages = re.findall(
        r'"((?:p2p|runtime|bootstrap|examples)[a-z_.]*)"', (ROOT / "pyproject.toml").read_text()
    )
    assert {package.split(".")[0] for package in packages} <= sources


def test_the_image_runs_a_node_without_rights_and_asks_it_for_its_health() -> None:
    told = dict(instructions())
    assert json.loads(told["ENTRYPOINT"]) == ["aw", "node"]
    assert told["USER"] == "aw"
    assert told["VOLUME"] == "/data"
    assert told["STOPSIGNAL"] == "SIGTERM"
    names = [name for name, _rest in instructions()]
    assert names.index("USER") < names.index("ENTRYPOINT")
    health = json.loads(told["HEALTHCHECK"].partition("CMD ")[2])
    assert health[:2] == ["aw", "status"]
    from bootstrap.cli.status import status

    status.make_context("aw status", health[2:])
    variables = dict(item.split("=", 1) for item in shlex.split(told["ENV"]))
    config = read_config(
        env={name: value for name, value in variables.items() if name.startswith("AW_")}
    ).config
    assert str(config.data_dir) == "/data"
    assert config.listen == (f"/ip4/0.0.0.0/tcp/{told['EXPOSE']}",)


def test_the_document_tells_of_both() -> None:
    for path in (UNIT, CONTAINERFILE):
        assert f"deploy/{path.name}" in DOC

"""docs/operations.md tells the truth: every limit, every command, every variable, and an example that is read."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from bootstrap.cli import COMMANDS
from bootstrap.cli.failures import Exit
from bootstrap.cli.world_form import KEYS
from bootstrap.config import ENV_ELSEWHERE, FLAG_NAMES, ROLES, NodeLimits, read_config
from bootstrap.limits_table import all_limits, put_table
from p2p import names
from runtime import limits
from runtime.records import WorldLimits

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "operations.md").read_text("utf-8")


def test_the_limits_of_the_document_are_those_of_the_code() -> None:
    assert put_table(DOC) == DOC, "run: python -m bootstrap.limits_table docs/operations.md"


@pytest.mark.parametrize("module", [names, limits])
def test_the_table_misses_no_limit(module: ModuleType) -> None:
    there = {(limit.name, limit.value) for limit in all_limits()}
    constants = {
        (name.lower(), value) for name, value in vars(module).items() if name.isupper() and type(value) is int
    }
    assert constants <= there


def test_no_limit_is_there_twice() -> None:
    told = [limit.name for limit in all_limits()]
    assert len(told) == len(set(told))


def test_every_limit_that_a_node_may_set_is_read_when_a_node_is_made() -> None:
    source = (ROOT / "bootstrap" / "node.py").read_text("utf-8")
    for item in fields(NodeLimits):
        assert re.search(rf"limits\.{item.name}\b", source), f"{item.name} is a knob that turns nothing"


def test_the_default_of_a_settable_limit_is_the_constant_of_that_name() -> None:
    constants = {limit.name: limit.value for limit in all_limits()}
    for name, value in NodeLimits().in_force().items():
        assert constants[name] == value


def test_every_ceiling_of_the_genesis_is_told_as_such() -> None:
    for item in fields(WorldLimits):
        stem = item.name.removesuffix("_max")
        rows = [
            line for line in DOC.splitlines() if re.match(rf"\| `({stem}|{item.name})(_ceiling)?` ", line)
        ]
        assert any("genesis, up to this" in row for row in rows), item.name


def test_every_command_role_variable_flag_and_exit_code_is_documented() -> None:
    for name in COMMANDS:
        assert f"| `aw {name}" in DOC
    for role in ROLES:
        assert f"`{role}`" in DOC
    for variable in ENV_ELSEWHERE:
        assert f"`{variable}`" in DOC
    for key, flag in FLAG_NAMES.items():
        assert f"`{flag}" in DOC
        assert f"`AW_{key.upper().replace('.', '_')}`" in DOC
    for code in Exit:
        assert f"| {code.value} | " in DOC


def test_the_examples_of_the_document_are_read() -> None:
    form, config = re.findall(r"```toml\n(.*?)```", DOC, re.DOTALL)
    for key in KEYS:
        if key not in ("created_ms", "checkpoint_interval", "max_block_gap_ms"):
            assert re.search(rf"^(\[\[?)?{key}\b", form, re.MULTILINE), key
    peer = names.peer_text(names.PEER_ID_PREFIX + bytes(32))
    effective = read_config(config.replace("12D3Koo...", peer))
    assert set(effective.origins) - {
        key for key, origin in effective.origins.items() if origin == "node.toml"
    } == {f"limits.{item.name}" for item in fields(NodeLimits) if item.name != "disk_bytes_max"}

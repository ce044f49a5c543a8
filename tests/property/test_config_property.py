"""Whatever stands in a configuration, a form, an address or an actions file: a value, or mistakes with their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bootstrap.cli.actions_form import parse_action_lines
from bootstrap.cli.world_form import KEYS, read_world_form
from bootstrap.config import FLAG_NAMES, ConfigMistakes, NodeLimits, read_config
from bootstrap.peers import parse_addr, parse_known_peers
from runtime.records import Genesis

WORDS = st.sampled_from(
    [
        "gateway",
        "index",
        "/ip4/127.0.0.1/tcp/1",
        "a" * 32,
        "x.genesis",
        "debug",
        "json",
        "",
        "\0",
        "é",
        "0",
        "-1",
    ]
)
SCALARS = st.one_of(WORDS, st.text(max_size=8), st.integers(), st.booleans(), st.floats(allow_nan=False))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
LINES = st.lists(VALUES, max_size=3).map(lambda lines: "\n".join(map(json.dumps, lines)).encode())
FLAG_KEYS = st.sampled_from(list(FLAG_NAMES))
NODE_KEYS = st.sampled_from([*FLAG_NAMES, "limits", "rolls"])


def inline(value: Any) -> str:
    """A value as TOML writes it on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(inline(item) for item in value) + "]"
    return json.dumps(value)


def toml(document: dict[str, Any]) -> str:
    return "".join(f"{key} = {inline(value)}\n" for key, value in document.items())


def told(error: ConfigMistakes) -> None:
    assert error.mistakes
    for mistake in error.mistakes:
        assert mistake.what
        assert mistake.why


@given(st.dictionaries(NODE_KEYS, VALUES, max_size=4), st.dictionaries(FLAG_KEYS, SCALARS, max_size=3))
def test_any_node_configuration_is_read_or_its_mistakes_are_told(
    file: dict[str, Any], flags: dict[str, Any]
) -> None:
    env = {f"AW_{key.upper()}": str(value) for key, value in flags.items()}
    try:
        effective = read_config(toml(file), flags=flags, env=env)
    except ConfigMistakes as error:
        told(error)
    else:
        assert set(effective.origins.values()) <= {"default", "node.toml", *env, *FLAG_NAMES.values()}


@given(st.dictionaries(st.sampled_from(sorted(NodeLimits().in_force())), SCALARS, min_size=1))
def test_a_limit_is_within_its_range_or_refused(limits: dict[str, Any]) -> None:
    try:
        in_force = read_config(
            flags={f"limits.{name}": value for name, value in limits.items()}
        ).config.limits
    except ConfigMistakes as error:
        told(error)
    else:
        assert all(type(value) is int for value in in_force.in_force().values())


@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_told(text: str) -> None:
    try:
        read_config(text)
    except ConfigMistakes as error:
        told(error)


def no_identity(text: str, folder: Path) -> bytes:
    raise ValueError(f"{text!r} is nobody")


@given(st.dictionaries(st.sampled_from([*KEYS, "nmae"]), VALUES, max_size=6))
def test_any_form_of_a_world_is_a_genesis_or_its_mistakes_are_told(form: dict[str, Any]) -> None:
    try:
        genesis = read_world_form(toml(form), "w.toml", {}, created_ms=1, identity_of=no_identity)
    except ConfigMistakes as error:
        told(error)
    else:
        assert isinstance(genesis, Genesis)


@given(st.binary(max_size=200) | LINES)
def test_any_file_of_actions_is_read_or_its_mistakes_are_told(data: bytes) -> None:
    try:
        parse_action_lines(data, "f")
    except ConfigMistakes as error:
        told(error)


@given(st.dictionaries(st.sampled_from(["kind", "payload"]), VALUES, min_size=2, max_size=2))
def test_any_line_of_both_fields_is_an_action_or_told(line: dict[str, Any]) -> None:
    try:
        (action,) = parse_action_lines(json.dumps(line).encode(), "f")
    except ConfigMistakes as error:
        told(error)
    else:
        assert action == (line["kind"], line["payload"])


def has_words(error: ValueError) -> None:
    assert str(error)


@given(st.text(max_size=80) | st.lists(WORDS, max_size=6).map("/".join))
def test_any_text_is_an_address_or_no_address(text: str) -> None:
    try:
        assert parse_addr(text).text == text
    except ValueError as error:
        has_words(error)


@given(st.binary(max_size=100) | VALUES.map(lambda value: json.dumps({"v": 1, "peers": value}).encode()))
def test_any_file_of_peers_is_read_or_refused(data: bytes) -> None:
    try:
        parse_known_peers(data)
    except ValueError as error:
        has_words(error)

"""docs/protocol.md is what the code says it implements: every cited section exists, every limit is the code's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from p2p import names
from p2p.errors import Code as WireCode
from runtime import limits
from runtime.actions import ACTION_KINDS, FUEL_UNKNOWN_ACTION, Code
from runtime.services.methods import METHODS

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "protocol.md").read_text()
HEADINGS = set(re.findall(r"^#{2,3} (.+)$", TEXT, re.MULTILINE))


def citations() -> list[tuple[str, str]]:
    """(file, section) for every `docs/protocol.md, section "X"` in the code."""
    found = []
    for package in ("p2p", "runtime", "bootstrap"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for cited in re.findall(
                r"docs/protocol\.md,(.*?)(?:\.\s|\.\"|;|, as |$)", path.read_text(), re.DOTALL
            ):
                found += [
                    (str(path.relative_to(ROOT)), name) for name in re.findall(r'"([^"]+)"', cited[:200])
                ]
    return found


def limits_told(text: str) -> dict[str, int]:
    """The rows `| name | number |` of the document."""
    rows = re.findall(r"^\| (\w+) \| ([\d,]+) \|$", text, re.MULTILINE)
    return {name: int(value.replace(",", "")) for name, value in rows}


def test_every_cited_section_exists() -> None:
    assert len(citations()) > 40
    inside = {"Frames", "Streams"}  # parts of "Request / response"
    missing = [(path, name) for path, name in citations() if name not in HEADINGS | inside]
    assert not missing


def test_links_lead_to_headings() -> None:
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in HEADINGS}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors


@pytest.mark.parametrize("module", [names, limits], ids=["names", "limits"])
def test_the_table_of_limits_is_the_codes(module: object) -> None:
    told = limits_told(TEXT)
    held = {
        name.lower(): value for name, value in vars(module).items() if name.isupper() and type(value) is int
    }
    assert {name: told.get(name) for name in held} == held


def test_the_table_of_limits_has_no_others() -> None:
    table = TEXT.split("\n## Limits\n")[1]
    told = re.findall(r"^\| (\w+) \|", table, re.MULTILINE)
    assert len(told) == len(set(told))
    assert set(told) - {"limit"} == {
        name.lower()
        for module in (names, limits)
        for name, value in vars(module).items()
        if name.isupper() and type(value) is int
    }


def test_a_table_that_is_wrong_is_seen() -> None:
    row = "| head_bytes_max | 5,120 |"
    assert row in TEXT
    assert limits_told(TEXT)["head_bytes_max"] == limits.HEAD_BYTES_MAX
    assert limits_told(TEXT.replace(row, "| head_bytes_max | 5,121 |"))["head_bytes_max"] == 5_121
    assert "head_bytes_max" not in limits_told(TEXT.replace(row, ""))


def test_methods_codes_actions_and_outcomes_are_all_there() -> None:
    for method in METHODS:
        assert re.search(rf"^\|.*\b{method}\b.*\|$", TEXT, re.MULTILINE), method
    for code in WireCode:
        assert f"| {code.value} | {code.name} |" in TEXT
    for kind, row in ACTION_KINDS.items():
        assert re.search(rf"^\| {kind} \|.*\| {row.fuel:,} \|$", TEXT, re.MULTILINE), kind
    assert f"| any other | | {FUEL_UNKNOWN_ACTION} |" in TEXT
    receipts = TEXT.split("\n## Receipts\n")[1].split("\n## ")[0]
    assert set(Code) <= set(re.findall(r"\b[A-Z]\w+\b", receipts))


def test_the_worked_example_is_the_vectors() -> None:
    step = json.loads((ROOT / "interop" / "vectors" / "step.json").read_text())
    text = TEXT.replace("\n", "")
    told = [
        step[name]
        for name in ("genesis", "world_id", "state_root_before", "batch", "commit", "block", "block_hash")
    ]
    for value in [*told, step["state_root"], step["envelopes"][0]]:
        assert value in text

"""The limits of docs/operations.md, made from the code that holds them.

Hides: where each limit stands. Guarantees: every limit of p2p/names.py and runtime/limits.py is in the table once, with
its value, what its comment says, and who may set it. `python -m bootstrap.limits_table docs/operations.md` writes it;
a test compares.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Final

from bootstrap.config import NodeLimits
from p2p import names
from runtime import limits
from runtime.records import WorldLimits

BEGIN: Final = "<!-- limits: made by `python -m bootstrap.limits_table docs/operations.md` -->"
END: Final = "<!-- end of limits -->"

_SECTION = re.compile(r"# --- (.+?) -{3,}$")
_CONSTANT = re.compile(r"([A-Z][A-Z0-9_]*): Final = [^#]*(?:# (.*))?$")
# A limit that a genesis sets stands in the code as its ceiling and its default.
_IN_GENESIS: Final = {"_ceiling": "genesis, up to this", "_default": "genesis, this unless it says another"}
_GENESIS_NAMES: Final = {item.name for item in fields(WorldLimits)} | {"checkpoint_interval"}
_HEAD: Final = ("| limit | value | set by | |", "|---|---:|---|---|")
_OWN_WORDS: Final = {item.name: str(item.metadata["about"]) for item in fields(NodeLimits)}


@dataclass(frozen=True, slots=True)
class Limit:
    """One row: `about` is what the code's comment says, "" where the name says it all."""

    section: str
    name: str
    value: int
    about: str


def limits_of(module: ModuleType) -> Iterator[Limit]:
    """The integer constants of a module, in its order."""
    section = ""
    for line in inspect.getsource(module).splitlines():
        if heading := _SECTION.match(line):
            section = heading[1]
        elif constant := _CONSTANT.match(line):
            value = getattr(module, constant[1])
            if type(value) is int:
                name = constant[1].lower()
                yield Limit(section, name, value, constant[2] or _OWN_WORDS.get(name, ""))


def all_limits() -> list[Limit]:
    """Every limit: those of a node alone, of the wire, of the world."""
    fixed = [*limits_of(names), *limits_of(limits)]
    known = {limit.name for limit in fixed}
    own = [
        Limit("this node", name, value, _OWN_WORDS[name])
        for name, value in NodeLimits().in_force().items()
        if name not in known
    ]
    return [*own, *fixed]


def who_sets(name: str) -> str:
    """`[limits]` of a node, the genesis of a world, or nobody."""
    settable = {item.name: item for item in fields(NodeLimits)}
    if name in settable:
        metadata = settable[name].metadata
        return f"`[limits]`, {metadata['low']:,}..{metadata['high']:,}"
    for end, meaning in _IN_GENESIS.items():
        if name.endswith(end) and {name.removesuffix(end), f"{name.removesuffix(end)}_max"} & _GENESIS_NAMES:
            return meaning
    return "genesis, up to this" if name == "envelope_bytes_max" else "fixed"


def limits_table() -> str:
    """The table as Markdown, one part for each section of the code."""
    lines: list[str] = []
    section = ""
    for limit in all_limits():
        if limit.section != section:
            section = limit.section
            lines += ["", f"**{section[0].upper()}{section[1:]}**", "", *_HEAD]
        lines.append(f"| `{limit.name}` | {limit.value:,} | {who_sets(limit.name)} | {limit.about} |")
    return "\n".join(lines[1:]) + "\n"


def put_table(document: str) -> str:
    """The document with the table between its two marks made new. Raises ValueError without them."""
    before, begin, rest = document.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("has no marks for the limits")
    return f"{before}{BEGIN}\n\n{limits_table()}\n{END}{after}"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(put_table(target.read_text("utf-8")), "utf-8")

"""What commands print: data to stdout, everything else to stderr.

Hides: how values become JSON. Guarantees: with --json one object a line, bytes as lower-case hex, ids as users paste
them; progress only on a terminal; nothing but data ever reaches stdout.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import click

from p2p import names


def plain(value: object) -> Any:
    """A value as JSON has it: bytes as hex, a peer id as base58, records as objects."""
    match value:
        case bytes():
            is_peer = len(value) == 38 and value[:6] == names.PEER_ID_PREFIX
            return names.peer_text(value) if is_peer else value.hex()
        case None | bool() | int() | float() | str():
            return value.value if isinstance(value, Enum) else value
        case Path():
            return str(value)
        case Mapping():
            return {str(plain(key)): plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    raise TypeError(f"{type(value).__name__} has no JSON form")


def print_json(document: object) -> None:
    """One line on stdout, at once."""
    click.echo(json.dumps(plain(document), ensure_ascii=False, separators=(",", ":")))
    sys.stdout.flush()


def print_answer(document: Mapping[str, object], as_json: bool) -> None:
    """An object: one line of JSON, or a line for each field."""
    if as_json:
        print_json(document)
        return
    width = max((len(key) for key in document), default=0)
    for key, value in document.items():
        for index, line in enumerate(_lines(value)):
            click.echo(f"{key if index == 0 else '':{width}}  {line}")


def note(text: str) -> None:
    """Something for people: stderr."""
    click.echo(text, err=True)


def progress(what: str) -> Callable[[int, int], None]:
    """A `(done, total)` callback that keeps one line on a terminal's stderr, and is silent elsewhere."""
    if not sys.stderr.isatty():
        return lambda _done, _total: None

    def show(done: int, total: int) -> None:
        end = "\n" if done >= total else ""
        click.echo(f"\r\x1b[K{what} {done:,} / {total:,}{end}", nl=False, err=True)

    return show


def _lines(value: object) -> list[str]:
    shown = plain(value)
    if shown is None:
        return ["-"]
    if isinstance(shown, bool):
        return ["yes" if shown else "no"]
    if isinstance(shown, list):
        return [item if isinstance(item, str) else json.dumps(item) for item in shown] or ["-"]
    if isinstance(shown, dict):
        return [
            f"{key} {item if isinstance(item, str) else json.dumps(item)}" for key, item in shown.items()
        ] or ["-"]
    return [str(shown)]

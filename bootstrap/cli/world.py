"""`aw world`: make a genesis file, show what one says; `aw world epoch` is in epoch.py."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bootstrap.cli.arguments import Group
from bootstrap.cli.epoch import epoch, find_genesis
from bootstrap.cli.files import read_text, write_new
from bootstrap.cli.keys import identity_of
from bootstrap.cli.options import data_dir_option, json_option
from bootstrap.cli.output import note, print_answer, print_json
from bootstrap.cli.world_form import BOUNDS, WORLD_LIMITS, integer_of, read_world_form
from bootstrap.config import Mistake
from bootstrap.data_dir import DataDir
from runtime.records import Genesis


@click.group(cls=Group)
def world() -> None:
    """Genesis files: make a world, show what one says, replace its keys."""


world.add_command(epoch)


@world.command()
@click.option("--from", "form", type=click.Path(path_type=Path), help="TOML file; flags replace its keys.")
@click.option("--name", help="Name of the world: a-z, 0-9, `_`, `.`, `-`.")
@click.option("--proposer", "proposers", multiple=True, metavar="KEY", help="A sequencer. Repeatable.")
@click.option("--executor", "executors", multiple=True, metavar="KEY", help="An executor. Repeatable.")
@click.option("--certifier", metavar="KEY", help="The coordinator.")
@click.option(
    "--root-key", "root_keys", multiple=True, metavar="KEY", help="May replace the others. Repeatable."
)
@click.option("--root-threshold", metavar="INTEGER", help="How many root keys it takes (1).")
@click.option("--bounds", "bounds_text", metavar="X0:X1,Y0:Y1,Z0:Z1", help="The box of positions, in cm.")
@click.option("--max-move-cm", metavar="INTEGER", help="The longest move of one action.")
@click.option(
    "--resource", "resource_kinds", multiple=True, metavar="KIND", help="A resource kind. Repeatable."
)
@click.option(
    "--balance", "balances", multiple=True, metavar="KEY:KIND:AMOUNT", help="A balance. Repeatable."
)
@click.option(
    "--limit", "limit_texts", multiple=True, metavar="NAME=VALUE", help="A world limit. Repeatable."
)
@click.option(
    "--checkpoint-interval",
    metavar="INTEGER",
    help="Kept in the genesis; without effect in this version (1024).",
)
@click.option(
    "--max-block-gap-ms", metavar="INTEGER", help="Kept in the genesis; without effect in this version (0)."
)
@click.option("--created-ms", metavar="INTEGER", help="Unix time in ms (now).")
@click.option(
    "--out", type=click.Path(path_type=Path), help="File to write (NAME.genesis); never overwritten."
)
@json_option
def create(
    form: Path | None,
    bounds_text: str | None,
    balances: Sequence[str],
    limit_texts: Sequence[str],
    out: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Write a genesis file and print its world id. KEY is a peer id or a key file."""
    flags = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    flags = {key: value for key, value in flags.items() if value not in (None, [])}
    parts = _Parts()
    if bounds_text is not None:
        flags["bounds"] = parts.bounds(bounds_text)
    if balances:
        flags["balance"] = parts.balances(balances)
    if limit_texts:
        flags["limits"] = parts.limits(limit_texts)
    genesis = read_world_form(
        None if form is None else read_text(form),
        str(form or ""),
        flags,
        created_ms=int(time.time() * 1_000),
        identity_of=identity_of,
        mistakes=parts.mistakes,
    )
    path = out or Path(f"{genesis.header.name}.genesis")
    write_new(path, genesis.to_bytes())
    if as_json:
        print_json({"world_id": genesis.header.world_id, "name": genesis.header.name, "file": path})
    else:
        click.echo(genesis.header.world_id)
        note(f"wrote {path}")


@world.command()
@click.argument("which", metavar="FILE|WORLD")
@data_dir_option
@json_option
def show(which: str, data_dir: Path, as_json: bool) -> None:
    """What a genesis says: of a FILE, or of a WORLD id that the data dir holds."""
    print_answer(describe(find_genesis(which, DataDir(data_dir))), as_json)


def describe(genesis: Genesis) -> dict[str, object]:
    """A genesis as people read it."""
    header, body, authorities = genesis.header, genesis.body, genesis.authorities
    return {
        "world_id": header.world_id,
        "name": header.name,
        "created_ms": header.created_ms,
        "header_hash": header.hash(),
        "root_keys": header.root_keys,
        "root_threshold": header.root_threshold,
        "proposers": authorities.proposers,
        "executors": authorities.executors,
        "certifier": authorities.certifier,
        "bounds": body.bounds,
        "max_move_cm": body.max_move_cm,
        "resource_kinds": body.resource_kinds,
        "balances": [
            {"actor": actor, "kind": kind, "amount": amount} for actor, kind, amount in body.balances
        ],
        "limits": body.limits,
        "checkpoint_interval": body.checkpoint_interval,
        "max_block_gap_ms": body.max_block_gap_ms,
        "admission": body.admission,
    }


class _Parts:
    """Flags that are made of parts. A bad one is left out, as a mistake that is told with those of the form."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []

    def bounds(self, text: str) -> dict[str, int]:
        numbers = [integer_of(number) for axis in text.split(",") for number in axis.split(":")]
        if len(numbers) != len(BOUNDS) or None in numbers:
            self._bad("--bounds", text, "X0:X1,Y0:Y1,Z0:Z1 in integers")
            return {}
        return {name: number for name, number in zip(BOUNDS, numbers, strict=True) if number is not None}

    def balances(self, texts: Sequence[str]) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        for text in texts:
            parts = text.rsplit(":", 2)
            amount = integer_of(parts[2]) if len(parts) == 3 else None
            if amount is None:
                self._bad("--balance", text, "KEY:KIND:AMOUNT with an integer AMOUNT")
            else:
                found.append({"actor": parts[0], "kind": parts[1], "amount": amount})
        return found

    def limits(self, texts: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for text in texts:
            name, _equals, number = text.partition("=")
            value = integer_of(number)
            if value is None:
                known = ", ".join(WORLD_LIMITS)
                self._bad("--limit", text, f"NAME=VALUE with an integer VALUE; names: {known}")
            else:
                found[name] = value
        return found

    def _bad(self, flag: str, text: str, form: str) -> None:
        self.mistakes.append(Mistake(flag, f"{text!r} is not {form}"))

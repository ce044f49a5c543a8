"""`aw key`: identity files, and what they say in public."""

from __future__ import annotations

from pathlib import Path

import click

from bootstrap.cli.arguments import Group
from bootstrap.cli.keys import create_key_file, load_signing_key
from bootstrap.cli.options import json_option
from bootstrap.cli.output import note, print_answer, print_json
from p2p import names
from runtime.keys import SigningKey, public_key


@click.group(cls=Group)
def key() -> None:
    """Identity files: make one, show its peer id."""


@key.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def new(file: Path, as_json: bool) -> None:
    """Make a new Ed25519 key in FILE (mode 0600, never overwritten); prints its peer id."""
    made = create_key_file(file)
    if as_json:
        print_json(_describe(made, file))
    else:
        click.echo(names.peer_text(made.identity))
        note(f"wrote {file}: keep it secret, it cannot be made again")


@key.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def show(file: Path, as_json: bool) -> None:
    """The peer id and the public key of FILE."""
    print_answer(_describe(load_signing_key(file), file), as_json)


def _describe(loaded: SigningKey, file: Path) -> dict[str, object]:
    return {"peer_id": loaded.identity, "public_key": public_key(loaded.identity), "file": file}

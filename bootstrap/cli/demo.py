"""`aw demo`: options of the demo, handed to bootstrap/demo."""

from __future__ import annotations

from pathlib import Path

import click

from bootstrap.cli.arguments import Command, each
from bootstrap.cli.options import json_option
from bootstrap.config import ROLES, nearest


def _kill(text: str) -> tuple[str, float]:
    role, _at, seconds = text.partition("@")
    if role not in ROLES:
        raise ValueError(f"is not ROLE@SECONDS: {role!r} is no role{nearest(role, ROLES)}")
    try:
        at_s = float(seconds)
    except ValueError:
        at_s = -1.0
    if not 0 <= at_s <= 86_400:
        raise ValueError("is not ROLE@SECONDS with 0..86400 seconds")
    return role, at_s


@click.command(cls=Command)
@click.option(
    "--flights", type=click.IntRange(min=1), metavar="N", help="Fly the first N flights (default: all)."
)
@click.option(
    "--data", "data_file", type=click.Path(path_type=Path), help="Another month of nycflights13, as csv.gz."
)
@click.option("--keep", is_flag=True, help="Leave the network running and say what to try next.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Where the nodes keep their data."
)
@click.option(
    "--kill",
    "kills",
    multiple=True,
    metavar="ROLE@SECONDS",
    callback=each(_kill),
    help="kill -9 the process of that role after so long; it is started again. Repeatable.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of keys and order."
)
@json_option
def demo(
    flights: int | None,
    data_file: Path | None,
    keep: bool,
    data_dir: Path | None,
    kills: tuple[tuple[str, float], ...],
    seed: int,
    as_json: bool,
) -> int:
    """Start a whole network on this machine, replay real flights as signed actions, and judge the result."""
    from bootstrap.demo.options import DemoOptions
    from bootstrap.demo.run import main as run_demo

    options = DemoOptions(
        flights=flights, data=data_file, keep=keep, data_dir=data_dir, kills=kills, seed=seed, json=as_json
    )
    return run_demo(options)

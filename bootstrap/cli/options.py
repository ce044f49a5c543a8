"""Options that several commands share, so that they are spelled and explained once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bootstrap.cli.arguments import each
from bootstrap.peers import parse_peer_addr

F = TypeVar("F", bound=Callable[..., Any])

DATA_DIR_DEFAULT = "aw-data"


def peer_addr(text: str) -> str:
    """A multiaddr that names its peer; surrounding blanks go, and "" stays what was not given. Raises ValueError."""
    for addr in split_addrs(text):
        parse_peer_addr(addr)
    return text


def split_addrs(text: str) -> list[str]:
    """Addresses separated by commas."""
    return [addr.strip() for addr in text.split(",") if addr.strip()]


def json_option(command: F) -> F:
    """`--json`, as the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout.")(command)


def data_dir_option(command: F) -> F:
    """`--data-dir DIR`, else AW_DATA_DIR, else ./aw-data."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="AW_DATA_DIR",
        default=DATA_DIR_DEFAULT,
        show_default=True,
        help="Data dir of a node on this machine.",
    )(command)


def node_option(command: F) -> F:
    """`--node MULTIADDR` (repeatable), else AW_NODE (separated by commas), as the parameter `nodes`."""
    return click.option(
        "--node",
        "nodes",
        multiple=True,
        metavar="MULTIADDR",
        callback=each(peer_addr),
        help="Node to ask, tried in order. Default: AW_NODE, else the node of the data dir.",
    )(command)


def timeout_option(default_s: float) -> Callable[[F], F]:
    """`--timeout SECONDS`."""
    return click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0.1, max=86_400),
        default=default_s,
        show_default=True,
        metavar="SECONDS",
        help="Give up after so long (exit 3).",
    )

"""How a client command reaches a node: which addresses, which world, for how long.

Hides: trio and the network library, which are imported only when a command really dials. Guarantees: a command that
reaches nobody says what it tried and what to try (exit 3).
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from bootstrap.cli.failures import Exit, Failure
from bootstrap.cli.files import is_there
from bootstrap.cli.options import split_addrs
from bootstrap.config import looks_like_world_id
from bootstrap.data_dir import DataDir, read_genesis_file
from bootstrap.peers import parse_peer_addr

if TYPE_CHECKING:
    from runtime.services.client import DistributedClient

T = TypeVar("T")


def node_addrs(nodes: Sequence[str], data_dir: Path, option: str = "--node") -> list[str]:
    """Addresses to try: those given by `option`, else AW_NODE, else of the node that runs in the data dir.

    None is exit 3, an AW_NODE that is no address of a peer exit 2.
    """
    addrs = [addr for text in nodes for addr in split_addrs(text)]
    if not nodes:
        addrs = split_addrs(os.environ.get("AW_NODE", ""))
        for addr in addrs:
            try:
                parse_peer_addr(addr)
            except ValueError as error:
                raise click.BadParameter(f"{addr!r} {error}", param_hint="AW_NODE") from error
    addrs = addrs or DataDir(data_dir).running_addrs()
    if not addrs:
        why = f"no {option}, no AW_NODE, and no node runs in {data_dir}"
        raise Failure(Exit.NOT_REACHED, "no node to ask", why, f"{option} /ip4/HOST/tcp/PORT/p2p/PEER_ID")
    return addrs


def ask_node(
    nodes: Sequence[str], data_dir: Path, timeout_s: float, ask: Callable[[DistributedClient], Awaitable[T]]
) -> T:
    """What `ask` gets from the first node that answers. Raises Failure (exit 3) after `timeout_s`."""
    addrs = node_addrs(nodes, data_dir)
    quiet_logs()

    import trio

    from bootstrap.cli import interrupt

    async def run() -> T:
        from bootstrap.node import open_client

        with trio.move_on_after(timeout_s):
            async with open_client(addrs) as client:
                return await ask(client)
        why = f"no answer within {timeout_s:g} s (tried {', '.join(addrs)})"
        raise Failure(Exit.NOT_REACHED, "not reached", why, "a longer --timeout, or another --node")

    return interrupt.run(run)


def world_id_of(which: str) -> str | None:
    """The world id that a genesis file or an id says by itself; None for what may be a name."""
    if looks_like_world_id(which):
        return which
    return read_genesis_file(Path(which)).header.world_id if which and is_there(Path(which)) else None


async def find_world(client: DistributedClient, which: str) -> str:
    """The world id behind a genesis file, an id, a name, or a unique beginning of an id, by what the node runs."""
    known = world_id_of(which)
    if known is not None:
        return known
    worlds = (await client.status()).worlds
    found = [world.world_id for world in worlds if world.name == which]
    found = found or [world.world_id for world in worlds if which and world.world_id.startswith(which)]
    if len(found) == 1:
        return found[0]
    held = ", ".join(f"{world.name} ({world.world_id})" for world in worlds) or "none"
    why = (
        f"{len(found)} worlds of that name here"
        if found
        else "neither a file, an id, nor a world of this node"
    )
    raise Failure(
        Exit.WRONG_USE, f"world {which}", f"{why}; the node runs: {held}", "the world id of 32 characters"
    )


def quiet_logs() -> None:
    """Warnings only: a client's stderr is for its own words."""
    from bootstrap.telemetry import configure_logging

    configure_logging("warning", "text")

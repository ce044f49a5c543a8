"""`aw head`, `aw verify`: what is the newest, and is it true."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click

from bootstrap.cli.arguments import Command, Mistakes, each
from bootstrap.cli.failures import Exit, Failure
from bootstrap.cli.options import data_dir_option, json_option, node_option, peer_addr, timeout_option
from bootstrap.cli.output import note, plain, print_answer, progress
from bootstrap.cli.reach import ask_node, find_world, node_addrs, quiet_logs, world_id_of
from runtime.records import WorldHeadAnnounce


@click.command(cls=Command)
@click.argument("world")
@node_option
@data_dir_option
@timeout_option(20)
@json_option
def head(world: str, nodes: Sequence[str], data_dir: Path, timeout_s: float, as_json: bool) -> int:
    """The newest head of a WORLD (id, name or genesis file); exit 1 while there is no block yet."""
    from runtime.services.client import DistributedClient

    async def ask(client: DistributedClient) -> tuple[str, bytes, WorldHeadAnnounce | None]:
        world_id = await find_world(client, world)
        return world_id, client.peer, await client.head(world_id)

    world_id, peer, found = ask_node(nodes, data_dir, timeout_s, ask)
    if found is None:
        print_answer({"world_id": world_id, "height": 0, "said_by": peer}, as_json)
        note("no block yet")
        return Exit.NO
    print_answer(describe_head(found, int(time.time() * 1_000)) | {"said_by": peer}, as_json)
    return Exit.YES


def describe_head(head: WorldHeadAnnounce, now_ms: int) -> dict[str, object]:
    """A head as people read it; `age_ms` is how long ago its certifier last vouched that it is the newest."""
    commit = head.commit.record
    return {
        "world_id": head.header.world_id,
        "name": head.header.name,
        "epoch": commit.epoch,
        "height": commit.height,
        "block_hash": head.block_hash,
        "batch_hash": commit.batch_hash,
        "term": commit.term,
        "certifier": commit.certifier_id,
        "attested_by": [item.record.executor_id for item in head.attestations],
        "as_of_ms": commit.as_of_ms,
        "age_ms": max(0, now_ms - commit.as_of_ms),
        "trust": "attested",
    }


@click.command(cls=Command)
@click.argument("world")
@click.option(
    "--bootstrap",
    "bootstrap",
    multiple=True,
    metavar="MULTIADDR",
    callback=each(peer_addr),
    help="A peer to begin with. Repeatable.",
)
@click.option(
    "--head-age-max", "head_age_max_ms", type=click.IntRange(min=0), metavar="MS", help="Refuse older heads."
)
@data_dir_option
@timeout_option(600)
@json_option
def verify(
    world: str,
    bootstrap: Sequence[str],
    head_age_max_ms: int | None,
    data_dir: Path,
    timeout_s: float,
    as_json: bool,
) -> int:
    """Verify a WORLD (id or genesis file): find its head by the DHT, fetch all blocks, replay them, compare."""
    mistakes = Mistakes()
    world_id = mistakes.tried(lambda: _named_by_itself(world))
    addrs = mistakes.tried(lambda: node_addrs(bootstrap, data_dir, "--bootstrap"))
    mistakes.check()
    assert world_id is not None
    assert addrs is not None
    report = _verify(world_id, addrs, head_age_max_ms, timeout_s)
    print_answer(report, as_json)
    return Exit.YES


def _named_by_itself(world: str) -> str:
    world_id = world_id_of(world)
    if world_id is None:
        raise Failure(Exit.WRONG_USE, f"world {world}", "neither a genesis file nor an id of 32 characters")
    return world_id


def _verify(
    world_id: str, addrs: list[str], head_age_max_ms: int | None, timeout_s: float
) -> dict[str, object]:
    quiet_logs()

    import trio

    from bootstrap.cli import interrupt
    from bootstrap.node import VerifyReport, verify_world

    async def run() -> VerifyReport:
        with trio.move_on_after(timeout_s):
            return await verify_world(world_id, addrs, progress("verified"), head_age_max_ms=head_age_max_ms)
        why = f"not verified within {timeout_s:g} s (began at {', '.join(addrs)})"
        raise Failure(
            Exit.NOT_REACHED, f"world {world_id}", why, "a longer --timeout, or another --bootstrap"
        )

    report: dict[str, object] = plain(interrupt.run(run))
    return {"verified": True} | report

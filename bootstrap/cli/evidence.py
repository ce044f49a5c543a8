"""`aw evidence`: what was proved against whom, and whether it is true."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from bootstrap.cli.epoch import find_genesis
from bootstrap.cli.failures import Exit, Failure
from bootstrap.cli.files import is_there, read_bytes, write_new
from bootstrap.cli.options import data_dir_option, json_option, node_option, timeout_option
from bootstrap.cli.output import note, plain, print_answer, print_json
from bootstrap.cli.reach import ask_node, find_world
from bootstrap.data_dir import DataDir, read_authorities_file
from runtime.errors import Invalid, UnknownVersion
from runtime.evidence import (
    EVIDENCE_BLOB_BYTES_MAX,
    Evidence,
    MalformedBatch,
    WrongRootProof,
    check_evidence,
    read_evidence,
)
from runtime.genesis import check_authorities
from runtime.messages import EvidenceItem
from runtime.records import AuthoritySet, Genesis, WorldBlock


@click.group()
def evidence() -> None:
    """What was proved against whom: signed records that contradict each other."""


@evidence.command(name="list")
@click.argument("world")
@node_option
@data_dir_option
@timeout_option(20)
@json_option
def list_(world: str, nodes: Sequence[str], data_dir: Path, timeout_s: float, as_json: bool) -> int:
    """What a node holds as evidence about a WORLD, the newest epoch first; exit 1 when there is none."""
    from runtime.services.client import DistributedClient

    async def ask(client: DistributedClient) -> list[EvidenceItem]:
        return await client.evidence_items(await find_world(client, world))

    items = ask_node(nodes, data_dir, timeout_s, ask)
    for item in items:
        if as_json:
            print_json(item)
        else:
            click.echo(f"{item.content_hash.hex()}  {item.kind}  height {item.height}")
    if not items:
        note("no evidence")
    return Exit.YES if items else Exit.NO


@evidence.command()
@click.argument("world")
@click.argument("which", metavar="HASH|FILE")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Keep it in a file, for those who cannot ask a node."
)
@node_option
@data_dir_option
@timeout_option(20)
@json_option
def show(
    world: str,
    which: str,
    out: Path | None,
    nodes: Sequence[str],
    data_dir: Path,
    timeout_s: float,
    as_json: bool,
) -> None:
    """All that one piece of evidence says, with the sealed records that prove it."""
    found = _file(which) if is_there(Path(which)) else _ask(world, which, nodes, data_dir, timeout_s)[0]
    if out is not None:
        write_new(out, found.preimage())
        note(f"wrote {out}")
    print_answer(describe(found), as_json)


@evidence.command()
@click.argument("world", metavar="WORLD|GENESIS")
@click.argument("which", metavar="HASH|FILE")
@click.option(
    "--authorities", "file", type=click.Path(path_type=Path), help="Set of its epoch, for a FILE and no node."
)
@node_option
@data_dir_option
@timeout_option(20)
@json_option
def verify(
    world: str,
    which: str,
    file: Path | None,
    nodes: Sequence[str],
    data_dir: Path,
    timeout_s: float,
    as_json: bool,
) -> int:
    """Check evidence here, against the genesis and the authority set of its epoch; exit 1 when it proves nothing.

    A FILE needs only a genesis file (with --authorities for later epochs); a HASH is asked of a node, and so is the
    block that a wrong root is compared with: by that node's word.
    """
    own: WorldBlock | None = None
    if is_there(Path(which)):
        found, genesis = _file(which), find_genesis(world, DataDir(data_dir))
        authorities = _authorities(genesis, file)
    else:
        found, genesis, authorities, own = _ask(world, which, nodes, data_dir, timeout_s)
    verdict, why = judge(genesis, authorities, found, own)
    answer = {
        "holds": verdict == "proved",
        "verdict": verdict,
        "why": why,
        "kind": found.NAME,
        "content_hash": found.hash(),
        "accused": found.accused,
        "epoch": found.epoch,
        "height": found.height,
        "halts": found.HALTS,
    }
    print_answer(answer, as_json)
    return Exit.YES if verdict == "proved" else Exit.NO


def judge(
    genesis: Genesis, authorities: AuthoritySet, found: Evidence, own: WorldBlock | None
) -> tuple[str, str]:
    """`proved`, `unproved` (only a replay can tell) or `refused`, and why."""
    try:
        check_evidence(genesis, authorities, found)
    except Invalid as error:
        return "refused", str(error)
    if not isinstance(found, WrongRootProof):
        return "proved", "its signatures and its contradiction were checked here"
    if own is None:
        return "unproved", "the attestation is genuine; only who has replayed that height can tell: aw verify"
    if own == found.block:
        return "refused", "the attested block is the one that the node holds"
    if own.batch_hash != found.block.batch_hash:
        return "unproved", "the node holds a block of another batch at that height"
    return "proved", f"the node holds state root {own.state_root.hex()} there, by its own word"


def describe(found: Evidence) -> dict[str, object]:
    """Evidence as people read it: whom it accuses, of what, and the sealed records."""
    answer: dict[str, object] = {
        "kind": found.NAME,
        "content_hash": found.hash(),
        "world_id": found.world_id,
        "accused": found.accused,
        "epoch": found.epoch,
        "height": found.height,
        "halts": found.HALTS,
    }
    records: dict[str, object] = plain(found)
    if isinstance(found, MalformedBatch):  # up to a megabyte: in the file of --out
        records["actions"] = f"{len(found.actions)} bytes"
    return answer | records


def _file(which: str) -> Evidence:
    try:
        return read_evidence(read_bytes(Path(which), EVIDENCE_BLOB_BYTES_MAX, "evidence_bytes_max"))
    except (Invalid, UnknownVersion) as error:
        raise Failure(Exit.WRONG_USE, which, f"is no evidence: {error}") from error


def _authorities(genesis: Genesis, file: Path | None) -> AuthoritySet:
    if file is None:
        return genesis.authorities
    try:
        return check_authorities(genesis.header, read_authorities_file(file))
    except Invalid as error:
        raise Failure(Exit.WRONG_USE, str(file), str(error), f"aw world epoch show {file}") from error


def _ask(
    world: str, which: str, nodes: Sequence[str], data_dir: Path, timeout_s: float
) -> tuple[Evidence, Genesis, AuthoritySet, WorldBlock | None]:
    """The evidence from a node, with the genesis and the set in force there, and its own block at that height."""
    from p2p.errors import RequestFailed
    from runtime.messages import BlockAnswer, BlockRequest
    from runtime.services.client import DistributedClient

    try:
        content_hash = bytes.fromhex(which)
    except ValueError:
        content_hash = b""
    if len(content_hash) != 32:
        raise Failure(
            Exit.WRONG_USE,
            which,
            "is neither a file nor a hash of 64 hex digits",
            f"aw evidence list {world}",
        )

    async def ask(
        client: DistributedClient,
    ) -> tuple[Evidence, Genesis, AuthoritySet, WorldBlock | None]:
        world_id = await find_world(client, world)
        found = await client.evidence(world_id, content_hash)
        own = None
        if isinstance(found, WrongRootProof):
            request = BlockRequest(world_id=world_id, height=found.height)
            try:
                own = (await client.call("get_block", request, BlockAnswer)).block
            except RequestFailed as failure:
                note(f"the node has no block of height {found.height}: {failure}")
        answer = await client.commit(world_id)
        return found, await client.genesis(world_id), answer.authorities.authorities, own

    return ask_node(nodes, data_dir, timeout_s, ask)

"""`aw blob`: content by its id, in the data dir's store or from a running node."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click

from bootstrap.cli.arguments import Group
from bootstrap.cli.failures import Exit, Failure
from bootstrap.cli.files import read_bytes, refuse_existing, write_new
from bootstrap.cli.options import data_dir_option, json_option, node_option, timeout_option
from bootstrap.cli.output import note, print_answer, print_json
from bootstrap.cli.reach import ask_node
from bootstrap.config import NodeLimits
from bootstrap.data_dir import DataDir, DataDirInUse, open_data_dir
from p2p import names
from runtime import codec
from runtime.blob_store import BlobStore
from runtime.db_check import check_database
from runtime.errors import Invalid, Missing
from runtime.world_db import LmdbWorldDb

T = TypeVar("T")

BLOB_BYTES_MAX = 64 << 20


def _content_id(ctx: click.Context, param: click.Parameter, text: str) -> bytes:
    try:
        return codec.parse_content_id(text)
    except Invalid as error:
        raise click.BadParameter(
            f"{text[:100]!r}: {error.why}", ctx=ctx, param=param, param_hint="ID"
        ) from error


@click.group(cls=Group)
def blob() -> None:
    """Content by its id (64 hex digits, or a CID): put, get, stat; pins, unpin, prune."""


@blob.command()
@click.argument("file", type=click.Path(path_type=Path))
@data_dir_option
@json_option
def put(file: Path, data_dir: Path, as_json: bool) -> None:
    """Store a FILE (`-`: stdin) in the data dir of a node that is stopped, and pin it; prints its id."""
    data = read_bytes(file, BLOB_BYTES_MAX, "blob_bytes_max")
    with _stopped(data_dir) as blobs:
        content_id = blobs.put(data)
        blobs.pin(content_id)
    document = {"content_id": content_id, "cid": codec.cid_text(content_id), "size": len(data)}
    if as_json:
        print_json(document)
    else:
        click.echo(content_id.hex())
        note(f"cid {document['cid']}, {len(data):,} bytes")


@blob.command()
@click.argument("content_id", metavar="ID", callback=_content_id)
@click.option(
    "--out", type=click.Path(path_type=Path), help="File to write, never overwritten (default: stdout)."
)
@node_option
@data_dir_option
@timeout_option(60)
def get(content_id: bytes, out: Path | None, nodes: Sequence[str], data_dir: Path, timeout_s: float) -> None:
    """Fetch a blob, check it against its ID, write it out."""
    if out is not None:
        refuse_existing(out)
    data = _fetch(content_id, nodes, data_dir, timeout_s)
    if out is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    write_new(out, data)
    note(f"wrote {out}, {len(data):,} bytes")


@blob.command()
@click.argument("content_id", metavar="ID", callback=_content_id)
@node_option
@data_dir_option
@timeout_option(20)
@json_option
def stat(content_id: bytes, nodes: Sequence[str], data_dir: Path, timeout_s: float, as_json: bool) -> int:
    """Whether a blob is held, and its size; exit 1 when it is not held."""
    size = _size(content_id, nodes, data_dir, timeout_s)
    document: dict[str, object] = {
        "content_id": content_id,
        "cid": codec.cid_text(content_id),
        "held": size is not None,
    }
    print_answer(document if size is None else document | {"size": size}, as_json)
    return Exit.NO if size is None else Exit.YES


@blob.command()
@data_dir_option
@json_option
def pins(data_dir: Path, as_json: bool) -> None:
    """What was pinned in the data dir of a node that is stopped, one id a line."""
    with _stopped(data_dir) as blobs:
        found = [content_id.hex() for content_id in blobs.pins()]
    if as_json:
        print_json({"pins": found})
    else:
        for text in found:
            click.echo(text)


@blob.command()
@click.argument("content_id", metavar="ID", callback=_content_id)
@data_dir_option
def unpin(content_id: bytes, data_dir: Path) -> int:
    """Let a blob that was put go when space is short; exit 1 when it was not pinned. The node is stopped."""
    with _stopped(data_dir) as blobs:
        return Exit.YES if blobs.unpin(content_id) else Exit.NO


@blob.command()
@click.option("--bytes-max", type=click.IntRange(min=0), default=0, show_default=True, help="What may stay.")
@data_dir_option
@json_option
def prune(bytes_max: int, data_dir: Path, as_json: bool) -> None:
    """Delete blobs that nobody pinned and no chain needs, until all together are at most BYTES_MAX.

    The node is stopped; a running one does so by itself when space is short.
    """
    with _stopped(data_dir) as blobs:
        freed = blobs.prune_unpinned(bytes_max)
    if as_json:
        print_json({"bytes_freed": freed})
    else:
        click.echo(f"{freed:,} bytes freed")


def _asks_node(nodes: Sequence[str], data_dir: Path) -> bool:
    """True when a node is to be asked: one is named, or one runs here (its store is then locked)."""
    return bool(nodes or os.environ.get("AW_NODE") or DataDir(data_dir).is_locked())


@contextmanager
def _stopped(data_dir: Path) -> Iterator[BlobStore]:
    """The store of a data dir whose node is stopped."""
    try:
        with open_data_dir(data_dir) as held, _store(held) as db:
            yield db.blobs
    except DataDirInUse as error:
        hint = "stop the node, or another --data-dir"
        raise Failure(Exit.WRONG_USE, f"data dir {data_dir}", error.why, hint) from error


@contextmanager
def _store(data_dir: DataDir) -> Iterator[LmdbWorldDb]:
    check_database(data_dir.db_path)
    db = LmdbWorldDb(data_dir.path, NodeLimits().disk_bytes_max)
    try:
        yield db
    finally:
        db.close()


def _local(data_dir: Path, content_id: bytes, read: Callable[[BlobStore], T]) -> T:
    """Read the store of a data dir whose node is stopped; nothing is made where there is none. Raises Missing."""
    if not DataDir(data_dir).db_path.is_dir():
        raise Missing("blob", f"{content_id.hex()} (no store in {data_dir}, and no node was named)")
    with open_data_dir(data_dir) as held, _store(held) as db:
        return read(db.blobs)


def _fetch(content_id: bytes, nodes: Sequence[str], data_dir: Path, timeout_s: float) -> bytes:
    from runtime.services.client import DistributedClient

    if not _asks_node(nodes, data_dir):
        return _local(data_dir, content_id, lambda blobs: blobs.get(content_id))

    async def ask(client: DistributedClient) -> bytes:
        return await client.get_blob(content_id, BLOB_BYTES_MAX)

    return ask_node(nodes, data_dir, timeout_s, ask)


def _size(content_id: bytes, nodes: Sequence[str], data_dir: Path, timeout_s: float) -> int | None:
    from p2p.errors import Code, RequestFailed
    from runtime.messages import BlobEnd, BlobRequest
    from runtime.services.client import DistributedClient

    if not _asks_node(nodes, data_dir):
        try:
            return _local(data_dir, content_id, lambda blobs: blobs.stat(content_id).size)
        except Missing:
            return None

    async def ask(client: DistributedClient) -> int | None:
        request = BlobRequest(content_hash=content_id, length=0).to_bytes()
        try:
            async with client.network.request_parts(
                client.peer, "fetch_blob", request, bytes_max=names.PART_BYTES_MAX
            ) as answer:
                while await answer.part() is not None:
                    pass
                return BlobEnd.from_bytes(answer.last).size
        except RequestFailed as failed:
            if failed.code is Code.ERR_NOT_FOUND:
                return None
            raise

    return ask_node(nodes, data_dir, timeout_s, ask)

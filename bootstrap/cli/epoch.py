"""`aw world epoch`: the file by which the root keys replace the authorities, made, signed one key at a time, shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bootstrap.cli.failures import Exit, Failure
from bootstrap.cli.files import refuse_existing, write_new
from bootstrap.cli.keys import identity_of, load_signing_key
from bootstrap.cli.options import data_dir_option, json_option, node_option, timeout_option
from bootstrap.cli.output import note, print_answer, print_json
from bootstrap.config import looks_like_world_id
from bootstrap.data_dir import DataDir, read_authorities_file, read_genesis_file
from p2p import names
from runtime import keys
from runtime.durable import replace_file
from runtime.errors import Invalid
from runtime.genesis import check_authorities
from runtime.records import AuthoritySet, Genesis, GenesisHeader, Resume, SignedAuthorities

if TYPE_CHECKING:
    from runtime.messages import CommitAnswer


@click.group()
def epoch() -> None:
    """Replace the keys of a world: a new authority set, signed by its root keys, and where it resumes from."""


@dataclass(frozen=True, slots=True)
class _Base:
    """What a new set goes on from: the set before it, and the newest batch that is known."""

    authorities: AuthoritySet
    newest: Resume | None


@epoch.command()
@click.argument("world", metavar="FILE|WORLD")
@click.option("--proposer", "proposers", multiple=True, metavar="KEY", help="A sequencer. Repeatable.")
@click.option("--executor", "executors", multiple=True, metavar="KEY", help="An executor. Repeatable.")
@click.option("--certifier", metavar="KEY", help="The coordinator.")
@click.option(
    "--resume-height", type=click.IntRange(min=0), help="The last height that is kept (the newest)."
)
@click.option("--resume-batch", metavar="HEX", help="Hash of the batch at that height (asked of the node).")
@click.option(
    "--after", type=click.Path(path_type=Path), help="Authorities file of the epoch before; no node."
)
@click.option("--out", type=click.Path(path_type=Path), help="File to write; never overwritten.")
@node_option
@data_dir_option
@timeout_option(20)
@json_option
def new(
    world: str,
    proposers: Sequence[str],
    executors: Sequence[str],
    certifier: str | None,
    resume_height: int | None,
    resume_batch: str | None,
    after: Path | None,
    out: Path | None,
    nodes: Sequence[str],
    data_dir: Path,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Write the next, unsigned set of a WORLD (genesis file, or id in the data dir). KEY is a peer id or a key file.

    Keys that are not given stay as they are. The set before, and the batch to resume from, are asked of a node; with
    --resume-height and --resume-batch nobody is asked (the set before is then the genesis' own, or --after's).
    """
    genesis = find_genesis(world, DataDir(data_dir))
    needs_node = resume_height is None or (resume_height > 0 and resume_batch is None)
    if needs_node or (after is None and nodes):
        base = _ask_base(genesis, nodes, data_dir, timeout_s, resume_height)
    else:
        base = _Base(genesis.authorities, None)
    if after is not None:
        base = _Base(_checked(genesis, read_authorities_file(after), after), base.newest)
    made = AuthoritySet(
        epoch=base.authorities.epoch + 1,
        proposers=_identities(proposers, "--proposer") or base.authorities.proposers,
        executors=_identities(executors, "--executor") or base.authorities.executors,
        certifiers=_identities([certifier] if certifier else [], "--certifier")
        or base.authorities.certifiers,
        commit_threshold=1,
        world_id=genesis.header.world_id,
        resume=_resume(genesis, base, resume_height, resume_batch),
    )
    path = out or Path(f"{genesis.header.name}-epoch-{made.epoch}.authorities")
    refuse_existing(path)
    write_new(path, SignedAuthorities(made).to_bytes())
    answer = describe(genesis.header, SignedAuthorities(made)) | {"file": path}
    if as_json:
        print_json(answer)
        return
    print_answer(answer, as_json)
    note(f"wrote {path}; next: aw world epoch sign {path} --key ROOT_KEY (each root key where it is kept)")


@epoch.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--key", "key_file", required=True, type=click.Path(path_type=Path), help="File of one root key."
)
@click.option("--world", required=True, metavar="FILE|WORLD", help="Genesis file, or id in the data dir.")
@data_dir_option
@json_option
def sign(file: Path, key_file: Path, world: str, data_dir: Path, as_json: bool) -> None:
    """Add the signature of one root key to FILE. Carry the file, never the keys, from machine to machine."""
    genesis = find_genesis(world, DataDir(data_dir))
    header, signed, key = genesis.header, read_authorities_file(file), load_signing_key(key_file)
    if signed.authorities.world_id != header.world_id:
        raise Failure(
            Exit.WRONG_USE, str(file), f"is of world {signed.authorities.world_id}, not {header.world_id}"
        )
    if key.identity not in header.root_keys:
        who = names.peer_text(key.identity)
        raise Failure(Exit.WRONG_USE, f"key file {key_file}", f"{who} is no root key of this world")
    index = header.root_keys.index(key.identity)
    holding = {
        place: signature for place, signature in signed.signatures if _holds(header, signed, place, signature)
    }
    if index not in holding and len(holding) == header.root_threshold:
        raise Failure(
            Exit.NO, str(file), f"has all {header.root_threshold} signatures already, one more would be wrong"
        )
    holding[index] = key.sign(signed.authorities.hash())
    made = SignedAuthorities(signed.authorities, tuple(sorted(holding.items())))
    replace_file(file, made.to_bytes())
    answer = describe(header, made)
    print_answer(answer, as_json)
    if not as_json:
        _tell_next(header, made, file)


@epoch.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--world", required=True, metavar="FILE|WORLD", help="Genesis file, or id in the data dir.")
@data_dir_option
@json_option
def show(file: Path, world: str, data_dir: Path, as_json: bool) -> int:
    """What an authorities FILE says, which signatures hold, how many are missing; exit 1 while it is not complete."""
    genesis = find_genesis(world, DataDir(data_dir))
    signed = read_authorities_file(file)
    answer = describe(genesis.header, signed)
    print_answer(answer, as_json)
    if not as_json:
        _tell_next(genesis.header, signed, file)
    return Exit.YES if answer["complete"] else Exit.NO


def describe(header: GenesisHeader, signed: SignedAuthorities) -> dict[str, object]:
    """An authority set as people read it; `complete` when a node takes it up."""
    made = signed.authorities
    held = {index: _holds(header, signed, index, signature) for index, signature in signed.signatures}
    try:
        check_authorities(header, signed)
        is_complete, why = True, None
    except Invalid as error:
        is_complete, why = False, str(error)
    return {
        "world_id": header.world_id,
        "name": header.name,
        "epoch": made.epoch,
        "proposers": made.proposers,
        "executors": made.executors,
        "certifier": made.certifier,
        "resume_height": None if made.resume is None else made.resume.height,
        "resume_batch": None if made.resume is None else made.resume.batch_hash,
        "set_hash": made.hash(),
        "root_threshold": header.root_threshold,
        "signatures": [
            {"root_key": key, "signed": index in held, "holds": held.get(index, False)}
            for index, key in enumerate(header.root_keys)
        ],
        "missing": max(0, header.root_threshold - sum(held.values())) if made.epoch else 0,
        "complete": is_complete,
        "why": why,
    }


def find_genesis(which: str, data_dir: DataDir) -> Genesis:
    """The genesis of a file, or of a world id that the data dir holds. Raises Failure."""
    if not looks_like_world_id(which):
        return read_genesis_file(Path(which))
    genesis = data_dir.genesis(which)
    if genesis is None:
        why = f"no genesis in {data_dir.worlds_path}"
        raise Failure(Exit.WRONG_USE, f"world {which}", why, "a genesis file, or --data-dir DIR")
    return genesis


def _tell_next(header: GenesisHeader, signed: SignedAuthorities, file: Path) -> None:
    shown = describe(header, signed)
    if shown["complete"]:
        note(f"complete; install: cp {file} DATA_DIR/worlds/{header.world_id}.authorities (on any node)")
    elif shown["missing"]:
        note(
            f"{shown['missing']} of {header.root_threshold} signatures are missing: aw world epoch sign {file}"
        )


def _holds(header: GenesisHeader, signed: SignedAuthorities, index: int, signature: bytes) -> bool:
    if index >= len(header.root_keys):
        return False
    return keys.verify(header.root_keys[index], signed.authorities.hash(), signature)


def _checked(genesis: Genesis, signed: SignedAuthorities, path: Path) -> AuthoritySet:
    try:
        return check_authorities(genesis.header, signed)
    except Invalid as error:
        raise Failure(Exit.WRONG_USE, str(path), str(error), f"aw world epoch show {path}") from error


def _identities(texts: Sequence[str], option: str) -> tuple[bytes, ...]:
    try:
        return tuple(sorted({identity_of(text, Path()) for text in texts}))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from error


def _resume(genesis: Genesis, base: _Base, height: int | None, batch: str | None) -> Resume:
    if height == 0:
        return Resume(0, genesis.header.hash())
    if batch is None or height is None:
        assert base.newest is not None  # asked of a node
        return base.newest
    try:
        return Resume(height, bytes.fromhex(batch))
    except (ValueError, Invalid) as error:
        raise click.BadParameter("is not 64 hex digits", param_hint="--resume-batch") from error


def _ask_base(
    genesis: Genesis, nodes: Sequence[str], data_dir: Path, timeout_s: float, height: int | None
) -> _Base:
    """The set in force by a node's word (its signatures are checked), and the batch at a height or the newest."""
    from bootstrap.cli.reach import ask_node
    from runtime.messages import BlockAnswer, BlockRequest
    from runtime.services.client import DistributedClient

    world_id = genesis.header.world_id

    async def ask(client: DistributedClient) -> tuple[CommitAnswer, Resume]:
        answer = await client.commit(world_id)
        if height is None:
            return answer, _newest(genesis, answer)
        if height == 0:
            return answer, Resume(0, genesis.header.hash())
        block = (
            await client.call("get_block", BlockRequest(world_id=world_id, height=height), BlockAnswer)
        ).block
        return answer, Resume(height, block.batch_hash)

    answer, newest = ask_node(nodes, data_dir, timeout_s, ask)
    return _Base(answer.authorities.authorities, newest)


def _newest(genesis: Genesis, answer: CommitAnswer) -> Resume:
    """What the node has seen committed last; before that, what its epoch itself resumes from."""
    if answer.commit is not None:
        return Resume(answer.commit.record.height, answer.commit.record.batch_hash)
    return answer.authorities.authorities.resume or Resume(0, genesis.header.hash())

"""A node's life on disk, lived again and again, each time killed at another system call that can change a file.

`python killed_life.py ROOT` forks lives in ROOT/0, ROOT/1, ...: life n is stopped by ptrace before its n-th boundary
and killed with SIGKILL there; the first life that gets to its end was the last. One line of JSON on stdout for each:
{"life": n, "call": number of the system call, "said": [...], "ended": bool}. What a life has said, it had promised.

A boundary is every system call but those that cannot change a file (HARMLESS): a call that nobody thought of counts.
Exits with 77 where this machine cannot trace.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import random
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from bootstrap.data_dir import open_data_dir
from bootstrap.node import load_or_create_identity
from bootstrap.peers import AddressBook
from runtime import chain, codec, durable, genesis, world
from runtime.epoch_tables import EpochTables
from runtime.errors import Missing
from runtime.keys import SigningKey
from runtime.messages import SubmitRequest
from runtime.records import (
    ActionBatch,
    ActionEnvelope,
    Bounds,
    Commit,
    Envelope,
    Genesis,
    encode_envelopes,
    seal,
)
from runtime.services.authorities import Authorities
from runtime.services.context import Context
from runtime.services.gateway import Gateway
from runtime.services.replica import Applied, Replica
from runtime.world_db import LmdbWorldDb
from runtime.world_tables import WorldTables

ALICE, NODE = SigningKey(b"a" * 32), SigningKey(b"n" * 32)
NOW_MS = 1_000_000
UNUSED: Any = None  # no lease is seen in such a life
ROUNDS = 2
Say = Callable[[str, Any], None]


def make_world() -> Genesis:
    return genesis.make_genesis(
        name="killed",
        root_keys=[ALICE.identity],
        root_threshold=1,
        proposers=[NODE.identity],
        executors=[NODE.identity],
        certifier=NODE.identity,
        body=genesis.make_body(
            bounds=Bounds(0, 1_000, 0, 1_000, 0, 0),
            max_move_cm=100,
            resource_kinds=["fuel"],
            balances={(ALICE.identity, "fuel"): 100_000},
        ),
        created_ms=NOW_MS,
    )


def make_envelope(made: Genesis, nonce: int) -> Envelope:
    """Large enough that the list of a batch is a file."""
    return seal(
        ActionEnvelope(
            world_id=made.header.world_id,
            actor_id=ALICE.identity,
            nonce=nonce,
            expires_at_height=100,
            timestamp_ms=NOW_MS,
            atomic=False,
            actions=(("say", {"text": "x" * 15_000}),),
        ),
        ALICE,
    )


async def at_once(work: Callable[[], Any]) -> Any:
    return work()


async def nobody(content: bytes) -> None:
    raise Missing("blob", content.hex())


def make_context(db: LmdbWorldDb) -> Context:
    nothing: Any = None
    return Context(nothing, nothing, nothing, db, NODE, lambda: NOW_MS, random.Random(0), at_once)


async def order(context: Context, replica: Replica, envelopes: list[Envelope]) -> Applied:
    """What coordinator and executor do with a batch, up to the transaction that applies it.

    A batch that an earlier life had certified stands: it is the one that is executed.
    """
    certified = replica.tables.batch(replica.height + 1)
    if certified is not None:
        actions = context.blobs.get(certified.record.actions_ref)
        return execute(replica, certified.record, actions, replica.decode_actions(actions))
    actions, tip = encode_envelopes(envelopes), replica.tip
    assert tip is not None
    batch = ActionBatch(
        world_id=replica.world_id,
        epoch=0,
        term=1,
        height=tip.height + 1,
        prev_batch_hash=tip.batch_hash,
        envelope_count=len(envelopes),
        actions_root=codec.merkle_root([envelope.to_bytes() for envelope in envelopes]),
        actions_ref=codec.content_id(actions),
        proposer_id=NODE.identity,
        timestamp_ms=NOW_MS,
    )
    commit = Commit(
        world_id=replica.world_id,
        epoch=0,
        term=1,
        height=batch.height,
        batch_hash=batch.hash(),
        certifier_id=NODE.identity,
        as_of_ms=NOW_MS,
    )
    rows = replica.tables.put_certified(seal(batch, NODE), commit)
    below = replica.tables.commit(batch.height - 1)
    expect = replica.tables.expect_order(0, None, below)
    context.db.commit(rows, [actions, batch.preimage()], keep=True, expect=expect)
    return execute(replica, batch, actions, envelopes)


def execute(replica: Replica, batch: ActionBatch, actions: bytes, envelopes: list[Envelope]) -> Applied:
    tip = replica.tip
    assert tip is not None
    built = chain.build_block(replica.genesis, tip, batch, envelopes, world.check_signatures(envelopes))
    return Applied(
        block=built.block,
        batch=batch,
        envelopes=tuple(envelopes),
        receipts=built.outcome.receipts,
        blobs=(*built.blobs.values(), batch.preimage(), actions),
        tip=built.tip,
    )


async def live(root: Path, say: Say) -> None:
    """Start as a node does, accept, certify, apply, put, pin, prune, remember peers; from wherever the disk stands."""
    made = make_world()
    with open_data_dir(root) as data_dir:
        load_or_create_identity(data_dir)
        say("identity", None)
        data_dir.keep_genesis(made)
        say("genesis", None)
        db = LmdbWorldDb(root)
        context = make_context(db)
        replica = Replica(context, made, WorldTables(db, made.header.world_id), "executed")
        await replica.restore(lambda done, total: None, nobody)
        authorities = Authorities(context, made, EpochTables(db, made.header.world_id))
        gateway = Gateway(context, replica, authorities, UNUSED, None)
        for _ in range(ROUNDS):
            first = replica.tables.nonce(ALICE.identity)
            envelopes = [make_envelope(made, first + number) for number in range(5)]
            request = SubmitRequest(world_id=made.header.world_id, envelopes=tuple(envelopes))
            answer = await gateway.submit(b"", request)
            assert {result.outcome for result in answer.results} == {"accepted"}, answer
            say("accepted", [envelope.hash().hex() for envelope in envelopes])
            await replica.apply(await order(context, replica, envelopes))
            say("applied", replica.height)
            gateway._sweep()
            for size in (100, 100_000):
                content = db.blobs.put(bytes([replica.height]) * size)
                say("put", content.hex())
                db.blobs.pin(content)
                say("pinned", content.hex())
                db.blobs.put(b"loose" * size)
            db.blobs.prune_unpinned(0)
            data_dir.write_address("peer", [])
            durable.replace_file(data_dir.peers_path, AddressBook().to_bytes())
            say("peers", None)
        db.close()


# --- the one who kills -------------------------------------------------------------------------------------

PTRACE_TRACEME, PTRACE_SYSCALL, PTRACE_SETOPTIONS, PTRACE_GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
OPTIONS = 0x1 | 0x100000  # TRACESYSGOOD, EXITKILL
ENTRY = 1
# x86-64 system calls that cannot change a file, a folder or what is durable of them.
HARMLESS = frozenset({
    0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19, 21, 22, 23, 24, 25, 28, 32, 33, 34, 35, 39, 41, 42,
    53, 54, 55, 56, 63, 72, 73, 78, 79, 89, 96, 97, 98, 99, 100, 102, 104, 107, 108, 110, 131, 137, 138, 157, 158, 186,
    200, 202, 203, 204, 213, 217, 218, 228, 229, 230, 231, 232, 233, 234, 262, 271, 281, 284, 290, 291, 292, 293,
    302, 318, 332, 334, 435, 439, 441, 60,
})  # fmt: skip
BY_DESCRIPTOR = frozenset(
    {1, 18, 20, 296, 328, 74, 75, 77, 285, 91}
)  # write and its kin: which file is asked
OPEN_AT, OPEN_TO_WRITE = 257, os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, pid: int, addr: int = 0, data: Any = None) -> int:
    done = libc.ptrace(request, pid, ctypes.c_void_p(addr), data)
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(done)


def entered(pid: int) -> tuple[int, tuple[int, ...]] | None:
    """Number and arguments of the system call that is about to be made; None when one has just been made."""
    buffer = ctypes.create_string_buffer(128)
    ptrace(PTRACE_GET_SYSCALL_INFO, pid, 128, ctypes.cast(buffer, ctypes.c_void_p))
    if buffer.raw[0] != ENTRY:
        return None
    number, *arguments = struct.unpack_from("<7Q", buffer.raw, 24)
    return number, tuple(arguments)


def is_boundary(pid: int, number: int, arguments: tuple[int, ...], root: Path) -> bool:
    if number in HARMLESS:
        return False
    if number == OPEN_AT:
        return bool(arguments[2] & OPEN_TO_WRITE)
    if number in BY_DESCRIPTOR:
        return str(Path(f"/proc/{pid}/fd/{arguments[0]}").readlink()).startswith(str(root))
    return True


def kill_at(boundary: int, root: Path) -> dict[str, Any]:
    """One life, killed before its n-th boundary (from 0); the whole of it when it has fewer."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            libc.ptrace(PTRACE_TRACEME, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)

            def say(what: str, about: Any) -> None:
                os.write(writing, (json.dumps([what, about]) + "\n").encode())

            trio.run(live, root, say)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    os.waitpid(pid, 0)
    ptrace(PTRACE_SETOPTIONS, pid, 0, ctypes.c_void_p(OPTIONS))
    seen, call, signal_number = 0, -1, 0
    while True:
        ptrace(PTRACE_SYSCALL, pid, 0, ctypes.c_void_p(signal_number))
        _pid, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            break
        signal_number = 0
        if os.WSTOPSIG(status) != signal.SIGTRAP | 0x80:
            signal_number = os.WSTOPSIG(status)
            continue
        made = entered(pid)
        if made is not None and is_boundary(pid, *made, root):
            if seen == boundary:
                call = made[0]
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
            seen += 1
    with os.fdopen(reading) as pipe:
        said = [json.loads(line) for line in pipe if line.endswith("\n")]
    if call < 0 and status != 0:
        raise SystemExit(f"a life that nobody killed ended with status {status}")
    return {"life": boundary, "call": call, "said": said, "ended": call < 0}


def main(root: Path) -> None:
    if platform.machine() != "x86_64" or sys.platform != "linux":
        raise SystemExit(77)
    for number in range(100_000):
        home = root / str(number)
        home.mkdir()
        try:
            told = kill_at(number, home)
        except PermissionError:  # a machine on which nobody may trace
            raise SystemExit(77) from None
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        if told["ended"]:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))

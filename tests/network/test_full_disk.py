"""A full disk, by its budget and by a file system that is full: writes are refused, serving goes on, it recovers.

The node is a process; the file system is a tmpfs of a few megabytes that the test mounts (root only).
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from bootstrap.data_dir import read_genesis_file
from bootstrap.node import now_ms, open_client
from runtime.codec import content_id
from runtime.errors import StoreFull
from runtime.keys import SigningKey
from runtime.messages import SubmitResult
from runtime.records import ActionEnvelope, seal
from runtime.world_db import LmdbWorldDb, Put, Table

pytestmark = [pytest.mark.network, pytest.mark.timeout(900)]

AW = [sys.executable, "-m", "bootstrap.cli"]
ENV = {key: value for key, value in os.environ.items() if not key.startswith("AW_")}
PATIENCE_S = 200
ROLES = "gateway,sequencer,coordinator,executor,storage,index"
BUDGET_BYTES = 64 << 20  # the least that a node takes
libc = ctypes.CDLL(None, use_errno=True)


def aw(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AW, *arguments],
        cwd=folder,
        env=ENV,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[Path, int], None]]:
    """Mounts a tmpfs of so many bytes at a folder, for as long as the test runs."""
    mounted: list[Path] = []

    def mount(path: Path, size: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        done = libc.mount(b"tmpfs", str(path).encode(), b"tmpfs", 0, f"size={size}".encode())
        if done != 0:
            pytest.skip(
                f"cannot mount a small tmpfs here ({os.strerror(ctypes.get_errno())}): root is needed"
            )
        mounted.append(path)

    yield mount
    for path in mounted:
        assert libc.umount2(str(path).encode(), 2) == 0  # MNT_DETACH


def fill(folder: Path) -> Path:
    """A file that takes all that is left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for step in (1 << 16, 1 << 12):
            try:
                while file.write(bytes(step)) == step:
                    continue
            except OSError:
                continue
    return filler


def make_lab(folder: Path) -> None:
    for file in ("node/identity.key", "me.key"):
        made = aw(folder, "key", "new", file)
        assert made.returncode == 0, made.stderr
    key = "node/identity.key"
    parts = [
        part for role in ("proposer", "executor", "certifier", "root-key") for part in (f"--{role}", key)
    ]
    made = aw(
        folder,
        "world",
        "create",
        "--name",
        "lab",
        *parts,
        "--resource",
        "fuel",
        "--balance",
        "me.key:fuel:99",
    )
    assert made.returncode == 0, made.stderr


@contextmanager
def running(folder: Path, *more: str) -> Iterator[dict[str, Any]]:
    command = [*AW, "node", "--data-dir", "node", "--listen", "/ip4/127.0.0.1/tcp/0", "--role", ROLES]
    command += ["--world", "lab.genesis", "--json", *more]
    with (
        (folder / "node.log").open("a+") as log,
        subprocess.Popen(
            command, cwd=folder, env=ENV, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (folder / "node.log").read_text()
            yield json.loads(line)
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
    assert process.returncode == 0, (folder / "node.log").read_text()


def register(folder: Path, agent: str, timeout_s: int = 120) -> tuple[int, dict[str, Any]]:
    """Exit code and last line of a submit that waits until it is verified."""
    place = json.dumps({"agent_id": agent, "x_cm": 0, "y_cm": 0, "z_cm": 0})
    done = aw(
        folder, "submit", "--world", "lab.genesis", "--key", "me.key", "--data-dir", "node", "--json",
        "--wait", "verified", "--timeout", str(timeout_s), "register_agent", place,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {"stderr": done.stderr}


def refused_for_space(folder: Path, addr: str, limit: str) -> None:
    """Handed in once: `aw submit` would come again until there is room, as the refusal asks it to."""
    genesis, key = read_genesis_file(folder / "lab.genesis"), SigningKey((folder / "me.key").read_bytes())
    envelope = seal(
        ActionEnvelope(
            world_id=genesis.header.world_id,
            actor_id=key.identity,
            nonce=1,
            expires_at_height=1_000,
            timestamp_ms=now_ms(),
            atomic=False,
            actions=(("say", {"text": "x" * 9_000}),),
        ),
        key,
    )

    async def hand_in() -> SubmitResult:
        async with open_client([addr]) as client:
            return (await client.submit(genesis.header.world_id, [envelope]))[0]

    told = trio.run(hand_in)
    assert (told.outcome, told.reason) == ("refused", "StoreFull")
    assert limit in (told.message or "")
    assert (told.retry_after_ms or 0) > 0


def test_past_its_budget_a_node_refuses_and_serves_and_a_prune_makes_room(tmp_path: Path) -> None:
    make_lab(tmp_path)
    with running(tmp_path, "--limit", f"disk_bytes_max={BUDGET_BYTES}"):
        code, told = register(tmp_path, "first")
        assert (code, told["outcome"]) == (0, "verified")
    ids = []
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode() * (BUDGET_BYTES // 6))
        put = aw(tmp_path, "blob", "put", name, "--data-dir", "node")
        assert put.returncode == 0, put.stderr
        ids.append(put.stdout.strip())
    with running(tmp_path, "--limit", f"disk_bytes_max={BUDGET_BYTES}") as ready:
        refused_for_space(tmp_path, ready["addrs"][0], "disk_bytes_max")
        assert aw(tmp_path, "head", "lab.genesis", "--data-dir", "node").returncode == 0
        assert aw(tmp_path, "blob", "get", ids[1], "--out", "got", "--data-dir", "node").returncode == 0
        assert (tmp_path / "got").read_bytes() == (tmp_path / "two").read_bytes()
    assert aw(tmp_path, "blob", "unpin", ids[0], "--data-dir", "node").returncode == 0
    with running(tmp_path, "--limit", f"disk_bytes_max={BUDGET_BYTES}"):  # makes room by itself
        until_verified(tmp_path, "third")
        assert aw(tmp_path, "blob", "stat", ids[0], "--data-dir", "node").returncode == 1
        assert aw(tmp_path, "blob", "stat", ids[1], "--data-dir", "node").returncode == 0
    with running(tmp_path, "--limit", f"disk_bytes_max={4 * BUDGET_BYTES}"):
        code, told = register(tmp_path, "fourth")
        assert (code, told["outcome"]) == (0, "verified")


def until_verified(folder: Path, agent: str) -> None:
    told: dict[str, Any] = {}
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:  # each try takes a process, that is pause enough
        code, told = register(folder, agent)
        if code == 0:
            return
    raise AssertionError(told)


def test_on_a_full_file_system_a_node_refuses_serves_restarts_and_recovers(
    tmp_path: Path, small_disk: Callable[[Path, int], None]
) -> None:
    small_disk(tmp_path / "node", 24 << 20)
    make_lab(tmp_path)
    with running(tmp_path) as ready:
        code, told = register(tmp_path, "first")
        assert (code, told["outcome"]) == (0, "verified")
        filler = fill(tmp_path / "node")
        refused_for_space(tmp_path, ready["addrs"][0], "the disk")
        assert aw(tmp_path, "head", "lab.genesis", "--data-dir", "node").returncode == 0
        filler.unlink()
        until_verified(tmp_path, "second")
        filler = fill(tmp_path / "node")
    with running(tmp_path) as ready:  # started on a full disk
        (addr,) = ready["addrs"]
        assert aw(tmp_path, "head", "lab.genesis", "--node", addr).returncode == 0
        filler.unlink()
    with running(tmp_path):
        until_verified(tmp_path, "third")


def test_a_store_on_a_full_file_system_refuses_all_or_nothing_and_recovers(
    tmp_path: Path, small_disk: Callable[[Path, int], None]
) -> None:
    home = tmp_path / "disk"
    small_disk(home, 4 << 20)
    db = LmdbWorldDb(home)
    db.commit([Put(Table.CURSORS, b"kept", b"1")], [b"small", b"L" * 100_000])
    filler = fill(home)
    for rows, blobs in (
        ([Put(Table.CURSORS, b"row", bytes(60_000))], []),
        ([], [b"s" * 60_000]),
        ([Put(Table.CURSORS, b"row", b"2")], [b"f" * 100_000]),
    ):
        with pytest.raises(StoreFull, match="No space left"):
            db.commit(rows, blobs)
    with pytest.raises(StoreFull):
        db.blobs.pin(content_id(b"small"))
    assert db.scan(Table.CURSORS) == [(b"kept", b"1")]
    assert db.blobs.get(content_id(b"L" * 100_000)) == b"L" * 100_000
    assert len(list(db.blobs.iterate())) == 2
    db.close()
    again = LmdbWorldDb(home)  # opened on a full disk
    assert again.get(Table.CURSORS, b"kept") == b"1"
    filler.unlink()
    again.commit([Put(Table.CURSORS, b"row", bytes(60_000))], [b"f" * 100_000])
    again.close()
    assert not list(home.rglob("*.tmp"))

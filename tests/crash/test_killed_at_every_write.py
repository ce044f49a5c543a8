"""Kill -9 before every system call that can change a file: what was promised is there, and the life goes on.

`killed_life.py` finds the boundaries by tracing a real process; nothing here says where they are.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from bootstrap.data_dir import DataDir
from bootstrap.peers import load_address_book
from p2p.identity import load_identity
from runtime.db_check import check_database
from runtime.records import ActionBatch, WorldBlock
from runtime.services.replica import Replica
from runtime.world_db import LmdbWorldDb
from runtime.world_tables import WorldTables

pytestmark = pytest.mark.timeout(600)

SCRIPT = Path(__file__).parent / "killed_life.py"
CANNOT_TRACE = 77
LIVED_ON = (
    6  # every so many a life goes on after its kill, on a database that was looked at as a node looks at it
)


@pytest.fixture(scope="module")
def life() -> Any:
    """The script as a module: its world, and its way to live."""
    spec = importlib.util.spec_from_file_location("killed_life", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is room: a life syncs a hundred times, and it is not the disk that is tested."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < 256 << 20:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def said_of(said: list[list[Any]], what: str) -> list[Any]:
    return [about for word, about in said if word == what]


def check_small_files(home: Path, said: list[list[Any]], life: Any) -> None:
    data_dir, made = DataDir(home), life.make_world()
    words = {word for word, _about in said}
    if "identity" in words:
        load_identity(data_dir.identity_path)
    kept = data_dir.genesis(made.header.world_id)
    assert kept == made or (kept is None and "genesis" not in words)
    _book, complaint = load_address_book(data_dir.peers_path, peers_max=10, addrs_max=10)
    assert complaint == ""


def check_promises(db: LmdbWorldDb, tables: WorldTables, said: list[list[Any]]) -> None:
    """No accepted envelope lost, no cursor ahead of its work, every blob sound, every pin held."""
    for digest in (bytes.fromhex(text) for batch in said_of(said, "accepted") for text in batch):
        assert tables.outbox_entry(digest) is not None or tables.place(digest) is not None
    cursor = tables.cursor("executed")
    assert cursor >= max(said_of(said, "applied"), default=0)
    assert cursor <= tables.committed_height()
    for height in range(1, cursor + 1):
        block_hash = tables.block_hash(height)
        assert block_hash is not None
        block = WorldBlock.from_preimage(db.blobs.get(block_hash))
        batch = ActionBatch.from_preimage(db.blobs.get(block.batch_hash))
        for content in (
            block_hash,
            block.batch_hash,
            batch.actions_ref,
            block.receipts_ref,
            block.journal_ref,
        ):
            db.blobs.verify(content)
            assert db.blobs.stat(content).pinned
    assert tables.block_hash(cursor + 1) is None
    assert list(db.blobs.wanted()) == []
    for content in db.blobs.iterate():
        db.blobs.verify(content)
    assert {content.hex() for content in db.blobs.pins()} >= set(said_of(said, "pinned"))


def check_home(home: Path, said: list[list[Any]], life: Any) -> None:
    check_small_files(home, said, life)
    db = LmdbWorldDb(home)
    try:
        made = life.make_world()
        tables = WorldTables(db, made.header.world_id)
        check_promises(db, tables, said)
        replica = Replica(life.make_context(db), made, tables, "executed")
        trio.run(replica.restore, lambda done, total: None, life.nobody)
        assert replica.height == tables.cursor("executed")
    finally:
        db.close()


def test_whatever_was_promised_survives_a_kill_at_every_boundary(root: Path, life: Any) -> None:
    lives = 0
    with subprocess.Popen([sys.executable, SCRIPT, root], stdout=subprocess.PIPE, text=True) as killer:
        assert killer.stdout is not None
        for line in killer.stdout:
            told = json.loads(line)
            home = root / str(told["life"])
            check_home(home, told["said"], life)
            if lives % LIVED_ON == 0:
                check_database(home / "db")
                after: list[list[Any]] = []
                trio.run(life.live, home, lambda word, about, after=after: after.append([word, about]))
                check_home(home, [*told["said"], *after], life)
                assert not list(home.rglob("*.tmp"))
            shutil.rmtree(home)
            lives += 1
    if killer.returncode == CANNOT_TRACE:
        pytest.skip(
            "this machine does not let a process trace its children (x86-64 Linux with ptrace is needed)"
        )
    assert killer.returncode == 0
    assert lives > 100, "a life has far more boundaries than that: they were not found"

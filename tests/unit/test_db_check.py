"""A database that was damaged is refused before anybody maps it; one that passes holds what was written."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import db_check
from runtime.codec import content_id
from runtime.db_check import check_database
from runtime.errors import Corrupt
from runtime.world_db import LmdbWorldDb, Put, Table

PAGE = 4_096
ROWS = {n.to_bytes(4, "big"): bytes([n % 256]) * 300 for n in range(400)}
BLOBS = [bytes([n]) * 20_000 for n in range(30)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred rows, a few blobs, and a free list that is not empty."""
    folder = tmp_path_factory.mktemp("made")
    db = LmdbWorldDb(folder)
    for low in range(0, 400, 50):
        rows = [Put(Table.PLACES, key, value) for key, value in list(ROWS.items())[low : low + 50]]
        db.commit(rows, BLOBS[low // 50 * 3 : low // 50 * 3 + 4])
    db.commit([], BLOBS)
    db.close()
    return folder


@pytest.fixture
def database(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "db"


def contents(data_dir: Path) -> tuple[dict[bytes, bytes], list[bytes]]:
    """Rows, and the blobs that are sound; in a process that may die of it."""
    script = (
        "import sys, pathlib, pickle\n"
        "from runtime.world_db import *\n"
        "db = LmdbWorldDb(pathlib.Path(sys.argv[1]))\n"
        "rows = dict(db.scan(Table.PLACES))\n"
        "sound = []\n"
        "for content in db.blobs.iterate():\n"
        "    try:\n"
        "        db.blobs.verify(content)\n"
        "        sound.append(content)\n"
        "    except Corrupt:\n"
        "        continue\n"
        "db.commit([Put(Table.PLACES, b'more', bytes(100_000))], [bytes(60_000)])\n"
        "sys.stdout.buffer.write(pickle.dumps((rows, sound)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, data_dir], check=True, capture_output=True)
    rows, sound = pickle.loads(done.stdout)
    return rows, sound


def test_a_sound_database_passes_and_so_does_none(database: Path, tmp_path: Path) -> None:
    check_database(database)
    check_database(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "data.mdb").touch()
    check_database(tmp_path / "empty")
    rows, sound = contents(tmp_path)
    assert rows == ROWS
    assert set(sound) == set(map(content_id, BLOBS))


@pytest.mark.parametrize("pages", [1, 2, 3, 10, 40, 100])
def test_a_truncated_database_is_refused_with_the_command(database: Path, pages: int) -> None:
    os.truncate(database / "data.mdb", pages * PAGE)
    with pytest.raises(Corrupt) as caught:
        check_database(database)
    assert caught.value.repair == f"mv {database} {database}.damaged"
    assert caught.value.why


@pytest.mark.parametrize("garbage", [b"no database at all" * 1_000, bytes(3 * PAGE), b"x"])
def test_what_is_no_database_is_refused(database: Path, garbage: bytes) -> None:
    (database / "data.mdb").write_bytes(garbage)
    with pytest.raises(Corrupt):
        check_database(database)


@pytest.mark.parametrize("seed", range(16))
def test_flipped_bits_are_refused_or_cost_no_row(database: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    file = database / "data.mdb"
    data = bytearray(file.read_bytes())
    for _ in range(rng.choice([1, 4, 64])):
        # Half of them where pages say what they are: that is where a flip does most.
        page = rng.randrange(len(data) // PAGE)
        at = page * PAGE + (rng.randrange(64) if rng.randrange(2) else rng.randrange(PAGE))
        data[at] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    try:
        check_database(database)
    except Corrupt:
        return
    rows, sound = contents(tmp_path)
    assert rows == ROWS
    assert set(sound) <= set(map(content_id, BLOBS))


def test_a_row_that_was_changed_is_named(database: Path) -> None:
    file = database / "data.mdb"
    data = file.read_bytes()
    row = b"\x00\x00\x00\x07" + ROWS[b"\x00\x00\x00\x07"]
    file.write_bytes(data.replace(row, row[:-1] + b"\x08"))
    with pytest.raises(Corrupt, match="row 00000007 of table places"):
        check_database(database)


def test_a_walk_that_does_not_end_is_refused(
    database: Path, monkeypatch: pytest.MonkeyPatch, forever: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(db_check, "_SECONDS_FIRST", 0.2)
    monkeypatch.setattr(db_check.sys, "executable", forever()[0])
    with pytest.raises(Corrupt, match="did not end within"):
        check_database(database)


@pytest.fixture
def forever(tmp_path: Path) -> Callable[[], list[str]]:
    """A program that never ends, whatever it is given."""

    def make() -> list[str]:
        program = tmp_path / "forever"
        program.write_text("#!/bin/sh\nexec sleep 600\n")
        program.chmod(0o755)
        return [str(program)]

    return make

"""One contract suite for both databases; the typed rows; a kill in the middle of writing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from runtime.blob_store import MemoryBlobStore
from runtime.codec import content_id
from runtime.errors import Corrupt, Mismatch, StoreFull
from runtime.lmdb_blobs import FILE_BYTES_MIN
from runtime.records import Receipt
from runtime.world_db import Delete, Expect, LmdbWorldDb, MemoryWorldDb, Put, Table, WorldDb
from runtime.world_tables import Place, WorldTables

ROWS = Table.CURSORS


@pytest.fixture(params=["memory", "lmdb"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WorldDb]:
    made: WorldDb = MemoryWorldDb() if request.param == "memory" else LmdbWorldDb(tmp_path)
    yield made
    made.close()


def test_rows_and_blobs_come_in_one_transaction(db: WorldDb) -> None:
    small, large = b"small", b"L" * FILE_BYTES_MIN
    db.commit([Put(ROWS, b"a", b"1"), Put(ROWS, b"b", b"2")], [small, large])
    assert (db.get(ROWS, b"a"), db.get(ROWS, b"b"), db.get(ROWS, b"c")) == (b"1", b"2", None)
    assert db.blobs.get(content_id(small)) == small
    assert db.blobs.get(content_id(large)) == large
    db.commit([Put(ROWS, b"a", b"3"), Delete(ROWS, b"b"), Delete(ROWS, b"absent")])
    assert db.scan(ROWS) == [(b"a", b"3")]
    assert db.disk_bytes() > 0


def test_tables_are_apart(db: WorldDb) -> None:
    db.commit([Put(Table.BLOCKS, b"k", b"block"), Put(Table.COMMITS, b"k", b"commit")])
    assert db.get(Table.BLOCKS, b"k") == b"block"
    assert db.get(Table.COMMITS, b"k") == b"commit"
    assert db.get(Table.HEADS, b"k") is None


@pytest.mark.parametrize("held", [None, b"held"])
def test_an_expectation_that_does_not_hold_changes_nothing(db: WorldDb, held: bytes | None) -> None:
    if held is not None:
        db.commit([Put(ROWS, b"cas", held)])
    for wrong in {b"other", b"held", None} - {held}:
        with pytest.raises(Mismatch, match="cursors row"):
            db.commit(
                [Put(ROWS, b"cas", b"new"), Put(ROWS, b"more", b"x")],
                [b"blob"],
                expect=[Expect(ROWS, b"cas", wrong)],
            )
    assert db.get(ROWS, b"cas") == held
    assert db.get(ROWS, b"more") is None
    assert not db.blobs.has(content_id(b"blob"))
    db.commit([Put(ROWS, b"cas", b"new")], expect=[Expect(ROWS, b"cas", held)])
    assert db.get(ROWS, b"cas") == b"new"


def test_a_scan_gives_a_range_in_either_direction(db: WorldDb) -> None:
    keys = [bytes([n]) for n in (1, 3, 5, 7)]
    db.commit([Put(ROWS, key, key) for key in keys])

    def scanned(*args: Any, **kwargs: Any) -> list[int]:
        return [key[0] for key, _value in db.scan(ROWS, *args, **kwargs)]

    assert scanned() == [1, 3, 5, 7]
    assert scanned(b"\x03") == [3, 5, 7]
    assert scanned(b"\x02", b"\x07") == [3, 5]
    assert scanned(b"\x02", b"\x06", reverse=True) == [5, 3]
    assert scanned(b"", b"\xff", reverse=True, limit=1) == [7]
    assert scanned(limit=2) == [1, 3]
    assert scanned(b"\x08") == []
    assert scanned(b"\x01", b"\x01") == []


def test_a_full_disk_refuses_the_whole_transaction() -> None:
    db = MemoryWorldDb(MemoryBlobStore(bytes_max=10))
    with pytest.raises(StoreFull):
        db.commit([Put(ROWS, b"a", b"1")], [b"x" * 11])
    assert db.get(ROWS, b"a") is None


class TestLmdb:
    def test_everything_is_there_after_reopening(self, tmp_path: Path) -> None:
        db = LmdbWorldDb(tmp_path)
        db.commit([Put(ROWS, b"a", b"1")], [b"blob"])
        db.close()
        again = LmdbWorldDb(tmp_path)
        assert again.get(ROWS, b"a") == b"1"
        assert again.blobs.get(content_id(b"blob")) == b"blob"
        again.close()

    def test_past_the_budget_the_whole_transaction_is_refused(self, tmp_path: Path) -> None:
        db = LmdbWorldDb(tmp_path, disk_bytes_max=1 << 20)
        db.commit([Put(ROWS, b"kept", b"1")])
        with pytest.raises(StoreFull, match="disk_bytes_max"):
            db.commit([Put(ROWS, b"a", b"1")], [bytes([n]) * 50_000 for n in range(40)])
        assert db.scan(ROWS) == [(b"kept", b"1")]
        db.close()

    def test_a_damaged_database_is_refused_with_what_to_do(self, tmp_path: Path) -> None:
        LmdbWorldDb(tmp_path).close()
        (tmp_path / "db" / "data.mdb").write_bytes(b"no database at all" * 1_000)
        with pytest.raises(Corrupt, match="cannot be opened") as caught:
            LmdbWorldDb(tmp_path)
        assert caught.value.repair == f"mv {tmp_path}/db {tmp_path}/db.damaged"

    def test_a_row_that_was_changed_is_corrupt(self, tmp_path: Path) -> None:
        db = LmdbWorldDb(tmp_path)
        db.commit([Put(ROWS, b"height", (7).to_bytes(8, "big"))])
        db.close()
        with lmdb.open(str(tmp_path / "db"), max_dbs=32) as env, env.begin(write=True) as txn:
            table = env.open_db(b"cursors", txn)
            stored = txn.get(b"height", db=table)
            assert stored is not None
            txn.put(b"height", (9).to_bytes(8, "big") + stored[8:], db=table)
        again = LmdbWorldDb(tmp_path)
        for read in (lambda: again.get(ROWS, b"height"), lambda: again.scan(ROWS)):
            with pytest.raises(Corrupt, match="table cursors .* not what was written"):
                read()
        again.close()

    def test_blobs_that_are_kept_stay_and_others_give_their_space_back(self, tmp_path: Path) -> None:
        db = LmdbWorldDb(tmp_path)
        chain = [b"block", b"B" * FILE_BYTES_MIN]
        loose = [b"loose", b"l" * FILE_BYTES_MIN]
        db.commit([], chain, keep=True)
        db.commit([], loose)
        assert db.blobs.stat(content_id(b"block")).pinned
        assert db.blobs.prune_unpinned(0) == sum(map(len, loose))
        assert sorted(db.blobs.iterate()) == sorted(map(content_id, chain))
        assert db.blobs.pins() == []
        assert not db.blobs.delete(content_id(chain[1]))
        next((tmp_path / "blobs").rglob("*.blob")).unlink()
        assert list(db.blobs.wanted()) == [content_id(chain[1])]
        assert list(db.blobs.wanted(after=content_id(chain[1]))) == []
        db.close()

    def test_the_budget_is_of_database_and_files_together_and_deletes_go_on(self, tmp_path: Path) -> None:
        db = LmdbWorldDb(tmp_path, disk_bytes_max=4 << 20)
        db.commit([Put(ROWS, b"a", b"1")], [bytes([n]) * (1 << 20) for n in range(3)])
        assert 3 << 20 < db.disk_bytes() < 4 << 20
        with pytest.raises(StoreFull, match="disk_bytes_max is 4,194,304"):
            db.commit([], [b"x" * (1 << 20)])
        with pytest.raises(StoreFull, match="disk_bytes_max"):
            db.commit([Put(ROWS, bytes([n]), bytes(30_000)) for n in range(40)])
        db.commit([Delete(ROWS, b"a")])
        assert db.get(ROWS, b"a") is None
        assert db.blobs.prune_unpinned(1 << 20) == 2 << 20
        db.commit([Put(ROWS, bytes([n]), bytes(30_000)) for n in range(40)], [b"x" * (1 << 20)])
        db.close()
        smaller = LmdbWorldDb(tmp_path, disk_bytes_max=2 << 20)  # a limit that was lowered: reads go on
        assert smaller.get(ROWS, b"\x01") == bytes(30_000)
        with pytest.raises(StoreFull):
            smaller.commit([Put(ROWS, b"a", b"1")])
        smaller.close()
        larger = LmdbWorldDb(tmp_path, disk_bytes_max=8 << 20)
        larger.commit([Put(ROWS, b"a", b"1")], [b"y" * (1 << 20)])
        larger.close()

    def test_a_database_of_another_version_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runtime.world_db.SCHEMA", b"aw/db/99")
        LmdbWorldDb(tmp_path).close()
        monkeypatch.undo()
        with pytest.raises(Corrupt, match="aw/db/99"):
            LmdbWorldDb(tmp_path)

    def test_kill_9_loses_nothing_that_was_committed_and_leaves_no_half(self, tmp_path: Path) -> None:
        script = (
            "import sys, pathlib\n"
            "from runtime.world_db import *\n"
            "db = LmdbWorldDb(pathlib.Path(sys.argv[1]))\n"
            "for n in range(1_000_000):\n"
            "    key = n.to_bytes(4, 'big')\n"
            "    rows = [Put(Table.CURSORS, mark + key, key) for mark in (b'x', b'y')]\n"
            "    db.commit(rows, [key * 20_000])\n"
            "    print(n, flush=True)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            said = [int(child.stdout.readline()) for _ in range(20)]
            os.kill(child.pid, signal.SIGKILL)
            said += [int(line) for line in child.stdout if line.endswith("\n")]
        db = LmdbWorldDb(tmp_path)
        first, second = db.scan(ROWS, b"x", b"y"), db.scan(ROWS, b"y", b"z")
        assert [value for _key, value in first] == [value for _key, value in second]
        assert len(first) in {len(said), len(said) + 1}
        for _key, value in first:
            assert db.blobs.get(content_id(value * 20_000)) == value * 20_000
        db.close()


class TestTypedRows:
    @pytest.fixture
    def world(self, small_world: Any) -> Any:
        return small_world()

    @pytest.fixture
    def tables(self, db: WorldDb, world: Any) -> WorldTables:
        return WorldTables(db, world.world_id)

    def test_an_applied_block_moves_hash_places_nonces_and_cursor(
        self, db: WorldDb, tables: WorldTables, world: Any
    ) -> None:
        good = world.envelope(
            world.actors[0], ("register_agent", {"agent_id": "a", "x_cm": 1, "y_cm": 1, "z_cm": 1})
        )
        late = world.envelope(world.actors[1], ("move_agent", {}), nonce=7)
        built = world.run(good, late)
        receipts: list[Receipt] = list(built.outcome.receipts)
        db.commit(tables.applied_rows("executed", built.block, [good, late], receipts))
        height = built.block.height
        assert tables.block_hash(height) == built.block.hash()
        assert tables.cursor("executed") == height
        assert tables.cursor("verified") == 0
        assert tables.place(good.hash()) == Place(height, 0, taken=True)
        assert tables.place(late.hash()) == Place(height, 1, taken=False)
        assert tables.nonce(world.actors[0].identity) == 1
        assert tables.nonce(world.actors[1].identity) == 0

    def test_the_outbox_gives_what_is_untaken_in_nonce_order(
        self, db: WorldDb, tables: WorldTables, world: Any
    ) -> None:
        actor = world.actors[2]
        envelopes = [
            world.envelope(actor, ("x", {}), nonce=nonce, expires_at_height=5 + nonce) for nonce in range(3)
        ]
        db.commit(tables.put_outbox(envelopes, 50))
        tables.outbox_changed(3)
        assert tables.outbox_count() == 3
        assert tables.outbox_sendable(b"", 100, 10, 1 << 20) == (envelopes, b"")
        assert tables.outbox_sendable(b"", 100, 2, 1 << 20) == (envelopes[:2], actor.identity)
        assert tables.outbox_sendable(b"", 100, 10, 1) == (envelopes[:1], actor.identity)
        assert tables.outbox_sendable(b"", 49, 10, 1 << 20) == ([], b"")
        assert tables.outbox_by_nonce(actor.identity, 1) == envelopes[1].hash()
        db.commit([Put(Table.NONCES, world.world_id.encode() + actor.identity, (2).to_bytes(8, "big"))])
        assert tables.outbox_sendable(b"", 100, 10, 1 << 20) == (envelopes[2:], b"")
        assert [entry.envelope for entry in tables.outbox_expiring(6)] == envelopes[:2]
        db.commit(tables.drop_outbox(envelopes[:2]))
        tables.outbox_changed(-2)
        assert tables.outbox_expiring(6) == []
        assert tables.outbox_count() == 1
        assert WorldTables(db, world.world_id).outbox_count() == 1

    def test_promises_that_cannot_be_taken_do_not_stand_before_others(
        self, db: WorldDb, tables: WorldTables, world: Any
    ) -> None:
        """Every actor but the last one waits for a nonce that nobody has; its turn comes all the same."""
        actors = sorted(world.actors, key=lambda actor: actor.identity)
        dead = [world.envelope(actor, ("x", {}), nonce=nonce) for actor in actors[:2] for nonce in (1, 2)]
        good = [world.envelope(actors[2], ("x", {}), nonce=nonce) for nonce in (0, 1, 3, 4)]
        db.commit(tables.put_outbox([*dead, *good], 50))
        told = [dead[0], dead[2], *good[:3]]  # one of each that waits: somebody has to know that it does
        assert tables.outbox_sendable(b"", 100, 10, 1 << 20) == (told, b"")
        some, after = tables.outbox_sendable(b"", 100, 2, 1 << 20)
        assert (some, after) == (told[:2], actors[1].identity)
        assert tables.outbox_sendable(after, 100, 2, 1 << 20) == (told[2:4], actors[2].identity)

    def test_a_damaged_row_is_corrupt_and_names_its_table(
        self, db: WorldDb, tables: WorldTables, world: Any
    ) -> None:
        db.commit([Put(Table.HEADS, world.world_id.encode(), b"\xff")])
        with pytest.raises(Corrupt, match="table heads") as caught:
            tables.head()
        assert caught.value.repair

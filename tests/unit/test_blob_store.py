"""One contract suite for the three blob stores; then what only stores on a disk have to stand."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest

from runtime import durable, limits
from runtime.blob_store import BlobStore, MemoryBlobStore
from runtime.codec import content_id
from runtime.errors import Corrupt, Denied, Invalid, Missing, StoreFull, WorldError
from runtime.lmdb_blobs import FILE_BYTES_MIN, LmdbBlobStore
from runtime.local_cas import LocalCasStore

SMALL, LARGE = b"a small blob", b"L" * (FILE_BYTES_MIN + 7)
ON_DISK = ("lmdb", "files")
Open = Callable[..., Any]


@contextmanager
def open_store(kind: str, root: Path, bytes_max: int | None = None) -> Iterator[Any]:
    """A store of one kind; those on disk find what an earlier one left in the same root."""
    if kind == "memory":
        yield MemoryBlobStore(bytes_max)
    elif kind == "files":
        yield LocalCasStore(root, bytes_max)
    else:
        with lmdb.open(str(root / "db"), max_dbs=8, map_size=64 << 20) as env:
            yield LmdbBlobStore(env, LocalCasStore(root), bytes_max)


@pytest.fixture(params=["memory", *ON_DISK])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def store(kind: str, tmp_path: Path) -> Iterator[BlobStore]:
    with open_store(kind, tmp_path) as opened:
        yield opened


def damage(store: Any, content: bytes, root: Path) -> None:
    """Other bytes of the same length in the blob's place, behind the store's back."""
    if isinstance(store, MemoryBlobStore):
        store._blobs[content] = b"!" + store._blobs[content][1:]
        return
    file = root / "blobs" / content.hex()[:2] / f"{content.hex()}.blob"
    if file.exists():
        data = file.read_bytes()
        file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        return
    with store._env.begin(write=True) as txn:
        row = txn.get(content, db=store._small)
        txn.put(content, b"!" + row[1:], db=store._small)


@pytest.mark.parametrize("data", [b"", SMALL, b"x" * (FILE_BYTES_MIN - 1), LARGE])
def test_a_blob_comes_back_under_its_hash(store: BlobStore, data: bytes) -> None:
    content = store.put(data)
    assert content == content_id(data)
    assert store.get(content) == data
    assert store.has(content)
    assert store.stat(content).size == len(data)
    assert list(store.iterate()) == [content]


def test_putting_twice_is_no_mistake(store: BlobStore) -> None:
    assert store.put(SMALL) == store.put(SMALL)
    assert store.put_many([SMALL, LARGE, LARGE]) == [content_id(SMALL), content_id(LARGE)]
    assert len(list(store.iterate())) == 2


def test_what_is_not_held_is_missing(store: BlobStore) -> None:
    absent = content_id(b"absent")
    assert not store.has(absent)
    assert not store.delete(absent)
    assert not store.discard_damaged(absent)
    for ask in (store.get, store.stat, store.pin, store.verify):
        with pytest.raises(Missing):
            ask(absent)
    with pytest.raises(Missing):
        store.get_range(absent, 0, 1)


@pytest.mark.parametrize("bad", [b"", b"short", bytes(31), bytes(33)])
def test_an_id_of_another_length_is_invalid(store: BlobStore, bad: bytes) -> None:
    for ask in (store.get, store.has, store.stat, store.delete, store.verify, store.unpin, store.pin):
        with pytest.raises(Invalid, match="32 bytes"):
            ask(bad)


@pytest.mark.parametrize("data", [SMALL, LARGE])
def test_a_range_is_the_slice(store: BlobStore, data: bytes) -> None:
    content = store.put(data)
    assert store.get_range(content, 2, 5) == data[2:7]
    assert store.get_range(content, len(data) - 3, 100) == data[-3:]
    assert store.get_range(content, len(data), 5) == b""


def test_a_deleted_blob_is_gone_and_a_pinned_one_stays(store: BlobStore) -> None:
    small, large = store.put(SMALL), store.put(LARGE)
    store.pin(large)
    assert store.pins() == [large]
    assert store.stat(large).pinned
    assert store.delete(small)
    assert not store.delete(large)
    assert store.get(large) == LARGE
    assert store.unpin(large)
    assert not store.unpin(large)
    assert store.delete(large)
    assert list(store.iterate()) == []


def test_iterating_goes_on_above_an_id_and_meets_what_stays(store: BlobStore) -> None:
    ids = sorted(store.put_many([bytes([n]) * (9 if n % 2 else FILE_BYTES_MIN) for n in range(12)]))
    assert list(store.iterate()) == ids
    assert list(store.iterate(after=ids[4])) == ids[5:]
    assert list(store.iterate(after=ids[-1])) == []
    met = []
    for content in store.iterate():  # the store changes under the walk, as under a scrub
        met.append(content)
        store.delete(ids[-1])
        store.put(b"fresh %d" % len(met))
    assert set(ids[:-1]) <= set(met)


@pytest.mark.parametrize("data", [SMALL, LARGE])
def test_damage_is_told_by_every_read_and_a_put_heals_it(
    store: BlobStore, data: bytes, tmp_path: Path
) -> None:
    content = store.put(data)
    assert store.verify(content) == len(data)
    assert (
        store.get_range(content, 1, 2) == data[1:3]
    )  # read through once already: the change is seen all the same
    damage(store, content, tmp_path)
    for ask in (store.get, store.verify, lambda held: store.get_range(held, 3, 2)):
        with pytest.raises(Corrupt, match="hash to another id") as caught:
            ask(content)
        assert caught.value.repair
    assert store.put(data) == content
    assert store.get(content) == data
    assert store.get_range(content, 3, 2) == data[3:5]


@pytest.mark.parametrize("data", [SMALL, LARGE])
def test_only_what_is_damaged_is_discarded_and_its_pin_waits(
    store: BlobStore, data: bytes, tmp_path: Path
) -> None:
    content = store.put(data)
    store.pin(content)
    assert not store.discard_damaged(content)
    damage(store, content, tmp_path)
    assert store.discard_damaged(content)
    assert not store.has(content)
    assert store.pins() == list(store.wanted()) == [content]
    store.put(data)
    assert list(store.wanted()) == []
    assert store.stat(content).pinned
    assert store.prune_unpinned(0) == 0


@pytest.mark.parametrize("kind", ON_DISK)
@pytest.mark.parametrize("data", [SMALL, LARGE])
def test_what_was_put_back_sound_meanwhile_is_not_discarded(
    store: BlobStore, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two readers find one damage: the second comes to discard it when it is healed already."""
    content = store.put(data)
    damage(store, content, tmp_path)
    verify = store.verify

    def verify_late(content: bytes) -> int:
        try:
            return verify(content)
        finally:
            store.put(data)

    monkeypatch.setattr(store, "verify", verify_late)
    assert not store.discard_damaged(content)
    assert store.get(content) == data


def test_a_full_store_refuses_all_or_nothing_and_recovers_when_something_goes(
    kind: str, tmp_path: Path
) -> None:
    with open_store(kind, tmp_path, 400_000) as store:
        kept, other = store.put(LARGE), store.put(b"o" * 100_000)
        store.pin(kept)
        with pytest.raises(StoreFull, match="bytes_max"):
            store.put_many([b"p" * 100_000, b"q" * 200_000])
        assert sorted(store.iterate()) == sorted([kept, other])
        assert store.get(kept) == LARGE
        store.put(LARGE)  # what is there needs no room
        assert store.prune_unpinned(len(LARGE)) == 100_000
        store.put(b"q" * 200_000)


def test_prune_frees_unpinned_blobs_down_to_the_limit(store: BlobStore) -> None:
    blobs = [bytes([n]) * 1_000 for n in range(10)]
    ids = store.put_many(blobs)
    store.pin(ids[0])
    assert store.prune_unpinned(10_000) == 0
    assert store.prune_unpinned(4_000) == 6_000
    assert store.prune_unpinned(0) == 3_000
    assert list(store.iterate()) == [ids[0]]


@pytest.mark.parametrize("kind", ON_DISK)
class TestOnDisk:
    def test_blobs_and_pins_are_there_after_reopening(self, kind: str, tmp_path: Path) -> None:
        with open_store(kind, tmp_path) as store:
            small, large = store.put_many([SMALL, LARGE])
            store.pin(small)
            store.pin(large)
            store.unpin(small)
        with open_store(kind, tmp_path) as again:
            assert (again.get(small), again.get(large)) == (SMALL, LARGE)
            assert again.pins() == [large]
            assert again.prune_unpinned(0) == len(SMALL)

    def test_a_truncated_or_empty_file_is_damage(self, kind: str, tmp_path: Path) -> None:
        with open_store(kind, tmp_path) as store:
            content = store.put(LARGE)
            file = next((tmp_path / "blobs").rglob("*.blob"))
            for length in (len(LARGE) - 1, 4_096, 0):
                os.truncate(file, length)
                for ask in (store.get, store.verify, lambda held: store.get_range(held, 0, 10)):
                    with pytest.raises(Corrupt):
                        ask(content)
                store.put(LARGE)
                assert store.get(content) == LARGE

    def test_a_lost_file_is_missing_and_a_put_brings_it_back(self, kind: str, tmp_path: Path) -> None:
        with open_store(kind, tmp_path) as store:
            content = store.put(LARGE)
            next((tmp_path / "blobs").rglob("*.blob")).unlink()
            assert not store.has(content)
            for ask in (store.get, lambda held: store.get_range(held, 0, 1)):
                with pytest.raises(Missing):
                    ask(content)
            store.put(LARGE)
            assert store.get(content) == LARGE

    def test_what_a_crash_left_is_swept_and_foreign_files_are_left_alone(
        self, kind: str, tmp_path: Path
    ) -> None:
        with open_store(kind, tmp_path) as store:
            content = store.put(LARGE)
        folder = tmp_path / "blobs" / content.hex()[:2]
        for leftover in (folder / "x1.tmp", tmp_path / "tmpabc.tmp"):
            leftover.write_bytes(b"half")
        (folder / "notes.blob").write_text("mine")
        (folder / ("z" * 64 + ".blob")).write_text("mine")
        with open_store(kind, tmp_path) as again:
            assert list(again.iterate()) == [content]
        assert not list(tmp_path.rglob("*.tmp"))
        assert (folder / "notes.blob").exists()

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            '{"v": 1}',
            '{"v": 2, "pins": []}',
            '{"v": 1, "pins": ["ab"]}',
            '{"v": 1, "pins": [7]}',
        ],
    )
    def test_a_torn_pins_file_is_refused_with_the_command(self, kind: str, tmp_path: Path, text: str) -> None:
        (tmp_path / "pins.json").write_text(text)
        with pytest.raises(Corrupt, match="not a list of pins") as caught, open_store(kind, tmp_path):
            pass
        assert caught.value.repair == f"mv {tmp_path}/pins.json {tmp_path}/pins.json.damaged"

    def test_a_file_in_the_place_of_the_folder_is_refused(self, kind: str, tmp_path: Path) -> None:
        (tmp_path / "blobs").write_text("x")
        with pytest.raises(Corrupt, match="not a folder") as caught, open_store(kind, tmp_path):
            pass
        assert caught.value.repair.startswith(f"mv {tmp_path}/blobs ")

    def test_pins_are_bounded_and_readable(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "PINS_MAX", 2)
        with open_store(kind, tmp_path) as store:
            ids = store.put_many([b"1", b"2", b"3"])
            store.pin(ids[0])
            store.pin(ids[1])
            with pytest.raises(Denied, match="pins_max"):
                store.pin(ids[2])
        document = json.loads((tmp_path / "pins.json").read_text())
        assert document == {"v": 1, "pins": sorted(content.hex() for content in ids[:2])}

    @pytest.mark.parametrize("call", ["fsync", "replace", "mkstemp"])
    def test_a_disk_that_fills_up_half_way_changes_nothing(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        calls = 0

        def full(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > 1 or call == "replace":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        blobs = [bytes([n]) * FILE_BYTES_MIN for n in range(3)]
        with open_store(kind, tmp_path) as store:
            kept = store.put(LARGE)
            owner: Any = {"fsync": os, "replace": Path, "mkstemp": durable.tempfile}[call]
            real = getattr(owner, call)
            monkeypatch.setattr(owner, call, full)
            with pytest.raises(StoreFull, match="No space left"):
                store.put_many(blobs)
            monkeypatch.undo()
            assert list(store.iterate()) == [kept]
            assert not list(tmp_path.rglob("*.tmp"))
            assert store.get(kept) == LARGE
            store.put_many(blobs)
            assert len(list(store.iterate())) == 4

    def test_threads_that_put_pin_and_prune_leave_what_was_pinned(self, kind: str, tmp_path: Path) -> None:
        blobs = [bytes([n]) * (FILE_BYTES_MIN if n % 2 else 50) for n in range(12)]
        failures: list[BaseException] = []

        with open_store(kind, tmp_path) as store:

            def work(part: int) -> None:
                try:
                    for data in blobs[part::3]:
                        content = store.put(data)
                        while True:
                            try:
                                store.pin(content)
                                break
                            except Missing:  # pruned before it was pinned
                                store.put(data)
                        store.prune_unpinned(0)
                except (WorldError, OSError) as error:
                    failures.append(error)

            threads = [threading.Thread(target=work, args=(part,)) for part in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not failures
            pinned = store.pins()
            assert len(pinned) == len(blobs)
            assert list(store.iterate()) == pinned
            for content in pinned:
                store.verify(content)

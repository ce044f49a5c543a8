"""One contract suite for every blob store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from runtime.blob_store import FILE_BYTES_MIN, BlobStore, LmdbBlobStore, MemoryBlobStore
from runtime.codec import content_id
from runtime.errors import Corrupt, Invalid, Missing, StoreFull

SMALL, LARGE = b"a small blob", b"L" * (FILE_BYTES_MIN + 7)


@pytest.fixture(params=["memory", "lmdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStore]:
    if request.param == "memory":
        yield MemoryBlobStore()
        return
    with lmdb.open(str(tmp_path / "db"), max_dbs=8, map_size=64 << 20) as env:
        yield LmdbBlobStore(env, tmp_path / "blobs")


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
    for ask in (store.get, store.stat, store.pin):
        with pytest.raises(Missing):
            ask(absent)
    with pytest.raises(Missing):
        store.get_range(absent, 0, 1)


@pytest.mark.parametrize("bad", [b"", b"short", bytes(31), bytes(33)])
def test_an_id_of_another_length_is_invalid(store: BlobStore, bad: bytes) -> None:
    for ask in (store.get, store.has, store.stat, store.delete):
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


def test_prune_frees_unpinned_blobs_down_to_the_limit(store: BlobStore) -> None:
    blobs = [bytes([n]) * 1_000 for n in range(10)]
    ids = store.put_many(blobs)
    store.pin(ids[0])
    assert store.prune_unpinned(10_000) == 0
    assert store.prune_unpinned(4_000) == 6_000
    assert store.prune_unpinned(0) == 3_000
    assert list(store.iterate()) == [ids[0]]


def test_a_full_memory_store_refuses_all_or_nothing_and_keeps_reading() -> None:
    store = MemoryBlobStore(bytes_max=20)
    kept = store.put(b"0123456789")
    with pytest.raises(StoreFull, match="bytes_max 20"):
        store.put_many([b"abcde", b"fghijk"])
    assert list(store.iterate()) == [kept]
    assert store.get(kept) == b"0123456789"
    store.put(b"0123456789")


class TestOnDisk:
    @pytest.fixture
    def env(self, tmp_path: Path) -> Iterator[lmdb.Environment]:
        with lmdb.open(str(tmp_path / "db"), max_dbs=8, map_size=1 << 20) as env:
            yield env

    def test_a_damaged_file_is_corrupt_and_a_put_heals_it(
        self, env: lmdb.Environment, tmp_path: Path
    ) -> None:
        store = LmdbBlobStore(env, tmp_path / "blobs")
        content = store.put(LARGE)
        file = next((tmp_path / "blobs").rglob("*.blob"))
        file.write_bytes(b"X" + LARGE[1:])
        with pytest.raises(Corrupt, match="hash to another id") as caught:
            store.get(content)
        assert caught.value.repair
        store.put(LARGE)
        assert store.get(content) == LARGE

    def test_a_lost_file_is_corrupt_and_a_put_heals_it(self, env: lmdb.Environment, tmp_path: Path) -> None:
        store = LmdbBlobStore(env, tmp_path / "blobs")
        content = store.put(LARGE)
        next((tmp_path / "blobs").rglob("*.blob")).unlink()
        for ask in (store.get, lambda held: store.get_range(held, 0, 1)):
            with pytest.raises(Corrupt, match="gone"):
                ask(content)
        store.put(LARGE)
        assert store.get(content) == LARGE

    def test_a_damaged_row_is_corrupt_and_a_put_heals_it(self, env: lmdb.Environment, tmp_path: Path) -> None:
        store = LmdbBlobStore(env, tmp_path / "blobs")
        content = store.put(SMALL)
        with env.begin(write=True) as txn:
            txn.put(content, b"damaged", db=env.open_db(b"blobs", txn))
        with pytest.raises(Corrupt, match="the database"):
            store.get(content)
        store.put(SMALL)
        assert store.get(content) == SMALL

    def test_a_full_map_refuses_writes_and_keeps_reading(self, env: lmdb.Environment, tmp_path: Path) -> None:
        store = LmdbBlobStore(env, tmp_path / "blobs")
        kept = store.put(SMALL)
        with pytest.raises(StoreFull, match="disk_bytes_max"):
            store.put_many([bytes([n]) * 50_000 for n in range(40)])
        assert list(store.iterate()) == [kept]
        assert store.get(kept) == SMALL

    def test_no_temporary_file_is_left(self, env: lmdb.Environment, tmp_path: Path) -> None:
        LmdbBlobStore(env, tmp_path / "blobs").put(LARGE)
        assert [file.suffix for file in (tmp_path / "blobs").rglob("*") if file.is_file()] == [".blob"]

"""The data dir: one process at a time, its own worlds only, small files that are checked when they are read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bootstrap.config import ConfigMistakes, WorldSource
from bootstrap.data_dir import (
    ChosenWorld,
    DataDir,
    DataDirInUse,
    DataDirUnusable,
    GenesisFileBad,
    choose_worlds,
    open_data_dir,
    read_genesis_file,
)
from runtime.errors import Corrupt
from runtime.genesis import make_body, make_genesis
from runtime.keys import SigningKey
from runtime.limits import GENESIS_BYTES_MAX
from runtime.records import Bounds, Genesis

PEER = "12D3KooWPDzoJUKJ6nCvkS7D277fw1STZUU2VjWYBVfzGKLdhSBV"
ADDR = f"/ip4/127.0.0.1/tcp/4101/p2p/{PEER}"


def make(name: str) -> Genesis:
    key = SigningKey(b"k" * 32).identity
    body = make_body(bounds=Bounds(0, 1, 0, 1, 0, 1), max_move_cm=1, resource_kinds=[], balances={})
    return make_genesis(
        name=name,
        root_keys=[key],
        root_threshold=1,
        proposers=[key],
        executors=[key],
        certifier=key,
        body=body,
        created_ms=1,
    )


def test_a_data_dir_is_made_and_its_lock_holds_the_pid(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with open_data_dir(path) as held:
        assert held.lock_path.read_text() == f"{os.getpid()}\n"
        assert DataDir(path).is_locked()
    assert not DataDir(path).is_locked()


def test_a_second_holder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with open_data_dir(tmp_path):
        with pytest.raises(DataDirInUse) as caught, open_data_dir(tmp_path):
            pass
        assert caught.value.pid == os.getpid()
        assert f"in use by process {os.getpid()}" in str(caught.value)
    with open_data_dir(tmp_path):
        pass


def test_a_killed_holder_gives_the_data_dir_back(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from bootstrap.data_dir import open_data_dir\n"
        "with open_data_dir(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DataDirInUse) as caught, open_data_dir(tmp_path):
            pass
        assert caught.value.pid == holder.pid
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with open_data_dir(tmp_path) as held:
        assert held.lock_path.read_text() == f"{os.getpid()}\n"


def test_a_file_in_the_place_of_the_data_dir_is_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    for wrong in (path, path / "below"):
        with pytest.raises(DataDirUnusable, match="is a file, not a folder"), open_data_dir(wrong):
            pass


def test_a_data_dir_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any, **_more: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataDirUnusable, match="is not writable"), open_data_dir(tmp_path):
        pass


def test_a_kept_genesis_is_found_by_its_world_id(tmp_path: Path) -> None:
    genesis = make("lab")
    with open_data_dir(tmp_path) as held:
        held.keep_genesis(genesis)
        held.keep_genesis(genesis)
        assert held.world_ids() == [genesis.header.world_id]
        assert held.genesis(genesis.header.world_id) == genesis
        assert held.genesis("a" * 32) is None
        assert choose_worlds(held, []) == [ChosenWorld(genesis.header.world_id, genesis)]
        assert choose_worlds(held, [WorldSource(id=genesis.header.world_id)])[0].genesis == genesis


def test_a_kept_genesis_with_one_changed_bit_is_corrupt_and_says_what_repairs_it(tmp_path: Path) -> None:
    genesis = make("lab")
    with open_data_dir(tmp_path) as held:
        held.keep_genesis(genesis)
        path = held.genesis_path(genesis.header.world_id)
        good = path.read_bytes()
        for bit in range(0, len(good) * 8, 97):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bad)
            with pytest.raises(Corrupt) as caught:
                choose_worlds(held, [])
            assert caught.value.where == str(path)
            assert caught.value.repair.startswith("mv ")


def test_a_data_dir_of_another_world_is_refused(tmp_path: Path) -> None:
    mine, other = make("mine"), make("other")
    path = tmp_path / "other.genesis"
    path.write_bytes(other.to_bytes())
    with open_data_dir(tmp_path / "data") as held:
        held.keep_genesis(mine)
        with pytest.raises(DataDirUnusable, match="belongs to world") as caught:
            choose_worlds(held, [WorldSource(genesis=path)])
        assert caught.value.try_this == "another --data-dir"
        both = choose_worlds(held, [WorldSource(genesis=path), WorldSource(id=mine.header.world_id)])
        assert [world.genesis for world in both] == [other, mine]


def test_all_bad_genesis_files_are_told_at_once(tmp_path: Path) -> None:
    good = tmp_path / "good.genesis"
    good.write_bytes(make("lab").to_bytes())
    large = tmp_path / "large.genesis"
    large.write_bytes(bytes(GENESIS_BYTES_MAX + 1))
    cut = tmp_path / "cut.genesis"
    cut.write_bytes(good.read_bytes()[:-1])
    sources = [WorldSource(genesis=path) for path in (tmp_path / "none", large, cut, good, good)]
    with pytest.raises(ConfigMistakes) as caught:
        choose_worlds(DataDir(tmp_path), sources)
    told = [f"{mistake.what}: {mistake.why}" for mistake in caught.value.mistakes]
    assert len(told) == 4
    for text, why in zip(
        told, ("No such file", "genesis_bytes_max", "is no genesis", "is named twice"), strict=True
    ):
        assert why in text


def test_a_folder_in_the_place_of_a_genesis_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(GenesisFileBad, match="Is a directory"):
        read_genesis_file(tmp_path)


def test_the_address_file_counts_only_while_the_node_runs(tmp_path: Path) -> None:
    with open_data_dir(tmp_path) as held:
        assert held.running_addrs() == []
        held.write_address(PEER, [ADDR, ADDR.replace("/p2p/", "/ws/p2p/")])  # who reads it dials TCP
        assert DataDir(tmp_path).running_addrs() == [ADDR]
    assert DataDir(tmp_path).running_addrs() == []
    with open_data_dir(tmp_path) as held:
        held.remove_address()
        held.remove_address()
        assert held.running_addrs() == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"addrs": [3]}', '{"addrs": ["/ip4/1.2.3.4/tcp/1"]}', '{"addrs": 3}']
)
def test_a_damaged_address_file_is_told(tmp_path: Path, text: str) -> None:
    with open_data_dir(tmp_path) as held:
        held.address_path.write_text(text)
        with pytest.raises(Corrupt, match="is not an address file"):
            held.running_addrs()


def test_worlds_named_otherwise_are_not_taken_for_worlds(tmp_path: Path) -> None:
    with open_data_dir(tmp_path) as held:
        held.worlds_path.mkdir()
        (held.worlds_path / "notes.genesis").write_text("x")
        (held.worlds_path / ("a" * 32 + ".genesis.tmp")).write_text("x")
        assert held.world_ids() == []

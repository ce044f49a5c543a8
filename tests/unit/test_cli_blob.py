"""`aw blob` on the store of a stopped node, and how client commands find whom to ask."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bootstrap.cli import main
from bootstrap.cli.reach import node_addrs
from bootstrap.data_dir import open_data_dir
from p2p import names
from runtime import codec

PEER = names.peer_text(names.PEER_ID_PREFIX + bytes(32))
ADDRS = [f"/ip4/127.0.0.1/tcp/{port}/p2p/{PEER}" for port in (1, 2, 3)]


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("AW_NODE", "AW_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("data", [b"", b"hello", bytes(range(256)) * 1_000])
def test_a_blob_that_is_put_is_got_again_by_hash_and_by_cid(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], data: bytes
) -> None:
    (tmp_path / "file").write_bytes(data)
    assert main(["blob", "put", "file", "--json"]) == 0
    put = json.loads(capsysbinary.readouterr().out)
    assert put == {"content_id": codec.content_id(data).hex(), "cid": put["cid"], "size": len(data)}
    for name in (put["content_id"], put["cid"]):
        assert main(["blob", "get", name]) == 0
        assert capsysbinary.readouterr().out == data
    assert main(["blob", "stat", put["cid"], "--json"]) == 0
    assert json.loads(capsysbinary.readouterr().out) == put | {"held": True}


def test_what_is_put_is_pinned_until_it_is_unpinned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    assert main(["blob", "put", "file"]) == 0
    content_id = capsys.readouterr().out.strip()
    assert main(["blob", "prune", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"bytes_freed": 0}
    assert main(["blob", "pins", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"pins": [content_id]}
    assert main(["blob", "unpin", content_id]) == 0
    assert main(["blob", "unpin", content_id]) == 1
    assert main(["blob", "pins"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["blob", "prune"]) == 0
    assert capsys.readouterr().out == "4 bytes freed\n"
    assert main(["blob", "stat", content_id]) == 1


def test_what_is_not_held_is_exit_1_for_stat_and_3_for_get_and_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = "ab" * 32
    for arguments in ([], ["--data-dir", "none"]):
        assert main(["blob", "stat", unknown, *arguments]) == 1
        assert main(["blob", "get", unknown, *arguments]) == 3
        assert f"error: blob {unknown}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_blob_is_exit_4_and_never_given_out(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    data = bytes(range(256)) * 1_000
    (tmp_path / "file").write_bytes(data)
    assert main(["blob", "put", "file"]) == 0
    content_id = capsysbinary.readouterr().out.decode().strip()
    (stored,) = (tmp_path / "aw-data" / "blobs").rglob("*.blob")
    stored.write_bytes(data[:-1] + b"x")
    assert main(["blob", "get", content_id]) == 4
    shown = capsysbinary.readouterr()
    assert shown.out == b""
    assert b"\ntry: " in shown.err
    assert main(["blob", "put", "file"]) == 0  # heals it
    capsysbinary.readouterr()
    assert main(["blob", "get", content_id]) == 0
    assert capsysbinary.readouterr().out == data


def test_a_file_to_write_is_never_overwritten_and_is_looked_at_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("precious")
    assert main(["blob", "get", "ab" * 32, "--out", "out"]) == 2
    assert "out: is there already" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "precious"


@pytest.mark.parametrize("text", ["", "xyz", "ab" * 31, "ab" * 33, "bafkqaaa"])
def test_what_is_no_id_is_wrong_use(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert main(["blob", "stat", text]) == 2
    assert capsys.readouterr().err.startswith("error: aw blob stat: Invalid value for ID: ")


def test_the_nodes_given_come_before_the_variable_and_that_before_the_data_dir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_data_dir(tmp_path) as held:
        held.write_address(PEER, [ADDRS[2]])
        assert node_addrs([], tmp_path) == [ADDRS[2]]
        monkeypatch.setenv("AW_NODE", f"{ADDRS[1]}, {ADDRS[2]}")
        assert node_addrs([], tmp_path) == ADDRS[1:]
        assert node_addrs(ADDRS[:1], tmp_path) == ADDRS[:1]


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["head", "lab"], ["verify", "a" * 32], ["submit", "--world", "w", "--key", "k", "x"]],
)
def test_without_any_node_to_ask_it_is_exit_3_and_says_what_to_try(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["key", "new", "k"]) == 0
    capsys.readouterr()
    assert main(arguments) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    option = "--bootstrap" if arguments[0] == "verify" else "--node"
    assert shown.err == (
        f"error: no node to ask: no {option}, no AW_NODE, and no node runs in aw-data\n"
        f"try: {option} /ip4/HOST/tcp/PORT/p2p/PEER_ID\n"
    )


def test_a_world_that_cannot_be_one_is_told_before_anybody_is_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["verify", "lab", "--bootstrap", ADDRS[0]]) == 2
    assert "neither a genesis file nor an id of 32 characters" in capsys.readouterr().err

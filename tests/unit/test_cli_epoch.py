"""`aw world epoch` and `aw evidence` on files: made, signed one key at a time, shown, judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bootstrap.cli import main
from bootstrap.data_dir import read_authorities_file, read_genesis_file
from p2p import names
from runtime.evidence import commit_fork
from runtime.genesis import check_authorities
from runtime.keys import SigningKey
from runtime.records import Commit, seal

KEYS = {name: SigningKey(bytes([number]) * 32) for number, name in enumerate("abcd", 1)}
PEERS = {name: names.peer_text(key.identity) for name, key in KEYS.items()}
BATCH = "11" * 32


@pytest.fixture(autouse=True)
def _world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A world with three root keys, two of which are needed."""
    monkeypatch.chdir(tmp_path)
    roots = []
    for number in range(3):
        assert main(["key", "new", f"root{number}.key"]) == 0
        roots += ["--root-key", f"root{number}.key"]
    arguments = [
        "--name",
        "lab",
        "--proposer",
        PEERS["a"],
        "--executor",
        PEERS["b"],
        "--certifier",
        PEERS["c"],
    ]
    assert main(["world", "create", *arguments, *roots, "--root-threshold", "2"]) == 0
    capsys.readouterr()


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    """The answer of a command as JSON, or its error text."""
    assert main([*arguments, *(["--json"] if code in (0, 1) else [])]) == code
    told = capsys.readouterr()
    return json.loads(told.out) if told.out else told.err


def new(capsys: pytest.CaptureFixture[str], *more: str) -> Any:
    return run(
        capsys, "world", "epoch", "new", "lab.genesis", "--resume-height", "7", "--resume-batch", BATCH, *more
    )


def test_a_new_set_keeps_what_is_not_replaced_and_names_what_it_resumes_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = new(capsys, "--certifier", PEERS["d"])
    assert made["file"] == "lab-epoch-1.authorities"
    assert (made["epoch"], made["resume_height"], made["resume_batch"]) == (1, 7, BATCH)
    assert (made["proposers"], made["executors"], made["certifier"]) == (
        [PEERS["a"]],
        [PEERS["b"]],
        PEERS["d"],
    )
    assert (made["complete"], made["missing"]) == (False, 2)
    assert "already" in run(capsys, "world", "epoch", "new", "lab.genesis", "--resume-height", "0", code=2)


def test_each_root_key_signs_where_it_lies_until_enough_have(capsys: pytest.CaptureFixture[str]) -> None:
    new(capsys, "--out", "next.authorities")
    show = ["world", "epoch", "show", "next.authorities", "--world", "lab.genesis"]
    sign = ["world", "epoch", "sign", "next.authorities", "--world", "lab.genesis", "--key"]
    assert run(capsys, *show, code=1)["missing"] == 2
    assert run(capsys, *sign, "root2.key")["missing"] == 1
    assert run(capsys, *sign, "root2.key")["missing"] == 1  # the same key twice is one signature
    shown = run(capsys, *show, code=1)
    assert not shown["complete"]
    assert sum(item["holds"] for item in shown["signatures"]) == 1
    assert run(capsys, *sign, "root0.key")["complete"]
    shown = run(capsys, *show)
    assert [item["signed"] for item in shown["signatures"]] == [item["holds"] for item in shown["signatures"]]
    header = read_genesis_file(Path("lab.genesis")).header
    assert check_authorities(header, read_authorities_file(Path("next.authorities"))).epoch == 1
    before = Path("next.authorities").read_bytes()
    assert main([*sign, "root1.key"]) == 1  # exactly as many as the threshold
    assert "has all 2 signatures" in capsys.readouterr().err
    assert Path("next.authorities").read_bytes() == before


def test_a_key_that_is_no_root_key_and_a_file_of_another_world_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    new(capsys, "--out", "next.authorities")
    assert main(["key", "new", "stranger.key"]) == 0
    capsys.readouterr()
    told = run(
        capsys,
        "world",
        "epoch",
        "sign",
        "next.authorities",
        "--world",
        "lab.genesis",
        "--key",
        "stranger.key",
        code=2,
    )
    assert "is no root key of this world" in told
    arguments = ["--proposer", PEERS["a"], "--executor", PEERS["b"], "--certifier", PEERS["c"]]
    assert main(["world", "create", "--name", "other", *arguments, "--root-key", "root0.key"]) == 0
    capsys.readouterr()
    told = run(
        capsys,
        "world",
        "epoch",
        "sign",
        "next.authorities",
        "--world",
        "other.genesis",
        "--key",
        "root0.key",
        code=2,
    )
    assert "is of world" in told
    shown = run(capsys, "world", "epoch", "show", "next.authorities", "--world", "other.genesis", code=1)
    assert not shown["complete"]


def test_a_signature_of_a_changed_file_does_not_hold_and_is_replaced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    new(capsys, "--out", "one.authorities")
    new(capsys, "--out", "two.authorities", "--certifier", PEERS["d"])
    sign = ["world", "epoch", "sign", "one.authorities", "--world", "lab.genesis", "--key"]
    run(capsys, *sign, "root0.key")
    one, two = (read_authorities_file(Path(f"{name}.authorities")) for name in ("one", "two"))
    Path("two.authorities").write_bytes(type(two)(two.authorities, one.signatures).to_bytes())
    shown = run(capsys, "world", "epoch", "show", "two.authorities", "--world", "lab.genesis", code=1)
    assert [item["signed"] for item in shown["signatures"]].count(True) == 1
    assert shown["missing"] == 2
    sign[3] = "two.authorities"
    assert run(capsys, *sign, "root1.key")["missing"] == 1


def test_the_epoch_after_next_goes_on_from_the_file_before(capsys: pytest.CaptureFixture[str]) -> None:
    new(capsys, "--out", "one.authorities", "--certifier", PEERS["d"])
    after = ["--after", "one.authorities", "--out", "two.authorities"]
    told = run(capsys, "world", "epoch", "new", "lab.genesis", "--resume-height", "0", *after, code=2)
    assert "one.authorities: authorities.signatures" in told  # not signed yet
    for number in (0, 1):
        run(
            capsys,
            "world",
            "epoch",
            "sign",
            "one.authorities",
            "--world",
            "lab.genesis",
            "--key",
            f"root{number}.key",
        )
    made = run(capsys, "world", "epoch", "new", "lab.genesis", "--resume-height", "0", *after)
    assert (made["epoch"], made["certifier"], made["resume_height"]) == (2, PEERS["d"], 0)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--resume-height", "7", "--resume-batch", "zz"], "64 hex digits"),
        (["--resume-height", "7", "--resume-batch", "11"], "64 hex digits"),
        (["--resume-height", "0", "--certifier", "nobody"], "neither a peer id"),
    ],
)
def test_wrong_arguments_are_told(capsys: pytest.CaptureFixture[str], arguments: list[str], why: str) -> None:
    assert why in run(capsys, "world", "epoch", "new", "lab.genesis", *arguments, code=2)


def test_without_a_node_the_batch_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no node to ask" in run(capsys, "world", "epoch", "new", "lab.genesis", code=3)


def test_a_file_that_is_no_set_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.authorities").write_bytes(b"text")
    told = run(capsys, "world", "epoch", "show", "bad.authorities", "--world", "lab.genesis", code=2)
    assert "is no authority set" in told


# --- evidence ----------------------------------------------------------------------------------------------


def evidence_file(certifier: SigningKey) -> Path:
    world_id = read_genesis_file(Path("lab.genesis")).header.world_id
    commits = [
        seal(Commit(world_id, 0, 1, 5, bytes([number]) * 32, certifier.identity, 1_000), certifier)
        for number in (1, 2)
    ]
    path = Path("fork.evidence")
    path.write_bytes(commit_fork(*commits).preimage())
    return path


def test_evidence_in_a_file_is_verified_with_nothing_but_the_genesis(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = evidence_file(KEYS["c"])
    verdict = run(capsys, "evidence", "verify", "lab.genesis", str(path))
    assert (verdict["holds"], verdict["kind"], verdict["accused"]) == (True, "commit_fork", PEERS["c"])
    assert (verdict["epoch"], verdict["height"], verdict["halts"]) == (0, 5, True)
    shown = run(capsys, "evidence", "show", "lab.genesis", str(path))
    assert [shown[side]["record"]["batch_hash"] for side in ("first", "second")] == ["01" * 32, "02" * 32]


def test_evidence_by_a_key_that_certifies_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    verdict = run(capsys, "evidence", "verify", "lab.genesis", str(evidence_file(KEYS["a"])), code=1)
    assert (verdict["holds"], verdict["verdict"]) == (False, "refused")
    assert "is no certifier" in verdict["why"]


def test_evidence_of_an_older_epoch_is_refused_under_a_later_set(capsys: pytest.CaptureFixture[str]) -> None:
    path = evidence_file(KEYS["c"])
    new(capsys, "--out", "one.authorities")
    for number in (0, 1):
        run(
            capsys,
            "world",
            "epoch",
            "sign",
            "one.authorities",
            "--world",
            "lab.genesis",
            "--key",
            f"root{number}.key",
        )
    arguments = ["evidence", "verify", "lab.genesis", str(path), "--authorities", "one.authorities"]
    assert "epoch" in run(capsys, *arguments, code=1)["why"]


def test_what_is_no_evidence_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad").write_bytes(b"aw/commit/1\x00")
    assert "is no evidence" in run(capsys, "evidence", "verify", "lab.genesis", "bad", code=2)
    assert "neither a file nor a hash" in run(capsys, "evidence", "show", "lab", "12", code=2)

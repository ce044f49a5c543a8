"""`aw key` and `aw world`: files that are made once, and a genesis out of flags or a form with every mistake told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bootstrap.cli import main
from bootstrap.data_dir import open_data_dir, read_genesis_file
from p2p import names
from runtime.keys import SigningKey

PEERS = [names.peer_text(SigningKey(bytes([number]) * 32).identity) for number in range(5)]
AUTHORITIES = [
    "--proposer",
    PEERS[0],
    "--executor",
    PEERS[1],
    "--certifier",
    PEERS[2],
    "--root-key",
    PEERS[3],
]


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_new_key_is_secret_and_shows_the_same_id_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["key", "new", "a.key", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600
    assert main(["key", "show", "a.key", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == made
    assert names.peer_from_text(shown["peer_id"]).hex().endswith(shown["public_key"])
    assert main(["key", "show", "a.key"]) == 0
    assert shown["peer_id"] in capsys.readouterr().out


def test_a_key_file_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.key").write_text("precious")
    assert main(["key", "new", "a.key"]) == 2
    assert "a.key: is there already" in capsys.readouterr().err
    assert (tmp_path / "a.key").read_text() == "precious"


@pytest.mark.parametrize("data", [b"", b"text", bytes(36), bytes(100_000)])
def test_a_file_that_is_no_key_is_told_without_its_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    (tmp_path / "a.key").write_bytes(data)
    assert main(["key", "show", "a.key"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: key file a.key: ")
    assert "text" not in shown.err.removeprefix("error: key file a.key: ")


def test_a_missing_key_file_says_how_to_make_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "show", "none.key"]) == 2
    assert "try: aw key new none.key" in capsys.readouterr().err


def test_a_world_from_flags_is_what_its_file_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *("world", "create", "--name", "lab", *AUTHORITIES, "--created-ms", "5", "--max-move-cm", "9"),
        *(
            "--bounds",
            "-1:1,-2:2,0:3",
            "--resource",
            "gold",
            "--resource",
            "fuel",
            "--limit",
            "block_fuel_max=7000",
        ),
        *("--balance", f"{PEERS[4]}:fuel:12", "--checkpoint-interval", "8", "--max-block-gap-ms", "1000"),
    ]
    assert main([*arguments, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["file"] == "lab.genesis"
    assert main(["world", "show", "lab.genesis", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (
        shown["world_id"] == made["world_id"] == read_genesis_file(tmp_path / "lab.genesis").header.world_id
    )
    assert shown["proposers"] == [PEERS[0]]
    assert shown["certifier"] == PEERS[2]
    assert shown["bounds"]["y_min_cm"] == -2
    assert shown["resource_kinds"] == ["fuel", "gold"]
    assert shown["balances"] == [{"actor": PEERS[4], "kind": "fuel", "amount": 12}]
    assert shown["limits"]["block_fuel_max"] == 7_000
    assert (shown["max_move_cm"], shown["checkpoint_interval"], shown["max_block_gap_ms"]) == (9, 8, 1_000)


FORM: dict[str, Any] = {
    "name": "lab",
    "proposers": [PEERS[0]],
    "executors": [PEERS[1]],
    "certifier": PEERS[2],
    "root_keys": [PEERS[3]],
    "created_ms": 5,
}


def form(**more: Any) -> str:
    """A TOML form; values are JSON, which TOML reads for the shapes used here."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in (FORM | more).items())


def test_the_same_form_gives_the_same_world_and_a_flag_replaces_a_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lab.toml").write_text(form())
    ids: list[str] = []
    for extra in ([], [], ["--name", "other"]):
        assert main(["world", "create", "--from", "lab.toml", "--out", f"{len(ids)}.genesis", *extra]) == 0
        ids.append(capsys.readouterr().out)
    assert ids[0] == ids[1] != ids[2]


def test_a_key_file_of_a_form_lies_beside_the_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sub").mkdir()
    assert main(["key", "new", "sub/c.key"]) == 0
    peer = capsys.readouterr().out.strip()
    (tmp_path / "sub" / "lab.toml").write_text(form(certifier="c.key"))
    assert main(["world", "create", "--from", "sub/lab.toml"]) == 0
    capsys.readouterr()
    assert main(["world", "show", "lab.genesis", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["certifier"] == peer


def test_a_genesis_file_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lab.genesis").write_text("precious")
    assert main(["world", "create", "--name", "lab", *AUTHORITIES]) == 2
    assert "lab.genesis: is there already" in capsys.readouterr().err
    assert (tmp_path / "lab.genesis").read_text() == "precious"


def test_all_mistakes_of_a_command_line_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    flags = {
        "--name": "Bad Name",
        "--proposer": "zz",
        "--bounds": "0:10",
        "--max-move-cm": "-1",
        "--root-threshold": "many",
        "--resource": "GOLD",
        "--balance": "x:y",
        "--limit": "block_fuel_max=none",
    }
    assert main(["world", "create", *(word for pair in flags.items() for word in pair)]) == 2
    lines = capsys.readouterr().err.splitlines()
    whats = {line.split(": ")[1] for line in lines}
    assert whats == {
        *("name", "proposers[0]", "--bounds", "max_move_cm", "root_threshold", "resource_kinds[0]"),
        *("--balance", "--limit", "executors", "certifier", "root_keys"),
    }
    assert len(lines) == len(whats)


def test_all_mistakes_of_a_form_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        form(
            proposers=["nobody"],
            executors=[],
            certifier=3,
            max_move="1",
            max_move_cm="1",
            resource_kinds=["a", "a"],
        )
        + '[bounds]\nx_mni_cm = 1\n[limits]\naction_skew = 1\n[[balance]]\nactor = "x"\n'
    )
    (tmp_path / "lab.toml").write_text(text)
    assert main(["world", "create", "--from", "lab.toml"]) == 2
    shown = capsys.readouterr().err
    for what in (
        "max_move: unknown key; nearest: max_move_cm",
        "bounds.x_mni_cm: unknown key; nearest: x_min_cm",
        "limits.action_skew: unknown key; nearest: action_skew_ms",
        "max_move_cm: must be an integer",
        "resource_kinds: holds a kind twice",
        "balance[0]: must hold exactly actor, kind and amount",
        "proposers[0]: 'nobody' is neither a peer id",
        "executors: is needed",
        "certifier: is needed",
    ):
        assert f"error: {what}" in shown
    assert not (tmp_path / "lab.genesis").exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"name": "No Good"}, "error: name: must match"),
        ({"root_threshold": 2}, "error: root_threshold: must be at most the number of root keys, 1"),
        ({"checkpoint_interval": 0}, "error: checkpoint_interval: must be an integer 1.."),
        ({"bounds": None}, "error: "),
        ({"created_ms": -1}, "error: created_ms: must be an integer 0.."),
    ],
)
def test_a_value_beyond_its_limit_is_told_with_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], line: str
) -> None:
    text = form(**{key: value for key, value in changes.items() if value is not None})
    if "bounds" in changes:
        text += "[bounds]\nx_min_cm = 9\nx_max_cm = 8\n"
        line += "bounds.x_min_cm: must be at most x_max_cm"
    (tmp_path / "lab.toml").write_text(text)
    assert main(["world", "create", "--from", "lab.toml"]) == 2
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--bounds", "1:2"], "is not X0:X1,Y0:Y1,Z0:Z1"),
        (["--bounds", "a:1,0:1,0:1"], "is not X0:X1,Y0:Y1,Z0:Z1 in integers"),
        (["--balance", "x:1"], "is not KEY:KIND:AMOUNT"),
        (["--limit", "x"], "is not NAME=VALUE"),
        (["--limit", "x=1"], "limits.x: unknown key"),
        (["--balance", f"{PEERS[0]}:fuel:1"], "kind fuel is not in resource_kinds"),
    ],
)
def test_a_flag_that_cannot_be_read_is_wrong_use(
    capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    assert main(["world", "create", "--name", "lab", *AUTHORITIES, *arguments]) == 2
    assert why in capsys.readouterr().err


def test_a_genesis_with_one_changed_bit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["world", "create", "--name", "lab", *AUTHORITIES]) == 0
    world_id = capsys.readouterr().out.strip()
    good = (tmp_path / "lab.genesis").read_bytes()
    for bit in range(0, len(good) * 8, 61):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        (tmp_path / "bad.genesis").write_bytes(bad)
        code = main(["world", "show", "bad.genesis", "--json"])
        shown = capsys.readouterr()
        # What the header itself says (its name, a root key) makes another world; all else contradicts the header.
        if code == 0:
            assert json.loads(shown.out)["world_id"] != world_id
        else:
            assert code == 2
            assert shown.err.startswith("error: bad.genesis: is no genesis: ")


def test_a_world_is_shown_by_its_id_from_the_data_dir(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["world", "create", "--name", "lab", *AUTHORITIES]) == 0
    world_id = capsys.readouterr().out.strip()
    with open_data_dir(tmp_path / "node") as held:
        held.keep_genesis(read_genesis_file(tmp_path / "lab.genesis"))
    assert main(["world", "show", world_id, "--data-dir", "node"]) == 0
    assert world_id in capsys.readouterr().out
    assert main(["world", "show", "a" * 32, "--data-dir", "node"]) == 2
    assert "no genesis in node/worlds" in capsys.readouterr().err

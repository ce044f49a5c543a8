"""A data dir whose files were torn while the node was down: the node repairs it, or says with exit 4 what to run.

Every node is a process. `try:` lines are run as they stand, and must help.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime.lmdb_blobs import FILE_BYTES_MIN

pytestmark = [pytest.mark.network, pytest.mark.timeout(900)]

AW = [sys.executable, "-m", "bootstrap.cli"]
PATIENCE_S = 200
ENV = {key: value for key, value in os.environ.items() if not key.startswith("AW_")}
ALL_ROLES = "gateway,sequencer,coordinator,executor,storage,index"


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


@contextmanager
def running(folder: Path, data_dir: str, *more: str) -> Iterator[dict[str, Any]]:
    """A node until the block is left; gives its ready event. Fails with its log when it does not start."""
    command = [*AW, "node", "--data-dir", data_dir, "--listen", "/ip4/127.0.0.1/tcp/0", "--json", *more]
    with (
        (folder / f"{data_dir}.log").open("w+") as log,
        subprocess.Popen(
            command, cwd=folder, env=ENV, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (folder / f"{data_dir}.log").read_text()
            yield json.loads(line)
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
    assert process.returncode == 0


def node_arguments(folder: Path) -> list[str]:
    return ["--role", ALL_ROLES, "--world", str(folder / "lab.genesis")]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a world and the data dir `node` of a node that has run, with blocks, a large blob and a pin."""
    folder = tmp_path_factory.mktemp("lived")
    for file in ("node/identity.key", "me.key"):
        assert aw(folder, "key", "new", file).returncode == 0
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
    (folder / "actions.jsonl").write_text(
        "".join(
            json.dumps({"kind": "say", "payload": {"text": f"{number % 10}" * 15_000}}) + "\n"
            for number in range(30)
        )
    )
    with running(folder, "node", *node_arguments(folder)):
        submit(folder, "node")
    (folder / "mine").write_bytes(b"m" * (FILE_BYTES_MIN + 1))
    assert aw(folder, "blob", "put", "mine", "--data-dir", "node").returncode == 0
    assert len(list((folder / "node" / "blobs").rglob("*.blob"))) > 1
    return folder


def submit(folder: Path, data_dir: str) -> None:
    """Have thirty actions in a few blocks (the kernel knows none of them: the envelope is taken all the same)."""
    done = aw(
        folder, "submit", "--world", "lab.genesis", "--key", "me.key", "--file", "actions.jsonl",
        "--batch", "2", "--wait", "verified", "--data-dir", data_dir, "--json", "--timeout", "150",
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    assert all(line["outcome"] in ("verified", "refused") for line in lines), done.stdout


@pytest.fixture
def folder(lived: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-a", f"{lived}/.", tmp_path], check=True)
    return tmp_path


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def scribble(path: Path) -> None:
    size = max(path.stat().st_size, 64)
    path.write_bytes(b"\xa5no such file\x00" * (size // 13))


DAMAGE: list[Callable[[Path], None]] = [cut, empty, scribble]


@pytest.mark.parametrize("how", DAMAGE, ids=lambda how: how.__name__)
def test_what_is_only_a_hint_is_repaired_without_a_word_from_the_operator(
    folder: Path, how: Callable[[Path], None]
) -> None:
    for name in ("peers.json", "address.json", "node.lock", "db/lock.mdb"):
        path = folder / "node" / name
        if not path.exists():  # gone after a clean stop; a crash leaves it
            path.write_text('{"v": 1, "pid": 1, "addrs": [], "peers": []}')
        how(path)
    with running(folder, "node", *node_arguments(folder)) as ready:
        assert ready["event"] == "ready"
        status = aw(folder, "status", "--data-dir", "node", "--json")
        assert status.returncode == 0, status.stderr
        assert json.loads(status.stdout)["worlds"][0]["executed"] >= 1


@pytest.mark.parametrize("name", ["db/data.mdb", "pins.json", "identity.key", "genesis"])
def test_what_only_the_operator_can_decide_is_refused_with_the_command_that_helps(
    folder: Path, name: str
) -> None:
    path = folder / "node" / name
    if name == "genesis":
        (path,) = (folder / "node" / "worlds").iterdir()
    hint = ""
    for how in (empty, cut, scribble):
        how(path)
        if (
            name == "db/data.mdb" and how is empty
        ):  # what a first start leaves that was killed: it is made anew
            path.write_bytes(b"xx")
        refused = aw(folder, "node", "--data-dir", "node", "--listen", "/ip4/127.0.0.1/tcp/0")
        assert refused.returncode == 4, refused.stderr
        error, hint = refused.stderr.splitlines()[-2:]
        assert error.startswith("error: ")
        assert path.name in error or str(path.parent) in error
        assert hint.startswith("try: mv ")
    subprocess.run(shlex.split(hint.removeprefix("try: ")), cwd=folder, check=True)
    roles = "observer" if name == "identity.key" else ALL_ROLES  # another key is another node
    with running(folder, "node", "--role", roles, "--world", str(folder / "lab.genesis")) as ready:
        assert ready["event"] == "ready"


def test_a_torn_blob_of_an_observer_is_fetched_again_at_start_and_by_the_scrub(folder: Path) -> None:
    with running(folder, "node", *node_arguments(folder)) as ready:
        addr = ready["addrs"][0]
        height = wait_for(folder, "node", lambda status: True)["worlds"][0]["executed"]
        more = ["--role", "observer", "--world", str(folder / "lab.genesis"), "--bootstrap", addr]
        more += ["--limit", "scrub_interval_ms=1000"]
        with running(folder, "other", *more):
            wait_for(folder, "other", lambda status: (status["worlds"][0]["verified"] or 0) >= height)
        held = min((folder / "other" / "blobs").rglob("*.blob"))
        sound = held.read_bytes()
        cut(held)
        with running(folder, "other", *more):  # the list of a batch: without it nothing can be replayed
            wait_for(folder, "other", lambda status: status["counters"].get("store.healed", 0) >= 1)
            assert held.read_bytes() == sound
            scribble(held)  # while it runs
            wait_for(folder, "other", lambda status: status["counters"].get("store.healed", 0) >= 2)
            assert held.read_bytes() == sound
            counters = wait_for(
                folder, "other", lambda status: status["counters"].get("scrub.bytes", 0) > len(sound)
            )["counters"]
            assert counters["store.damaged"] == 2
            assert counters["scrub.rounds"] >= 1
            got = aw(folder, "blob", "get", held.stem, "--out", "got", "--data-dir", "other")
            assert got.returncode == 0, got.stderr
            assert (folder / "got").read_bytes() == sound


def wait_for(folder: Path, data_dir: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Ask for the status until it is so: each ask takes a process, that is pause enough."""
    status: dict[str, Any] = {}
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        asked = aw(folder, "status", "--data-dir", data_dir, "--json")
        if asked.returncode == 0:
            status = json.loads(asked.stdout)
            if status["worlds"] and condition(status):
                return status
    raise AssertionError(f"did not come: {status}")

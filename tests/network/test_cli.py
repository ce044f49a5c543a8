"""The command line against a real node process: every first-light command, its exit codes, restart and stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

AW = [sys.executable, "-m", "bootstrap.cli"]
ROLES = "gateway,sequencer,coordinator,executor,storage,index"
COMMAND_S_MAX = 60
NOBODY = "a" * 32


@dataclass(frozen=True, slots=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        (line,) = self.out.splitlines()
        document: dict[str, Any] = json.loads(line)
        return document


class Lab:
    """A world with one node that holds all roles, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("AW_")}
        self.process: subprocess.Popen[str] | None = None
        self.ready: dict[str, Any] = {}
        assert self.aw("key", "new", "node/identity.key").code == 0
        assert self.aw("key", "new", "me.key").code == 0
        node = [
            part for role in ("proposer", "executor", "certifier", "root-key") for part in (f"--{role}", KEY)
        ]
        made = self.aw(
            "world", "create", "--name", "lab", *node, "--resource", "fuel", "--balance", "me.key:fuel:9"
        )
        assert made.code == 0, made.err
        self.world_id = made.out.strip()

    def aw(self, *arguments: str, env: dict[str, str] | None = None) -> Done:
        """Run a command to its end."""
        done = subprocess.run(
            [*AW, *arguments],
            cwd=self.folder,
            env=self.env | (env or {}),
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_S_MAX,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *more: str) -> None:
        """Start the node; returns when it says that it is ready."""
        command = [*AW, "node", "--data-dir", "node", "--listen", "/ip4/127.0.0.1/tcp/0", "--role", ROLES]
        self.process = subprocess.Popen(
            [*command, "--world", "lab.genesis", "--json", "--log-level", "warning", *more],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.stdout.close()
            pytest.fail(f"the node ended with {self.process.wait(COMMAND_S_MAX)} before it was ready")
        self.ready = json.loads(line)

    def stop(self, number: signal.Signals) -> int:
        """Signal the node and wait for its end; gives the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(COMMAND_S_MAX)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


KEY = "node/identity.key"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One running node for all tests of this file; they are in the order in which they build on each other."""
    made = Lab(tmp_path_factory.mktemp("lab"))
    made.start()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.stop(signal.SIGKILL)


def register(agent: str) -> Sequence[str]:
    place = {"agent_id": agent, "x_cm": 0, "y_cm": 0, "z_cm": 0}
    return [
        "submit",
        "--world",
        "lab",
        "--key",
        "me.key",
        "--data-dir",
        "node",
        "register_agent",
        json.dumps(place),
    ]


def test_ready_names_the_node_and_its_address_file_serves_clients(lab: Lab) -> None:
    shown = lab.aw("key", "show", KEY, "--json").json
    assert lab.ready["event"] == "ready"
    assert lab.ready["peer_id"] == shown["peer_id"]
    assert lab.ready["roles"] == ROLES.split(",")
    assert lab.ready["worlds"] == [lab.world_id]
    assert lab.ready["data_dir"] == "node"
    (addr,) = lab.ready["addrs"]
    assert addr.endswith(f"/p2p/{shown['peer_id']}")
    assert lab.aw("status", "--data-dir", "node", "--json").json["peer_id"] == shown["peer_id"]
    assert lab.aw("status", "--json", env={"AW_NODE": addr}).json["peer_id"] == shown["peer_id"]


def test_before_the_first_block_there_is_no_head_and_that_is_exit_1(lab: Lab) -> None:
    done = lab.aw("head", "lab", "--data-dir", "node", "--json")
    assert (done.code, done.json["height"], done.json["world_id"]) == (1, 0, lab.world_id)
    assert "no block yet" in done.err


def test_a_submitted_action_is_followed_to_a_verified_block(lab: Lab) -> None:
    done = lab.aw(*register("a1"), "--wait", "verified", "--json")
    assert done.code == 0, done.err
    assert (done.json["outcome"], done.json["nonce"], done.json["codes"]) == ("verified", 0, "Applied")
    head = lab.aw("head", lab.world_id[:6], "--data-dir", "node", "--json").json
    assert head["height"] >= done.json["height"]
    assert head["said_by"] == lab.ready["peer_id"]
    assert head["age_ms"] >= 0


def test_an_action_that_the_kernel_refuses_is_exit_1(lab: Lab) -> None:
    done = lab.aw(*register("a1"), "--wait", "verified", "--json")
    assert (done.code, done.json["outcome"], done.json["codes"]) == (1, "refused", "AgentExists")


def test_actions_submitted_without_waiting_get_nonces_of_their_own(lab: Lab) -> None:
    first, second = [lab.aw(*register(agent), "--json").json["nonce"] for agent in ("b1", "b2")]
    assert second == first + 1
    lines = "".join(
        json.dumps({"kind": "move_agent", "payload": {"agent_id": "b1", "x_cm": x, "y_cm": 0, "z_cm": 0}})
        + "\n"
        for x in range(20)
    )
    (lab.folder / "moves.jsonl").write_text(lines)
    arguments = [*register("")[:-2], "--file", "moves.jsonl", "--batch", "3", "--wait", "verified", "--json"]
    done = lab.aw(*arguments)
    assert done.code == 0, done.err
    told = [json.loads(line) for line in done.out.splitlines()]
    assert [line["nonce"] for line in told] == list(range(second + 1, second + 8))
    assert {line["codes"] for line in told} == {"Applied"}


def test_a_stranger_verifies_the_world_from_its_id(lab: Lab) -> None:
    status = lab.aw("status", "--data-dir", "node", "--json").json
    (world,) = status["worlds"]
    until_s = time.monotonic() + COMMAND_S_MAX
    while True:  # the DHT is told of a new head at most once a second
        done = lab.aw("verify", lab.world_id, "--bootstrap", lab.ready["addrs"][0], "--json")
        assert done.code == 0, done.err
        if done.json["height"] == world["executed"] or time.monotonic() > until_s:
            break
    assert done.json["verified"] is True
    assert done.json["trust"] == "replayed_from_genesis"
    assert done.json["state_root"] == world["state_root"]
    old = lab.aw("verify", lab.world_id, "--data-dir", "node", "--head-age-max", "0")
    assert old.code == 1
    assert "head_age_max_ms" in old.err


def test_a_world_that_nobody_has_is_exit_3(lab: Lab) -> None:
    done = lab.aw("verify", NOBODY, "--data-dir", "node")
    assert done.code == 3
    assert done.err.startswith(f"error: head of world {NOBODY} in the DHT: ")
    assert lab.aw("head", NOBODY, "--data-dir", "node").code == 3


def test_a_blob_is_fetched_by_hash_and_by_cid_and_an_unknown_one_is_not_held(lab: Lab) -> None:
    block_hash = lab.aw("head", "lab", "--data-dir", "node", "--json").json["block_hash"]
    stat = lab.aw("blob", "stat", block_hash, "--data-dir", "node", "--json").json
    assert stat["held"] is True
    assert lab.aw("blob", "get", stat["cid"], "--data-dir", "node", "--out", "block").code == 0
    assert (lab.folder / "block").stat().st_size == stat["size"]
    assert lab.aw("blob", "get", stat["cid"], "--data-dir", "node", "--out", "block").code == 2
    unknown = "ab" * 32
    absent = lab.aw("blob", "stat", unknown, "--data-dir", "node", "--json")
    assert (absent.code, absent.json["held"]) == (1, False)
    assert lab.aw("blob", "get", unknown, "--data-dir", "node").code == 3


def test_a_data_dir_in_use_and_a_port_in_use_are_wrong_use(lab: Lab) -> None:
    second = lab.aw("node", "--data-dir", "node", "--listen", "/ip4/127.0.0.1/tcp/0")
    assert second.code == 2
    assert "is in use by process" in second.err
    assert lab.aw("blob", "put", "lab.genesis", "--data-dir", "node").code == 2
    listen = lab.ready["addrs"][0].partition("/p2p/")[0]
    taken = lab.aw("node", "--data-dir", "other", "--listen", listen)
    assert taken.code == 2
    assert taken.err.startswith(f"error: listen {listen}: ")
    assert "try: --listen /ip4/127.0.0.1/tcp/0" in taken.err


def test_an_address_that_answers_nothing_is_exit_3_and_is_named(lab: Lab) -> None:
    addr = f"/ip4/127.0.0.1/tcp/1/p2p/{lab.ready['peer_id']}"
    done = lab.aw("status", "--node", addr)
    assert done.code == 3
    assert addr in done.err
    assert done.out == ""
    fallback = lab.aw("status", "--node", addr, "--node", lab.ready["addrs"][0], "--json")
    assert fallback.json["peer_id"] == lab.ready["peer_id"]


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A listener that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


def test_a_peer_that_never_says_a_word_is_exit_3_in_time(lab: Lab, silent: socket.socket) -> None:
    addr = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{lab.ready['peer_id']}"
    done = lab.aw("status", "--node", addr, "--timeout", "2")
    assert done.code == 3
    assert addr in done.err


def test_ctrl_c_ends_a_command_by_the_signal_and_without_a_traceback(lab: Lab, silent: socket.socket) -> None:
    addr = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{lab.ready['peer_id']}"
    command = [*AW, "verify", lab.world_id, "--bootstrap", addr]
    with subprocess.Popen(command, cwd=lab.folder, env=lab.env, stderr=subprocess.PIPE, text=True) as process:
        silent.settimeout(COMMAND_S_MAX)
        connection, _address = silent.accept()
        process.send_signal(signal.SIGINT)
        _out, err = process.communicate(timeout=COMMAND_S_MAX)
        connection.close()
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_restarted_node_goes_on_where_it_was(lab: Lab, number: signal.Signals, code: int) -> None:
    before = lab.aw("head", "lab", "--data-dir", "node", "--json").json
    assert lab.stop(number) == code
    gone = lab.aw("head", "lab", "--data-dir", "node")
    assert gone.code == 3
    assert "no node runs in node" in gone.err
    lab.start()
    after = lab.aw("head", "lab", "--data-dir", "node", "--json").json
    assert after["height"] >= before["height"]
    done = lab.aw(*register(f"after-{number.name.lower()}"), "--wait", "verified", "--json")
    assert done.code == 0, done.err


def test_a_stopped_nodes_store_takes_and_gives_blobs(lab: Lab) -> None:
    block_hash = lab.aw("head", "lab", "--data-dir", "node", "--json").json["block_hash"]
    assert lab.stop(signal.SIGTERM) == 0
    put = lab.aw("blob", "put", "lab.genesis", "--data-dir", "node", "--json").json
    assert lab.aw("blob", "get", put["content_id"], "--data-dir", "node", "--out", "again").code == 0
    assert (lab.folder / "again").read_bytes() == (lab.folder / "lab.genesis").read_bytes()
    assert lab.aw("blob", "stat", block_hash, "--data-dir", "node", "--json").json["held"] is True
    assert lab.aw("blob", "get", "ab" * 32, "--data-dir", "node").code == 3
    assert lab.aw("blob", "stat", "ab" * 32, "--data-dir", "node").code == 1


def test_a_node_refuses_the_data_dir_of_another_world(lab: Lab) -> None:
    authorities = [
        part for role in ("proposer", "executor", "certifier", "root-key") for part in (f"--{role}", KEY)
    ]
    assert lab.aw("world", "create", "--name", "other", *authorities).code == 0
    done = lab.aw(
        "node", "--data-dir", "node", "--listen", "/ip4/127.0.0.1/tcp/0", "--world", "other.genesis"
    )
    assert done.code == 2
    assert f"belongs to world {lab.world_id}" in done.err


def test_a_damaged_identity_or_genesis_of_a_node_is_exit_4_with_what_repairs_it(lab: Lab) -> None:
    path = lab.folder / "node" / "worlds" / f"{lab.world_id}.genesis"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    done = lab.aw("node", "--data-dir", "node", "--listen", "/ip4/127.0.0.1/tcp/0")
    assert done.code == 4
    assert f"try: mv node/worlds/{lab.world_id}.genesis" in done.err
    path.write_bytes(good)
    identity = lab.folder / KEY
    identity.write_bytes(b"short")
    done = lab.aw("node", "--data-dir", "node", "--listen", "/ip4/127.0.0.1/tcp/0")
    assert done.code == 4
    assert "identity.key" in done.err

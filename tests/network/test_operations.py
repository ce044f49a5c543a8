"""docs/operations.md run as it stands: a second machine in six commands, an envelope followed by its hash, metrics.

Two node processes with data dirs of their own; the lines of the document are run by bash, only the port is another.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]

DOC = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
AW = [sys.executable, "-m", "bootstrap.cli"]
ROLES = "gateway,sequencer,coordinator,executor,storage,index"
PATIENCE_S = 180  # a limit for what hangs, never the subject of a test
STATIONS = {
    "accepted": 2,
    "gossiped": 2,
    "pooled": 1,
    "cut": 1,
    "committed": 1,
    "executed": 1,
    "verified": 2,
}  # and the machine whose log must have it


def commands(name: str) -> list[str]:
    """The lines of the document below the mark of that name, ready to be run here: any port will do."""
    found = re.search(rf"<!-- {name}: a test runs these lines -->\n```sh\n(.*?)```", DOC, re.DOTALL)
    assert found is not None
    return found[1].replace("/ip4/0.0.0.0/tcp/4101", "/ip4/127.0.0.1/tcp/0").splitlines()


@contextmanager
def shell(lines: list[str], cwd: Path, env: Mapping[str, str]) -> Iterator[str]:
    """What bash prints for these lines; what they left running lives until the block ends."""
    # The shell ends when its input does, and takes the node with it that it has started; also when a line fails.
    ending = "trap 'kill $(jobs -p) 2> /dev/null; wait' EXIT"
    script = "\n".join(["set -e", ending, *lines, "echo the end is reached", "read -r _ || true"])
    with subprocess.Popen(
        ["bash", "-c", script], cwd=cwd, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("the end is reached"):
                break
        told = "".join(said)
        assert "the end is reached" in told, told[-2_000:]
        yield told
        process.communicate("\n", timeout=PATIENCE_S)
    assert process.returncode == 0


class Machines:
    """The first machine with a world of its own, and what the document makes of a second one."""

    def __init__(self, folder: Path) -> None:
        self.first, self.second = folder / "first", folder / "second"
        self.first.mkdir()
        self.second.mkdir()
        kept = {key: value for key, value in os.environ.items() if not key.startswith("AW_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        self.env = kept | {"PATH": path, "AW_LOG_LEVEL": "debug", "AW_LOG_FORMAT": "json"}
        self.node: subprocess.Popen[str] | None = None
        self.ready: dict[str, Any] = {}

    def aw(self, *arguments: str, cwd: Path | None = None, code: int = 0) -> str:
        done = subprocess.run(
            [*AW, *arguments],
            cwd=cwd or self.first,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert done.returncode == code, f"aw {' '.join(arguments)}: {done.returncode}\n{done.stderr[-2_000:]}"
        return done.stdout

    def start_first(self) -> None:
        self.aw("key", "new", "aw-data/identity.key")
        self.aw("key", "new", "me.key")
        roles = [
            f"--{role}=aw-data/identity.key" for role in ("proposer", "executor", "certifier", "root-key")
        ]
        self.aw("world", "create", "--name", "lab", *roles)
        flags = [
            "--listen",
            "/ip4/127.0.0.1/tcp/0",
            "--metrics-listen",
            "127.0.0.1:0",
            "--world",
            "lab.genesis",
        ]
        with (self.first / "node.log").open("w") as log:
            self.node = subprocess.Popen(
                [*AW, "node", "--role", ROLES, "--json", *flags],
                cwd=self.first,
                env=self.env,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.node.stdout is not None
        self.ready = json.loads(self.node.stdout.readline())
        self.submit(self.first, "a1")  # so that there is a block to verify
        deadline = time.monotonic() + PATIENCE_S
        while not self.verifies():  # until the head has come into the DHT
            assert time.monotonic() < deadline, "the world cannot be found"

    def verifies(self) -> bool:
        command = [*AW, "verify", self.ready["worlds"][0], "--bootstrap", self.ready["addrs"][0]]
        done = subprocess.run(command, env=self.env, capture_output=True, check=False, timeout=PATIENCE_S)
        return done.returncode == 0

    def submit(self, cwd: Path, agent: str) -> dict[str, Any]:
        place = json.dumps({"agent_id": agent, "x_cm": 0, "y_cm": 0, "z_cm": 0})
        key = str(self.first / "me.key")
        arguments = [
            "submit",
            "--world",
            "lab",
            "--key",
            key,
            "--wait",
            "verified",
            "--json",
            "--timeout",
            "120",
        ]
        done: dict[str, Any] = json.loads(self.aw(*arguments, "register_agent", place, cwd=cwd))
        return done

    def stop(self) -> None:
        if self.node is not None and self.node.poll() is None:
            self.node.send_signal(signal.SIGTERM)
            assert self.node.wait(PATIENCE_S) == 0
        if self.node is not None and self.node.stdout is not None:
            self.node.stdout.close()


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """One first machine for all tests of this file; the last one stops it."""
    made = Machines(tmp_path_factory.mktemp("machines"))
    try:
        made.start_first()
        yield made
    finally:
        made.stop()


def trail(log: Path, envelope: str) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text().splitlines() if envelope in line]
    return {line["event"]: line for line in lines if line.get("envelope") == envelope}


def until_in_log(log: Path, envelope: str, event: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while event not in trail(log, envelope):
        assert time.monotonic() < deadline, f"no {event} of {envelope} in {log}"
        time.sleep(0.05)


def test_a_second_machine_in_six_commands_follows_the_world_and_an_envelope_through_both(
    machines: Machines,
) -> None:
    lines = commands("second machine")
    assert len(lines) == 6
    assert lines[0].startswith("make setup && ")
    lines[0] = (
        lines[0].removeprefix("make setup && ").replace("$PWD/.venv/bin", str(Path(sys.executable).parent))
    )
    world = machines.ready["worlds"][0]
    env = machines.env | {"FIRST": machines.ready["addrs"][0], "WORLD": world}
    with shell(lines, machines.second, env) as told:
        assert "verified" in told
        assert world in told
        check_both(machines)


def test_a_first_world_on_one_node_takes_an_action(machines: Machines, tmp_path: Path) -> None:
    with shell(commands("first world"), tmp_path, machines.env) as told:
        assert re.search(r"^[0-9a-f]{64} nonce 0 verified", told, re.MULTILINE)


def check_both(machines: Machines) -> None:
    """An action handed in at the second machine is found, by its hash, in the logs of both."""
    submitted = machines.submit(machines.second, "b1")
    assert submitted["outcome"] == "verified"
    logs = {1: machines.first / "node.log", 2: machines.second / "node.log"}
    for event, machine in STATIONS.items():
        until_in_log(logs[machine], submitted["envelope_hash"], event)
    found = trail(logs[1], submitted["envelope_hash"])
    assert {found[event]["height"] for event in ("cut", "executed")} == {submitted["height"]}
    status = json.loads(machines.aw("status", "--json", cwd=machines.second))
    assert status["worlds"][0]["verified"] >= submitted["height"]


def test_the_status_of_a_real_node_shows_every_depth_beside_its_limit(machines: Machines) -> None:
    status = json.loads(machines.aw("status", "--json"))
    gauges = {gauge["name"]: gauge for gauge in status["gauges"]}
    for name in (
        "mempool_envelopes",
        "outbox_envelopes",
        "ready_batches",
        "gossip_messages_waiting",
        "rr_requests_in_flight",
        "thread_jobs_waiting",
        "disk_bytes",
        "dht_table_peers",
        "connections_open",
        "coordinator_requests_waiting",
    ):
        assert name in gauges, name
    assert gauges["disk_bytes"]["value"] > 0
    assert gauges["disk_bytes"]["limit_value"] == status["limits"]["disk_bytes_max"]
    (world,) = status["worlds"]
    assert world["lag"].keys() == {"committed", "executed"}
    assert world["head_age_ms"] >= 0
    assert status["uptime_ms"] > 0
    assert status["versions"]["libp2p"]
    shown = machines.aw("status")
    for word in ("depths and their limits", "mempool_envelopes_max", "head age", world["world_id"], "uptime"):
        assert word in shown


def scrape(url: str) -> dict[str, list[Any]]:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        page = answer.read().decode()
    return {
        sample.name: [*found]
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        for found in [[other for other in family.samples if other.name == sample.name]]
    }


def test_a_real_node_is_scraped_at_its_one_address_until_it_ends(machines: Machines) -> None:
    url = machines.ready["metrics"]
    samples = scrape(url)
    executed = [one for one in samples["aw_height"] if one.labels["cursor"] == "executed"]
    assert executed[0].value >= 1
    assert samples["aw_gateway_accepted_total"][0].value >= 1
    assert {"aw_disk_bytes", "aw_mempool_envelopes", "aw_limit", "aw_process_open_fds"} <= samples.keys()
    for name in samples:
        if not name.endswith("_total") and not name.startswith("aw_process_"):
            assert f"`{name}`" in DOC, f"{name} is not documented"
    port = int(url.rpartition(":")[2].partition("/")[0])
    refused = subprocess.run(
        [
            *AW,
            "node",
            "--data-dir",
            "other",
            "--listen",
            "/ip4/127.0.0.1/tcp/0",
            "--metrics-listen",
            f"127.0.0.1:{port}",
        ],
        cwd=machines.first,
        env=machines.env,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert refused.returncode == 2
    assert "error: metrics.listen" in refused.stderr
    assert "takes a free port" in refused.stderr
    machines.stop()
    with pytest.raises(urllib.error.URLError), urllib.request.urlopen(url, timeout=5):
        pass
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))

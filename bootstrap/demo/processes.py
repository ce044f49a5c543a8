"""The demo's node processes, as a service manager keeps them: started, watched, started again, stopped.

Hides: ports, configuration files, signals. Guarantees: only processes that were started here are ever signalled, by
pid; one that dies is started again and counted; leaving the block ends all of them within a bounded time, also when it
is left in the middle of a start.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from bootstrap.cli.output import note
from bootstrap.config import ENV_PREFIX
from p2p import names
from p2p.identity import Identity, create_identity

READY_S_MAX: Final = 60.0
STOP_S_MAX: Final = 15.0
RESTART_S: Final = 0.2
FAILED_STARTS_MAX: Final = 5  # in a row, of a node that was ready before
READY_LINE_BYTES_MAX: Final = 64 * 1024
NODE_PROGRAM: Final = (sys.executable, "-m", "bootstrap.cli", "node")
LAYOUT: Final = {
    "coordinator": ("index", "coordinator"),
    "gateway": ("gateway",),
    "executor": ("sequencer", "executor"),
    "storage": ("storage",),
    "observer": ("observer",),
}


class NodeFailed(Exception):
    """A node process that did not become ready: its name, and where its log is."""

    def __init__(self, name: str, log: Path, why: str) -> None:
        super().__init__(f"node {name}: {why}")
        self.name = name
        self.log = log
        self.why = why


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a node runs: the address that it listens on, and what its command line begins with."""

    host: str = "127.0.0.1"
    command: tuple[str, ...] = ()


@dataclass(slots=True)
class NodeProcess:
    """One node: what it is, and the process that runs it now."""

    name: str
    roles: tuple[str, ...]
    identity: Identity
    directory: Path
    port: int
    seat: Seat
    program: tuple[str, ...]
    also_listen: tuple[str, ...] = ()
    process: trio.Process | None = None
    ready: trio.Event = field(default_factory=trio.Event)
    may_start: trio.Event = field(default_factory=trio.Event)

    @property
    def listen(self) -> str:
        return f"/ip4/{self.seat.host}/tcp/{self.port}"

    @property
    def addr(self) -> str:
        return f"{self.listen}/p2p/{names.peer_text(self.identity.peer_id)}"

    @property
    def pid(self) -> int:
        return 0 if self.process is None else self.process.pid

    @property
    def log(self) -> Path:
        return self.directory / "node.log"


class Network:
    """All nodes of the demo, or of another layout: name -> roles."""

    def __init__(
        self,
        directory: Path,
        program: Sequence[str] = NODE_PROGRAM,
        layout: Mapping[str, tuple[str, ...]] = LAYOUT,
        seats: Mapping[str, Seat] | None = None,
    ) -> None:
        """Make a data dir with an identity, and find a free port, for each node of the layout."""
        self.directory = directory
        self.restarts = 0
        self.nodes: dict[str, NodeProcess] = {}
        ports = free_ports(len(layout))
        for (name, roles), port in zip(layout.items(), ports, strict=True):
            path = directory / name
            identity = create_identity(path / "identity.key")
            seat = (seats or {}).get(name, Seat())
            node = NodeProcess(name, roles, identity, path, port, seat, tuple(program))
            node.may_start.set()
            self.nodes[name] = node

    def holding(self, role: str) -> NodeProcess:
        """The node that runs a role."""
        return next(node for node in self.nodes.values() if role in node.roles)

    def configure(self, genesis_file: Path, tables: Sequence[str] = (), known: Sequence[str] = ()) -> None:
        """Write each node's node.toml: everybody knows everybody's address, as a small cluster would.

        `tables`: lines of TOML that go into each of them; `known`: addresses of nodes that are not of this layout.
        """
        for node in self.nodes.values():
            others = [*known, *(other.addr for other in self.nodes.values() if other is not node)]
            document = {
                "data_dir": ".",
                "roles": list(node.roles),
                "listen": [node.listen, *node.also_listen],
                "bootstrap": others,
            }
            lines = [f"{key} = {json.dumps(value)}" for key, value in document.items()]
            lines += ["", "[[world]]", f"genesis = {json.dumps(str(genesis_file.resolve()))}", "", *tables]
            (node.directory / "node.toml").write_text("\n".join(lines))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Network]:
        """All nodes up and ready, kept up until the block is left. Raises NodeFailed (maybe in a group)."""
        async with trio.open_nursery() as nursery:
            try:
                for node in self.nodes.values():
                    nursery.start_soon(self._keep, node)
                for node in self.nodes.values():
                    await self._until_ready(node)
                yield self
            finally:
                nursery.cancel_scope.cancel()

    async def _until_ready(self, node: NodeProcess) -> None:
        with trio.move_on_after(READY_S_MAX):
            await node.ready.wait()
            return
        raise NodeFailed(node.name, node.log, f"was not ready within {READY_S_MAX:.0f} s")

    async def _keep(self, node: NodeProcess) -> None:
        """Start it, and start it again whenever it ends by itself; end it when this task is cancelled.

        One whose `may_start` is not set stays down until it is.
        """
        failed_starts = 0
        while True:
            await node.may_start.wait()
            with trio.CancelScope(shield=True):  # a process that was started is one that will be ended
                process = node.process = await self._start(node)
            try:
                is_ready = await self._read_ready(process)
                if is_ready and node.ready.is_set():
                    note(f"{node.name} is back as pid {process.pid}")
                if is_ready:
                    failed_starts = 0
                    node.ready.set()
                await process.wait()
            finally:
                with trio.CancelScope(shield=True):
                    await end_process(process)
            failed_starts += not is_ready
            if failed_starts and not (node.ready.is_set() and failed_starts < FAILED_STARTS_MAX):
                why = f"ended {how_it_ended(process)} before it was ready"
                raise NodeFailed(node.name, node.log, why)
            self.restarts += 1
            what_next = "starting it again" if node.may_start.is_set() else "it stays down"
            note(f"{node.name} (pid {process.pid}) ended {how_it_ended(process)}; {what_next}")
            await trio.sleep(RESTART_S)

    async def _start(self, node: NodeProcess) -> trio.Process:
        with node.log.open("ab") as log:
            return await trio.lowlevel.open_process(
                [*node.seat.command, *node.program, "--config", str(node.directory / "node.toml"), "--json"],
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the demo's: nodes are stopped in order
                env=environment_of_nodes(os.environ),
            )

    @staticmethod
    async def _read_ready(process: trio.Process) -> bool:
        """Wait for the ready line; False for a process that ends, or says something else."""
        assert process.stdout is not None
        line = b""
        while b"\n" not in line and len(line) < READY_LINE_BYTES_MAX:
            chunk = await process.stdout.receive_some(4_096)
            if not chunk:
                return False
            line += chunk
        try:
            event = json.loads(line.split(b"\n", 1)[0])
        except ValueError:
            return False
        return isinstance(event, dict) and event.get("event") == "ready"

    def kill(self, role: str) -> int:
        """kill -9 the process that holds the role; gives its pid."""
        node = self.holding(role)
        pid = node.pid
        if node.process is not None and node.process.returncode is None:
            node.process.send_signal(signal.SIGKILL)
        return pid

    def disk_bytes(self) -> int:
        """What all data dirs take on disk."""
        total = 0
        for path in self.directory.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # a temporary file that was there a moment ago
                total += path.lstat().st_blocks * 512
        return total

    def described(self) -> list[dict[str, object]]:
        """One object per process, for people and for --json."""
        return [
            {
                "role": "+".join(node.roles),
                "pid": node.pid,
                "peer_id": names.peer_text(node.identity.peer_id),
                "addrs": [node.addr],
                "data_dir": str(node.directory),
            }
            for node in self.nodes.values()
        ]


def free_ports(count: int) -> Sequence[int]:
    """Ports on loopback that are free now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def environment_of_nodes(environment: Mapping[str, str]) -> dict[str, str]:
    """Without AW_*: a data dir or roles meant for the user's own node would win over each node.toml here."""
    return {name: value for name, value in environment.items() if not name.startswith(ENV_PREFIX)}


def how_it_ended(process: trio.Process) -> str:
    """The end of a process in words."""
    code = process.returncode or 0
    return f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"


async def end_process(process: trio.Process) -> None:
    """SIGTERM, then SIGKILL when it takes longer than STOP_S_MAX; nothing to one that has ended."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            break
        process.send_signal(sign)
        with trio.move_on_after(STOP_S_MAX):
            await process.wait()
    if process.stdout is not None:
        await process.stdout.aclose()

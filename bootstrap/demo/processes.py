"""The demo's node processes, as a service manager keeps them: started, watched, started again, stopped.

Hides: ports, configuration files, signals. Guarantees: only processes that were started here are ever signalled, by
pid; one that dies is started again and counted; leaving the block ends all of them within a bounded time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from p2p import names
from p2p.identity import Identity, create_identity

READY_S_MAX: Final = 60.0
STOP_S_MAX: Final = 15.0
RESTART_S: Final = 0.2
READY_LINE_BYTES_MAX: Final = 64 * 1024
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


@dataclass(slots=True)
class NodeProcess:
    """One node: what it is, and the process that runs it now."""

    name: str
    roles: tuple[str, ...]
    identity: Identity
    directory: Path
    port: int
    process: trio.Process | None = None
    ready: trio.Event = field(default_factory=trio.Event)

    @property
    def addr(self) -> str:
        return f"/ip4/127.0.0.1/tcp/{self.port}/p2p/{names.peer_text(self.identity.peer_id)}"

    @property
    def pid(self) -> int:
        return 0 if self.process is None else self.process.pid

    @property
    def log(self) -> Path:
        return self.directory / "node.log"


class Network:
    """All nodes of the demo."""

    def __init__(self, directory: Path) -> None:
        """Make a data dir with an identity, and find a free port, for each node of LAYOUT."""
        self.directory = directory
        self.restarts = 0
        self.nodes: dict[str, NodeProcess] = {}
        self._stopping = False
        ports = free_ports(len(LAYOUT))
        for (name, roles), port in zip(LAYOUT.items(), ports, strict=True):
            path = directory / name
            identity = create_identity(path / "identity.key")
            self.nodes[name] = NodeProcess(name, roles, identity, path, port)

    def holding(self, role: str) -> NodeProcess:
        """The node that runs a role."""
        return next(node for node in self.nodes.values() if role in node.roles)

    def is_stopping(self) -> bool:
        """Whether the end of a process is now what was asked for."""
        return self._stopping

    def configure(self, genesis_file: Path) -> None:
        """Write each node's node.toml: everybody knows everybody's address, as a small cluster would."""
        for node in self.nodes.values():
            others = [other.addr for other in self.nodes.values() if other is not node]
            document = {
                "data_dir": ".",
                "roles": list(node.roles),
                "listen": [f"/ip4/127.0.0.1/tcp/{node.port}"],
                "bootstrap": others,
            }
            lines = [f"{key} = {json.dumps(value)}" for key, value in document.items()]
            lines += ["", "[[world]]", f"genesis = {json.dumps(str(genesis_file.resolve()))}", ""]
            (node.directory / "node.toml").write_text("\n".join(lines))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Network]:
        """All nodes up and ready, kept up until the block is left. Raises NodeFailed (maybe in a group)."""
        async with trio.open_nursery() as nursery:
            for node in self.nodes.values():
                nursery.start_soon(self._keep, node)
            try:
                for node in self.nodes.values():
                    await self._until_ready(node)
                yield self
            finally:
                self._stopping = True
                with trio.CancelScope(shield=True):
                    await self._stop_all()
                nursery.cancel_scope.cancel()

    async def _until_ready(self, node: NodeProcess) -> None:
        with trio.move_on_after(READY_S_MAX):
            await node.ready.wait()
            return
        raise NodeFailed(node.name, node.log, f"was not ready within {READY_S_MAX:.0f} s")

    async def _keep(self, node: NodeProcess) -> None:
        """Start it, and start it again whenever it ends by itself."""
        while not self.is_stopping():
            with node.log.open("ab") as log:
                node.process = await trio.lowlevel.open_process(
                    [
                        sys.executable,
                        "-m",
                        "bootstrap.cli",
                        "node",
                        "--config",
                        str(node.directory / "node.toml"),
                        "--json",
                    ],
                    stdout=subprocess.PIPE,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is the demo's: nodes are stopped in order
                )
            await self._read_ready(node, node.process)
            await node.process.wait()
            if self.is_stopping():
                return
            if not node.ready.is_set():
                raise NodeFailed(
                    node.name, node.log, f"ended with exit code {node.process.returncode} before it was ready"
                )
            self.restarts += 1
            await trio.sleep(RESTART_S)

    @staticmethod
    async def _read_ready(node: NodeProcess, process: trio.Process) -> None:
        """Wait for the ready line; a process that ends has none."""
        assert process.stdout is not None
        line = b""
        while b"\n" not in line and len(line) < READY_LINE_BYTES_MAX:
            chunk = await process.stdout.receive_some(4_096)
            if not chunk:
                return
            line += chunk
        event = json.loads(line.split(b"\n", 1)[0])
        if event.get("event") == "ready":
            node.ready.set()

    def kill(self, role: str) -> int:
        """kill -9 the process that holds the role; gives its pid."""
        node = self.holding(role)
        pid = node.pid
        if node.process is not None and node.process.returncode is None:
            node.process.send_signal(signal.SIGKILL)
        return pid

    async def _stop_all(self) -> None:
        """SIGTERM to all, then SIGKILL to those that take too long."""
        living = [node.process for node in self.nodes.values() if node.process is not None]
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for process in living:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(sign)
            with trio.move_on_after(STOP_S_MAX):
                for process in living:
                    await process.wait()
                return

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


def is_running(pid: int) -> bool:
    """Whether a process with this pid is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

"""An etcd of one's own: a child process on loopback ports, for tests and measurements of the order.

Hides: etcd's flags. Guarantees: it is ready when the block is entered, and ended when it is left; only that process is
ever signalled.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from bootstrap.demo.processes import end_process, free_ports

READY_S_MAX: Final = 30.0
POLL_S: Final = 0.05
MISSING: Final = "etcd is not installed: apt-get install etcd-server"


class EtcdFailed(Exception):
    """etcd did not become ready; its log says why."""


@dataclass(slots=True)
class EtcdProcess:
    """One member, a cluster by itself."""

    directory: Path
    client_port: int
    peer_port: int
    process: trio.Process | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.client_port}"

    async def start(self) -> None:
        """Start it (again) and wait until it answers. Raises EtcdFailed."""
        program = shutil.which("etcd")
        if program is None:
            raise EtcdFailed(MISSING)
        peer = f"http://127.0.0.1:{self.peer_port}"
        with (self.directory / "etcd.log").open("ab") as log:
            self.process = await trio.lowlevel.open_process(
                [
                    program,
                    *("--name", "one", "--data-dir", str(self.directory / "etcd"), "--log-level", "warn"),
                    *("--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", f"one={peer}"),
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        with trio.move_on_after(READY_S_MAX):
            while self.process.returncode is None:
                if await self._answers():
                    return
                await trio.sleep(POLL_S)
        raise EtcdFailed(f"etcd is not ready; see {self.directory / 'etcd.log'}")

    async def _answers(self) -> bool:
        """Whether it serves requests: /health is 200 once it has a leader, which is itself."""
        request = b"GET /health HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n\r\n"
        try:
            async with await trio.open_tcp_stream("127.0.0.1", self.client_port) as stream:
                await stream.send_all(request)
                return (await stream.receive_some(64)).startswith(b"HTTP/1.1 200")
        except OSError:
            return False

    def signal(self, sign: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(sign)

    async def end(self) -> None:
        """SIGTERM, then SIGKILL."""
        if self.process is not None:
            self.signal(signal.SIGCONT)
            await end_process(self.process)


@asynccontextmanager
async def open_etcd(directory: Path) -> AsyncIterator[EtcdProcess]:
    """A fresh etcd with its data and log in `directory`. Raises EtcdFailed."""
    await trio.Path(directory).mkdir(parents=True, exist_ok=True)
    client_port, peer_port = free_ports(2)
    etcd = EtcdProcess(directory, client_port, peer_port)
    try:
        await etcd.start()
        yield etcd
    finally:
        with trio.CancelScope(shield=True):
            await etcd.end()

"""Network namespaces on one bridge: hosts of their own on this machine, whose cables can be pulled.

Hides: `ip`. Guarantees: names and subnet are this process's own; all of it is gone when the block is left. Needs root
and iproute2 (`missing` says what is not there).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from bootstrap.demo.processes import Seat


@dataclass(frozen=True, slots=True)
class Namespaces:
    """`outside` is this side of the bridge; `inside[i]` is in the i-th namespace."""

    outside: Seat
    inside: tuple[Seat, ...]
    cables: tuple[str, ...]

    async def cut(self, index: int) -> None:
        """Pull the cable: nothing passes, nobody is told."""
        await _ip("link", "set", self.cables[index], "down")

    async def heal(self, index: int) -> None:
        await _ip("link", "set", self.cables[index], "up")


def missing() -> str | None:
    """What it takes to have namespaces here; None when nothing is missing."""
    if shutil.which("ip") is None:
        return "ip is not installed: apt-get install iproute2"
    return None if os.geteuid() == 0 else "network namespaces need root"


@asynccontextmanager
async def open_namespaces(count: int) -> AsyncIterator[Namespaces]:
    """`count` namespaces, each with one address. Raises CalledProcessError when the kernel refuses."""
    number = os.getpid()
    net = f"10.{100 + number // 250 % 100}.{1 + number % 250}"
    bridge = f"awb{number}"
    names = [f"aw{number}-{index}" for index in range(count)]
    cables = [f"awv{number}x{index}" for index in range(count)]
    try:
        await _ip("link", "add", bridge, "type", "bridge")
        await _ip("addr", "add", f"{net}.1/24", "dev", bridge)
        await _ip("link", "set", bridge, "up")
        for index, (name, cable) in enumerate(zip(names, cables, strict=True)):
            await _ip("netns", "add", name)
            await _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            await _ip("link", "set", cable, "master", bridge, "up")
            await _ip("-n", name, "addr", "add", f"{net}.{index + 2}/24", "dev", "eth0")
            await _ip("-n", name, "link", "set", "eth0", "up")
            await _ip("-n", name, "link", "set", "lo", "up")
        inside = tuple(
            Seat(f"{net}.{index + 2}", ("ip", "netns", "exec", name)) for index, name in enumerate(names)
        )
        yield Namespaces(Seat(f"{net}.1"), inside, tuple(cables))
    finally:
        with trio.CancelScope(shield=True):
            for name in names:
                await _ip("netns", "del", name, check=False)
            await _ip("link", "del", bridge, check=False)


async def _ip(*arguments: str, check: bool = True) -> None:
    await trio.run_process(["ip", *arguments], capture_stderr=True, stdin=subprocess.DEVNULL, check=check)

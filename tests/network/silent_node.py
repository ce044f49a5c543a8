"""A node in a process of its own, which a test may stop: prints its address, then lives until stdin ends."""

from __future__ import annotations

import random
import sys
import time

import trio

from p2p.host import HostConfig, open_network
from p2p.identity import Identity
from p2p.network import PeerId, Route


class AnyRecord:
    """Takes every record."""

    def validate(self, key: str, value: bytes) -> None:
        """Nothing is wrong with it."""

    def select(self, key: str, values: list[bytes]) -> int:
        return len(values) - 1


async def echo(caller: PeerId, body: bytes) -> bytes:
    return body


async def main(number: int) -> None:
    config = HostConfig(
        identity=Identity(bytes([number]) * 32),
        listen=("/ip4/127.0.0.1/tcp/0",),
        rng=random.Random(number),
        now_ms=lambda: time.time_ns() // 1_000_000,
    )
    async with open_network(config, {"echo": Route(echo)}, AnyRecord()) as network:
        print(network.addrs()[0], flush=True)  # noqa: T201  # what the test reads
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


trio.run(main, int(sys.argv[1]))

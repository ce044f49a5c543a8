"""One process, one peer: commands in on stdin, JSON lines out on stdout, as docs/interop.md has them.

Hides: the process. Guarantees: every line is answered, whatever is wrong with it; commands run at the same time; the
peer ends on `quit`, on the end of stdin and on SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import trio

from interop.py.commands import Command, Commands, Usage, error_of
from interop.py.rules import TEST_LIMITS, careless_records
from interop.py.serving import Shelf, routes_of
from p2p import names
from p2p.host import HostConfig, Libp2pNetwork, open_network
from p2p.identity import Identity
from p2p.network import RecordRule
from runtime.services import HeadRecords

Table: TypeAlias = dict[str, Callable[[Command], Awaitable[dict[str, Any]]]]
LINE_BYTES_MAX: Final = 64 << 20
WATCH_S: Final = 0.1  # how soon a connection that came or went is told


def say(line: dict[str, Any]) -> None:
    """One line on stdout."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def run(options: argparse.Namespace) -> None:
    """Listen, say `ready`, take commands until told to end."""
    shelf = Shelf()
    config = HostConfig(
        identity=Identity(bytes.fromhex(options.seed)),
        listen=tuple(options.listen or ["/ip4/127.0.0.1/tcp/0"]),
        rng=random.Random(secrets.randbits(128)),
        now_ms=now_ms,
        router_limits=TEST_LIMITS,
    )
    record_rule: RecordRule = careless_records() if options.careless else HeadRecords()
    async with open_network(config, routes_of(shelf), record_rule) as network, trio.open_nursery() as nursery:
        commands = Commands(network, shelf, say, nursery, is_careless=options.careless)
        say({"event": "ready", "peer_id": names.peer_text(network.peer_id), "addrs": network.addrs()})
        nursery.start_soon(tell_connections, network)
        nursery.start_soon(end_on_sigterm, nursery.cancel_scope)
        await take_commands(commands.table(), nursery)
        nursery.cancel_scope.cancel()


async def take_commands(table: Table, nursery: trio.Nursery) -> None:
    """Start each line's command; returns at `quit` and at the end of stdin."""
    left = bytearray()
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
        async for chunk in stdin:
            lines: list[bytearray] = []
            left += chunk
            if b"\n" in chunk:  # a long line is not looked through again for each piece of it
                *lines, left = left.split(b"\n")
            if len(left) > LINE_BYTES_MAX:
                raise SystemExit(f"error: stdin: a line over {LINE_BYTES_MAX} bytes")
            for line in filter(None, lines):
                if not begin(bytes(line), table, nursery):
                    return
    if left:
        begin(bytes(left), table, nursery)


def begin(
    line: bytes,
    table: Table,
    nursery: trio.Nursery,
) -> bool:
    """Start one command; False for `quit`."""
    try:
        command = Command(json.loads(line))
    except (ValueError, TypeError, RecursionError) as error:
        say({"id": None, "error": {"kind": "usage", "message": f"not a command: {error!r}"}})
        return True
    number = command.get("id")
    if command.get("do") == "quit":
        say({"id": number, "ok": {}})
        return False

    async def answer() -> None:
        try:
            if (name := command.text("do")) not in table:
                raise Usage(f"no such command: {name}")
            found = await table[name](command)
        except Exception as error:  # noqa: BLE001  # whatever it is, the driver is told
            say({"id": number, "error": error_of(error)})
        else:
            say({"id": number, "ok": found})

    nursery.start_soon(answer)
    return True


async def tell_connections(network: Libp2pNetwork) -> None:
    """Events `connected` and `disconnected`: both, for who is back by another connection before this looks again."""
    before: dict[bytes, set[Any]] = {}
    while True:
        now: dict[bytes, set[Any]] = {}
        for conn in network._host.get_network().get_connections():
            now.setdefault(conn.muxed_conn.peer_id.to_bytes(), set()).add(conn)
        gone = {peer for peer in before if before[peer].isdisjoint(now.get(peer, set()))}
        come = {peer for peer in now if peer in gone or peer not in before}
        for event, peers in (("disconnected", gone), ("connected", come)):
            for peer in sorted(peers):
                say({"event": event, "peer": names.peer_text(peer)})
        before = now
        await trio.sleep(WATCH_S)


async def end_on_sigterm(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


def now_ms() -> int:
    """The wall clock, for the sequence numbers of gossip."""
    return time.time_ns() // 1_000_000


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", required=True, help="32 bytes in hex")
    parser.add_argument("--listen", action="append", help="a multiaddr, repeatable")
    parser.add_argument("--careless", action="store_true", help="check nothing: for the liar of a test")
    trio.run(run, parser.parse_args())


if __name__ == "__main__":
    main()

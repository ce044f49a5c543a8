"""A peer as a process: commands in, answers and events out, as docs/interop.md has them.

Hides: the process, the numbering of commands, who waits for what. Guarantees: a command that is not answered within its
deadline is an error, as is a peer that ends; every process that was started here has ended when the block is left.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio

Json: TypeAlias = dict[str, Any]
COMMAND_S: Final = 70.0
START_S: Final = 30.0
EVENT_S: Final = 30.0
LINE_BYTES_MAX: Final = 64 << 20
STOP_S: Final = 10.0
LOG_LINES_SHOWN: Final = 20
FAULT: Final = re.compile(r"\bpanic(ked)?\b|\buncaught:|\bunhandled:")


class PeerFailed(Exception):
    """A peer did not start, did not answer, or ended: what it last said stands in its log."""


class CommandFailed(Exception):
    """A peer answered a command with an error."""

    def __init__(self, peer: str, do: str, error: Json) -> None:
        super().__init__(f"{peer}: {do}: {error.get('kind')}: {error.get('message')}")
        self.kind = error.get("kind")
        self.error = error


@dataclass(slots=True)
class Peer:
    """One running peer. `addr` is where it listens, with its peer id."""

    name: str
    process: trio.Process
    log: Path
    peer_id: str = ""
    addr: str = ""
    events: list[Json] = field(default_factory=list)
    _answers: dict[int | None, Json] = field(default_factory=dict)
    _changed: trio.Event = field(default_factory=trio.Event)
    _writing: trio.Lock = field(default_factory=trio.Lock)
    _number: int = 0
    _ended: bool = False
    _read: int = 0  # bytes of the log

    @property
    def language(self) -> str:
        """As in languages.py."""
        return self.name.partition("-")[0]

    async def do(self, do: str, *, within_s: float = COMMAND_S, **fields: Any) -> Json:
        """One command. Raises CommandFailed, or PeerFailed where there is no answer."""
        number = await self.begin(do, **fields)
        await self._until(lambda: number in self._answers, within_s, f"an answer to {do}")
        answer = self._answers.pop(number)
        if "error" in answer:
            raise CommandFailed(self.name, do, answer["error"])
        return dict(answer["ok"])

    async def begin(self, do: str, **fields: Any) -> int:
        """Write one command, and leave its answer to whoever wants it: its number. Raises PeerFailed."""
        self._number += 1
        number = self._number
        await self._write(json.dumps({"id": number, "do": do, **fields}).encode())
        return number

    async def _write(self, line: bytes) -> None:
        assert self.process.stdin is not None
        try:
            async with self._writing:
                await self.process.stdin.send_all(line + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise PeerFailed(f"{self.name} takes no commands any more, see {self.log}") from None

    async def malformed(self, line: bytes) -> Json:
        """A line that is no command: the error that answers it. One at a time. Raises PeerFailed."""
        await self._write(line)
        await self._until(lambda: None in self._answers, COMMAND_S, "an answer to a line that is no command")
        return dict(self._answers.pop(None)["error"])

    async def refused(self, do: str, kind: str, **fields: Any) -> Json:
        """A command that must fail with this kind of error, which is returned."""
        try:
            found = await self.do(do, **fields)
        except CommandFailed as failure:
            if failure.kind != kind:
                raise
            return dict(failure.error)
        raise AssertionError(f"{self.name}: {do} was answered with {found}, and should be {kind}")

    async def event(self, event: str, within_s: float = EVENT_S, **fields: Any) -> Json:
        """The first event with these fields, also when it came before. Raises PeerFailed."""

        def found() -> Json | None:
            wanted = {"event": event} | fields
            return next((one for one in self.events if wanted.items() <= one.items()), None)

        await self._until(lambda: found() is not None, within_s, f"event {event} {fields}")
        one = found()
        assert one is not None
        return one

    def lost(self, other: Peer, since: int) -> bool:
        """Whether the connection to `other` has gone since there were so many events."""
        gone = {"event": "disconnected", "peer": other.peer_id}
        return any(gone.items() <= event.items() for event in self.events[since:])

    def faults(self) -> list[str]:
        """What its log says of faults of its own since this was asked last."""
        with self.log.open("rb") as log:
            log.seek(self._read)
            said = log.read()
        self._read += len(said)
        return [
            f"{self.name}: {line}"
            for line in said.decode(errors="replace").splitlines()
            if FAULT.search(line)
        ]

    async def _until(self, holds: Callable[[], bool], within_s: float, what: str) -> None:
        with trio.move_on_after(within_s):
            while not holds():
                if self._ended:
                    raise PeerFailed(f"{self.name} ended before {what}, see {self.log}")
                await self._changed.wait()
            return
        raise PeerFailed(f"{self.name}: no {what} within {within_s:.0f} s, see {self.log}")

    async def listen(self) -> None:
        """Take what the peer says until it ends."""
        assert self.process.stdout is not None
        left = bytearray()
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for chunk in self.process.stdout:
                left += chunk
                *lines, rest = left.split(b"\n")
                left = bytearray(rest)
                if len(left) > LINE_BYTES_MAX:
                    self._says(f"driver: a line over {LINE_BYTES_MAX} bytes")
                    break
                try:
                    for line in lines:
                        self._take(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    self._says(f"driver: neither an event nor an answer: {line[:200]!r}: {error!r}")
                    break
                self._wake()
        self._ended = True
        self._wake()

    def _says(self, text: str) -> None:
        with self.log.open("a") as log:
            log.write(text + "\n")

    def tail(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        return "\n".join(f"  {self.name}: {line[:400]}" for line in lines)

    def _take(self, said: Json) -> None:
        if "event" in said:
            self.events.append(said)
        else:
            self._answers[said["id"]] = said

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def freeze(self) -> None:
        """SIGSTOP, and wait until every thread stands: it holds its connections and says nothing."""
        self.process.send_signal(signal.SIGSTOP)
        stands = os.WSTOPPED | os.WEXITED | os.WNOWAIT
        await trio.to_thread.run_sync(os.waitid, os.P_PID, self.process.pid, stands)

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """SIGKILL, and wait."""
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM, then SIGKILL; the exit code."""
        if self.process.returncode is None:
            self.thaw()
            self.process.terminate()
        return await self._ended_within()

    async def quit(self) -> int:
        """The command of that name, then SIGKILL; the exit code."""
        await self.do("quit")
        return await self._ended_within()

    async def hang_up(self) -> int:
        """The end of its stdin, then SIGKILL; the exit code."""
        assert self.process.stdin is not None
        await self.process.stdin.aclose()
        return await self._ended_within()

    async def _ended_within(self) -> int:
        with trio.move_on_after(STOP_S):
            await self.process.wait()
        if self.process.returncode is None:
            await self.kill()
        assert self.process.returncode is not None
        return self.process.returncode


@dataclass(slots=True)
class Ground:
    """Where peers are started. `commands` says how, by language; logs go to `directory`."""

    commands: dict[str, Sequence[str]]
    directory: Path
    nursery: trio.Nursery
    careless: str = ""  # a language whose peers all check nothing: to see the matrix turn red
    peers: list[Peer] = field(default_factory=list)

    async def start(
        self, language: str, seed: int, *, careless: bool = False, listen: str | None = None
    ) -> Peer:
        """A peer that listens. Raises PeerFailed."""
        name = f"{language}-{seed}"
        log = self.directory / f"{name}.log"
        argv = [*self.commands[language], "--seed", seed.to_bytes(32, "big").hex()]
        argv += ["--listen", listen] if listen else []
        argv += ["--careless"] if careless or language == self.careless else []
        with log.open("ab") as stderr:
            size = stderr.tell()
            try:
                process = await trio.lowlevel.open_process(
                    argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
                )
            except FileNotFoundError:
                raise PeerFailed(
                    f"{name}: {argv[0]} is not there\ntry: make interop, which builds it"
                ) from None
        peer = Peer(name, process, log, _read=size)
        self.peers.append(peer)
        self.nursery.start_soon(peer.listen)
        ready = await peer.event("ready", within_s=START_S)
        peer.peer_id, peer.addr = ready["peer_id"], ready["addrs"][0]
        return peer

    def faults(self) -> list[str]:
        """What the logs of all peers say of faults of their own since this was asked last."""
        return [fault for peer in self.peers for fault in peer.faults()]

    async def stop_all(self) -> None:
        """End every peer that still runs."""
        peers, self.peers = self.peers, []
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(peer.stop)


@asynccontextmanager
async def open_ground(
    commands: dict[str, Sequence[str]], directory: Path, *, careless: str = ""
) -> AsyncIterator[Ground]:
    """A place for peers; all of them have ended afterwards."""
    await trio.Path(directory).mkdir(parents=True, exist_ok=True)
    async with trio.open_nursery() as nursery:
        ground = Ground(commands, directory, nursery, careless)
        try:
            yield ground
        finally:
            with trio.CancelScope(shield=True):
                await ground.stop_all()
            nursery.cancel_scope.cancel()

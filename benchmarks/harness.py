"""The shared part of every benchmark: sides that are processes of their own, alternating runs, rows, the table.

Hides: pipes and statistics. Guarantees: both sides of a ratio run in one session, one after the other in turn, so that
a busy neighbour meets both; progress goes to stderr, rows to stdout. A row is as docs/performance.md says:
{"row", "what", "unit", "ours": {min, median, max}, "peer": {name, version, min, median, max}, "ratio", "runs"}.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import trio

STOP_S_MAX: Final = 20.0
LOG_BYTES_SHOWN: Final = 4_096


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says. `quick`: fewer and smaller runs, to see that all works; `files`: which of them."""

    json: bool = False
    quick: bool = False
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spread:
    """Least, middle and greatest of some runs."""

    min: float
    median: float
    max: float

    def to_json(self) -> dict[str, float]:
        return {"min": rounded(self.min), "median": rounded(self.median), "max": rounded(self.max)}


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value."""
    if not values:
        raise ValueError("a spread of no runs")
    return Spread(min(values), median(values), max(values))


def rounded(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom we are measured against."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `ratio` is ours by the peer's, of the medians; `target` says what it should be."""

    row: str
    what: str
    unit: str
    ours: Spread
    peer: Peer
    peers: Spread
    runs: int
    target: str = ""

    @property
    def ratio(self) -> float:
        return self.ours.median / self.peers.median

    def to_json(self) -> dict[str, Any]:
        return {
            "row": self.row,
            "what": self.what,
            "unit": self.unit,
            "ours": self.ours.to_json(),
            "peer": {"name": self.peer.name, "version": self.peer.version, **self.peers.to_json()},
            "ratio": rounded(self.ratio),
            "runs": self.runs,
        }


Measure = Callable[[], Awaitable[float]]


async def alternate(what: str, ours: Measure, peers: Measure, runs: int) -> tuple[Spread, Spread]:
    """Both sides in turn, `runs` times, after one run of each that does not count."""
    mine: list[float] = []
    theirs: list[float] = []
    for run in range(runs + 1):
        first, second = await ours(), await peers()
        if run:  # the first of each warms caches, connections and windows up
            mine.append(first)
            theirs.append(second)
            progress(f"{what}: run {run} of {runs}: {first:.4g} and {second:.4g}")
    return spread(mine), spread(theirs)


def progress(text: str) -> None:
    """For people who wait."""
    print(text, file=sys.stderr, flush=True)


def stock_libp2p() -> Peer:
    """py-libp2p as it is installed, which the stock side imports without any of our cures."""
    return Peer("stock py-libp2p", importlib.metadata.version("libp2p"))


# --- sides -------------------------------------------------------------------------------------------------


class SideFailed(Exception):
    """A side ended, or answered a command with an error."""


class Side:
    """A process that does as it is told: JSON lines there and back, one command at a time (see benchmarks/side.py)."""

    def __init__(self, name: str, process: trio.Process) -> None:
        self.name = name
        self._process = process
        self._rest = b""

    async def ask(self, command: str, **arguments: Any) -> Any:
        """The result of one command. Raises SideFailed."""
        assert self._process.stdin is not None
        line = json.dumps({"command": command, **arguments}).encode() + b"\n"
        await self._process.stdin.send_all(line)
        answer = json.loads(await self._line())
        if "error" in answer:
            raise SideFailed(f"{self.name}: {command}: {answer['error']}")
        return answer["result"]

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            data = await self._process.stdout.receive_some()
            if not data:
                raise SideFailed(f"{self.name} ended with {await self._process.wait()}")
            self._rest += bytes(data)
        line, self._rest = self._rest.split(b"\n", 1)
        return line

    async def stop(self) -> None:
        """End its input, which ends it; kill it when it does not."""
        assert self._process.stdin is not None
        with trio.move_on_after(STOP_S_MAX, shield=True):
            await self._process.stdin.aclose()
            await self._process.wait()
            return
        self._process.kill()


@asynccontextmanager
async def side(module: str, *arguments: str) -> AsyncIterator[Side]:
    """`python -m benchmarks.<module> arguments`, ended with the block."""
    with tempfile.TemporaryFile() as log:  # libraries talk much
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", f"benchmarks.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        one = Side(module, process)
        try:
            await one.ask("ready")
            yield one
        except SideFailed:
            log.seek(0)
            progress(log.read()[-LOG_BYTES_SHOWN:].decode(errors="replace"))
            raise
        finally:
            await one.stop()


# --- the program -------------------------------------------------------------------------------------------

Benchmark = Callable[[Options], Awaitable[list[Row]]]


def parsed(arguments: Sequence[str] | None = None, files: Sequence[str] = ()) -> Options:
    """--json and --quick, and the names of some of `files`."""
    parser = argparse.ArgumentParser(description="Rows on stdout, progress on stderr.")
    parser.add_argument("--json", action="store_true", help="a JSON line for each row")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller runs: does it work?")
    if files:
        parser.add_argument("files", nargs="*", metavar="FILE", help=f"only these: {', '.join(files)}")
    found = parser.parse_args(arguments)
    chosen = tuple(getattr(found, "files", ()))
    unknown = set(chosen) - set(files)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(files)}")
    return Options(json=found.json, quick=found.quick, files=chosen)


def main(benchmark: Benchmark) -> None:
    """Run one file's benchmark by the command line."""
    options = parsed()
    show(trio.run(benchmark, options), options)


def show(rows: Sequence[Row], options: Options) -> None:
    """The rows on stdout, as they were asked for."""
    if options.json:
        for row in rows:
            print(json.dumps(row.to_json()), flush=True)
        return
    print(table(rows), flush=True)


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, as docs/performance.md holds it."""
    lines = [
        "| row | what | unit | ours (min, median, max) | peer (min, median, max) | against | ratio | target |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours, peers = (f"{s.min:.4g}, {s.median:.4g}, {s.max:.4g}" for s in (row.ours, row.peers))
        against = f"{row.peer.name} {row.peer.version}".strip()
        lines.append(
            f"| {row.row} | {row.what} | {row.unit} | {ours} | {peers} | {against} "
            f"| {row.ratio:.3g} | {row.target} |"
        )
    return "\n".join(lines)

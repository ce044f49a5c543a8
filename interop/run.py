"""The matrix: every scenario between every two languages, and what has more than two sides. `make interop` calls this.

stdout: the table (with --json FILE also the same as JSON). stderr: progress, and each failure with its log. Exit 0 when
every cell is green, 1 otherwise, 2 on wrong use or where a toolchain is missing, 130 after Ctrl-C. With --self-check
one language after the other checks nothing, and exit 0 means that the scenarios which look for that turned red.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import trio

from bootstrap.cli import interrupt
from interop.ctrl_c import exit_code
from interop.driver import Ground, Peer, open_ground
from interop.languages import LANGUAGES, BuildFailed, Missing, build, command, is_built
from interop.scenarios import PAIRS
from interop.steps import connected
from interop.together import NETWORKS, SOLO

SCENARIO_S: Final = 240.0
# What a careless peer turns red, and by which words: it publishes or keeps what it should refuse.
NOTICED_BY: Final = {
    "gossip": re.compile(r"publish was answered with|no event gossip .*'verdict': '(reject|ignore)'"),
    "dht heads": re.compile(r"dht_put was answered with|holds what \S+-\d+ put"),
}
NEVER: Final = re.compile(r"(?!)")
OpenGround: TypeAlias = Callable[[str], AbstractAsyncContextManager[Ground]]
Work: TypeAlias = Callable[[], Awaitable[list["Cell"]]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One scenario of one composition. `failure` is empty where it held."""

    scenario: str
    peers: str  # asker>answerer, or the languages of a network joined by +
    seconds: float
    failure: str


def reasons(error: BaseException) -> list[str]:
    """What went wrong, out of whatever groups it came in."""
    if isinstance(error, BaseExceptionGroup):
        return [reason for one in error.exceptions for reason in reasons(one)]
    return ["".join(traceback.format_exception_only(error)).strip() or repr(error)]


async def judge(
    scenario: str, peers: str, run: Callable[[], Awaitable[None]], ground: Ground | None = None
) -> Cell:
    """Run one; whatever goes wrong is the cell's, and so is what the peers' logs say of faults of their own."""
    began, failure = time.monotonic(), ""
    try:
        with trio.fail_after(SCENARIO_S):
            await run()
        if ground is not None and (faults := ground.faults()):
            failure = " | ".join(faults)
    except trio.TooSlowError:
        failure = f"not within {SCENARIO_S:.0f} s"
    except Exception as error:  # noqa: BLE001  # every fault is a red cell
        failure = " | ".join(reasons(error))
    cell = Cell(scenario, peers, round(time.monotonic() - began, 1), failure)
    print(
        f"{'ok  ' if not failure else 'FAIL'} {peers:12} {scenario} ({cell.seconds} s) {failure}",
        file=sys.stderr,
        flush=True,
    )
    if failure and ground is not None:
        print("\n".join(peer.tail() for peer in ground.peers), file=sys.stderr, flush=True)
    return cell


async def run_pair(open_one: OpenGround, one: str, other: str, names: list[str]) -> list[Cell]:
    """All scenarios of one pairing, in their order, in the same two processes."""
    pair = f"{one}>{other}"
    async with open_one(pair) as ground:
        started: list[Peer] = []

        async def start() -> None:
            started.extend([await ground.start(one, 1), await ground.start(other, 2)])
            if "connect + identify" not in names:
                await connected(*started)

        begun = await judge("start", pair, start, ground)
        if begun.failure:
            return [begun]
        return [await judge(name, pair, partial(PAIRS[name], ground, *started), ground) for name in names]


async def run_alone(
    open_one: OpenGround, name: str, peers: str, run: Callable[[Ground], Awaitable[None]]
) -> list[Cell]:
    """A scenario on a ground of its own."""
    async with open_one(f"{name}-{peers}".replace(" ", "-")) as ground:
        return [await judge(name, peers, partial(run, ground), ground)]


def work_of(options: argparse.Namespace, open_one: OpenGround) -> list[Work]:
    """All that was asked for, each piece on a ground of its own."""
    languages: list[str] = options.languages
    wanted = options.scenarios or ([*PAIRS] if options.pairs else [*PAIRS, *SOLO, *NETWORKS])
    names = [name for name in PAIRS if name in wanted]
    pairs = [(one, other) for one, other in itertools.product(languages, repeat=2)]
    chosen = options.pairs or [f"{one}>{other}" for one, other in pairs]
    alone = [
        partial(run_alone, open_one, name, one, partial(SOLO[name], language=one))
        for name in SOLO
        if name in wanted
        for one in languages
    ]
    paired = [
        partial(run_pair, open_one, one, other, names)
        for one, other in pairs
        if names and f"{one}>{other}" in chosen
    ]
    together = [
        partial(run_alone, open_one, name, "+".join(languages), partial(NETWORKS[name], languages=languages))
        for name in NETWORKS
        if name in wanted and len(languages) > 1
    ]
    return [*together, *alone, *paired]


async def run_all(options: argparse.Namespace, logs: Path) -> list[Cell]:
    """Every cell that was asked for, `--jobs` grounds at a time. `logs`: a folder that no run before has used."""
    commands = {language: command(language) for language in options.languages}

    def open_one(name: str) -> AbstractAsyncContextManager[Ground]:
        return open_ground(commands, logs / options.careless / name, careless=options.careless)

    cells: list[Cell] = []
    places = trio.Semaphore(options.jobs)

    async def run(one: Work) -> None:
        try:
            cells.extend(await one())
        finally:
            places.release()

    async with trio.open_nursery() as nursery:
        for one in work_of(options, open_one):
            await places.acquire()
            nursery.start_soon(run, one)
    return cells


async def run_careless(options: argparse.Namespace, logs: Path) -> list[Cell]:
    """Each language in turn, as NAME*, checks nothing: cells of those scenarios that would notice, on either side."""
    cells: list[Cell] = []
    for language in options.languages:
        beside = next((one for one in options.languages if one != language), language)
        pairs = list(dict.fromkeys((f"{language}>{beside}", f"{beside}>{language}")))
        asked = {"careless": language, "pairs": pairs, "scenarios": list(NOTICED_BY)}
        found = await run_all(argparse.Namespace(**vars(options) | asked), logs)
        cells += [replace(cell, peers=cell.peers.replace(language, f"{language}*")) for cell in found]
    return cells


def table(cells: list[Cell]) -> str:
    """Scenarios down, compositions across; a dot is green, an X is red."""
    columns = list(dict.fromkeys(cell.peers for cell in cells))
    rows = list(dict.fromkeys(cell.scenario for cell in cells))
    found = {(cell.scenario, cell.peers): cell for cell in cells}
    width = max(map(len, rows), default=0)
    lines = [" " * width + "  " + "  ".join(columns)]
    for row in rows:
        marks = []
        for column in columns:
            cell = found.get((row, column))
            mark = " " if cell is None else "." if not cell.failure else "X"
            marks.append(mark.center(len(column)))
        lines.append(row.ljust(width) + "  " + "  ".join(marks).rstrip())
    red = sum(bool(cell.failure) for cell in cells)
    return "\n".join([*lines, "", f"{len(cells) - red} green, {red} red"])


def main() -> int:
    """Parse, build, run, print."""
    parser = argparse.ArgumentParser(prog="make interop", description=__doc__)
    parser.add_argument("--languages", type=lambda text: text.split(","), help="such as py,go")
    parser.add_argument(
        "--pairs",
        type=lambda text: text.split(","),
        help="such as go>py,py>go: of what is no pairing only what --scenarios names",
    )
    parser.add_argument("--scenarios", type=lambda text: text.split(";"), help="by name, separated by ;")
    parser.add_argument("--jobs", type=int, default=2, help="compositions at a time")
    parser.add_argument("--repeat", type=int, default=1, help="the whole matrix so many times in a row")
    parser.add_argument(
        "--careless", default="", help="this language's peers check nothing: cells must turn red"
    )
    parser.add_argument(
        "--self-check", action="store_true", help="each language careless in turn: all must be red"
    )
    parser.add_argument("--json", type=Path, help="write the cells there")
    parser.add_argument("--logs", type=Path, help="keep the peers' logs there")
    parser.add_argument("--no-build", action="store_true", help="the peers are built")
    options = parser.parse_args()
    unknown = set(options.languages or ()) - set(LANGUAGES)
    unknown |= set(options.scenarios or ()) - {*PAIRS, *SOLO, *NETWORKS}
    unknown |= {options.careless} - {"", *LANGUAGES}
    unknown |= set(options.pairs or ()) - {">".join(pair) for pair in itertools.product(LANGUAGES, repeat=2)}
    if options.self_check and (options.pairs or options.scenarios or options.careless):
        parser.error("--self-check chooses pairs, scenarios and who is careless by itself")
    if unknown or options.jobs < 1 or options.repeat < 1:
        parser.error(f"not known: {', '.join(sorted(unknown)) or 'jobs and repeat are at least 1'}")
    try:
        options.languages = [
            one
            for one in options.languages or LANGUAGES
            if options.no_build or is_built(partial(build, one), asked=bool(options.languages))
        ]
    except (Missing, BuildFailed) as failed:
        print(f"error: {failed}", file=sys.stderr)
        return 2
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory(prefix="aw-interop-") as temporary:
        logs = options.logs or Path(temporary)
        if options.self_check:
            return self_check(interrupt.run(partial(run_careless, options, logs)))
        for run in range(options.repeat):
            cells = interrupt.run(
                partial(run_all, options, logs / f"run-{run + 1}" if options.repeat > 1 else logs)
            )
            print(table(cells), flush=True)
            if not cells or any(cell.failure for cell in cells):
                print(f"run {run + 1} of {options.repeat}: red", file=sys.stderr)
                break
    if options.json:
        options.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n")
    if not cells:
        print(
            "error: nothing was asked for: --languages leaves out what --pairs or --scenarios name",
            file=sys.stderr,
        )
        return 2
    return 1 if any(cell.failure for cell in cells) else 0


def self_check(cells: list[Cell]) -> int:
    """Whether every cell is red, and by what its scenario looks for and not by an accident; the exit code."""
    print(table(cells), flush=True)
    wrong = [cell for cell in cells if not NOTICED_BY.get(cell.scenario, NEVER).search(cell.failure)]
    for cell in wrong:
        said = cell.failure or "it is green"
        print(f"error: {cell.peers} {cell.scenario}: carelessness was not noticed: {said}", file=sys.stderr)
    return 1 if wrong or not cells else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))

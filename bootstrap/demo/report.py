"""What the demo says at its end, and on its way: for a stranger, and for scripts.

Hides: rich. Guarantees: stdout carries the table or the one JSON object, stderr the progress; the fields of the JSON
object are those of docs/operations.md, section "The demo".
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bootstrap.demo.tracking import percentile

if TYPE_CHECKING:
    from bootstrap.demo.processes import Network

PLAIN_LINE_S: Final = 5.0
Show = Callable[[int, int, int], None]
"""Called with (envelopes verified, height, actions applied)."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was counted. Times in ms where they say so, else in seconds."""

    verified: bool
    world_id: str
    flights_read: int
    flights_flown: int
    flights_planned: int
    flights_skipped: Mapping[str, int]
    envelopes: int
    actions_submitted: int
    actions_applied: int
    actions_refused: Mapping[str, int]
    actions_lost: int
    turned_away: Mapping[str, int]
    blocks: int
    head_height: int
    verified_height: int
    executor_state_root: bytes
    observer_state_root: bytes
    delays_ms: tuple[int, ...]
    disk_bytes: int
    dht_lookups: int
    processes: tuple[Mapping[str, object], ...]
    restarts: int
    receipt_proved_at: int | None
    wall_s: float = 0.0
    flying_s: float = 0.0

    @property
    def actions_per_second(self) -> float:
        """From the first submit to the last verified."""
        return round(self.actions_applied / self.flying_s, 1) if self.flying_s else 0.0

    def as_json(self) -> dict[str, object]:
        """The object of `aw demo --json`."""
        return {
            "verified": self.verified,
            "world_id": self.world_id,
            "flights_read": self.flights_read,
            "flights_flown": self.flights_flown,
            "flights_skipped": dict(self.flights_skipped),
            "envelopes": self.envelopes,
            "actions_submitted": self.actions_submitted,
            "actions_applied": self.actions_applied,
            "actions_refused": dict(self.actions_refused),
            "actions_lost": self.actions_lost,
            "envelopes_turned_away": dict(self.turned_away),
            "blocks": self.blocks,
            "head_height": self.head_height,
            "verified_height": self.verified_height,
            "executor_state_root": self.executor_state_root.hex(),
            "observer_state_root": self.observer_state_root.hex(),
            "actions_per_second": self.actions_per_second,
            "submit_to_verified_ms": {
                "p50": percentile(self.delays_ms, 50),
                "p99": percentile(self.delays_ms, 99),
            },
            "disk_bytes": self.disk_bytes,
            "dht_lookups": self.dht_lookups,
            "processes": [dict(process) for process in self.processes],
            "restarts": self.restarts,
            "receipt_proved_at_height": self.receipt_proved_at,
            "wall_s": round(self.wall_s, 2),
        }


def make_report(counted: Report, *, wall_s: float, flying_s: float) -> Report:
    """The report with its times."""
    return replace(counted, wall_s=wall_s, flying_s=flying_s)


@contextmanager
def show_progress(total: int) -> Iterator[Show]:
    """A live bar on a terminal, a line every few seconds elsewhere; both on stderr."""
    if not sys.stderr.isatty():
        yield _plain(total)
        return
    columns = (
        TextColumn("[bold]verified"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=total)

        def show(done: int, height: int, applied: int) -> None:
            bar.update(task, completed=done, description=f"block {height:,}, {applied:,} actions")

        yield show


def _plain(total: int) -> Show:
    said = 0.0

    def show(done: int, height: int, applied: int) -> None:
        nonlocal said
        if time.monotonic() - said >= PLAIN_LINE_S or done >= total:
            said = time.monotonic()
            print(  # noqa: T201  # progress
                f"verified {done:,} of {total:,} envelopes, block {height:,}, {applied:,} actions",
                file=sys.stderr,
            )

    return show


def print_table(report: Report) -> None:
    """What a stranger reads."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(report):
        table.add_row(name, value)
    console = Console()
    console.print(table)
    console.print(_verdict(report), style="bold green" if report.verified else "bold red")


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in report.flights_skipped.items()) or "none"
    refused = ", ".join(f"{count:,} {code}" for code, count in report.actions_refused.items()) or "none"
    yield "world", report.world_id
    yield "processes", ", ".join(f"{process['role']} (pid {process['pid']})" for process in report.processes)
    yield "flights in the file", f"{report.flights_read:,}, not flown: {skipped}"
    yield "flights flown", f"{report.flights_flown:,} of {report.flights_planned:,}, one signed envelope each"
    yield "actions applied", f"{report.actions_applied:,} of {report.actions_submitted:,} submitted"
    yield "actions refused", refused
    if report.turned_away:
        told = ", ".join(f"{count:,} {reason}" for reason, count in report.turned_away.items())
        yield "envelopes turned away", f"{told}, by the gateway"
    yield "actions lost", f"{report.actions_lost:,}"
    yield "blocks", f"{report.blocks:,}"
    yield (
        "actions per second",
        f"{report.actions_per_second:,.0f}, from signed envelope to verified by another process",
    )
    p50, p99 = percentile(report.delays_ms, 50), percentile(report.delays_ms, 99)
    yield "submit to verified", f"{p50:,} ms for half of them, {p99:,} ms for 99 in 100"
    yield "on disk", f"{report.disk_bytes / 1_000_000:.1f} MB in all data directories"
    yield "DHT lookups", f"{report.dht_lookups:,}"
    yield "restarts", f"{report.restarts:,}"
    yield "executor's state root", f"{report.executor_state_root.hex()} at height {report.head_height:,}"
    yield "observer's state root", f"{report.observer_state_root.hex()} at height {report.verified_height:,}"
    yield (
        "proved by the observer",
        "every block, replayed_from_genesis: it executed all of them itself, in epoch 0",
    )
    if report.receipt_proved_at is not None:
        yield (
            "proved to this program",
            f"the last flight's receipts (block {report.receipt_proved_at:,}), attested: "
            "by Merkle path, commit and attestation",
        )
    yield "took", f"{report.wall_s:.1f} s"


def _verdict(report: Report) -> str:
    if report.verified:
        return "VERIFIED: the observer trusted nobody and came to the executor's state, to the last bit."
    return "NOT VERIFIED: see the rows above; --keep leaves the nodes running, --data-dir keeps their logs."


def print_next_steps(network: Network, world_id: str) -> None:
    """What to try while it runs, as it can be pasted."""
    aw = _program()
    bootstrap = network.holding("index").addr
    gateway = network.holding("gateway").addr
    Console(stderr=True).print(
        "\nThe network goes on running; Ctrl-C stops it. Try in another terminal:\n"
        f"  {aw} head {world_id} --node {gateway}\n"
        f"  {aw} status --node {gateway}\n"
        f"  {aw} verify {world_id} --bootstrap {bootstrap}\n"
        f"  kill -9 {network.holding('executor').pid}   # it comes back, and nothing is lost\n",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _program() -> str:
    """How this `aw` is called from here: the one of an environment that is not active needs its path."""
    beside = Path(sys.executable).parent / "aw"
    found = shutil.which("aw")
    if found is not None and Path(found).resolve() == beside.resolve():
        return "aw"
    return os.path.relpath(beside) if beside.exists() else f"{sys.executable} -m bootstrap.cli"

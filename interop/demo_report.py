"""What the demo of four languages says at its end: for a stranger, and (as JSON) for scripts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Result:
    """The end of the demo. Roots are hex; `replayed`: by a verifier that the Go peer alone served."""

    verified: bool
    world_id: str
    flights: int
    envelopes: int
    actions_applied: int
    actions_lost: int
    blocks: int
    submitted_by_js: int
    heads_followed_by_rust: int
    receipts_proved_by_rust: int
    positions_proved_by_rust: int
    height_stored_by_go: int
    executor_state_root: str
    observer_state_root: str
    replayed_state_root: str
    blobs_served_by_go: int
    seconds: float


def print_result(result: Result) -> None:
    """What a stranger reads."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(result):
        table.add_row(name, value)
    console = Console()
    console.print(table)
    verdict = (
        "VERIFIED: four languages, one state." if result.verified else "NOT VERIFIED: see the rows above."
    )
    console.print(verdict, style="bold green" if result.verified else "bold red")


def _rows(result: Result) -> Iterator[tuple[str, str]]:
    yield "world", result.world_id
    yield (
        "JavaScript acted",
        f"{result.submitted_by_js:,} of {result.envelopes:,} envelopes signed and submitted, "
        f"byte for byte as planned; {result.flights:,} of them flights",
    )
    yield (
        "Python ordered",
        f"{result.blocks:,} blocks, {result.actions_applied:,} actions applied, {result.actions_lost:,} lost",
    )
    yield (
        "Rust checked",
        f"{result.heads_followed_by_rust:,} heads; proved to it: {result.receipts_proved_by_rust:,} receipts, "
        f"where {result.positions_proved_by_rust:,} aircraft ended",
    )
    yield (
        "Go stored",
        f"{result.height_stored_by_go:,} heights, and served {result.blobs_served_by_go:,} blobs of them "
        "when nobody else had them any more",
    )
    yield "executor's state root", result.executor_state_root
    yield "observer's state root", result.observer_state_root
    yield "replayed out of Go", result.replayed_state_root
    yield "took", f"{result.seconds:.1f} s"

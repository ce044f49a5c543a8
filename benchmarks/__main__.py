"""All benchmarks, one after the other: `make bench`, or `python -m benchmarks [--json] [--quick]`."""

from __future__ import annotations

from typing import Final

import trio

from benchmarks import blobs, block, connect, disk, end_to_end, gossip, rr
from benchmarks.harness import Benchmark, Row, parsed, progress, show

ALL: Final[tuple[Benchmark, ...]] = (
    rr.rows,
    connect.rows,
    blobs.rows,
    gossip.rows,
    end_to_end.rows,
    block.rows,
    disk.rows,
)


def run() -> None:
    """Every row. With --json each is printed as soon as it is there, else one table at the end."""
    options = parsed()
    found: list[Row] = []
    for benchmark in ALL:
        progress(f"--- {benchmark.__module__}")
        rows = trio.run(benchmark, options)
        found += rows
        if options.json:
            show(rows, options)
    if not options.json:
        show(found, options)


if __name__ == "__main__":
    run()

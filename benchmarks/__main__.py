"""The benchmarks, one after the other: `make bench`, or `python -m benchmarks [--json] [--quick] [FILE ...]`."""

from __future__ import annotations

from typing import Final

import trio

from benchmarks import blobs, block, connect, disk, end_to_end, gossip, interop, rr
from benchmarks.harness import Benchmark, Row, parsed, progress, show

# By name; those beside stock py-libp2p and a naive build run when none is named, `interop` needs more toolchains.
STANDARD: Final[dict[str, Benchmark]] = {
    "rr": rr.rows,
    "connect": connect.rows,
    "blobs": blobs.rows,
    "gossip": gossip.rows,
    "end_to_end": end_to_end.rows,
    "block": block.rows,
    "disk": disk.rows,
}
ALL: Final[dict[str, Benchmark]] = {**STANDARD, "interop": interop.rows}


def run() -> None:
    """Every row. With --json each is printed as soon as it is there, else one table at the end."""
    options = parsed(files=tuple(ALL))
    found: list[Row] = []
    for name in options.files or STANDARD:
        progress(f"--- {name}")
        rows = trio.run(ALL[name], options)
        found += rows
        if options.json:
            show(rows, options)
    if not options.json:
        show(found, options)


if __name__ == "__main__":
    run()

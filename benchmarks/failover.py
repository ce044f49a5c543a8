"""How long a network is without a new commit when its leader is killed, paused or cut off.

One network of six processes on this machine, under load; `--runs` faults, one after the other, each time to whoever
leads. stdout: the times in ms (with --json one object). Exit 0 when everything was verified in the end and no run took
longer than 1.5 lease TTL + one batch interval, 1 otherwise, 2 on wrong use.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import sys
import tempfile
from pathlib import Path

import trio

from bootstrap.demo import namespaces
from bootstrap.demo.failover import BOUND_MS, FAULTS, STORES, check_end, load, open_cluster, strike


async def until_told(directory: Path, options: argparse.Namespace) -> dict[str, object] | None:
    """Measure; None when a signal came first. The nodes are ended either way."""
    report = None
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        report = await measure(directory, options)
        nursery.cancel_scope.cancel()
    return report


async def measure(directory: Path, options: argparse.Namespace) -> dict[str, object]:
    """All runs in one network."""
    rng, times_ms = random.Random(options.seed), list[int]()
    async with open_cluster(directory, options.store, in_namespaces=options.fault == "partition") as cluster:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load, cluster)
            for run in range(options.runs):
                times_ms.append(round(await strike(cluster, options.fault, rng) * 1_000))
                print(f"run {run + 1}/{options.runs}: {times_ms[-1]} ms", file=sys.stderr, flush=True)
            nursery.cancel_scope.cancel()
        height = await check_end(cluster)
        return {
            "store": options.store,
            "fault": options.fault,
            "runs": options.runs,
            "min_ms": min(times_ms),
            "median_ms": round(statistics.median(times_ms)),
            "max_ms": max(times_ms),
            "bound_ms": BOUND_MS,
            "beyond_bound": sum(time_ms > BOUND_MS for time_ms in times_ms),
            "accepted": len(cluster.accepted),
            "height": height,
            "verified": True,
            "times_ms": times_ms,
        }


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--store", choices=STORES, default="embedded")
    parser.add_argument("--fault", choices=FAULTS, default="kill")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments of the faults")
    parser.add_argument("--data-dir", type=Path, help="keep the nodes' data and logs there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    lacking = namespaces.missing() if options.fault == "partition" else None
    if lacking is not None:
        parser.error(lacking)
    with tempfile.TemporaryDirectory(prefix="aw-failover-") as temporary:
        report = trio.run(until_told, options.data_dir or Path(temporary), options)
    if report is None:
        return 1
    if options.json:
        print(json.dumps(report))
    else:
        print(
            "{store}, {fault}: min {min_ms} median {median_ms} max {max_ms} ms over {runs} runs, "
            "{beyond_bound} beyond {bound_ms} ms; {accepted} envelopes verified, height {height}".format(
                **report
            )
        )
    return 1 if report["beyond_bound"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""Run the simulation over a row of seeds: what `make simulate` calls.

stdout: one line per seed that failed, with its trace. stderr: progress. Exit 0 when every seed ended verified and the
leader and the observer hold the same state, 1 otherwise, 2 on wrong use.
"""

from __future__ import annotations

import argparse
import sys

from bootstrap.simulation import Result, run_seed

ENVELOPES = 200
PROGRESS_SEEDS = 10


def fault_of(result: Result, envelope_count: int) -> str | None:
    """What is wrong with the end of a run, or None."""
    if not result.verified:
        return f"not verified after {result.simulated_s:.0f} simulated seconds"
    if result.accepted != envelope_count:
        return f"{result.accepted} of {envelope_count} envelopes accepted"
    if result.roots.get("leader") is None or result.roots.get("leader") != result.roots.get("observer"):
        return f"state roots differ: {result.roots}"
    return None


def main() -> int:
    """Run the seeds `first .. first + seeds - 1`."""
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    options = parser.parse_args()
    if options.seeds < 1 or options.first < 0:
        parser.error("SEEDS is at least 1 and FIRST at least 0")
    failed = []
    for count, seed in enumerate(range(options.first, options.first + options.seeds), start=1):
        result = run_seed(seed, ENVELOPES)
        fault = fault_of(result, ENVELOPES)
        if fault is not None:
            failed.append(seed)
            print(f"seed {seed}: {fault}", *result.trace, sep="\n  ")
        if count % PROGRESS_SEEDS == 0 or count == options.seeds:
            print(f"{count}/{options.seeds} seeds, {len(failed)} failed", file=sys.stderr)
    if failed:
        print(f"again: make simulate SEEDS=1 FIRST={failed[0]}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

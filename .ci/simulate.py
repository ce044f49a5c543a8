"""Run the simulation over a row of seeds: what `make simulate` calls.

stdout: for each seed that failed the broken check, the one command that runs it again, and its trace. stderr: progress
and a summary. Exit 0 when every check held in every run, 1 otherwise, 2 on wrong use.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter

from bootstrap.simulation.run import run_seeds

PROGRESS_SEEDS = 50


def main() -> int:
    """Run the seeds `first .. first + seeds - 1` in `jobs` processes."""
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many processes")
    options = parser.parse_args()
    if options.seeds < 1 or options.first < 0 or options.jobs < 1:
        parser.error("SEEDS and JOBS are at least 1 and FIRST at least 0")
    began_s = time.monotonic()
    failed, troubles, height, simulated_s = list[str](), Counter[str](), 0, 0.0
    seeds = range(options.first, options.first + options.seeds)
    for count, result in enumerate(run_seeds(seeds, min(options.jobs, options.seeds)), start=1):
        if result.failure is not None:
            failed.append(result.again)
            print(result.report(), flush=True)
        troubles.update(result.troubles)
        height += result.height
        simulated_s += result.simulated_s
        if count % PROGRESS_SEEDS == 0 or count == options.seeds:
            rate = 60 * count / (time.monotonic() - began_s) / options.jobs
            print(
                f"{count}/{options.seeds} seeds, {len(failed)} failed, {rate:.0f} a minute and process",
                file=sys.stderr,
            )
    happened = ", ".join(f"{name} {number}" for name, number in sorted(troubles.items()))
    print(
        f"seeds {seeds.start}..{seeds.stop - 1}: {len(failed)} failed; {height} heights,"
        f" {simulated_s / 3600:.1f} simulated hours; troubles: {happened or 'none'}",
        *failed,
        sep="\n",
        file=sys.stderr,
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""An attacker's process: `python -m benchmarks.hostile.siege`. One JSON line on stdin says against whom; then stdin's
end is the end of the siege. The first line of stdout says that genesis and head are learned, so that all attacks are
under way; the last one, what each attack has done.

    {"addrs": [multiaddrs], "world_id": ..., "attacks": [names of table.ATTACKS], "pace": 1.0, "nice": 10}
"""

from __future__ import annotations

import json
import logging
import os
import random
import sys
from collections import Counter
from typing import Any

import trio

from benchmarks.hostile.stranger import Ground, Pace, Tally, persist
from benchmarks.hostile.table import ATTACKS


async def besiege(ground: Ground, attacks: dict[str, float], tallies: dict[str, Tally]) -> None:
    """Look about first; then these attacks at these paces, all together, until cancelled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ground.keep_learning)
        await ground.learned.wait()
        print(json.dumps("learned"), flush=True)
        for name, per_s in attacks.items():
            tally = tallies.setdefault(name, Counter())
            nursery.start_soon(persist, ATTACKS[name].attack, ground, tally, Pace(per_s))


async def run() -> None:
    """Until stdin ends."""
    stdin = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
    told = b""
    while b"\n" not in told:
        told += bytes(await stdin.receive_some() or b"\n")
    order: dict[str, Any] = json.loads(told)
    os.nice(order["nice"])
    ground = Ground(order["addrs"], order["world_id"], random.Random(order.get("seed", 0)))
    paces = {name: ATTACKS[name].per_s * order["pace"] for name in order["attacks"]}
    tallies: dict[str, Tally] = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(besiege, ground, paces, tallies)
        while await stdin.receive_some():
            pass
        # What was done is told before the hosts are closed, which may take its time.
        print(json.dumps({name: dict(tally) for name, tally in tallies.items()}), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # the library tells of each reset; the tallies do that here
    try:
        trio.run(run)
    except BaseException as error:  # noqa: BLE001  # told, and no more: what was done is printed already
        print(f"siege ended by {type(error).__name__}", file=sys.stderr)
        raise SystemExit(1) from None

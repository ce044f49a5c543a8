"""From an envelope handed in to its effect verified by another process: ours, and a naive build of the same thing.

Both have a client, a process that executes and a process that replays, on loopback. What the naive one does, and what
it leaves out, stands in benchmarks/naive.py.
"""

from __future__ import annotations

from functools import partial

from benchmarks.harness import Options, Peer, Row, Side, alternate, main, side

NAIVE = Peer("naive: one-shot rr, one action per envelope and block, file + fsync per blob", "")


async def rows(options: Options) -> list[Row]:
    """Actions a second with one and with 16 actions per envelope."""
    runs, scale = (1, 8) if options.quick else (5, 1)
    plan = (
        ("e2e-1", "submit to verified, 1 action per envelope", 1, 4_096, ""),
        ("e2e-16", "submit to verified, 16 actions per envelope", 16, 32_768, ">= 20"),
    )
    found = []
    async with side("our_world") as ours, side("naive") as naive:
        for name, what, per_envelope, actions, target in plan:
            mine, theirs = await alternate(
                name,
                partial(_rate, ours, actions // scale, per_envelope),
                partial(_rate, naive, 256 // scale, 1),
                runs,
            )
            found.append(Row(name, what, "actions/s", mine, NAIVE, theirs, runs, target))
    return found


async def _rate(one: Side, actions: int, per_envelope: int) -> float:
    return float(await one.ask("run", actions=actions, per_envelope=per_envelope))


if __name__ == "__main__":
    main(rows)

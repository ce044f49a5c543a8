"""Every pause point of a leader: what if it dies, sleeps or is cut off between any two of its steps?

Hides: how the points are found. A first run of the seed counts each port call that the leader's sequencer and
executor make, before and after; since equal seeds run equally, the n-th point of that run is the n-th of every other
run too, and there the case stops the leader, for longer than its lease. No point is listed by hand, so none is missed.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from types import FrameType
from typing import Final

from bootstrap.garbage import collect_seldom
from bootstrap.simulation.network import NODES, Network, Watch
from bootstrap.simulation.run import Plan, Result, run_seed
from p2p.memory import Faults

LEADER: Final = "leader"
ACTIONS: Final = ("kill", "freeze", "cut")
OUT_S: Final = 12.0  # more than two leases
# Some messages reach nobody, some only a few: at each point another part of the network knows what was done.
WEATHER: Final = Faults(delay_ms=(1, 20), gossip_loss=0.4, gossip_late=0.2)
FIRST_ENVELOPES: Final = 6
ENVELOPES: Final = (
    12  # the second half is handed in when the first is settled, or as far as that gets without a leader
)
_FILES: Final = ("services/sequencer.py", "services/executor.py", "services/publish.py")


def leader_points(seed: int) -> list[str]:
    """The leader's points of a run in which nothing happens to it, in order: `file.function: what`."""
    points: list[str] = []

    def watch(network: Network, node: str, what: str) -> None:
        place = _place() if node == LEADER and network.part == 0 else None
        if place is not None:
            points.append(f"{place}: {what}")

    result = run_seed(seed, _plan(watch))
    assert result.failure is None, result.report()
    assert set(result.proposers) == {LEADER}, f"seed {seed}: another one leads: {result.proposers}"
    return points


def run_pause(seed: int, point: int, action: str) -> Result:
    """The same run, and at its `point`-th point (from 0) the leader is stopped in the given way."""
    seen = 0

    def watch(network: Network, node: str, what: str) -> None:
        nonlocal seen
        if node != LEADER or _place() is None:
            return
        seen += 1
        if seen == point + 1:
            network.note(LEADER, f"point {point}: {_place()}: {what}")
            _stop(network, random.Random(f"{seed} {point}"), action)

    return run_seed(seed, _plan(watch))


def run_pauses(seed: int, cases: Sequence[tuple[int, str]], jobs: int) -> list[Result]:
    """`run_pause` for each (point, action), in `jobs` processes."""
    points, actions = [point for point, _ in cases], [action for _, action in cases]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), collect_seldom) as pool:
        return list(pool.map(run_pause, repeat(seed, len(cases)), points, actions, chunksize=4))


def _plan(watch: Watch) -> Plan:
    return Plan(
        envelopes=ENVELOPES,
        weather=WEATHER,
        troubles=0,
        watch=watch,
        pieces=(FIRST_ENVELOPES,),
    )


def _stop(network: Network, rng: random.Random, action: str) -> None:
    network.stopped.set()
    if action == "kill":
        network.kill(LEADER, OUT_S)
    elif action == "freeze":
        network.freeze(LEADER, OUT_S)
    else:
        others = [name for name in NODES if name not in {LEADER, "coordinator"}]
        lost = rng.sample(others, rng.randrange(len(others) + 1))
        network.cut([LEADER], ["coordinator", *lost], OUT_S)


def _place() -> str | None:
    """Where in the sequencer, the executor or its publishing the running task stands; None when it is elsewhere."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # the stack is the one place that knows
    while frame is not None:
        name = frame.f_code.co_filename
        if name.endswith(_FILES):
            return f"{name.rpartition('/')[2].removesuffix('.py')}.{frame.f_code.co_name}"
        frame = frame.f_back
    return None

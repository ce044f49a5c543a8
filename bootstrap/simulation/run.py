"""One seed, from the start of the network to the last check; and many seeds on many cores.

Hides: the clock and the order of tasks. Guarantees: equal seeds give equal traces, in any process; a run ends
when every promise has ended on every node, when a check is broken, or at END_S_MAX of simulated time, which is a broken
check too; nothing that a node does ends the caller.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import random
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import trio
import trio.abc

from bootstrap.garbage import collect_seldom
from bootstrap.simulation import faults, load
from bootstrap.simulation.checks import Checks
from bootstrap.simulation.network import NODES, Network, Watch, connect, key_of
from p2p.memory import Faults, InMemoryNetwork
from runtime.services import HeadRecords

END_S_MAX: Final = 600.0  # of simulated time
ENVELOPES: Final = 32
PIECE_REST_S: Final = 1.5


@dataclass(frozen=True, slots=True)
class Plan:
    """How to run a seed. None: drawn by the seed."""

    envelopes: int = ENVELOPES
    weather: Faults | None = None
    troubles: int | None = None
    watch: Watch | None = None
    pieces: tuple[
        int, ...
    ] = ()  # hand in so many envelopes, wait until they are settled or a node is stopped; go on


@dataclass(frozen=True, slots=True)
class Result:
    """What a seed gave. `failure` names the broken check; `trace` is aligned: time in s, node, what."""

    seed: int
    failure: str | None
    accepted: int
    height: int
    proposers: tuple[str, ...]
    troubles: dict[str, int]
    simulated_s: float
    trace: tuple[str, ...] = field(repr=False)

    @property
    def again(self) -> str:
        """The command that runs this seed again."""
        return f"make simulate SEEDS=1 FIRST={self.seed}"

    def report(self) -> str:
        """The failure with its command and the whole trace."""
        return "\n".join(
            [
                f"seed {self.seed}: {self.failure}",
                f"again: {self.again}",
                *(f"  {line}" for line in self.trace),
            ]
        )


async def simulate(seed: int, plan: Plan) -> Result:
    """One network with the trouble that the seed draws (or the plan says). Needs `run_seed` around it."""
    rng = random.Random(seed)
    network = Network(seed, rng, plan.watch)
    listener = _Bugs(network.checks)
    work = load.make_load(network, random.Random(rng.randrange(1 << 63)), plan.envelopes)
    logging.getLogger().addHandler(listener)
    try:
        with trio.move_on_after(END_S_MAX) as time:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_when, network.checks.failed, nursery.cancel_scope)
                await _act(network, plan, work, nursery)
                nursery.cancel_scope.cancel()
    finally:
        logging.getLogger().removeHandler(listener)
    if time.cancelled_caught:
        heights = network.checks.heights(network.worlds)
        network.checks.fail(
            "ends_verified",
            f"not at rest after {END_S_MAX:.0f} s: committed {network.checks.committed()},"
            f" nodes {heights}; {load.missing(network, work)}",
        )
    names = {key.identity: name for name, key in network.keys.items()}
    checks = network.checks
    return Result(
        seed=seed,
        failure=checks.failure,
        accepted=len(checks.accepted),
        height=checks.committed(),
        proposers=tuple(names[checks.proposers[height]] for height in sorted(checks.proposers)),
        troubles=dict(sorted(network.troubles.items())),
        simulated_s=trio.current_time(),
        trace=tuple(network.trace),
    )


async def _end_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _act(network: Network, plan: Plan, work: load.Load, nursery: trio.Nursery) -> None:
    """Start the nodes, then trouble and load beside each other, then wait for rest."""
    network.nursery = nursery
    for name in NODES:
        await nursery.start(network.live, name)
    rng = random.Random(network.rng.randrange(1 << 63))
    network.weather = faults.faults_of(rng) if plan.weather is None else plan.weather
    network.hub.faults = network.weather
    network.note("links", f"{network.weather}")
    nursery.start_soon(network.watch_over)
    async with network.hub.open_node(key_of(network.seed, "client").identity, {}, HeadRecords()) as (
        client,
        _,
    ):
        for name in NODES:
            nursery.start_soon(connect, client, network.hub.addr(network.keys[name].identity))
        async with trio.open_nursery() as doing:
            count = rng.randrange(faults.TROUBLES_MAX + 1) if plan.troubles is None else plan.troubles
            doing.start_soon(faults.make_trouble, network, rng, count)
            doing.start_soon(_hand_in_all, network, plan, work, client)
        await network.until_calm()
        await load.until_settled(network, work.ending(network.checks.accepted))
        load.check_taken(network, work)
        network.note("all", f"verified: height {network.checks.committed()}")


async def _hand_in_all(network: Network, plan: Plan, work: load.Load, client: InMemoryNetwork) -> None:
    rng = random.Random(network.seed)
    envelopes = [*work.careful, *work.careless]
    if plan.pieces:  # each piece must be able to settle without the next one
        envelopes.sort(key=lambda envelope: envelope.record.nonce)
    else:
        rng.shuffle(envelopes)
    for count in plan.pieces:
        part, envelopes = envelopes[:count], envelopes[count:]
        async with trio.open_nursery() as first:
            first.start_soon(_end_when, network.stopped, first.cancel_scope)
            await load.hand_in(network, client, rng, work, part)
            await load.until_settled(network, part)
            await trio.sleep(PIECE_REST_S)  # the head gets into the DHT a little later
            first.cancel_scope.cancel()
        if network.stopped.is_set():
            envelopes += part  # maybe not accepted yet: handing in the same envelope again is no mistake
        network.part += 1
    await load.hand_in(network, client, rng, work, envelopes)


class _Bugs(logging.Handler):
    """An exception that a node logs and lives on with is a bug all the same."""

    def __init__(self, checks: Checks) -> None:
        super().__init__(logging.ERROR)
        self._checks = checks

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None and record.exc_info[1] is not None:
            told = "".join(traceback.format_exception(record.exc_info[1]))
            self._checks.fail("no_crash", f"{record.getMessage()}: {told}")


class Clock(trio.abc.Clock):
    """The true time of a run: it stands while any task can run, and is at the next deadline when none can.

    As trio.testing.MockClock with autojump, which looks at all tasks, and waits for I/O, before each of its jumps.
    """

    def __init__(self) -> None:
        self._now_s = 0.0

    def start_clock(self) -> None:
        """It begins at 0."""

    def current_time(self) -> float:
        return self._now_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        # trio asks only when no task can run: nothing but this deadline can wake one.
        if deadline < math.inf:
            self._now_s = max(self._now_s, deadline)
            return 0
        return math.inf


def run_seed(seed: int, plan: Plan | None = None) -> Result:
    """`simulate` under its own clock, with trio's own order of tasks decided by the seed (private to trio 0.35)."""
    # trio offers no public switch for this; trio is pinned to 0.35 in pyproject.toml.
    core: Any = trio._core._run  # noqa: SLF001
    before = core._ALLOW_DETERMINISTIC_SCHEDULING  # noqa: SLF001
    core._ALLOW_DETERMINISTIC_SCHEDULING = True  # noqa: SLF001
    core._r.seed(seed)  # noqa: SLF001
    try:
        return trio.run(simulate, seed, plan or Plan(), clock=Clock())
    except Exception as error:  # noqa: BLE001  # of the simulation itself: it fails its seed, not the other ones
        told = "".join(traceback.format_exception(error))
        return Result(seed, f"simulation: {told}", 0, 0, (), {}, 0.0, ())
    finally:
        core._ALLOW_DETERMINISTIC_SCHEDULING = before  # noqa: SLF001


def run_seeds(seeds: Iterable[int], jobs: int) -> Iterator[Result]:
    """Run seeds in `jobs` processes; results come in order. A trace that nobody needs stays there."""
    if jobs == 1:
        yield from map(_without_trace, seeds)
        return
    # A new interpreter each: what a test has patched or a fork has copied is not theirs.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_worker) as pool:
        yield from pool.map(_without_trace, seeds, chunksize=4)


def _worker() -> None:
    collect_seldom()
    logging.disable(logging.WARNING)
    logging.getLogger().addHandler(logging.NullHandler())


def _without_trace(seed: int) -> Result:
    result = run_seed(seed)
    if result.failure is not None:
        return result
    return Result(
        seed,
        None,
        result.accepted,
        result.height,
        result.proposers,
        result.troubles,
        result.simulated_s,
        (),
    )

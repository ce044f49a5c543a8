"""Every attack of benchmarks/hostile, each by itself, against three node processes with honest work going on.

While an attack goes on, what it does is counted by a node, and honest envelopes are verified; nobody dies of it. All
of them together for minutes are `python -m benchmarks.hostile`.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from benchmarks.hostile.load import Besieged, counters, hand_in, open_besieged
from benchmarks.hostile.stranger import Ground, Pace, persist, strikes
from benchmarks.hostile.table import ATTACKS

pytestmark = [pytest.mark.network, pytest.mark.timeout(120)]

FEW = {
    "order": ("index", "coordinator"),
    "lead": ("gateway", "sequencer", "executor"),
    "observer": ("observer",),
}
PATIENCE_S = 60.0
COMPANY_S = 0.2  # honest work is company, not load
LOOK_S = 0.1
FASTER = 4  # than in the benchmark: one attack by itself, for a moment
STRANGERS = 3  # of each attack; a node that asks somebody by chance asks one of them soon
HONEST = 3  # envelopes verified meanwhile


@dataclass(slots=True)
class Lab:
    """The nodes, in a trio of their own that lives as long as the module's tests."""

    directory: Path
    besieged: Besieged | None = None
    token: trio.lowlevel.TrioToken | None = None
    ground: Ground | None = None
    failure: BaseException | None = None
    is_up: threading.Event = field(default_factory=threading.Event)
    stop: trio.Event = field(default_factory=trio.Event)

    def live(self) -> None:
        """In a thread: from the nodes' start to their end."""
        try:
            trio.run(self._live)
        except BaseException as error:  # noqa: BLE001  # told to whoever waits for the lab
            self.failure = error
        finally:
            self.is_up.set()

    async def _live(self) -> None:
        async with open_besieged(self.directory, FEW) as besieged, trio.open_nursery() as nursery:
            addrs = [node.addr for node in besieged.network.nodes.values()]
            self.ground = Ground(addrs, besieged.work.world_id, random.Random(1))
            self.besieged, self.token = besieged, trio.lowlevel.current_trio_token()
            nursery.start_soon(self.ground.keep_learning)
            nursery.start_soon(keep_company, besieged)
            await self.ground.learned.wait()
            self.is_up.set()
            await self.stop.wait()
            nursery.cancel_scope.cancel()

    def run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Await it where the nodes are."""
        assert self.token is not None, self.failure
        return trio.from_thread.run(work, trio_token=self.token)


async def keep_company(besieged: Besieged) -> None:
    while True:
        await hand_in(besieged, besieged.work.envelopes(1, 1))
        await trio.sleep(COMPANY_S)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("siege"))
    thread = threading.Thread(target=lab.live, daemon=True)
    thread.start()
    try:
        assert lab.is_up.wait(PATIENCE_S), "the nodes did not come up"
        if lab.failure is not None:
            raise lab.failure
        yield lab
    finally:
        if lab.token is not None and lab.failure is None:
            lab.token.run_sync_soon(lab.stop.set)
        thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert lab.failure is None


async def withstand(besieged: Besieged, ground: Ground, name: str) -> None:
    """The attack strikes, is met, and honest work that was handed in after that is verified."""
    row, tally = ATTACKS[name], Counter[str]()
    before = await counters(besieged)

    async def is_met() -> bool:
        if strikes(tally) < STRANGERS:
            return False
        now = await counters(besieged)
        return not row.met_by or any(now[word] > before[word] for word in row.met_by)

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for _ in range(STRANGERS):
                nursery.start_soon(persist, row.attack, ground, tally, Pace(FASTER * row.per_s))
            while not await is_met():
                await trio.sleep(LOOK_S)
            handed_in = len(besieged.tracker.submitted_s)
            while len(besieged.tracker.verified_s) < handed_in + HONEST:
                await trio.sleep(LOOK_S)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_met_and_honest_work_goes_on(lab: Lab, name: str) -> None:
    besieged, ground = lab.besieged, lab.ground
    assert besieged is not None
    assert ground is not None
    pids = {node.name: node.pid for node in besieged.network.nodes.values()}
    lab.run(partial(withstand, besieged, ground, name))
    assert {node.name: node.pid for node in besieged.network.nodes.values()} == pids
    assert besieged.network.restarts == 0
    assert not besieged.tracker.turned_away

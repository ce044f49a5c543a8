"""Our side of end to end: two `aw node` processes, and a client that hands in envelopes and asks for proofs.

The leader orders and executes (index, coordinator, gateway, sequencer, executor), the observer replays. A run is over
when the observer has replayed the block that took the last envelope of each actor, and has proved one of them against
an attested head.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trio

from benchmarks import workload
from benchmarks.side import obey, play
from bootstrap.demo.processes import Network
from bootstrap.node import now_ms, open_client
from p2p.errors import NetworkError
from runtime import world
from runtime.records import Envelope
from runtime.services.client import DistributedClient

LAYOUT = {
    "leader": ("index", "coordinator", "gateway", "sequencer", "executor"),
    "observer": ("observer",),
}
CHUNK_ENVELOPES = 64
CHUNKS_IN_FLIGHT = 4
POLL_S = 0.02
RUN_S_MAX = 300.0


class World:
    """The commands."""

    def __init__(
        self, leader: DistributedClient, observer: DistributedClient, work: workload.Workload
    ) -> None:
        self._leader = leader
        self._observer = observer
        self._work = work

    async def run(self, actions: int, per_envelope: int) -> float:
        """Actions a second, from the first byte handed in to the last proof by the observer."""
        envelopes = self._work.envelopes(actions, per_envelope)
        before = time.perf_counter()
        with trio.fail_after(RUN_S_MAX):
            await self.verified(envelopes)
        return actions / (time.perf_counter() - before)

    async def verified(self, envelopes: list[Envelope]) -> None:
        """Hand in; wait for the observer; check its proofs."""
        waiting = list(workload.chunks(envelopes, CHUNK_ENVELOPES))[::-1]
        async with trio.open_nursery() as nursery:
            for _ in range(CHUNKS_IN_FLIGHT):
                nursery.start_soon(self._hand_in, waiting)
        last = workload.last_of_each(envelopes)
        self._work.height = max([await self._taken(digest) for digest in last])
        while await self._verified_height() < self._work.height:
            await trio.sleep(POLL_S)
        proved = await self._observer.receipt(self._work.world_id, last[-1])
        assert world.was_taken(proved.receipts)

    async def _hand_in(self, waiting: list[list[Envelope]]) -> None:
        while waiting:
            left: Sequence[Envelope] = waiting.pop()
            while left:
                try:
                    results = await self._leader.submit(self._work.world_id, left)
                except NetworkError:  # accepted or not: handing in the same envelopes again is no mistake
                    await trio.sleep(POLL_S)
                    continue
                retry = [e for e, r in zip(left, results, strict=True) if r.retry_after_ms is not None]
                fatal = [r for r in results if r.outcome != "accepted" and r.retry_after_ms is None]
                assert not fatal, fatal[0].message
                left = retry
                if left:
                    await trio.sleep(POLL_S)

    async def _taken(self, digest: bytes) -> int:
        """The height of the block that took the envelope, by the leader's word."""
        while True:
            answer = await self._leader.action_status(self._work.world_id, digest)
            if answer.height is not None:
                assert answer.stage == "taken", answer.stage
                return answer.height
            await trio.sleep(POLL_S)

    async def _verified_height(self) -> int:
        status = await self._observer.status()
        return next(one.verified or 0 for one in status.worlds if one.world_id == self._work.world_id)


async def run() -> None:
    """The network, until stdin ends."""
    with tempfile.TemporaryDirectory(prefix="aw-bench-") as directory:
        network = Network(Path(directory), layout=LAYOUT)
        leader = network.nodes["leader"].identity.peer_id
        genesis = workload.make_genesis(leader, leader, now_ms())
        file = Path(directory) / "world.genesis"
        file.write_bytes(genesis.to_bytes())
        network.configure(file)
        async with (
            network.running(),
            open_client([network.nodes["leader"].addr]) as to_leader,
            open_client([network.nodes["observer"].addr]) as to_observer,
        ):
            work = workload.Workload(genesis.header.world_id, now_ms())
            one = World(to_leader, to_observer, work)
            await one.verified(work.registrations())
            await obey({"run": one.run, "status": partial(_status, to_leader)})


async def _status(client: DistributedClient) -> dict[str, Any]:
    return dict((await client.status()).counters)


if __name__ == "__main__":
    play(run)

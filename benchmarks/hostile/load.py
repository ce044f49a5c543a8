"""A network of real node processes with honest work on it: how much of it is verified, by the observer's own replay.

Hides: handing in patiently, following what the observer has verified. Guarantees: work counts as verified only when
the observer process has replayed the block that took it; what is offered is decided by the clock, not by the answers.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import trio

from benchmarks.workload import Workload, chunks, make_genesis
from bootstrap.demo.processes import LAYOUT, Network, NodeProcess
from bootstrap.demo.tracking import Tracker
from bootstrap.node import now_ms, open_caller
from p2p.errors import NetworkError
from p2p.host import Libp2pNetwork
from runtime import chain, limits
from runtime.messages import BlockAnswer, BlockRequest, StatusAnswer, WorldStatus
from runtime.records import Envelope, Receipt
from runtime.services.client import DistributedClient

T = TypeVar("T")
AGAIN_S: Final = 0.05
OFFER_S: Final = 0.2  # honest work comes in portions of so long
PATIENCE_S: Final = 120.0
CHUNK_ENVELOPES: Final = 64
OUTSTANDING_MAX: Final = 1_024  # handed in and not yet verified, while the capacity is measured
HANDING_IN: Final = 4  # requests under way, while the capacity is measured


@dataclass(slots=True)
class Besieged:
    """The network, the work, and what became of it."""

    network: Network
    caller: Libp2pNetwork
    work: Workload
    tracker: Tracker = field(default_factory=Tracker)

    @property
    def gateway(self) -> NodeProcess:
        return self.network.holding("gateway")

    @property
    def observer(self) -> NodeProcess:
        return self.network.holding("observer")

    @property
    def unverified(self) -> int:
        """Handed in, and in no verified block yet."""
        return len(self.tracker.submitted_s) - len(self.tracker.verified_s)

    async def client(self, node: NodeProcess) -> DistributedClient:
        """A connection to a node, made again when it was lost. Raises p2p errors."""
        return DistributedClient(self.caller, await self.caller.connect([node.addr]))

    async def status(self, node: NodeProcess) -> StatusAnswer:
        """A node's own account."""

        async def ask() -> StatusAnswer:
            return await (await self.client(node)).status()

        return await patiently(ask)


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until there is an answer. Raises trio.TooSlowError after PATIENCE_S."""
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                return await ask()
            except NetworkError:
                await trio.sleep(AGAIN_S)
    raise AssertionError("fail_after raises")


@asynccontextmanager
async def open_besieged(
    directory: Path, layout: Mapping[str, tuple[str, ...]] = LAYOUT
) -> AsyncIterator[Besieged]:
    """All nodes up, all actors registered and verified, what is verified being followed. Raises NodeFailed."""
    network = Network(directory, layout=layout)
    executor, coordinator = (network.holding(role).identity.peer_id for role in ("executor", "coordinator"))
    genesis = make_genesis(executor, coordinator, now_ms())
    file = directory / "besieged.genesis"
    file.write_bytes(genesis.to_bytes())
    network.configure(file)
    async with (
        network.running(),
        open_caller([node.addr for node in network.nodes.values()]) as caller,
        trio.open_nursery() as nursery,
    ):
        besieged = Besieged(network, caller, Workload(genesis.header.world_id, now_ms()))
        nursery.start_soon(follow, besieged)
        await hand_in(besieged, besieged.work.registrations())
        await settle(besieged)
        yield besieged
        nursery.cancel_scope.cancel()


async def follow(besieged: Besieged) -> None:
    """What the observer has verified, block by block, until cancelled."""
    tracker, work = besieged.tracker, besieged.work
    while True:
        status = _world(await besieged.status(besieged.observer), work.world_id)
        verified = 0 if status is None else status.verified or 0
        for height in range(tracker.height + 1, verified + 1):
            receipts = await patiently(lambda height=height: _receipts(besieged, height))  # type: ignore[misc]
            tracker.block(height, receipts, time.monotonic())
            work.height = height
        await trio.sleep(AGAIN_S)


def _world(status: StatusAnswer, world_id: str) -> WorldStatus | None:
    return next((one for one in status.worlds if one.world_id == world_id), None)


async def _receipts(besieged: Besieged, height: int) -> tuple[Receipt, ...]:
    client = await besieged.client(besieged.observer)
    request = BlockRequest(world_id=besieged.work.world_id, height=height)
    block = (await client.call("get_block", request, BlockAnswer)).block
    return chain.decode_receipts(await client.get_blob(block.receipts_ref, limits.LIST_BYTES_MAX))


async def hand_in(besieged: Besieged, envelopes: Sequence[Envelope]) -> None:
    """Hand in until all of it is accepted; the same envelope twice is no mistake."""
    besieged.tracker.submit(envelopes, time.monotonic())
    for chunk in chunks(list(envelopes), CHUNK_ENVELOPES):
        left = chunk
        while left:
            results = await patiently(lambda left=left: _submit(besieged, left))  # type: ignore[misc]
            again = []
            for envelope, result in zip(left, results, strict=True):
                if result.outcome == "accepted":
                    besieged.tracker.accepted.add(envelope.hash())
                elif result.retry_after_ms is not None:
                    again.append(envelope)
                else:
                    besieged.tracker.turned_away[result.reason or "refused"] += 1
            left = again
            if left:
                await trio.sleep(AGAIN_S)


async def _submit(besieged: Besieged, envelopes: list[Envelope]) -> list:  # type: ignore[type-arg]
    return await (await besieged.client(besieged.gateway)).submit(besieged.work.world_id, envelopes)


async def settle(besieged: Besieged) -> None:
    """Until all that was handed in is verified, or nothing has been for PATIENCE_S."""
    left, moved_s = besieged.unverified, trio.current_time()
    while besieged.unverified and trio.current_time() - moved_s < PATIENCE_S:
        if besieged.unverified != left:
            left, moved_s = besieged.unverified, trio.current_time()
        await trio.sleep(AGAIN_S)


async def capacity(besieged: Besieged, seconds: float, per_envelope: int) -> float:
    """Actions a second that the network verifies when there is always work; the first third is for getting up."""
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(HANDING_IN):
            nursery.start_soon(_keep_busy, besieged, per_envelope)
        await trio.sleep(seconds / 3)
        before, since = besieged.tracker.applied, trio.current_time()
        await trio.sleep_until(started + seconds)
        rate = (besieged.tracker.applied - before) / (trio.current_time() - since)
        nursery.cancel_scope.cancel()
    return rate


async def _keep_busy(besieged: Besieged, per_envelope: int) -> None:
    while True:
        await trio.lowlevel.checkpoint()  # where nothing has to be waited for, this is where it ends
        if besieged.unverified >= OUTSTANDING_MAX:
            await trio.sleep(AGAIN_S / 5)
            continue
        # What is signed is handed in: a nonce that is missing blocks all after it.
        with trio.move_on_after(PATIENCE_S, shield=True):
            await hand_in(besieged, besieged.work.envelopes(CHUNK_ENVELOPES * per_envelope, per_envelope))


async def offer(besieged: Besieged, rate: float, per_envelope: int) -> None:
    """Hand in `rate` actions a second, whatever becomes of them, until cancelled; then wait for no answer."""
    started, offered = trio.current_time(), 0
    async with trio.open_nursery() as nursery:
        while True:
            due = int((trio.current_time() - started + OFFER_S) * rate) - offered
            envelopes = besieged.work.envelopes(due, per_envelope)
            offered += len(envelopes) * per_envelope
            nursery.start_soon(_to_the_end, besieged, envelopes)
            await trio.sleep(OFFER_S)


async def _to_the_end(besieged: Besieged, envelopes: Sequence[Envelope]) -> None:
    """Also when the siege ends meanwhile: what waits behind a missing nonce would else count as lost."""
    with trio.move_on_after(PATIENCE_S, shield=True):
        await hand_in(besieged, envelopes)


async def counters(besieged: Besieged) -> Counter[str]:
    """All nodes' counters together."""
    total: Counter[str] = Counter()
    for node in besieged.network.nodes.values():
        total.update((await besieged.status(node)).counters)
    return total

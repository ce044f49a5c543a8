"""Envelopes on their way: handed in, watched until an observer has replayed them, compared at the end.

Hides: polling, and patience with nodes that are being started again. Guarantees: what is counted as verified stands in
a block whose receipts fit its root; a node that is away is asked again for PATIENCE_S.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from bootstrap.demo.processes import Network
from bootstrap.demo.report import Show
from bootstrap.demo.tracking import Tracker
from p2p.errors import NetworkError, RequestFailed
from p2p.network import DistributedNetwork
from runtime import chain, codec, limits
from runtime.errors import Missing
from runtime.messages import BlockAnswer, BlockRequest, WorldStatus
from runtime.records import Envelope, Receipt
from runtime.services.client import DistributedClient

T = TypeVar("T")
CHUNK: Final = 64
POLL_S: Final = 0.1
PATIENCE_S: Final = 60.0  # for a node that is being started again
SETTLE_S_MAX: Final = 120.0  # without any progress
TRIES_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Clients:
    """Whom the demo talks to: as any outside program would."""

    gateway: DistributedClient
    executor: DistributedClient
    observer: DistributedClient
    all: tuple[DistributedClient, ...]


async def connect(caller: DistributedNetwork, network: Network) -> Clients:
    """To every node of a network, as soon as it answers."""
    made = {}
    for name, node in network.nodes.items():
        peer = await patiently(lambda addr=node.addr: caller.connect([addr]))  # type: ignore[misc]
        made[name] = DistributedClient(caller, peer)
    return Clients(made["gateway"], made["executor"], made["observer"], tuple(made.values()))


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again while a node is away. Raises the last error after PATIENCE_S."""
    deadline = trio.current_time() + PATIENCE_S
    while True:
        try:
            return await ask()
        except RequestFailed as error:
            if not error.retryable or trio.current_time() > deadline:
                raise
        except NetworkError:
            if trio.current_time() > deadline:
                raise
        await trio.sleep(TRIES_S)


async def submit(clients: Clients, world_id: str, envelopes: Sequence[Envelope], tracker: Tracker) -> None:
    """Hand in, in order; what is refused for now comes first in the next round."""
    waiting = deque(envelopes)
    while waiting:
        chunk = [waiting.popleft() for _ in range(min(CHUNK, len(waiting)))]
        tracker.submit(chunk, time.monotonic())
        results = await patiently(lambda chunk=chunk: clients.gateway.submit(world_id, chunk))  # type: ignore[misc]
        again, wait_ms = [], 0
        for envelope, result in zip(chunk, results, strict=True):
            if result.outcome == "accepted":
                tracker.accepted.add(envelope.hash())
            elif result.retry_after_ms is not None:
                again.append(envelope)
                wait_ms = max(wait_ms, result.retry_after_ms)
            else:
                tracker.turned_away[result.reason or "refused"] += 1
        waiting.extendleft(reversed(again))
        if again:
            await trio.sleep(wait_ms / 1_000)


async def settle(tracker: Tracker) -> None:
    """Until everything that was accepted is verified, or nothing has moved for SETTLE_S_MAX."""
    moved, height = trio.current_time(), tracker.height
    while tracker.lost() and trio.current_time() - moved < SETTLE_S_MAX:
        if tracker.height != height:
            moved, height = trio.current_time(), tracker.height
        await trio.sleep(POLL_S)


async def watch(clients: Clients, world_id: str, tracker: Tracker, show: Show) -> None:
    """Follow what the observer has verified, block by block."""
    while True:
        status = await patiently(lambda: status_of(clients.observer, world_id))
        for height in range(tracker.height + 1, (status.verified or 0) + 1):
            receipts = await patiently(lambda height=height: receipts_of(clients.observer, world_id, height))  # type: ignore[misc]
            tracker.block(height, receipts, time.monotonic())
            show(len(tracker.verified_s), tracker.height, tracker.applied)
        await trio.sleep(POLL_S)


async def status_of(client: DistributedClient, world_id: str) -> WorldStatus:
    status = await client.status()
    for world in status.worlds:
        if world.world_id == world_id:
            return world
    raise NetworkError(f"world {world_id} is not up yet")


async def receipts_of(client: DistributedClient, world_id: str, height: int) -> tuple[Receipt, ...]:
    """A block's receipts, checked against its receipts_root."""
    request = BlockRequest(world_id=world_id, height=height)
    block = (await client.call("get_block", request, BlockAnswer)).block
    receipts = chain.decode_receipts(await client.get_blob(block.receipts_ref, limits.LIST_BYTES_MAX))
    if codec.merkle_root([receipt.to_bytes() for receipt in receipts]) != block.receipts_root:
        raise Missing("receipts", f"of height {height}: the observer's list does not fit its block")
    return receipts


@dataclass(frozen=True, slots=True)
class At:
    """What a node holds: the height, and the state after it."""

    height: int
    state_root: bytes | None


async def same_height(clients: Clients, world_id: str) -> tuple[At, At]:
    """What executor and observer hold, once they stand at one height (or after SETTLE_S_MAX, as they are)."""
    deadline = trio.current_time() + SETTLE_S_MAX
    while True:
        left = await patiently(lambda: status_of(clients.executor, world_id))
        right = await patiently(lambda: status_of(clients.observer, world_id))
        executed, verified = (
            At(left.executed or 0, left.state_root),
            At(right.verified or 0, right.state_root),
        )
        if executed.height == verified.height or trio.current_time() > deadline:
            return executed, verified
        await trio.sleep(POLL_S)

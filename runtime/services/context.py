"""What every service of a node is given: frozen, built once, in bootstrap/node.py (or by the simulator).

Hides: where time, chance, threads and the network come from. Guarantees: a service reaches the outside world only
through these fields, so that a simulation can hold all of them.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import trio

from p2p.network import DistributedDht, DistributedNetwork, Gauge
from p2p.providers import ProviderCache
from runtime import limits
from runtime.errors import StoreFull
from runtime.keys import SigningKey
from runtime.services.checked_blobs import CheckedBlobs
from runtime.world_db import Row, WorldDb

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Offload(Protocol):
    """Runs CPU or disk work away from the event loop: a thread in production, a direct call in simulation."""

    async def __call__(self, work: Callable[[], T]) -> T: ...


class Gauges:
    """What the services of a node would have counted just now: queue depths and the like, read when somebody asks."""

    def __init__(self) -> None:
        self._sources: list[tuple[Callable[[], Iterable[Gauge]], dict[str, str]]] = []

    def add(self, source: Callable[[], Iterable[Gauge]], **labels: str) -> None:
        """Read `source` with the others; its gauges get these labels (`world`)."""
        self._sources.append((source, labels))

    def read(self) -> list[Gauge]:
        """All of them, in the order in which their sources were added."""
        return [
            replace(gauge, labels={**gauge.labels, **labels})
            for source, labels in self._sources
            for gauge in source()
        ]


@dataclass(frozen=True, slots=True)
class Context:
    """The outside world of one node. `now_ms` is the wall clock and only ever data; deadlines use trio's clock."""

    network: DistributedNetwork
    dht: DistributedDht
    providers: ProviderCache
    db: WorldDb
    key: SigningKey
    now_ms: Callable[[], int]
    rng: random.Random
    offload: Offload
    counters: Counter[str] = field(default_factory=Counter)
    gauges: Gauges = field(default_factory=Gauges)
    blobs: CheckedBlobs = field(init=False)  # of `db`, for whoever reads

    def __post_init__(self) -> None:
        object.__setattr__(self, "blobs", CheckedBlobs(self.db.blobs, self.counters))

    @property
    def peer_id(self) -> bytes:
        return self.key.identity

    async def store(self, what: str, rows: Sequence[Row], blobs: Iterable[bytes], *, keep: bool) -> None:
        """Commit; a full disk is waited out: the node serves on, and goes on from here when space returns."""
        held = list(blobs)
        while True:
            try:
                await self.offload(lambda: self.db.commit(rows, held, keep=keep))
            except StoreFull as error:
                self.counters["store.full"] += 1
                _log.error("%s waits for space: %s", what, error)
                await trio.sleep(limits.STORE_FULL_RETRY_MS / 1_000)
            else:
                return

    def jittered_s(self, period_ms: int) -> float:
        """A period of 75..125 % in seconds, so that nodes that started together do not act together."""
        return period_ms * (750 + self.rng.randrange(501)) / 1_000_000


class Signal:
    """Wakes all waiters; a waiter always looks again at what it waits for."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = trio.Event()

    def wake(self) -> None:
        self._event.set()
        self._event = trio.Event()

    async def wait(self) -> None:
        """Until the next wake."""
        await self._event.wait()

    async def wait_at_most(self, seconds: float) -> bool:
        """Until the next wake or for so long; True when woken."""
        with trio.move_on_after(seconds):
            await self._event.wait()
            return True
        return False

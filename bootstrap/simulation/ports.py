"""A node's outside world in the simulation: every call of a port passes its gate, and what leaves is witnessed.

Hides: that a node can be stopped between any two port calls. Guarantees: a frozen node does nothing that others or
its disk could see until it thaws; a dead one never does anything more; a witness sees each request, answer, message,
record and row before it leaves. Wraps the ports of p2p/network.py and runtime/world_db.py.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol, TypeVar

import trio

from p2p import names
from p2p.memory import InMemoryDht, InMemoryNetwork, InMemorySubscription
from p2p.network import (
    Answer,
    Check,
    Gauge,
    Handler,
    Message,
    PartsHandler,
    PartsRoute,
    PeerId,
    PeerInfo,
    Route,
    Routes,
    SendPart,
)
from runtime.errors import StoreFull
from runtime.services.context import Offload
from runtime.world_db import Expect, MemoryWorldDb, Row

T = TypeVar("T")
START_MS: Final = 1_700_000_000_000
CLOCK_SKEW_MS_MAX: Final = 10_000
OFFLOAD_MS_MAX: Final = 20


class Witness(Protocol):
    """Sees what a node is about to tell others, and what it has just written."""

    def asked(self, node: str, method: str, body: bytes) -> None: ...
    def answered(self, node: str, method: str, body: bytes) -> None: ...
    def published(self, node: str, topic: str, data: bytes) -> None: ...
    def wrote(self, node: str, rows: Sequence[Row]) -> None: ...


class Gate:
    """Where every port call of one life of a node passes. `watch` is told each point before it is passed."""

    def __init__(self, watch: Callable[[str], None] | None = None) -> None:
        self._watch = watch
        self._thaw: trio.Event | None = None
        self._is_dead = False

    async def point(self, what: str) -> None:
        """Go on, wait until thawed, or never come back."""
        if self._watch is not None:
            self._watch(what)
        while self._thaw is not None and not self._is_dead:
            await self._thaw.wait()
        if self._is_dead:
            await trio.sleep_forever()  # until the nursery of the node is cancelled

    def freeze(self) -> None:
        """Stop at every point from now on."""
        if self._thaw is None:
            self._thaw = trio.Event()

    def thaw(self) -> None:
        """Go on."""
        if self._thaw is not None:
            self._thaw.set()
            self._thaw = None

    def kill(self) -> None:
        """Pass no point ever more: what is cleaned up after a kill is not to be seen by anybody."""
        self._is_dead = True
        self.thaw()


class Clock:
    """A node's wall clock: the true time plus an error that changes, bounded by CLOCK_SKEW_MS_MAX."""

    def __init__(self) -> None:
        self._offset_ms, self._per_mille, self._since_s = 0, 0, 0.0

    def now_ms(self) -> int:
        now_s = trio.current_time()
        drift_ms = self._offset_ms + int((now_s - self._since_s) * self._per_mille)
        return START_MS + int(now_s * 1_000) + max(-CLOCK_SKEW_MS_MAX, min(CLOCK_SKEW_MS_MAX, drift_ms))

    def set(self, offset_ms: int, per_mille: int) -> None:
        """Be wrong by so much from now on, and by more (or less) with each second."""
        self._offset_ms, self._per_mille, self._since_s = offset_ms, per_mille, trio.current_time()


class Disk(MemoryWorldDb):
    """A node's database: it outlives the node's lives, and refuses writes while it is full."""

    def __init__(self, node: str, witness: Witness) -> None:
        super().__init__()
        self._node = node
        self._witness = witness
        self.is_full = False

    def commit(
        self,
        rows: Sequence[Row],
        blobs: Iterable[bytes] = (),
        *,
        keep: bool = False,
        expect: Sequence[Expect] = (),
    ) -> None:
        if self.is_full:
            raise StoreFull(f"disk of {self._node}", "the simulation says so")
        super().commit(rows, blobs, keep=keep, expect=expect)
        self._witness.wrote(self._node, rows)


class GatedNetwork:
    """A DistributedNetwork behind a gate."""

    def __init__(self, node: str, inner: InMemoryNetwork, gate: Gate, witness: Witness) -> None:
        self._node = node
        self._inner = inner
        self._gate = gate
        self._witness = witness

    @property
    def peer_id(self) -> PeerId:
        return self._inner.peer_id

    def addrs(self) -> list[str]:
        return self._inner.addrs()

    def peers(self) -> list[PeerId]:
        return self._inner.peers()

    def counters(self) -> dict[str, int]:
        return self._inner.counters()

    def gauges(self) -> list[Gauge]:
        return self._inner.gauges()

    def keep(self, peers: Iterable[PeerId]) -> None:
        self._inner.keep(peers)

    def kept(self) -> frozenset[PeerId]:
        return self._inner.kept()

    def praise(self, peer: PeerId) -> None:
        self._inner.praise(peer)

    def mark(self, peer: PeerId, reason: str) -> None:
        self._inner.mark(peer, reason)

    async def connect(self, addrs: Sequence[str]) -> PeerId:
        await self._gate.point("connect")
        return await self._inner.connect(addrs)

    async def request(
        self, peer: PeerId, method: str, body: bytes, *, deadline_ms: int = names.REQUEST_TOTAL_MS
    ) -> bytes:
        await self._gate.point(f"before {method}")
        self._witness.asked(self._node, method, body)
        try:
            return await self._inner.request(peer, method, body, deadline_ms=deadline_ms)
        finally:
            await self._gate.point(f"after {method}")

    @asynccontextmanager
    async def request_parts(
        self,
        peer: PeerId,
        method: str,
        body: bytes,
        *,
        deadline_ms: int = names.REQUEST_TOTAL_MS,
        bytes_max: int = names.ANSWER_PARTS_BYTES_MAX,
    ) -> AsyncIterator[Answer]:
        await self._gate.point(f"before {method}")
        async with self._inner.request_parts(
            peer, method, body, deadline_ms=deadline_ms, bytes_max=bytes_max
        ) as answer:
            yield answer
        await self._gate.point(f"after {method}")

    async def join(self, topic: str, check: Check) -> GatedSubscription:
        return GatedSubscription(self._node, await self._inner.join(topic, check), self._gate, self._witness)


class GatedSubscription:
    """A Subscription behind a gate."""

    def __init__(self, node: str, inner: InMemorySubscription, gate: Gate, witness: Witness) -> None:
        self._node = node
        self._inner = inner
        self._gate = gate
        self._witness = witness

    @property
    def topic(self) -> str:
        return self._inner.topic

    async def receive(self) -> Message:
        message = await self._inner.receive()
        await self._gate.point("hear")
        return message

    async def publish(self, data: bytes) -> None:
        kind = self.topic.rpartition(".")[2]
        await self._gate.point(f"before publish {kind}")
        self._witness.published(self._node, kind, data)
        await self._inner.publish(data)
        await self._gate.point(f"after publish {kind}")


class GatedDht:
    """A DistributedDht behind a gate."""

    def __init__(self, node: str, inner: InMemoryDht, gate: Gate, witness: Witness) -> None:
        self._node = node
        self._inner = inner
        self._gate = gate
        self._witness = witness

    async def put_record(self, key: str, value: bytes) -> None:
        await self._gate.point("before put_record")
        self._witness.published(self._node, "head", value)
        try:
            await self._inner.put_record(key, value)
        finally:
            await self._gate.point("after put_record")

    async def get_record(self, key: str) -> bytes | None:
        await self._gate.point("before get_record")
        return await self._inner.get_record(key)

    async def provide(self, content_id: bytes) -> None:
        await self._gate.point("before provide")
        await self._inner.provide(content_id)

    async def find_providers(
        self, content_id: bytes, count_max: int = names.PROVIDERS_PER_KEY_MAX
    ) -> list[PeerInfo]:
        await self._gate.point("before find_providers")
        return await self._inner.find_providers(content_id, count_max)

    def counters(self) -> dict[str, int]:
        return self._inner.counters()


def gated_offload(gate: Gate, rng: random.Random) -> Offload:
    """An Offload that runs the work in one go, now or a little later, as a busy thread pool would."""

    async def offload(work: Callable[[], T]) -> T:
        if rng.randrange(4):
            await trio.lowlevel.checkpoint()
        else:
            await trio.sleep(rng.randrange(1, OFFLOAD_MS_MAX) / 1_000)
        await gate.point("before offload")
        result = work()
        await gate.point("after offload")
        return result

    return offload


def gated_routes(node: str, routes: Routes, gate: Gate, witness: Witness) -> Routes:
    """The node's routes, stopping at its gate before and after each handler."""

    def one(method: str, handler: Handler) -> Handler:
        async def serve(caller: PeerId, body: bytes) -> bytes:
            await gate.point(f"serve {method}")
            answer = await handler(caller, body)
            await gate.point(f"answer {method}")
            witness.answered(node, method, answer)
            return answer

        return serve

    def parts(method: str, handler: PartsHandler) -> PartsHandler:
        async def serve(caller: PeerId, body: bytes, send: SendPart) -> bytes:
            await gate.point(f"serve {method}")
            answer = await handler(caller, body, send)
            await gate.point(f"answer {method}")
            return answer

        return serve

    return {
        method: PartsRoute(parts(method, route.handler), route.request_bytes_max, route.deadline_ms)
        if isinstance(route, PartsRoute)
        else Route(one(method, route.handler), route.request_bytes_max, route.deadline_ms)
        for method, route in routes.items()
    }

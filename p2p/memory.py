"""The ports in one process: InMemoryNetwork and InMemoryDht, with faults from a seed.

Hides: that there is no network. Requests run through the same frames, Router and RequestClient as over
libp2p, on in-memory streams with a window; gossip floods from node to node and every node judges it; the DHT
keeps a copy on each node that can be reached, and each of them validates.
Guarantees: with one seed, one scheduler order and trio's clock every run is the same; nothing depends on the
order of a set or on object ids. A partition or crash breaks streams at once; healing brings links back, as
redialling does.
Implements p2p/network.py; see docs/protocol.md, sections "Request / response", "Gossip" and "DHT".
"""

from __future__ import annotations

import heapq
import logging
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

import trio

from p2p import names
from p2p.errors import RecordRefused, Unreachable
from p2p.memory_streams import MemoryStream, stream_pair
from p2p.network import Answer, Check, Gauge, Message, PeerId, PeerInfo, RecordRule, Routes, Verdict
from p2p.request_response import DEFAULT_LIMITS, Mark, RequestClient, Router, RouterLimits, no_mark

INCOMING_STREAMS_MAX: Final = 256  # opened, not yet taken by the serving node; further ones fail
SEEN_MESSAGES_MAX: Final = 65_536
RECORDS_MAX: Final = 4_096  # of one node's share of the DHT; further keys are refused, counted
PROVIDER_KEYS_MAX: Final = 65_536
PROVIDER_RECORD_TTL_MS: Final = 24 * 3_600_000

_ADDR: Final = re.compile(r"/memory/([0-9]{1,9})/p2p/([1-9A-HJ-NP-Za-km-z]{1,64})")

_log = logging.getLogger(__name__)

_Pair: TypeAlias = tuple[PeerId, PeerId]


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong by chance: probabilities 0..1 of one message on one link, or of one stream write."""

    delay_ms: tuple[int, int] = (0, 0)
    gossip_loss: float = 0.0
    gossip_duplication: float = 0.0
    gossip_late: float = 0.0  # chance to come `gossip_late_ms` later than others, and so out of order
    gossip_late_ms: int = 500
    stream_break: float = 0.0


NO_FAULTS: Final = Faults()


# --- the hub ------------------------------------------------------------------------------------------------


class InMemoryHub:
    """All nodes of one simulated network, and what is wrong between them.

    `faults` may be replaced while it runs. `rng` is the only source of chance.
    """

    def __init__(self, rng: random.Random, faults: Faults = NO_FAULTS) -> None:
        self.faults = faults
        self._rng = rng
        self._nodes: dict[PeerId, InMemoryNetwork] = {}
        self._numbers: dict[PeerId, int] = {}
        self._links: set[_Pair] = set()
        self._neighbours: dict[PeerId, list[PeerId]] = {}  # as asked since anything of this changed
        self._cuts: set[_Pair] = set()
        self._down: set[PeerId] = set()
        self._paused: set[PeerId] = set()
        self._slow_ms: dict[PeerId, int] = {}
        self._streams: dict[int, tuple[_Pair, MemoryStream]] = {}
        self._serial = 0

    @asynccontextmanager
    async def open_node(
        self,
        peer_id: PeerId,
        routes: Routes,
        record_rule: RecordRule,
        *,
        limits: RouterLimits = DEFAULT_LIMITS,
        on_mark: Mark = no_mark,
    ) -> AsyncIterator[tuple[InMemoryNetwork, InMemoryDht]]:
        """A node that serves `routes` while the context lasts.

        A peer id that is already open raises ValueError.
        Links of an earlier life come back, as those of a node that is redialled.
        """
        if peer_id in self._nodes:
            raise ValueError(f"peer id: {names.peer_text(peer_id)} is open already")
        self._numbers.setdefault(peer_id, len(self._numbers) + 1)
        network = InMemoryNetwork(self, peer_id, routes, record_rule, limits, on_mark)
        async with trio.open_nursery() as nursery:
            await nursery.start(network.client.run)
            nursery.start_soon(network.serve_incoming)
            nursery.start_soon(network.judge_gossip)
            self._nodes[peer_id] = network
            self._neighbours.clear()
            try:
                yield network, network.dht
            finally:
                del self._nodes[peer_id]
                self._break_streams()
                nursery.cancel_scope.cancel()

    def cut(self, some: Iterable[PeerId], others: Iterable[PeerId]) -> None:
        """Nothing passes between any of `some` and any of `others` until `heal`."""
        right = list(others)
        self._cuts.update(_pair(one, other) for one in some for other in right if one != other)
        self._break_streams()

    def heal(self) -> None:
        """Undo every cut."""
        self._cuts.clear()
        self._neighbours.clear()

    def crash(self, peer_id: PeerId) -> None:
        """The node is there but nobody hears it, nor it anybody, until `revive`."""
        self._down.add(peer_id)
        self._break_streams()

    def revive(self, peer_id: PeerId) -> None:
        """Undo `crash`."""
        self._down.discard(peer_id)
        self._neighbours.clear()

    def pause(self, peer_id: PeerId) -> None:
        """The node's links stay, but it judges and passes on no gossip and its DHT is silent, until `resume`."""
        self._paused.add(peer_id)

    def resume(self, peer_id: PeerId) -> None:
        """Undo `pause`: what came meanwhile is judged now."""
        self._paused.discard(peer_id)
        if peer_id in self._nodes:
            self._nodes[peer_id].wake()

    def is_paused(self, peer_id: PeerId) -> bool:
        return peer_id in self._paused

    def slow(self, peer_id: PeerId, extra_ms: int) -> None:
        """Everything to and from this node takes so much longer; 0 ends it."""
        self._slow_ms[peer_id] = extra_ms

    def open_streams(self) -> int:
        """Streams that have not ended on both sides."""
        self._forget_ended_streams()
        return len(self._streams)

    # --- what nodes ask of the hub

    def _reaches(self, one: PeerId, other: PeerId) -> bool:
        if one not in self._nodes or other not in self._nodes or one in self._down or other in self._down:
            return False
        return _pair(one, other) not in self._cuts

    def connected(self, one: PeerId, other: PeerId) -> bool:
        return _pair(one, other) in self._links and self._reaches(one, other)

    def neighbours(self, peer_id: PeerId) -> list[PeerId]:
        if peer_id not in self._neighbours:
            self._neighbours[peer_id] = [one for one in sorted(self._nodes) if self.connected(peer_id, one)]
        return self._neighbours[peer_id].copy()

    def component(self, peer_id: PeerId) -> list[InMemoryNetwork]:
        """All other nodes that links lead to, near ones first."""
        found = [peer_id]
        for one in found:
            found.extend(other for other in self.neighbours(one) if other not in found)
        return [self._nodes[other] for other in found[1:] if other not in self._paused]

    def addr(self, peer_id: PeerId) -> str:
        return f"/memory/{self._numbers[peer_id]}/p2p/{names.peer_text(peer_id)}"

    def connect(self, one: PeerId, addr: str) -> PeerId | None:
        """The peer at the address, linked from now on; None when the address leads nowhere."""
        found = _ADDR.fullmatch(addr)
        if found is None:
            return None
        other = names.peer_from_text(found[2])
        if other == one or self._numbers.get(other) != int(found[1]) or not self._reaches(one, other):
            return None
        self._links.add(_pair(one, other))
        self._neighbours.clear()
        return other

    async def open_stream(self, one: PeerId, other: PeerId) -> MemoryStream:
        await self.wait()
        if not self.connected(one, other):
            raise Unreachable(names.peer_text(other), "not connected")
        near, far = stream_pair(
            lambda: self._delay_s(one, other), lambda: self._happens(self.faults.stream_break)
        )
        try:
            self._nodes[other].incoming.send_nowait((far, one))
        except trio.WouldBlock:
            raise Unreachable(names.peer_text(other), "too many streams wait there") from None
        self._serial += 1
        self._streams[self._serial] = (_pair(one, other), near)
        if self._serial % INCOMING_STREAMS_MAX == 0:
            self._forget_ended_streams()
        return near

    def send_gossip(self, gossip: _Gossip, one: PeerId, other: PeerId) -> None:
        """On its way over one link, if it is not lost there."""
        if self._happens(self.faults.gossip_loss):
            self._nodes[one].counts["gossip.lost"] += 1
            return
        for _ in range(2 if self._happens(self.faults.gossip_duplication) else 1):
            late_s = self.faults.gossip_late_ms / 1000 if self._happens(self.faults.gossip_late) else 0.0
            self._serial += 1
            at_s = trio.current_time() + self._delay_s(one, other) + late_s
            self._nodes[other].take_gossip(at_s, self._serial, one, gossip)

    async def wait(self) -> None:
        await trio.sleep(self._delay_s())

    def _delay_s(self, *ends: PeerId) -> float:
        least, most = self.faults.delay_ms
        extra_ms = sum(self._slow_ms.get(end, 0) for end in ends)
        return ((self._rng.randint(least, most) if most > least else least) + extra_ms) / 1000

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._rng.random() < probability

    def _break_streams(self) -> None:
        """Who reaches whom has changed: break every stream whose two ends cannot reach each other any more."""
        self._neighbours.clear()
        for serial, (pair, stream) in list(self._streams.items()):
            if not self._reaches(*pair):
                stream.break_off()
                del self._streams[serial]

    def _forget_ended_streams(self) -> None:
        self._streams = {
            serial: (pair, stream) for serial, (pair, stream) in self._streams.items() if not stream.over
        }


def _pair(one: PeerId, other: PeerId) -> _Pair:
    return (one, other) if one < other else (other, one)


# --- a node -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Gossip:
    topic: str
    data: bytes
    author: PeerId
    number: int


class InMemoryNetwork:
    """A DistributedNetwork on a hub. Made by `InMemoryHub.open_node`."""

    def __init__(
        self,
        hub: InMemoryHub,
        peer_id: PeerId,
        routes: Routes,
        record_rule: RecordRule,
        limits: RouterLimits,
        on_mark: Mark,
    ) -> None:
        self._hub = hub
        self._peer_id = peer_id
        self._on_mark = on_mark
        self._kept: frozenset[PeerId] = frozenset()
        self.counts: Counter[str] = Counter()
        self._router = Router(routes, self.counts, limits=limits, on_mark=on_mark)
        self.client = RequestClient(
            lambda other: hub.open_stream(peer_id, other),
            peer_id,
            self._router,
            self.counts,
            on_mark=on_mark,
        )
        self.dht = InMemoryDht(hub, peer_id, record_rule)
        self.incoming, self._incoming_taken = trio.open_memory_channel[tuple[MemoryStream, PeerId]](
            INCOMING_STREAMS_MAX
        )
        self._topics: dict[str, InMemorySubscription] = {}
        self._checks: dict[str, Check] = {}
        self._gossip: list[tuple[float, int, PeerId, _Gossip]] = []  # heap by time of arrival
        self._next_gossip = trio.CancelScope()  # of the task that judges, until the first of it comes
        self._seen: dict[tuple[PeerId, int], None] = {}
        self._published = 0

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    def addrs(self) -> list[str]:
        return [self._hub.addr(self._peer_id)]

    def peers(self) -> list[PeerId]:
        return self._hub.neighbours(self._peer_id)

    def counters(self) -> dict[str, int]:
        return dict(sorted(self.counts.items()))

    def gauges(self) -> list[Gauge]:
        waiting = [subscription.gauge() for subscription in self._topics.values()]
        return [
            Gauge("connections_open", len(self.peers()), "connections_max", names.CONNECTIONS_MAX),
            *self._router.gauges(),
            *waiting,
            *self.dht.gauges(),
        ]

    def keep(self, peers: Iterable[PeerId]) -> None:
        self._kept |= frozenset(peers)

    def kept(self) -> frozenset[PeerId]:
        return self._kept

    def praise(self, peer: PeerId) -> None:
        """A hub has room for everybody."""

    def mark(self, peer: PeerId, reason: str) -> None:
        self._on_mark(peer, reason)

    async def connect(self, addrs: Sequence[str]) -> PeerId:
        for addr in addrs[: names.ADDRS_PER_PEER_MAX]:
            await self._hub.wait()
            peer = self._hub.connect(self._peer_id, addr)
            if peer is not None:
                return peer
        await trio.lowlevel.checkpoint()
        wanted = addrs[0].rpartition("/p2p/")[2] if addrs else "?"
        raise Unreachable(wanted, f"none of {len(addrs)} addresses answered")

    async def request(
        self, peer: PeerId, method: str, body: bytes, *, deadline_ms: int = names.REQUEST_TOTAL_MS
    ) -> bytes:
        return await self.client.request(peer, method, body, deadline_ms=deadline_ms)

    def request_parts(
        self,
        peer: PeerId,
        method: str,
        body: bytes,
        *,
        deadline_ms: int = names.REQUEST_TOTAL_MS,
        bytes_max: int = names.ANSWER_PARTS_BYTES_MAX,
    ) -> AbstractAsyncContextManager[Answer]:
        return self.client.request_parts(peer, method, body, deadline_ms=deadline_ms, bytes_max=bytes_max)

    async def join(self, topic: str, check: Check) -> InMemorySubscription:
        await trio.lowlevel.checkpoint()
        if topic in self._topics:
            raise ValueError(f"topic: {topic} is joined already")
        if len(self._topics) >= names.TOPICS_MAX:
            raise ValueError(f"topic: {names.TOPICS_MAX} are joined already")
        self._checks[topic] = check
        self._topics[topic] = InMemorySubscription(self, topic)
        return self._topics[topic]

    async def serve_incoming(self) -> None:
        async with trio.open_nursery() as nursery:
            async for stream, peer in self._incoming_taken:
                nursery.start_soon(self._router.serve, stream, peer)

    # --- gossip

    async def publish(self, topic: str, data: bytes) -> None:
        if len(data) > names.GOSSIP_BYTES_MAX:
            raise ValueError(f"gossip data: {len(data)} bytes is over {names.GOSSIP_BYTES_MAX}")
        verdict = self._judge(Message(topic, data, self._peer_id, self._peer_id))
        if verdict is not Verdict.ACCEPT:
            raise ValueError(f"gossip data: our own check of {topic} says {verdict}")
        self._published += 1
        gossip = _Gossip(topic, data, self._peer_id, self._published)
        self._remember((gossip.author, gossip.number))
        self.counts["gossip.published"] += 1
        for other in self.peers():
            self._hub.send_gossip(gossip, self._peer_id, other)
        await trio.lowlevel.checkpoint()

    def take_gossip(self, at_s: float, serial: int, forwarder: PeerId, gossip: _Gossip) -> None:
        if len(self._gossip) >= names.GOSSIP_CHANNEL_MESSAGES_MAX:
            self.counts["gossip.dropped_arriving"] += 1
            return
        if self._has_seen(gossip):
            self.counts["gossip.duplicates"] += 1
            return
        heapq.heappush(self._gossip, (at_s, serial, forwarder, gossip))
        if self._gossip[0][1] == serial:
            self.wake()

    def wake(self) -> None:
        """Look at the gossip that waits again, when the first of it comes."""
        if self._gossip and not self._hub.is_paused(self._peer_id):
            self._next_gossip.deadline = self._gossip[0][0]

    async def judge_gossip(self) -> None:
        while True:
            self._next_gossip = trio.CancelScope()
            self.wake()
            with self._next_gossip:
                await trio.sleep_forever()
            while self._gossip and not self._hub.is_paused(self._peer_id):
                at_s, _, forwarder, gossip = self._gossip[0]
                # A copy of what was seen is worth no wait: most arrivals are copies.
                if at_s > trio.current_time() and not self._has_seen(gossip):
                    break
                heapq.heappop(self._gossip)
                self._judge_one(forwarder, gossip)

    def _judge_one(self, forwarder: PeerId, gossip: _Gossip) -> None:
        if gossip.topic not in self._topics or not self._hub.connected(self._peer_id, forwarder):
            self.counts["gossip.dropped_unheard"] += 1
            return
        if self._has_seen(gossip):
            self.counts["gossip.duplicates"] += 1
            return
        self._remember((gossip.author, gossip.number))
        message = Message(gossip.topic, gossip.data, gossip.author, forwarder)
        verdict = self._judge(message)
        match verdict:
            case Verdict.ACCEPT:
                self.counts["gossip.accepted"] += 1
                for other in self.peers():
                    if other not in (forwarder, gossip.author):
                        self._hub.send_gossip(gossip, self._peer_id, other)
                if not self._topics[gossip.topic].offer(message):
                    self.counts["gossip.dropped_channel_full"] += 1
            case Verdict.REJECT:
                self.counts["gossip.rejected"] += 1
            case Verdict.IGNORE:
                self.counts["gossip.ignored"] += 1

    def _judge(self, message: Message) -> Verdict:
        try:
            return self._checks[message.topic](message)
        except Exception:  # noqa: BLE001  # a check's bug is told and counted, the node lives on
            _log.exception("check of %s failed", message.topic)
            self.counts["gossip.check_bug"] += 1
            return Verdict.IGNORE

    def _has_seen(self, gossip: _Gossip) -> bool:
        return (gossip.author, gossip.number) in self._seen

    def _remember(self, message_id: tuple[PeerId, int]) -> None:
        self._seen[message_id] = None
        if len(self._seen) > SEEN_MESSAGES_MAX:
            del self._seen[next(iter(self._seen))]


class InMemorySubscription:
    """A joined topic of one node: GOSSIP_CHANNEL_MESSAGES_MAX messages wait, past that the newest drops."""

    def __init__(self, network: InMemoryNetwork, topic: str) -> None:
        self._network = network
        self._topic = topic
        self._send, self._receive = trio.open_memory_channel[Message](names.GOSSIP_CHANNEL_MESSAGES_MAX)

    @property
    def topic(self) -> str:
        return self._topic

    async def receive(self) -> Message:
        return await self._receive.receive()

    async def publish(self, data: bytes) -> None:
        await self._network.publish(self._topic, data)

    def gauge(self) -> Gauge:
        """Messages that wait to be read."""
        return Gauge(
            "gossip_messages_waiting",
            self._send.statistics().current_buffer_used,
            "gossip_channel_messages_max",
            names.GOSSIP_CHANNEL_MESSAGES_MAX,
            {"topic": self._topic},
        )

    def offer(self, message: Message) -> bool:
        try:
            self._send.send_nowait(message)
        except trio.WouldBlock:
            return False
        return True


# --- the DHT ------------------------------------------------------------------------------------------------


class InMemoryDht:
    """A DistributedDht on a hub: one node's share of it, and its way to the others'."""

    def __init__(self, hub: InMemoryHub, peer_id: PeerId, rule: RecordRule) -> None:
        self._hub = hub
        self._peer_id = peer_id
        self._rule = rule
        self.counts: Counter[str] = Counter()
        self.records: dict[str, bytes] = {}
        self.providers: dict[bytes, dict[PeerId, float]] = {}  # peer -> when its record ends, in s

    async def put_record(self, key: str, value: bytes) -> None:
        self.keep(key, value)
        self.counts["dht.puts"] += 1
        await self._hub.wait()
        for other in self._hub.component(self._peer_id):
            try:
                other.dht.keep(key, value)
            except RecordRefused:
                continue  # counted there: that node holds a newer one, or judges otherwise

    async def get_record(self, key: str) -> bytes | None:
        self.counts["dht.lookups"] += 1
        await self._hub.wait()
        held = [node.dht.records.get(key) for node in self._hub.component(self._peer_id)]
        values = [value for value in [self.records.get(key), *held] if value is not None]
        values = [value for value in values if self._is_valid(key, value)]
        if not values:
            return None
        best = values[self._rule.select(key, values)]
        self.records[key] = best
        return best

    async def provide(self, content_id: bytes) -> None:
        key = names.provider_key(content_id)
        self.counts["dht.provides"] += 1
        await self._hub.wait()
        for dht in [self, *(node.dht for node in self._hub.component(self._peer_id))]:
            dht.keep_provider(key, self._peer_id)

    async def find_providers(
        self, content_id: bytes, count_max: int = names.PROVIDERS_PER_KEY_MAX
    ) -> list[PeerInfo]:
        key = names.provider_key(content_id)
        self.counts["dht.lookups"] += 1
        await self._hub.wait()
        now_s = trio.current_time()
        found: dict[PeerId, float] = {}
        for dht in [self, *(node.dht for node in self._hub.component(self._peer_id))]:
            for peer, ends_s in dht.providers.get(key, {}).items():
                if peer != self._peer_id and ends_s > now_s:
                    found[peer] = max(ends_s, found.get(peer, ends_s))
        newest_first = sorted(found, key=lambda peer: (-found[peer], peer))
        return [PeerInfo(peer, (self._hub.addr(peer),)) for peer in newest_first[:count_max]]

    def counters(self) -> dict[str, int]:
        return dict(sorted(self.counts.items()))

    def gauges(self) -> list[Gauge]:
        return [
            Gauge("dht_records_held", len(self.records), "records_held_max", RECORDS_MAX),
            Gauge("dht_provider_records_held", sum(map(len, self.providers.values()))),
        ]

    def keep(self, key: str, value: bytes) -> None:
        """Keep the record when it is valid and not older than ours. Raises RecordRefused."""
        try:
            self._validate(key, value)
            held = self.records.get(key)
            if held is not None and self._rule.select(key, [held, value]) == 0:
                raise RecordRefused(key, "older than the one held")
        except RecordRefused:
            self.counts["dht.refused"] += 1
            raise
        self.records[key] = value

    def _validate(self, key: str, value: bytes) -> None:
        if len(key.encode()) > names.RECORD_KEY_BYTES_MAX:
            raise RecordRefused(key, f"key is over {names.RECORD_KEY_BYTES_MAX} bytes")
        if len(value) > names.RECORD_BYTES_MAX:
            raise RecordRefused(key, f"{len(value)} bytes is over {names.RECORD_BYTES_MAX}")
        if key not in self.records and len(self.records) >= RECORDS_MAX:
            raise RecordRefused(key, f"{RECORDS_MAX} records are held already")
        self._rule.validate(key, value)

    def _is_valid(self, key: str, value: bytes) -> bool:
        try:
            self._validate(key, value)
        except RecordRefused:
            self.counts["dht.refused"] += 1
            return False
        return True

    def keep_provider(self, key: bytes, peer: PeerId) -> None:
        if key not in self.providers and len(self.providers) >= PROVIDER_KEYS_MAX:
            self.counts["dht.refused"] += 1
            return
        providers = self.providers.setdefault(key, {})
        providers.pop(peer, None)
        providers[peer] = trio.current_time() + PROVIDER_RECORD_TTL_MS / 1000
        if len(providers) > names.PROVIDERS_PER_KEY_MAX:
            del providers[next(iter(providers))]

"""The ports: what a service may ask of a network and of a DHT.

Hides: which network it is. `Libp2pNetwork` (host.py) and `InMemoryNetwork` (memory.py) pass one conformance
suite, as do the two DHTs, so that the simulator cannot drift from reality.
Guarantees: bytes in, bytes out; nothing here knows what a world is. Failures are p2p.errors only.
Implements docs/protocol.md, sections "Request / response", "Gossip" and "DHT", as seen by a caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeAlias

from p2p import names

PeerId: TypeAlias = bytes
"""The 38 bytes of an Ed25519 peer id: 00 24 08 01 12 20 || public key. Base58 is for people only."""


class Verdict(StrEnum):
    """What a topic's check says of a message. Only REJECT costs the forwarder anything."""

    ACCEPT = "accept"
    REJECT = "reject"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Message:
    """One gossip message. `author` signed it (StrictSign), `forwarder` is the neighbour who sent it to us."""

    topic: str
    data: bytes
    author: PeerId
    forwarder: PeerId


@dataclass(frozen=True, slots=True)
class Gauge:
    """A quantity as it is now; `name` ends in its unit. `limit` names what bounds it, `limit_value` is that bound."""

    name: str
    value: int
    limit: str = ""
    limit_value: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


Check: TypeAlias = Callable[[Message], Verdict]
"""Synchronous, at most about 1 ms, judged before a message is forwarded; never raises for bad data."""

SendPart: TypeAlias = Callable[[bytes], Awaitable[None]]
Handler: TypeAlias = Callable[[PeerId, bytes], Awaitable[bytes]]
PartsHandler: TypeAlias = Callable[[PeerId, bytes, SendPart], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Route:
    """A method answered by one frame: `handler(caller, body) -> body`. It may raise RequestFailed.

    `cost`: as how many requests one counts against what a peer may ask in a second.
    """

    handler: Handler
    request_bytes_max: int = names.REQUEST_BYTES_MAX
    deadline_ms: int = names.HANDLER_MS_MAX
    cost: int = 1


@dataclass(frozen=True, slots=True)
class PartsRoute:
    """A method answered by parts: `handler(caller, body, send_part) -> last body`. Runs alone on its stream.

    `send_part` waits while the caller reads slowly. A part is at most PART_BYTES_MAX bytes.
    """

    handler: PartsHandler
    request_bytes_max: int = names.REQUEST_BYTES_MAX
    deadline_ms: int = names.HANDLER_MS_MAX
    cost: int = 1


Routes: TypeAlias = Mapping[str, Route | PartsRoute]


class Subscription(Protocol):
    """A joined topic: accepted messages of others, in a bounded channel; overflow drops the newest, counted."""

    @property
    def topic(self) -> str: ...

    async def receive(self) -> Message:
        """Wait for the next message."""

    async def publish(self, data: bytes) -> None:
        """Send to the mesh. `data` over GOSSIP_BYTES_MAX raises ValueError; own messages are not delivered back.

        Our own check is run first: a message it does not accept raises ValueError and is not sent.
        """


class Answer(Protocol):
    """A streamed answer. Leaving its context early resets the stream."""

    async def part(self) -> bytes | None:
        """The next part, or None after the last; then `last` holds the final body."""

    @property
    def last(self) -> bytes: ...


class DistributedNetwork(Protocol):
    """Requests, streams and gossip between peers."""

    @property
    def peer_id(self) -> PeerId: ...

    def addrs(self) -> list[str]:
        """Own dialable multiaddrs, each ending in /p2p/<peer id>."""

    def peers(self) -> list[PeerId]:
        """Connected peers, ascending by bytes."""

    def counters(self) -> dict[str, int]:
        """Monotonic counters by dotted name (`gossip.rejected`, `rr.busy`, `cure.stream_guard`, ...)."""

    def gauges(self) -> list[Gauge]:
        """Connections, requests and streams being served, messages waiting by topic, what the DHT holds."""

    def keep(self, peers: Iterable[PeerId]) -> None:
        """A world depends on these: places are held for them from now on, and they are never refused."""

    def kept(self) -> frozenset[PeerId]:
        """The peers that places are held for."""

    def praise(self, peer: PeerId) -> None:
        """It gave what was asked of it, and that was checked."""

    def mark(self, peer: PeerId, reason: str) -> None:
        """It said what is proved false ("false answer"): past a limit of fading marks it is refused for minutes."""

    async def connect(self, addrs: Sequence[str]) -> PeerId:
        """Dial multiaddrs of one peer, each ending in /p2p/<peer id>, until one works. Raises Unreachable."""

    async def request(
        self, peer: PeerId, method: str, body: bytes, *, deadline_ms: int = names.REQUEST_TOTAL_MS
    ) -> bytes:
        """One request, one answer. A request to one's own peer id goes to the own routes in process.

        Raises RequestFailed, Unreachable, RequestTimeout. Cancelling it ends the waiter only.
        """

    def request_parts(
        self,
        peer: PeerId,
        method: str,
        body: bytes,
        *,
        deadline_ms: int = names.REQUEST_TOTAL_MS,
        bytes_max: int = names.ANSWER_PARTS_BYTES_MAX,
    ) -> AbstractAsyncContextManager[Answer]:
        """One request, a streamed answer, on a stream of its own. Raises as `request`, and AnswerTooLarge."""

    async def join(self, topic: str, check: Check) -> Subscription:
        """Subscribe with the check that every message must pass. Joining a topic twice raises ValueError."""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A peer and the multiaddrs to dial it by (possibly none when already connected)."""

    peer_id: PeerId
    addrs: tuple[str, ...]


class RecordRule(Protocol):
    """The stateless validator of DHT records: bytes decide alone."""

    def validate(self, key: str, value: bytes) -> None:
        """Raise RecordRefused unless `value` is a well-formed record for `key`."""

    def select(self, key: str, values: Sequence[bytes]) -> int:
        """Index of the best of one or more valid values; the LAST among equals."""


class DistributedDht(Protocol):
    """Mutable records under a validator, and provider records by content id."""

    async def put_record(self, key: str, value: bytes) -> None:
        """Validate, keep and spread. Raises RecordRefused (invalid, or older than what is held)."""

    async def get_record(self, key: str) -> bytes | None:
        """The best record that the network holds now; the own copy is a floor, never a ceiling."""

    async def provide(self, content_id: bytes) -> None:
        """Say that this node serves the 32-byte content id."""

    async def find_providers(
        self, content_id: bytes, count_max: int = names.PROVIDERS_PER_KEY_MAX
    ) -> list[PeerInfo]:
        """Distinct providers known to the network now, without this node itself."""

    def counters(self) -> dict[str, int]:
        """`dht.lookups`, `dht.puts`, `dht.provides`, `dht.refused`, ..."""

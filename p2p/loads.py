"""What each peer holds of a node that serves it, and what it may still take.

Hides: token buckets, and who must go when all places are held. Guarantees: pure, times are arguments (seconds of any
steady clock); nothing here is refused for ever: a limit is BUSY or RATE_LIMITED; strangers never hold the last quarter
of all places; who holds places by not reading what it asked for can be named. Implements docs/protocol.md, section
"Request / response", its limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from p2p import names
from p2p.network import PeerId

UNREAD_S_MAX: Final = 1.0  # so long one write may take while others wait for a place
NAMED_AGAIN_S: Final = 5.0  # closing somebody takes a moment
LOOK_AGAIN_S: Final = 0.05  # a look at all peers is dear, and anybody's refused request asks for one


@dataclass(frozen=True, slots=True)
class RouterLimits:
    """What one peer, and all together, may hold; times in ms."""

    in_flight_per_session_max: int = names.IN_FLIGHT_PER_SESSION_MAX
    in_flight_per_peer_max: int = names.IN_FLIGHT_PER_PEER_MAX
    in_flight_total_max: int = names.IN_FLIGHT_TOTAL_MAX
    answers_waiting_bytes_max: int = names.ANSWERS_WAITING_BYTES_MAX
    streams_per_peer_max: int = names.STREAMS_PER_PEER_MAX
    requests_per_s_max: int = names.REQUESTS_PER_S_PER_PEER_MAX
    request_bytes_per_s_max: int = names.REQUEST_BYTES_PER_S_PER_PEER_MAX
    first_byte_ms: int = names.REQUEST_FIRST_BYTE_MS
    frame_ms: int = names.REQUEST_TOTAL_MS  # from a frame's first byte to its last, and for one write
    idle_ms: int = 2 * names.SESSION_IDLE_MS  # clients close first, so that no request meets a closing stream
    peers_remembered_max: int = names.KNOWN_PEERS_MAX


class TokenBucket:
    """At most `per_s` tokens a second, with one second's worth at once."""

    __slots__ = ("_at_s", "_level", "_per_s")

    def __init__(self, per_s: int, now_s: float) -> None:
        self._per_s = per_s
        self._level = float(per_s)
        self._at_s = now_s

    def wait_ms(self, count: int, now_s: float) -> int:
        """0 when `count` tokens are there, else the ms until they would be."""
        self._level = min(self._per_s, self._level + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        wanted = min(count, self._per_s)
        if wanted <= self._level:
            return 0
        return max(1, math.ceil((wanted - self._level) * 1000 / self._per_s))

    def take(self, count: int) -> None:
        """Take tokens of which `wait_ms` has said that they are there."""
        self._level -= min(count, self._per_s)


@dataclass(slots=True)
class Load:
    """What one peer holds now. `writes`: since when each stream that is written to waits for the peer."""

    peer: PeerId
    requests: TokenBucket
    request_bytes: TokenBucket
    streams: int = 0
    in_flight: int = 0
    writes: dict[object, float] = field(default_factory=dict)
    named_s: float = -math.inf


class Loads:
    """All peers of one router."""

    def __init__(self, limits: RouterLimits, is_kept: Callable[[PeerId], bool]) -> None:
        self._limits = limits
        self._is_kept = is_kept
        self._loads: dict[PeerId, Load] = {}  # in order of first sight; only idle ones are forgotten
        self._look_from_s = -math.inf
        self.in_flight = 0
        self.waiting_bytes = 0

    def __len__(self) -> int:
        """How many peers are remembered."""
        return len(self._loads)

    def of(self, peer: PeerId, now_s: float) -> Load:
        """The account of a peer, a new one for who is met first."""
        load = self._loads.get(peer)
        if load is None:
            if len(self._loads) >= self._limits.peers_remembered_max:
                self._forget_idle()
            load = self._loads[peer] = Load(
                peer,
                TokenBucket(self._limits.requests_per_s_max, now_s),
                TokenBucket(self._limits.request_bytes_per_s_max, now_s),
            )
        return load

    def _forget_idle(self) -> None:
        """Forget the older half of the peers that hold nothing (a peer with streams is never forgotten)."""
        idle = [peer for peer, load in self._loads.items() if load.streams == 0]
        for peer in idle[: (len(idle) + 1) // 2]:
            del self._loads[peer]

    def hold(self, load: Load, count: int) -> None:
        """`count` more requests are in flight; negative when they end."""
        load.in_flight += count
        self.in_flight += count

    @property
    def streams(self) -> int:
        return sum(load.streams for load in self._loads.values())

    # --- who may still come --------------------------------------------------------------------------------

    def why_busy(self, load: Load) -> str | None:
        """The limit that keeps a request of this peer out for now, or None."""
        limits, total_max = self._limits, self._limits.in_flight_total_max
        if not self._is_kept(load.peer):
            total_max = max(1, total_max * names.IN_FLIGHT_OF_STRANGERS_PER_CENT // 100)
            if self.waiting_bytes > limits.answers_waiting_bytes_max:
                return "too much that is not read yet (answers_waiting_bytes_max)"
        if self.in_flight >= total_max:
            return "too many requests in flight (in_flight_total_max)"
        return None

    def wait_ms(self, load: Load, cost: int, size_bytes: int, now_s: float) -> int:
        """0 where the request is within the peer's rates, and is counted; else the ms until it would be."""
        if not self._is_kept(load.peer):
            cost += size_bytes // names.REQUEST_BYTES_AS_ONE
        wait_ms = load.requests.wait_ms(cost, now_s) or load.request_bytes.wait_ms(size_bytes, now_s)
        if not wait_ms:
            load.requests.take(cost)
            load.request_bytes.take(size_bytes)
        return wait_ms

    def unread_longest(self, now_s: float) -> PeerId | None:
        """Who must go so that another is served: the stranger for whom a write waits longest, over UNREAD_S_MAX.

        Whoever reads is written to again and again, and is never the one. One is named in LOOK_AGAIN_S, each once in
        NAMED_AGAIN_S.
        """
        if now_s < self._look_from_s:
            return None
        self._look_from_s = now_s + LOOK_AGAIN_S
        found: tuple[float, Load] | None = None
        for load in self._loads.values():
            since_s = min(load.writes.values(), default=math.inf)
            is_late = now_s - since_s > UNREAD_S_MAX and now_s - load.named_s > NAMED_AGAIN_S
            if is_late and not self._is_kept(load.peer) and (found is None or since_s < found[0]):
                found = since_s, load
        if found is None:
            return None
        found[1].named_s = now_s
        return found[1].peer

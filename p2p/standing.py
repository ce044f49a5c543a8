"""What is thought of each peer: marks against it, who is refused for a while, for whom a place is kept, who is idle.

Hides: the arithmetic. Guarantees: pure, times are arguments (seconds of any steady clock); marks fade; asking much is
never a mark; peers that are kept (a world's authorities, the configured bootstrap peers) are never refused, since a
node that depends on them would harm itself; every table is bounded. Implements docs/protocol.md, section "Connections".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import Any, Final

from p2p import names
from p2p.network import PeerId

IPV6_NETWORK_BITS: Final = 56
NETWORKS_CACHED: Final = 4_096  # addresses; many are looked at again for each newcomer

POINTS: Final = {
    "false answer": 25,  # bytes that are not what was asked for: proved by a hash or a signature
    "wire": 10,  # frames that no implementation makes
    "gossip": 5,  # passed on although its bytes alone condemn it
    "unfinished": 0,  # a stream that ends inside a frame: whoever dies does that too
}
POINTS_MAX: Final = 100
FADE_PER_S: Final = 10 / 60
PEERS_MARKED_MAX: Final = names.KNOWN_PEERS_MAX


class Standing:
    """The account of one node's peers."""

    def __init__(self, kept: Iterable[PeerId] = ()) -> None:
        self._kept = frozenset(kept)
        self._points: dict[PeerId, tuple[float, float]] = {}  # and when that was true
        self._refused_until_s: dict[PeerId, float] = {}
        self._praised: dict[PeerId, None] = {}
        self._active_s: dict[PeerId, float] = {}

    # --- good

    @property
    def kept(self) -> frozenset[PeerId]:
        return self._kept

    def keep(self, peers: Iterable[PeerId]) -> None:
        """Places are held for these from now on."""
        self._kept |= frozenset(peers)

    def praise(self, peer: PeerId) -> None:
        """It gave what was asked for and was checked: a place is held for it, as long as it is among the last."""
        _renew(self._praised, peer, None, names.CONNECTIONS_KEPT_MAX)

    def has_place(self, peer: PeerId) -> bool:
        """Whether its connection is not closed to make room for a stranger's."""
        return peer in self._kept or peer in self._praised

    def active(self, peer: PeerId, now_s: float) -> None:
        """It has sent something that was not refused."""
        _renew(self._active_s, peer, now_s, PEERS_MARKED_MAX)

    def active_s(self, peer: PeerId) -> float:
        """When that was last; long ago for one of whom nothing is known."""
        return self._active_s.get(peer, 0.0)

    # --- bad

    def mark(self, peer: PeerId, reason: str, now_s: float) -> bool:
        """One more mark, of POINTS (an unknown reason is the wire's); true when the peer is refused from now on."""
        points, at_s = self._points.get(peer, (0.0, now_s))
        points = max(0.0, points - (now_s - at_s) * FADE_PER_S) + POINTS.get(reason, POINTS["wire"])
        _renew(self._points, peer, (points, now_s), PEERS_MARKED_MAX)
        if points < POINTS_MAX or peer in self._kept:
            return False
        del self._points[peer]
        self._praised.pop(peer, None)
        _renew(self._refused_until_s, peer, now_s + names.PEER_REFUSED_MS / 1_000, PEERS_MARKED_MAX)
        return True

    def is_refused(self, peer: PeerId, now_s: float) -> bool:
        """Whether its connections are closed and it is not dialled."""
        return peer not in self._kept and self._refused_until_s.get(peer, 0.0) > now_s


def _renew(table: dict[PeerId, Any], peer: PeerId, value: Any, count_max: int) -> None:
    """Set, as the youngest entry; past `count_max` the oldest goes."""
    table.pop(peer, None)
    table[peer] = value
    while len(table) > count_max:
        del table[next(iter(table))]


# --- which of many must go -----------------------------------------------------------------------------------


@lru_cache(NETWORKS_CACHED)
def network_of(host: str) -> str:
    """What one party is likely to hold as a whole: an IPv4 address, or an IPv6 /56 (RIPE-690: the least for a site).

    What is no address, a name say, is a network of its own.
    """
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((address, IPV6_NETWORK_BITS), strict=False))


def is_loopback(host: str) -> bool:
    """This machine itself, whose users are not strangers to each other."""
    return host.startswith("127.") or host in {"::1", "::ffff:127.0.0.1"}


@dataclass(frozen=True, slots=True)
class Held:
    """Something that takes one of few places: of which network it is, and when it was last of use."""

    network: str
    used_s: float


def least_worth(held: Sequence[Held]) -> int | None:
    """Index of the one that goes first: of the network that holds most, the one that has been of no use longest.

    So a flood from one place displaces itself, and one from many must stay busy to displace who is busy.
    """
    if not held:
        return None
    counts = Counter(one.network for one in held)
    most = max(counts.values())
    of_most = [index for index, one in enumerate(held) if counts[one.network] == most]
    return min(of_most, key=lambda index: (held[index].used_s, index))

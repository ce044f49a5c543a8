"""Who may connect, and who must go so that another may: places, handshakes, refusals.

Hides: the swarm's two doors (an inbound upgrade, a connection that is added). Guarantees: strangers never hold the last
CONNECTIONS_KEPT_MAX places; past 80 % a newcomer takes the place of the inbound connection of least use; one address
and one peer id hold so many and no more; a peer that is refused, or is no Ed25519 peer, has no connection at all.
Implements docs/protocol.md, section "Connections".
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import trio

from p2p import names
from p2p.addresses import is_peer_id
from p2p.network import PeerId, Verdict
from p2p.standing import Held, Standing, is_loopback, least_worth, network_of

CLOSE_S_MAX: Final = 2.0
CROWDED_PER_CENT: Final = 80
_log = logging.getLogger(__name__)


class Refused(ConnectionError):
    """A connection that is not taken; the library gives its slot back."""


@dataclass(frozen=True, slots=True)
class _Inbound:
    """An inbound connection, from its first byte to its end; `peer` is known after the handshake."""

    host: str
    since_s: float
    raw: Any
    peer: PeerId | None = None
    muxed: Any = None


class Admission:
    """Stands at the doors of one host. Made before the host runs; `marked` and `active` are told what peers do."""

    def __init__(self, host: Any, standing: Standing, counters: Counter[str]) -> None:
        self._swarm = host.get_network()
        self._standing = standing
        self._counters = counters
        self._handshakes: dict[int, _Inbound] = {}
        self._held: dict[int, _Inbound] = {}
        self._to_close, self._closing = trio.open_memory_channel[Any](names.CONNECTIONS_MAX)
        self._upgrade: Callable[..., Awaitable[Any]] = self._swarm.upgrade_inbound_raw_conn
        self._add: Callable[..., Awaitable[Any]] = self._swarm.add_conn
        self._swarm.upgrade_inbound_raw_conn = self._upgrade_if_there_is_room
        self._swarm.add_conn = self._add_if_welcome

    # --- what peers do -------------------------------------------------------------------------------------

    def marked(self, peer: PeerId, reason: str) -> None:
        """A mark against a peer; past the limit its connections are closed."""
        if not self._standing.mark(peer, reason, trio.current_time()):
            return
        self._counters["connections.peers_refused"] += 1
        _log.warning("peer %s is refused for a while: %s", names.peer_text(peer), reason)
        self.close(peer)

    def close(self, peer: PeerId) -> None:
        """Its connections go; it may come again."""
        for conn in list(self._swarm.get_connections()):
            if conn.muxed_conn.peer_id.to_bytes() == peer:
                self._close_soon(conn.muxed_conn)

    def marked_on_the_wire(self, peer: PeerId, reason: str) -> None:
        """The router's and the client's marks: their reasons are many, what they are worth is one of two."""
        self.marked(peer, reason if reason == "unfinished" else "wire")

    def judged(self, forwarder: PeerId, verdict: Verdict) -> None:
        """A gossip message was judged; only its own bytes can make it a REJECT."""
        match verdict:
            case Verdict.ACCEPT:
                self.active(forwarder)
            case Verdict.REJECT:
                self.marked(forwarder, "gossip")

    def active(self, peer: PeerId) -> None:
        """The peer has sent something of use."""
        self._standing.active(peer, trio.current_time())

    def is_refused(self, peer: PeerId) -> bool:
        return self._standing.is_refused(peer, trio.current_time())

    async def run(self) -> None:
        """Close what must go, until cancelled: whoever decides so may not wait, nor one for another."""
        async with trio.open_nursery() as nursery:
            async for muxed in self._closing:
                nursery.start_soon(self._close, muxed)

    async def _close(self, muxed: Any) -> None:
        with trio.move_on_after(CLOSE_S_MAX):
            try:
                await muxed.secured_conn.close()
            except Exception as error:  # noqa: BLE001  # it is being thrown away, whatever it says
                _log.debug("closing for admission: %s", type(error).__name__)

    def _close_soon(self, muxed: Any) -> None:
        try:
            self._to_close.send_nowait(muxed)
        except trio.WouldBlock:
            self._counters["connections.close_queue_full"] += 1

    # --- the doors -----------------------------------------------------------------------------------------

    async def _upgrade_if_there_is_room(self, raw: Any, maddr: Any) -> Any:
        host = (raw.get_remote_address() or ("", 0))[0]
        if self._of_network(host) >= names.CONNECTIONS_PER_IP_MAX and not is_loopback(host):
            self._counters["connections.refused_per_ip"] += 1
            await raw.close()
            raise Refused(f"{names.CONNECTIONS_PER_IP_MAX} connections of {host} (connections_per_ip_max)")
        if len(self._handshakes) >= names.HANDSHAKES_MAX:
            # Handshakes take turns of milliseconds; the oldest unfinished one of whoever has most is of no use.
            self._counters["connections.handshakes_over_limit"] += 1
            begun = [Held(network_of(one.host), one.since_s) for one in self._handshakes.values()]
            index = least_worth(begun)
            assert index is not None
            oldest = self._handshakes.pop(list(self._handshakes)[index])
            await oldest.raw.close()
        inbound = self._handshakes[id(raw)] = _Inbound(host, trio.current_time(), raw)
        try:
            muxed = await self._upgrade(raw, maddr)
        finally:
            self._handshakes.pop(id(raw), None)
        peer = muxed.peer_id.to_bytes()
        self._forget_closed()
        self._held[id(muxed)] = _Inbound(host, inbound.since_s, raw, peer, muxed)
        return muxed

    def _of_network(self, host: str) -> int:
        network = network_of(host)
        self._forget_closed()
        return sum(
            network_of(one.host) == network for one in (*self._handshakes.values(), *self._held.values())
        )

    def _forget_closed(self) -> None:
        closed = [key for key, one in self._held.items() if one.muxed.is_closed]
        for key in closed:
            del self._held[key]

    async def _add_if_welcome(self, muxed: Any, direction: Any = "unknown", **kwargs: Any) -> Any:
        peer = muxed.peer_id.to_bytes()
        why = self._why_not(peer)
        if why is None and str(getattr(direction, "value", direction)) == "inbound":
            self._limit_peer(peer)
            why = None if self._make_room(peer) else "no_room"
        if why is not None:
            self._counters[f"connections.refused_{why}"] += 1
            _release(muxed)
            with trio.move_on_after(CLOSE_S_MAX, shield=True):
                await muxed.secured_conn.close()
            raise Refused(why)
        return await self._add(muxed, direction=direction, **kwargs)

    def _why_not(self, peer: PeerId) -> str | None:
        if not is_peer_id(peer):
            return "peer_id"
        if self.is_refused(peer):
            return "marked"
        return None

    def _make_room(self, newcomer: PeerId) -> bool:
        """Past 80 % somebody goes for each one who comes; the last places are for those who are kept."""
        count = len(self._swarm.get_connections())
        if count * 100 < names.CONNECTIONS_MAX * CROWDED_PER_CENT:
            return True
        self._forget_closed()
        held = [one for one in self._held.values() if one.peer and not self._standing.has_place(one.peer)]
        worth = [
            Held(network_of(one.host), max(self._standing.active_s(one.peer or b""), one.since_s))
            for one in held
        ]
        index = least_worth(worth)
        if index is None:
            kept = 0 if self._standing.has_place(newcomer) else names.CONNECTIONS_KEPT_MAX
            return count < names.CONNECTIONS_MAX - kept
        self._counters["connections.made_room"] += 1
        del self._held[id(held[index].muxed)]
        self._close_soon(held[index].muxed)
        return True

    def _limit_peer(self, peer: PeerId) -> None:
        """One name needs few connections: a restart may overlap with the life before."""
        own = [one for one in self._held.values() if one.peer == peer]
        for one in own[: max(0, len(own) + 1 - names.CONNECTIONS_PER_PEER_MAX)]:
            self._counters["connections.over_peer_limit"] += 1
            del self._held[id(one.muxed)]
            self._close_soon(one.muxed)


def _release(muxed: Any) -> None:
    """Give back what the library's resource account holds for a connection that is never added."""
    scope = getattr(muxed, "_resource_scope", None)
    if scope is not None and hasattr(scope, "close"):
        scope.close()

"""Who is connected: dialling, redialling, noticing the dead, closing them hard.

Hides: the swarm. Guarantees: every address of a peer is tried, each within DIAL_MS_MAX; one peer is dialled once at a
time; bootstrap peers are redialled for ever, with backoff and jitter; a silent peer is closed within one liveness
round. Implements docs/protocol.md, section "Connections".
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NoReturn

import trio
from libp2p.network.health.ping_probe import ping_connection
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2p import names
from p2p.errors import Unreachable
from p2p.network import PeerId

HARD_CLOSE_S = 2.0
NEWCOMERS_MAX = 1_024
INTRODUCE_TRIES = 20
INTRODUCE_S = 0.25
_log = logging.getLogger(__name__)


def split_addr(addr: str) -> tuple[str, PeerId]:
    """A multiaddr that ends in /p2p/<peer id>: the whole of it, and the id. Raises ValueError."""
    text = Multiaddr(addr).value_for_protocol("p2p")
    if text is None:
        raise ValueError(f"address {addr} does not end in /p2p/<peer id>")
    return addr, names.peer_from_text(text)


class Connections:
    """The connections of one host. `introduce(peer)` is awaited in a task of its own for each new peer."""

    def __init__(
        self,
        host: Any,
        counters: Counter[str],
        rng: random.Random,
        introduce: Callable[[PeerId], Awaitable[bool]],
    ) -> None:
        self._host = host
        self._swarm = host.get_network()
        self._counters = counters
        self._rng = rng
        self._introduce = introduce
        self._addrs: dict[PeerId, tuple[str, ...]] = {}
        self._dialling: dict[PeerId, trio.Event] = {}
        self._known: set[PeerId] = set()

    # --- asking --------------------------------------------------------------------------------------------

    def peers(self) -> list[PeerId]:
        """Connected peers, ascending."""
        return sorted({conn.muxed_conn.peer_id.to_bytes() for conn in self._swarm.get_connections()})

    def is_connected(self, peer: PeerId) -> bool:
        return bool(self._swarm.get_connections(ID(peer)))

    def addrs_of(self, peer: PeerId) -> tuple[str, ...]:
        """Where a peer can be dialled: the address that worked, else what it says of itself."""
        if peer in self._addrs:
            return self._addrs[peer]
        text = names.peer_text(peer)
        try:
            told = self._host.get_peerstore().addrs(ID(peer))
        except Exception:  # noqa: BLE001  # the peerstore raises for a peer that it does not know
            return ()
        plain = [str(addr) for addr in told][: names.ADDRS_PER_PEER_MAX]
        return tuple(addr if "/p2p/" in addr else f"{addr}/p2p/{text}" for addr in plain)

    # --- dialling ------------------------------------------------------------------------------------------

    async def connect(self, addrs: Sequence[str]) -> PeerId:
        """Connected to the peer of these addresses. Raises Unreachable, saying what each address gave."""
        try:
            split = [split_addr(addr) for addr in addrs[: names.ADDRS_PER_PEER_MAX]]
        except Exception as error:  # multiaddr raises many kinds for bad text
            raise Unreachable(", ".join(addrs), f"not an address of a peer ({error})") from error
        if not split:
            raise Unreachable("none", "no address was given")
        peer = split[0][1]
        await self.reach(peer, [addr for addr, of in split if of == peer])
        return peer

    async def reach(self, peer: PeerId, addrs: Sequence[str] = ()) -> None:
        """Connected to this peer, by these addresses or by known ones. Raises Unreachable."""
        while not self.is_connected(peer):
            if peer in self._dialling:
                await self._dialling[peer].wait()
                if not self.is_connected(peer):
                    raise Unreachable(names.peer_text(peer), "a dial at the same time failed")
                return
            self._dialling[peer] = trio.Event()
            try:
                await self._dial(peer, addrs or self.addrs_of(peer))
            finally:
                self._dialling.pop(peer).set()

    async def _dial(self, peer: PeerId, addrs: Iterable[str]) -> None:
        lib_id, tried = ID(peer), []
        for addr in addrs:
            self._swarm.unblock_peer(lib_id)  # the library refuses a peer for 60 s after one failure
            try:
                with trio.fail_after(names.DIAL_MS_MAX / 1_000):
                    await self._swarm.dial_addr(Multiaddr(addr), lib_id)
            except trio.TooSlowError:
                tried.append(f"{addr} gave no answer within {names.DIAL_MS_MAX} ms")
            except Exception as error:  # noqa: BLE001  # the library raises many kinds: all mean not reached
                tried.append(f"{addr} failed ({type(error).__name__})")
            else:
                self._counters["connections.dialled"] += 1
                self._remember(peer, addr)
                return
        self._counters["connections.dial_failed"] += 1
        raise Unreachable(names.peer_text(peer), "; ".join(tried) or "no address is known")

    def _remember(self, peer: PeerId, addr: str) -> None:
        self._addrs.pop(peer, None)
        self._addrs[peer] = (addr,)
        while len(self._addrs) > names.KNOWN_PEERS_MAX:
            del self._addrs[next(iter(self._addrs))]

    async def keep_dialled(self, addrs: Sequence[str]) -> None:
        """Stay connected to these peers, one task each, until cancelled."""
        by_peer: dict[PeerId, list[str]] = {}
        for addr in addrs:
            try:
                by_peer.setdefault(split_addr(addr)[1], []).append(addr)
            except Exception as error:  # noqa: BLE001  # one bad address must not keep the others from being dialled
                _log.warning("bootstrap address %s: %s", addr, error)
        async with trio.open_nursery() as nursery:
            for peer, own in by_peer.items():
                if peer != self._host.get_id().to_bytes():
                    nursery.start_soon(self._keep_one, peer, own)

    async def _keep_one(self, peer: PeerId, addrs: list[str]) -> NoReturn:
        wait_ms = names.REDIAL_FIRST_MS
        while True:
            try:
                await self.reach(peer, addrs)
                wait_ms = names.REDIAL_FIRST_MS
                await trio.sleep(self._jittered_s(names.REDIAL_FIRST_MS * 4))
            except Unreachable as error:
                _log.info("%s", error)
                await trio.sleep(self._jittered_s(wait_ms))
                wait_ms = min(2 * wait_ms, names.REDIAL_LAST_MS)

    def _jittered_s(self, period_ms: int) -> float:
        return period_ms * (750 + self._rng.randrange(501)) / 1_000_000

    # --- living and dying ----------------------------------------------------------------------------------

    async def watch(self) -> NoReturn:
        """Every LIVENESS_PERIOD_MS ask each connection for a sign of life; close hard what gives none."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(names.LIVENESS_PERIOD_MS / 1_000)
                for conn in list(self._swarm.get_connections()):
                    nursery.start_soon(self._check, conn)

    async def _check(self, conn: Any) -> None:
        alive = trio.Event()

        async def ping(scope: trio.CancelScope) -> None:
            # In a task of its own: a probe that hangs in the library is left behind, the deadline is not.
            with scope:
                found = await ping_connection(conn, ping_timeout=names.LIVENESS_TIMEOUT_MS / 1_000)
                if found.success:
                    alive.set()

        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ping, scope)
            with trio.move_on_after(names.LIVENESS_TIMEOUT_MS / 1_000):
                await alive.wait()
            if not alive.is_set():
                self._counters["connections.found_dead"] += 1
                await close_hard(conn)
            scope.cancel()

    async def introduce_newcomers(self) -> NoReturn:
        """Have each new peer introduced once, and again when it comes back after having been away."""
        async with trio.open_nursery() as nursery:
            while True:
                connected = set(self.peers())
                for peer in sorted(connected - self._known)[:NEWCOMERS_MAX]:
                    self._known.add(peer)
                    nursery.start_soon(self._introduce_one, peer)
                self._known &= connected
                await trio.sleep(INTRODUCE_S)

    async def _introduce_one(self, peer: PeerId) -> None:
        """Identify has to come first, which the library does in its own time."""
        for _ in range(INTRODUCE_TRIES):
            if not self.is_connected(peer) or await self._introduce(peer):
                return
            await trio.sleep(INTRODUCE_S)

    async def close_all(self) -> None:
        """Close every connection hard: an orderly close hangs on a peer that has stopped reading."""
        for conn in list(self._swarm.get_connections()):
            await close_hard(conn)


async def close_hard(conn: Any) -> None:
    """Close the socket under a connection; frees every task that is blocked on it."""
    with trio.move_on_after(HARD_CLOSE_S, shield=True):
        try:
            await conn.muxed_conn.secured_conn.close()
        except Exception as error:  # noqa: BLE001  # it is being thrown away, whatever it says
            _log.debug("hard close: %s", type(error).__name__)

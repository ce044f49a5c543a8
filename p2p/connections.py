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
from dataclasses import dataclass, field
from typing import Any, NoReturn

import trio
from libp2p.network.health.ping_probe import ping_connection
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2p import names
from p2p.addresses import dialable_ones
from p2p.dialling import why_not
from p2p.errors import Unreachable
from p2p.network import PeerId
from p2p.stream_cures import messages_heard, stuck_s

HARD_CLOSE_S = 2.0
INTRODUCE_TRIES = 20
INTRODUCE_S = 0.25
INTRODUCE_AGAIN_S = 3.0
PROBES = 2
_log = logging.getLogger(__name__)


def split_addr(addr: str) -> tuple[str, PeerId]:
    """A multiaddr that ends in /p2p/<peer id>: the whole of it, and the id. Raises ValueError."""
    text = Multiaddr(addr).value_for_protocol("p2p")
    if text is None:
        raise ValueError(f"address {addr} does not end in /p2p/<peer id>")
    return addr, names.peer_from_text(text)


@dataclass(slots=True)
class _Dial:
    """A dial under way, for those who want the same peer."""

    ended: trio.Event = field(default_factory=trio.Event)
    failure: Unreachable | None = None


class Connections:
    """The connections of one host.

    `introduce(peer, is_new)` is awaited in a task of its own for each new peer until it says True, and again now and
    then, since a gossip stream may be lost while its connection lives. `forget(peer)` is told of a peer that has gone.
    """

    def __init__(
        self,
        host: Any,
        counters: Counter[str],
        rng: random.Random,
        introduce: Callable[[PeerId, bool], Awaitable[bool]],
        forget: Callable[[PeerId], None],
        is_refused: Callable[[PeerId], bool],
    ) -> None:
        self._host = host
        self._swarm = host.get_network()
        self._counters = counters
        self._rng = rng
        self._introduce = introduce
        self._forget = forget
        self._is_refused = is_refused
        self._addrs: dict[PeerId, tuple[str, ...]] = {}
        self._dialling: dict[PeerId, _Dial] = {}
        self._known: dict[PeerId, frozenset[Any]] = {}
        self._introducing: set[PeerId] = set()
        self._probed: set[int] = set()

    # --- asking --------------------------------------------------------------------------------------------

    def peers(self) -> list[PeerId]:
        """Connected peers, ascending."""
        return sorted(self._connections())

    def _connections(self) -> dict[PeerId, frozenset[Any]]:
        found: dict[PeerId, frozenset[Any]] = {}
        for conn in self._swarm.get_connections():
            peer = conn.muxed_conn.peer_id.to_bytes()
            found[peer] = found.get(peer, frozenset()) | {conn}
        return found

    def is_connected(self, peer: PeerId) -> bool:
        return bool(self._swarm.get_connections(ID(peer)))

    def addrs_of(self, peer: PeerId) -> tuple[str, ...]:
        """Where a peer can be dialled: the address that worked, else what it says of itself."""
        if peer in self._addrs:
            return self._addrs[peer]
        try:
            told = self._host.get_peerstore().addrs(ID(peer))
        except Exception:  # noqa: BLE001  # the peerstore raises for a peer that it does not know
            return ()
        return dialable_ones(told, peer)

    def proved_addrs_of(self, peer: PeerId) -> tuple[str, ...]:
        """Where a dial of ours has met this very peer; what it only claims may be anybody's."""
        return self._addrs.get(peer, ())

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
            if self._is_refused(peer):
                raise Unreachable(names.peer_text(peer), "is refused for a while, for what it has sent")
            if peer in self._dialling:
                dial = self._dialling[peer]
                await dial.ended.wait()
                if dial.failure is not None and not addrs:
                    raise Unreachable(dial.failure.peer, dial.failure.why)
                continue  # connected, or cancelled, or it had not the addresses that are given here
            dial = self._dialling[peer] = _Dial()
            try:
                await self._dial(peer, addrs or self.addrs_of(peer))
            except Unreachable as failure:
                dial.failure = failure
                raise
            finally:
                del self._dialling[peer]
                dial.ended.set()

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
                tried.append(f"{addr}: {why_not(error)}")
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
        """Every LIVENESS_PERIOD_MS ask each connection that was silent if it lives; close hard what gives no sign.

        So is what has taken nothing for WRITE_STUCK_MS, whatever it says meanwhile.
        """
        heard: dict[int, int] = {}
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(names.LIVENESS_PERIOD_MS / 1_000)
                before, heard = heard, {}
                for conn in list(self._swarm.get_connections()):
                    if stuck_s(conn) > names.WRITE_STUCK_MS / 1_000:
                        self._counters["connections.found_stuck"] += 1
                        nursery.start_soon(close_hard, conn)
                        continue
                    # A ping is a stream that is negotiated: whoever is heard anyway is not asked.
                    heard[id(conn)] = messages_heard(conn)
                    is_silent = heard[id(conn)] == before.get(id(conn), 0)
                    if is_silent and id(conn) not in self._probed:
                        self._probed.add(id(conn))
                        nursery.start_soon(self._check, conn, nursery)

    async def _check(self, conn: Any, nursery: trio.Nursery) -> None:
        try:
            # Two silences in a row: the cause of one may be this process, when it was busy itself.
            for _ in range(PROBES):
                heard = messages_heard(conn)
                answered, scope = trio.Event(), trio.CancelScope()
                nursery.start_soon(_probe, conn, answered, scope)
                with trio.move_on_after(names.LIVENESS_TIMEOUT_MS / 1_000):
                    await answered.wait()
                scope.cancel()
                # Who is busy answers a ping late, behind all else that it sends: whatever comes shows that it lives.
                if answered.is_set() or messages_heard(conn) != heard:
                    return
            self._counters["connections.found_dead"] += 1
            await close_hard(conn)
        finally:
            self._probed.discard(id(conn))

    async def introduce_newcomers(self) -> NoReturn:
        """Have each new peer introduced, also one that comes back, and every peer again now and then."""
        again_at = trio.current_time() + INTRODUCE_AGAIN_S
        async with trio.open_nursery() as nursery:
            while True:
                # A peer that restarts quickly is never seen away: it has a connection then that it had not before.
                known, self._known = self._known, self._connections()
                for peer in sorted(known.keys() - self._known.keys()):
                    self._forget(peer)
                again = trio.current_time() >= again_at
                if again:
                    again_at = trio.current_time() + INTRODUCE_AGAIN_S
                for peer in sorted(self._known):
                    is_new = not self._known[peer] <= known.get(peer, frozenset())
                    if peer in self._introducing:
                        if is_new:
                            self._known[peer] = frozenset()  # it stays new until its turn comes
                    elif is_new or again:
                        self._introducing.add(peer)
                        nursery.start_soon(self._introduce_one, peer, is_new)
                await trio.sleep(INTRODUCE_S)

    async def _introduce_one(self, peer: PeerId, is_new: bool) -> None:
        """Identify has to come first, which the library does in its own time."""
        try:
            for _ in range(INTRODUCE_TRIES if is_new else 1):
                try:
                    if not self.is_connected(peer) or await self._introduce(peer, is_new):
                        return
                except Exception as error:  # noqa: BLE001  # the library raises many kinds: try again
                    self._counters["connections.introduce_failed"] += 1
                    _log.debug("introducing a peer: %s", type(error).__name__)
                await trio.sleep(INTRODUCE_S)
        finally:
            self._introducing.discard(peer)

    async def close_all(self) -> None:
        """Close every connection hard, all at once: an orderly close hangs on a peer that has stopped reading."""
        async with trio.open_nursery() as nursery:
            for conn in list(self._swarm.get_connections()):
                nursery.start_soon(close_hard, conn)


async def _probe(conn: Any, answered: trio.Event, scope: trio.CancelScope) -> None:
    """Ping. In a task of its own: one that hangs in the library is left behind, its deadline is not.

    A refusal is a sign of life too; a connection that is really gone is noticed by the swarm.
    """
    with scope:
        try:
            await ping_connection(conn, ping_timeout=2 * names.LIVENESS_TIMEOUT_MS / 1_000)
        except Exception as error:  # noqa: BLE001  # a probe must not stop the node
            _log.debug("ping failed: %s", type(error).__name__)
        answered.set()


async def close_hard(conn: Any) -> None:
    """Close the socket under a connection; frees every task that is blocked on it."""
    with trio.move_on_after(HARD_CLOSE_S, shield=True):
        try:
            await conn.muxed_conn.secured_conn.close()
        except Exception as error:  # noqa: BLE001  # it is being thrown away, whatever it says
            _log.debug("hard close: %s", type(error).__name__)

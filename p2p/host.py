"""Life and death of the libp2p host: `open_network` gives a node's network, ready, and takes it down again.

Hides: py-libp2p. Guarantees: noise and yamux over TCP, or over WebSocket for browsers, never plaintext or secio; the
routes stand before the first listener; started means that real addresses are bound; leaving closes every connection
within a bounded time. Every fault of the library is cured in cures.py and stream_cures.py. Implements
docs/protocol.md, section "Connections".
"""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_pair
from libp2p.custom_types import TProtocol
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network.config import ConnectionConfig
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr
from multiaddr.utils import get_network_addrs

from p2p import cures, gossip_cures, names, stream_cures
from p2p.admission import Admission
from p2p.connections import Connections, split_addr
from p2p.dht import KadDht, RuleValidator
from p2p.errors import ListenFailed, StreamBroken, Unreachable
from p2p.gossip import Gossip, make_gossip_router
from p2p.identity import Identity
from p2p.loads import RouterLimits
from p2p.network import Answer, Check, Gauge, PeerId, RecordRule, Routes, Subscription
from p2p.request_response import RequestClient, Router
from p2p.standing import Standing
from p2p.websocket_listener import WebSocketTransport

CLOSE_S_MAX: Final = 5.0
RETELL_S: Final = 0.5
RETELL_AGAIN_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class HostConfig:
    """What a host is told. `listen` empty: a client, which nobody dials and which serves no DHT."""

    identity: Identity
    listen: tuple[str, ...]
    rng: random.Random
    now_ms: Callable[[], int]
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()  # addresses of those for whom a place is held: configured, not only met
    router_limits: RouterLimits = field(default_factory=RouterLimits)


class Libp2pStream:
    """A negotiated libp2p stream as a RawStream. Foreign errors are translated here, once."""

    def __init__(self, stream: Any, on_data: Callable[[], None] = lambda: None) -> None:
        self._stream = stream
        self._on_data = on_data

    async def read(self, bytes_max: int) -> bytes:
        try:
            data = await stream_cures.read_promptly(self._stream, bytes_max)
            self._on_data()
            return data
        except (StreamEOF, MuxedStreamEOF):
            return b""
        except Exception as error:
            raise StreamBroken(type(error).__name__) from error

    async def write(self, data: bytes) -> None:
        try:
            await stream_cures.write_patiently(self._stream, data)
        except Exception as error:
            raise StreamBroken(type(error).__name__) from error

    async def close(self) -> None:
        try:
            await self._stream.close_write()
        except Exception as error:
            raise StreamBroken(type(error).__name__) from error

    async def reset(self) -> None:
        try:
            await self._stream.reset()
        except Exception:  # noqa: BLE001  # a stream that cannot be reset is gone already
            return


class Libp2pNetwork:
    """A DistributedNetwork over py-libp2p."""

    def __init__(self, identity: Identity, host: Any, parts: _Parts) -> None:
        self.identity = identity
        self._host = host
        self._client = parts.client
        self._router = parts.router
        self._connections = parts.connections
        self._gossip = parts.gossip
        self._admission = parts.admission
        self._standing = parts.standing
        self._counters = parts.counters
        self.dht = parts.dht

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    def addrs(self) -> list[str]:
        return [str(addr) for addr in self._host.get_addrs()]

    def addrs_of(self, peer: PeerId) -> tuple[str, ...]:
        """Where a peer can be dialled, as far as is known."""
        return self._connections.addrs_of(peer)

    def proved_addrs_of(self, peer: PeerId) -> tuple[str, ...]:
        """Where a dial has met this peer: these may be kept and dialled again later."""
        return self._connections.proved_addrs_of(peer)

    def peers(self) -> list[PeerId]:
        return self._connections.peers()

    def counters(self) -> dict[str, int]:
        counted = Counter(self._counters)
        counted.update(cures.dropped)
        counted["connections.kept_places"] = len(self._standing.kept)
        counted["connections.open"] = len(self.peers())
        return {name: count for name, count in sorted(counted.items()) if not name.startswith("dht.")}

    def gauges(self) -> list[Gauge]:
        return [
            Gauge("connections_open", len(self.peers()), "connections_max", names.CONNECTIONS_MAX),
            *self._router.gauges(),
            *self._gossip.gauges(),
            *self.dht.gauges(),
        ]

    def keep(self, peers: Iterable[PeerId]) -> None:
        self._standing.keep(peers)

    def kept(self) -> frozenset[PeerId]:
        return self._standing.kept

    def praise(self, peer: PeerId) -> None:
        self._standing.praise(peer)

    def mark(self, peer: PeerId, reason: str) -> None:
        self._admission.marked(peer, reason)

    async def connect(self, addrs: Sequence[str]) -> PeerId:
        return await self._connections.connect(addrs)

    async def request(
        self, peer: PeerId, method: str, body: bytes, *, deadline_ms: int = names.REQUEST_TOTAL_MS
    ) -> bytes:
        return await self._client.request(peer, method, body, deadline_ms=deadline_ms)

    def request_parts(
        self,
        peer: PeerId,
        method: str,
        body: bytes,
        *,
        deadline_ms: int = names.REQUEST_TOTAL_MS,
        bytes_max: int = names.ANSWER_PARTS_BYTES_MAX,
    ) -> AbstractAsyncContextManager[Answer]:
        return self._client.request_parts(peer, method, body, deadline_ms=deadline_ms, bytes_max=bytes_max)

    async def join(self, topic: str, check: Check) -> Subscription:
        return await self._gossip.join(topic, check)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a host is composed of."""

    counters: Counter[str]
    router: Router
    client: RequestClient
    standing: Standing
    admission: Admission
    connections: Connections
    gossip: Gossip
    pubsub: Pubsub
    mesh: Any
    kad: KadDHT
    dht: KadDht


@asynccontextmanager
async def open_network(
    config: HostConfig, routes: Routes, record_rule: RecordRule
) -> AsyncIterator[Libp2pNetwork]:
    """A network that listens, answers, gossips and keeps its peers, until the block is left.

    Raises ListenFailed when an address cannot be bound.
    """
    cures.apply_process_cures()
    listen = [_check_free(addr) for addr in config.listen]
    host = _make_host(config)
    parts = _compose(config, host, routes, record_rule)
    async with host.run(listen):
        if len(host.get_transport_addrs()) < len(listen):
            raise ListenFailed(", ".join(config.listen), "was not bound")
        async with (
            background_trio_service(parts.pubsub),
            background_trio_service(parts.mesh),
            background_trio_service(parts.kad),
            trio.open_nursery() as nursery,
        ):
            await parts.pubsub.wait_until_ready()
            await nursery.start(parts.client.run)
            loops = trio.CancelScope()
            nursery.start_soon(_keep_up, parts, config.bootstrap, loops)
            try:
                yield Libp2pNetwork(config.identity, host, parts)
            finally:
                # Nobody is dialled any more; then what hangs on a stuck peer is freed; then the rest may end.
                loops.cancel()
                with trio.move_on_after(CLOSE_S_MAX, shield=True):
                    await parts.connections.close_all()
                nursery.cancel_scope.cancel()
        with trio.move_on_after(CLOSE_S_MAX, shield=True):
            await host.close()


async def _keep_up(parts: _Parts, bootstrap: Sequence[str], scope: trio.CancelScope) -> None:
    """All that goes on by itself."""
    with scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parts.admission.run)
            nursery.start_soon(parts.connections.watch)
            nursery.start_soon(parts.connections.introduce_newcomers)
            nursery.start_soon(parts.connections.keep_dialled, bootstrap)
            nursery.start_soon(gossip_cures.clear_recent_deliveries, parts.mesh)
            nursery.start_soon(_tell_new_servers, parts.dht)


def _check_free(addr: str) -> Multiaddr:
    """A listening address that can be bound. Raises ListenFailed.

    The library binds with SO_REUSEPORT: two nodes on one port would share the peers between them, unsaid.
    """
    try:
        parsed = Multiaddr(addr)
        network, transport, *more = parsed.items()
        way = [protocol.name for protocol, _value in (transport, *more)]
        if network[0].name not in {"ip4", "ip6"} or way not in (["tcp"], ["tcp", "ws"]):
            raise ValueError
    except Exception as error:  # multiaddr raises many kinds for bad text
        raise ListenFailed(addr, "is not /ip4|ip6/<address>/tcp/<port>, with /ws or without") from error
    family = socket.AF_INET6 if network[0].name == "ip6" else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # A port in TIME_WAIT after a restart is free; one that somebody listens on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((network[1], int(transport[1] or 0)))
            probe.listen(1)
        except OSError as error:
            raise ListenFailed(addr, error.strerror or str(error)) from error
    return parsed


def _announced(config: HostConfig) -> Callable[[Sequence[Multiaddr]], list[Multiaddr]]:
    """What peers are told of the bound addresses: 0.0.0.0 is nobody's, and a peer that believes it forgets better ones.

    Configured addresses stand instead of all others; an unspecified address becomes those of the interfaces.
    Listeners come up in any order: those of TCP, which every peer dials, are told first.
    """

    def announced(bound: Sequence[Multiaddr]) -> list[Multiaddr]:
        ordered = sorted(bound, key=lambda addr: str(addr).endswith("/ws"))
        told = [Multiaddr(addr) for addr in config.announce] or [
            addr for each in ordered for addr in _of_interfaces(each)
        ]
        return told[: names.ADDRS_PER_PEER_MAX]  # nobody reads more of them

    return announced


def _of_interfaces(addr: Multiaddr) -> list[Multiaddr]:
    name, value = next((protocol.name, value) for protocol, value in addr.items())
    if value not in {"0.0.0.0", "::"}:  # noqa: S104  # compared, not bound
        return [addr]
    rest = str(addr).split("/", 3)[3]
    own = get_network_addrs(4) or ["127.0.0.1"] if name == "ip4" else get_network_addrs(6) or ["::1"]
    return [Multiaddr(f"/{name}/{each}/{rest}") for each in own]


def _make_host(config: HostConfig) -> Any:
    pair = create_new_key_pair(config.identity.seed)
    noise = NoiseTransport(pair, noise_privkey=create_x25519_pair().private_key)
    return new_host(
        key_pair=pair,
        sec_opt={NOISE: noise},
        muxer_opt={TProtocol(YAMUX): Yamux},
        transports=[TCP(), WebSocketTransport()],
        addrs_factory=_announced(config),
        enable_metrics=False,
        connection_config=ConnectionConfig(
            # Who connects is known after the handshake only: admission.py then decides who stays.
            max_connections=names.CONNECTIONS_MAX + names.HANDSHAKES_MAX,
            high_watermark=names.CONNECTIONS_MAX + names.HANDSHAKES_MAX,
            inbound_upgrade_timeout=names.HANDSHAKE_MS_MAX / 1_000,
            min_connections=0,
            low_watermark=0,
            outbound_stream_protocol_negotiation_timeout=float(names.NEGOTIATION_S),
            inbound_stream_protocol_negotiation_timeout=float(names.NEGOTIATION_S),
        ),
    )


def _compose(config: HostConfig, host: Any, routes: Routes, record_rule: RecordRule) -> _Parts:
    counters: Counter[str] = Counter()
    peer_id = config.identity.peer_id
    standing = Standing(_peers_of(config.kept))
    admission = Admission(host, standing, counters)
    router = Router(
        routes,
        counters,
        limits=config.router_limits,
        on_mark=admission.marked_on_the_wire,
        is_kept=lambda peer: peer in standing.kept,
        on_use=admission.active,
        on_unread=admission.close,
    )
    connections: Connections

    async def open_stream(peer: PeerId) -> Libp2pStream:
        await connections.reach(peer)
        return await _open_stream(host, peer, lambda: admission.active(peer))

    client = RequestClient(open_stream, peer_id, router, counters, on_mark=admission.marked_on_the_wire)
    cures.harden(host, counters)

    async def serve(stream: Any) -> None:
        peer = stream.muxed_conn.peer_id.to_bytes()
        await router.serve(Libp2pStream(stream), peer)

    host.set_stream_handler(TProtocol(names.RR_PROTOCOL), serve)
    mesh = make_gossip_router()
    pubsub = cures.make_pubsub(host, mesh, counters, config.now_ms())
    kad = KadDHT(host, DHTMode.SERVER if config.listen else DHTMode.CLIENT, strict_validation=True)
    kad.register_validator("aw", RuleValidator(record_rule, counters))
    cures.harden_dht(host, kad)
    dht = KadDht(kad, record_rule, peer_id, counters)
    connections = Connections(
        host,
        counters,
        config.rng,
        lambda peer, is_new: _introduce(host, dht, pubsub, peer, is_new),
        dht.forget,
        admission.is_refused,
    )
    gossip = Gossip(pubsub, peer_id, counters, admission.judged)
    return _Parts(counters, router, client, standing, admission, connections, gossip, pubsub, mesh, kad, dht)


def _peers_of(addrs: Iterable[str]) -> set[PeerId]:
    peers = set()
    for addr in addrs:
        with suppress(Exception):  # connections.py tells of an address that is none
            peers.add(split_addr(addr)[1])
    return peers


async def _open_stream(host: Any, peer: PeerId, on_data: Callable[[], None]) -> Libp2pStream:
    lib_id, protocols = ID(peer), [TProtocol(names.RR_PROTOCOL)]
    why = ""
    for _ in range(2):  # a connection that has just died is listed for a moment: try once more
        try:
            with trio.fail_after(names.NEGOTIATION_S * 2):
                return Libp2pStream(await host.new_stream(lib_id, protocols), on_data)
        except trio.TooSlowError:
            why = "no stream within the deadline"
        except Exception as error:  # noqa: BLE001  # the library raises many kinds: all mean no stream
            why = f"no stream ({type(error).__name__})"
    raise Unreachable(names.peer_text(peer), why)


async def _introduce(host: Any, dht: KadDht, pubsub: Pubsub, peer: PeerId, is_new: bool) -> bool:
    """Make a new peer known to gossip and DHT; False while identify has not told what it speaks."""
    lib_id = ID(peer)
    protocols = cures.known_protocols(host, lib_id)
    if not protocols:
        cures.ask_identify(host, lib_id)
        return False
    cures.mend_gossip_stream(pubsub, lib_id)
    if names.GOSSIP_PROTOCOL in protocols and lib_id not in pubsub.peers:
        await pubsub.ensure_peer_stream(lib_id, timeout=names.NEGOTIATION_S)
    if names.KAD_PROTOCOL in protocols:
        await dht.introduce(peer, is_new=is_new)
    return True


async def _tell_new_servers(dht: KadDht) -> None:
    """When the routing table has grown and is quiet again, tell the newcomers what this node has put and provides."""
    told = 0
    while True:
        await trio.sleep(RETELL_S)
        seen = dht.grown()
        if seen == told:
            continue
        await trio.sleep(RETELL_S)
        if dht.grown() == seen:
            told = seen
            await dht.tell_new_servers()
            await trio.sleep(RETELL_AGAIN_S)  # a peer that comes and goes must not keep us busy

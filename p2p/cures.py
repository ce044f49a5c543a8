"""py-libp2p 0.8.1's faults, one function each: what it does wrong, and what is done about it here.

Hides: every patch of library internals in the project (stream_cures.py has those below a stream, message_cures.py those
of what a message may hold, gossip_cures.py those of gossip, dht_cures.py those of a DHT server). Guarantees: nothing
else reaches into libp2p's private parts; each cure names the test that fails without it, so that a newer release shows
which of them can go.

ALL is the table of what is in force: a test takes a cure out of it and sees the fault. Cures of the process patch
classes and modules, once; cures of a host, of gossip and of the DHT patch one object when it is made.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import libp2p.pubsub.pubsub as pubsub_module
from libp2p.crypto import serialization
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.crypto.keys import KeyType, PublicKey
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.peer import envelope
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from multiaddr import Multiaddr

from p2p import curing, names
from p2p.curing import StreamHandler, few_of_a_peer, reset_stream
from p2p.dht_cures import OF_THE_DHT
from p2p.gossip_cures import OF_A_START, OF_GOSSIP, OF_GOSSIP_MODULES, is_closed, keep_restarted_peers
from p2p.message_cures import OF_MESSAGES
from p2p.stream_cures import OF_STREAMS

CURED_VERSION: Final = "0.8.1"
PEERS_FORGOTTEN: Final = 50  # at once, of a full peerstore: to choose them takes a look at all
_KAD_MODULES: Final = ("kad_dht", "common", "value_store", "provider_store", "peer_routing")
_log = logging.getLogger(__name__)

dropped: Final = curing.dropped
"""What the cures of the process have dropped, by reason; of all hosts of the process together."""


# --- cures of the process ----------------------------------------------------------------------------------


def size_gossip_queues() -> None:
    """A peer's outbound queue holds 32 RPCs and loses the rest of a burst without a word (rpc_queue.py).

    The module makes one per peer by the name RpcQueue: ours holds more, bounded by bytes too, since a stranger decides
    how large they are, and what it refuses is counted.
    Tests: test_a_burst_of_gossip_arrives_whole, test_what_waits_for_a_deaf_peer_is_bounded.
    """
    setattr(pubsub_module, "RpcQueue", CountedRpcQueue)  # noqa: B010  # the module does not export the name


class CountedRpcQueue(RpcQueue):
    """An outbound queue of GOSSIP_OUT_QUEUE_RPCS_MAX and GOSSIP_OUT_QUEUE_BYTES_MAX whose refusals are counted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["max_size"] = names.GOSSIP_OUT_QUEUE_RPCS_MAX
        super().__init__(*args, **kwargs)
        self.waiting_bytes = 0

    def push(self, rpc: Any, priority: bool = False) -> bool:
        size = rpc.ByteSize()
        is_full = self.waiting_bytes + size > names.GOSSIP_OUT_QUEUE_BYTES_MAX
        taken = not is_full and bool(super().push(rpc, priority))
        if taken:
            self.waiting_bytes += size
        else:
            dropped["gossip.dropped_out_queue_full"] += 1
        return taken

    async def pop(self) -> Any:
        rpc = await super().pop()
        if rpc is not None:
            self.waiting_bytes -= rpc.ByteSize()
        return rpc


def cap_messages_per_rpc() -> None:
    """Each message of an inbound RPC becomes a task before anything is checked, 7,000 of them in one of 1 MiB.

    pubsub.py:586 has no limit. The function that looks at an RPC first is given the first
    GOSSIP_MESSAGES_PER_RPC_MAX messages, the rest is counted; after one RPC's tasks the reader waits for its next
    bytes, so that this is also the bound of what one stream has under way. Test: test_an_overfull_rpc_is_cut.
    """
    look = pubsub_module.maybe_consume_signed_record  # type: ignore[attr-defined]

    def capped(message: Any, *args: Any, **kwargs: Any) -> bool:
        excess = len(message.publish) - names.GOSSIP_MESSAGES_PER_RPC_MAX
        if excess > 0:
            dropped["gossip.dropped_rpc_too_full"] += excess
            del message.publish[names.GOSSIP_MESSAGES_PER_RPC_MAX :]
        return bool(look(message, *args, **kwargs))

    setattr(pubsub_module, "maybe_consume_signed_record", capped)  # noqa: B010  # not exported either


def read_ed25519_keys_only() -> None:
    """A stranger's RSA key is parsed before its size is looked at: 60 kB of it stop the event loop for half a minute.

    crypto/rsa.py:65 takes private keys too, whose parts are computed; noise, identify, signed records and gossip come
    there, the first of them before anybody is known (crypto/serialization.py:22, peer/envelope.py:198). No other kind
    than Ed25519 has a place here. Test: test_no_key_but_ed25519_is_parsed.
    """
    readers = serialization.key_type_to_public_key_deserializer
    for kind in [kind for kind in readers if kind != KeyType.Ed25519.value]:
        del readers[kind]

    def ed25519(key: Any) -> PublicKey:
        if key.Type != KeyType.Ed25519.value:
            raise ValueError("not an Ed25519 key")
        return Ed25519PublicKey.from_bytes(key.Data)

    setattr(envelope, "pub_key_from_protobuf", ed25519)  # noqa: B010  # of another type


def name_kad_protocol() -> None:
    """The Kad-DHT's protocol id is a constant, `protocol_prefix` is ignored; ours must never join the public DHT.

    Five modules import it by name. Test: test_the_dht_speaks_our_protocol_only.
    """
    for module in _KAD_MODULES:
        importlib.import_module(f"libp2p.kad_dht.{module}").PROTOCOL_ID = names.KAD_PROTOCOL  # type: ignore[attr-defined]


def shorten_query_timeout() -> None:
    """Every lookup phase waits 10 s for a peer that hangs. QUERY_TIMEOUT is imported by name in several modules.

    Test: test_a_query_waits_for_a_hung_peer_no_longer_than_a_negotiation.
    """
    for module in _KAD_MODULES:
        loaded = importlib.import_module(f"libp2p.kad_dht.{module}")
        if hasattr(loaded, "QUERY_TIMEOUT"):
            setattr(loaded, "QUERY_TIMEOUT", names.NEGOTIATION_S)  # noqa: B010  # unknown to the type checker


def tame_loggers() -> None:
    """Importing libp2p takes its loggers off the root's handlers and lets one of them log at INFO.

    Its errors may quote whole payloads, so that only errors pass. Test: test_libp2p_logs_through_our_handlers.
    """
    for name in ("libp2p", "libp2p.network.auto_connector", "anyio_service", "async_service.Manager"):
        logger = logging.getLogger(name)
        logger.propagate = True
        logger.setLevel(logging.ERROR)
    # These call it an error when a dial fails, which connections.py tells with all that was tried, or when a stranger
    # hangs up: whoever likes could fill the log.
    for name in ("libp2p.transport", "libp2p.host", "libp2p.protocol_muxer"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


# --- cures of a host ---------------------------------------------------------------------------------------


def guard_streams(host: Any, counters: Counter[str]) -> None:
    """An exception in any stream handler stops the whole host; one bad byte from a stranger raises one.

    basic_host.py:1554 awaits the handler without a try, in a nursery under the Swarm service. Negotiation of a token
    that is no UTF-8 and an RPC that is no protobuf raise too. Everything is caught here, counted, and the stream
    reset. Tests: test_a_token_that_is_no_utf_8_costs_nothing, test_an_rpc_that_is_no_protobuf_costs_nothing.
    """

    def guard(inner: StreamHandler) -> StreamHandler:
        async def guarded(stream: Any) -> None:
            try:
                await inner(stream)
            except Exception as error:  # noqa: BLE001  # whatever it is, it must not stop the node
                counters["cure.stream_guard"] += 1
                _log.info("stream handler failed: %s", type(error).__name__)
                await reset_stream(stream)

        return guarded

    _wrap_stream_handler(host, guard)


def limit_inbound_streams(host: Any, counters: Counter[str]) -> None:
    """A peer may hold any number of inbound streams, up to the 10,000 of all peers together.

    Yamux acknowledges every one. Past INBOUND_STREAMS_PER_PEER_MAX a peer's new streams are reset at once, negotiated
    or not. Test: test_a_flood_of_streams_is_cut_and_others_are_served.
    """

    def limit(inner: StreamHandler) -> StreamHandler:
        return few_of_a_peer(
            inner, lambda: names.INBOUND_STREAMS_PER_PEER_MAX, counters, "cure.streams_over_limit"
        )

    _wrap_stream_handler(host, limit)


def _wrap_stream_handler(host: Any, wrap: Callable[[StreamHandler], StreamHandler]) -> None:
    swarm = host.get_network()
    swarm.set_stream_handler(wrap(swarm.common_stream_handler))


def give_inbound_slots_back(host: Any, counters: Counter[str]) -> None:
    """An inbound connection keeps its slot until the swarm ends: after 250 of them the node accepts no more.

    swarm.py:1982 takes the slot, then waits for the swarm's end. Here the upgrade itself waits for the connection's
    end and then raises, which gives the slot back. TCP only. Test: test_260_short_connections_leave_room_for_more.
    """
    swarm = host.get_network()
    upgrade = swarm.upgrade_inbound_raw_conn

    async def until_closed(raw: Any, maddr: Multiaddr) -> Any:
        muxed = await upgrade(raw, maddr)
        counters["connections.accepted"] += 1
        await muxed.event_closed.wait()
        raise ConnectionError("inbound connection has ended")

    swarm.upgrade_inbound_raw_conn = until_closed


def stop_auto_connector(host: Any, counters: Counter[str]) -> None:  # noqa: ARG001  # one shape for all
    """The auto-connector dials everybody in the peerstore, whatever the watermarks say (auto_connector.py:300).

    Test: test_nobody_is_dialled_unasked.
    """

    async def never(*_args: Any, **_kwargs: Any) -> None:
        """Dial nobody."""

    host.get_network().auto_connector.start = never
    host.get_network().auto_connector.maybe_connect = never  # run by the swarm when a peer is lost


def keep_own_keys(host: Any, counters: Counter[str]) -> None:  # noqa: ARG001  # one shape for all
    """The host's own keys are in the peerstore, which forgets them first when it is full: then nothing can be signed.

    peer/peerstore.py:201 evicts whoever has no address, above 1,000 peers; any DHT answer can name as many. A publish
    then raises, and the node ends. Test: test_a_full_peerstore_leaves_a_node_its_own_keys.
    """
    public_key, private_key = host.get_public_key(), host.get_private_key()
    host.get_public_key = lambda: public_key
    host.get_private_key = lambda: private_key


def keep_connected_peers_known(host: Any, counters: Counter[str]) -> None:  # noqa: ARG001  # one shape for all
    """A full peerstore forgets whoever came first, also who is connected, and never asks what it speaks again.

    peerstore.py:201; fifty answers of a lying DHT server fill it. Test: test_a_full_peerstore_knows_who_is_connected.
    """
    store = host.get_peerstore()

    def make_room() -> None:
        excess = len(store.peer_data_map) - store.max_peers
        if excess <= 0:
            return
        connected = {conn.muxed_conn.peer_id for conn in host.get_network().get_connections()}
        strangers = [each for each in store.peer_data_map.items() if each[0] not in connected]
        strangers.sort(key=lambda each: bool(each[1].get_addrs()) and not each[1].is_expired())
        for peer, _ in strangers[: excess + PEERS_FORGOTTEN]:
            store.peer_record_map.pop(peer, None)
            del store.peer_data_map[peer]

    store._enforce_peer_limit = make_room  # noqa: SLF001


# --- the table ---------------------------------------------------------------------------------------------

OF_THE_PROCESS: Final = (
    *OF_STREAMS,
    *OF_GOSSIP_MODULES,
    *OF_MESSAGES,
    size_gossip_queues,
    cap_messages_per_rpc,
    read_ed25519_keys_only,
    name_kad_protocol,
    shorten_query_timeout,
    tame_loggers,
)
OF_A_HOST: Final = (
    guard_streams,
    limit_inbound_streams,
    give_inbound_slots_back,
    stop_auto_connector,
    keep_own_keys,
    keep_connected_peers_known,
)

ALL: Final[dict[str, Callable[..., None]]] = {
    cure.__name__: cure for cure in (*OF_THE_PROCESS, *OF_A_HOST, *OF_GOSSIP, *OF_A_START, *OF_THE_DHT)
}
"""The cures in force, by name. Nothing but a test takes one out."""

_applied: list[str] = []


def _apply(cures: tuple[Callable[..., None], ...], *subject: Any) -> None:
    for cure in cures:
        if cure.__name__ in ALL:
            cure(*subject)


def apply_process_cures() -> None:
    """Every cure of the process, once."""
    if _applied:
        return
    version = importlib.metadata.version("libp2p")
    if version != CURED_VERSION:
        _log.warning(
            "libp2p %s is not %s, for which p2p/cures.py was written: run its tests", version, CURED_VERSION
        )
    _apply(OF_THE_PROCESS)
    _applied.extend(cure.__name__ for cure in OF_THE_PROCESS)


def harden(host: Any, counters: Counter[str]) -> None:
    """Every cure of a host that does not run yet."""
    _apply(OF_A_HOST, host, counters)


def make_pubsub(host: Any, router: GossipSub, counters: Counter[str], now_ms: int) -> Pubsub:
    """A cured Pubsub over a router; the first number of its messages is the time."""
    pubsub = Pubsub(host, router, strict_signing=True)
    _apply(OF_GOSSIP, pubsub, counters)
    _apply(OF_A_START, pubsub, now_ms)
    return pubsub


def harden_dht(host: Any, dht: KadDHT) -> None:
    """Every cure of a DHT that does not run yet."""
    _apply(OF_THE_DHT, host, dht)


# --- what has no other way in ------------------------------------------------------------------------------


def known_protocols(host: Any, peer: ID) -> list[str]:
    """What a peer has told by identify; nothing before that."""
    try:
        return [str(protocol) for protocol in host.get_peerstore().get_protocols(peer)]
    except Exception:  # noqa: BLE001  # the peerstore raises for a peer that it does not know
        return []


def provider_records_held(dht: KadDHT) -> int:
    """Of others, by a server; see bound_dht_stores."""
    return int(dht.provider_store.records_of_others())  # type: ignore[attr-defined]


def ask_identify(host: Any, peer: ID) -> None:
    """A peer whose identify failed once, when it connected, is asked again only when a stream to it is opened.

    basic_host.py:1383. Test: test_a_peer_whose_first_identify_failed_is_asked_again.
    """
    host._schedule_identify(peer, reason="introduce")  # noqa: SLF001


def mend_gossip_stream(pubsub: Any, peer: ID) -> None:
    """Drop a gossip stream that is dead and that nothing has told the end of; see keep_restarted_peers."""
    stream = pubsub.peers.get(peer)
    if keep_restarted_peers.__name__ in ALL and stream is not None and is_closed(stream):
        pubsub._handle_dead_peer(peer)  # noqa: SLF001

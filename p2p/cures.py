"""py-libp2p 0.8.1's faults, one function each: what it does wrong, and what is done about it here.

Hides: every patch of library internals in the project. Guarantees: nothing else reaches into libp2p's private parts;
each cure names the test that fails without it, so that a newer release shows which of them can go.
Cures of classes hold for the whole process (`apply_process_cures`), cures of objects for one host (`harden`, ...).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import libp2p.pubsub.pubsub as pubsub_module
import trio
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KadMessage
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.stream_muxer.yamux import yamux
from multiaddr import Multiaddr

from p2p import names

CURED_VERSION: Final = "0.8.1"
RESET_S_MAX: Final = 1.0
DELIVERIES_CLEARED_S: Final = 60.0
_KAD_MODULES: Final = ("kad_dht", "common", "value_store", "provider_store", "peer_routing")
_log = logging.getLogger(__name__)


class IgnoredMessage(Exception):
    """Raised by a topic's validator for a message that is neither forwarded nor held against anybody."""


# --- cures of the process ----------------------------------------------------------------------------------


def shield_yamux_writes() -> None:
    """A cancelled write leaves half a noise frame or a burnt nonce, and the whole connection dies with it.

    yamux.py:874 `_write_frame`, and the window update that `read` sends. Both are shielded: a frame goes out whole.
    Test: test_a_cancelled_write_does_not_kill_the_connection.
    """
    for owner, name in (
        (yamux.Yamux, "_write_frame"),
        (yamux.YamuxStream, "_auto_tune_and_send_window_update"),
    ):
        setattr(owner, name, _shielded(getattr(owner, name)))


def _shielded(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def whole(*args: Any, **kwargs: Any) -> Any:
        with trio.CancelScope(shield=True):
            return await original(*args, **kwargs)

    return whole


def size_gossip_queues() -> None:
    """Queues of 32 messages, in and out, lose what comes in a burst without a word.

    pubsub.py reads SUBSCRIPTION_CHANNEL_SIZE at subscribe and makes an RpcQueue per peer; both are sized here, and
    what the outbound one refuses is counted. Test: test_a_burst_of_gossip_arrives_whole.
    """
    pubsub_module.SUBSCRIPTION_CHANNEL_SIZE = names.GOSSIP_CHANNEL_MESSAGES_MAX
    setattr(pubsub_module, "RpcQueue", CountedRpcQueue)  # noqa: B010  # the module does not export the name


class CountedRpcQueue(RpcQueue):
    """An outbound queue of our size whose refusals are counted in `dropped`, by the process."""

    dropped: Final[Counter[str]] = Counter()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["max_size"] = names.GOSSIP_OUT_QUEUE_RPCS_MAX
        super().__init__(*args, **kwargs)

    def push(self, *args: Any, **kwargs: Any) -> bool:
        taken = bool(super().push(*args, **kwargs))
        if not taken:
            self.dropped["gossip.dropped_out_queue_full"] += 1
        return taken


def name_kad_protocol() -> None:
    """The Kad-DHT's protocol id is a constant, `protocol_prefix` is ignored; ours must never join the public DHT.

    Five modules import it by name. Test: test_the_dht_speaks_our_protocol_only.
    """
    for module in _KAD_MODULES:
        importlib.import_module(f"libp2p.kad_dht.{module}").PROTOCOL_ID = names.KAD_PROTOCOL  # type: ignore[attr-defined]


def tame_loggers() -> None:
    """Importing libp2p takes its loggers off the root's handlers and lets one of them log at INFO.

    Its errors may quote whole payloads, so that only errors pass. Test: test_libp2p_logs_through_our_handlers.
    """
    for name in ("libp2p", "libp2p.network.auto_connector", "anyio_service", "async_service.Manager"):
        logger = logging.getLogger(name)
        logger.propagate = True
        logger.setLevel(logging.ERROR)
    # A dial that fails is told once, by connections.py, with all that was tried.
    logging.getLogger("libp2p.transport").setLevel(logging.CRITICAL)


def shorten_query_timeout() -> None:
    """Every lookup phase waits 10 s for a peer that hangs. QUERY_TIMEOUT is imported by name in several modules.

    Test: test_a_hung_dht_peer_costs_a_bounded_time.
    """
    for module in _KAD_MODULES:
        loaded = importlib.import_module(f"libp2p.kad_dht.{module}")
        if hasattr(loaded, "QUERY_TIMEOUT"):
            setattr(loaded, "QUERY_TIMEOUT", names.NEGOTIATION_S)  # noqa: B010  # unknown to the type checker


_PROCESS_CURES: Final = (
    shield_yamux_writes,
    size_gossip_queues,
    name_kad_protocol,
    shorten_query_timeout,
    tame_loggers,
)
_applied: list[str] = []


def apply_process_cures() -> None:
    """Every cure of the process, once."""
    if _applied:
        return
    version = importlib.metadata.version("libp2p")
    if version != CURED_VERSION:
        _log.warning(
            "libp2p %s is not %s, for which p2p/cures.py was written: run its tests", version, CURED_VERSION
        )
    for cure in _PROCESS_CURES:
        cure()
        _applied.append(cure.__name__)


# --- cures of a host ---------------------------------------------------------------------------------------


def guard_streams(host: Any, counters: Counter[str]) -> None:
    """An exception in any stream handler stops the whole host; one bad byte from a stranger raises one.

    basic_host.py:1554 awaits the handler without a try, in a nursery under the Swarm service. Negotiation of a token
    that is no UTF-8 and an RPC that is no protobuf raise too. Everything is caught here, counted, and the stream
    reset. Tests: test_a_token_that_is_no_utf8_..., test_an_rpc_that_is_no_protobuf_....
    """
    inner = host._swarm_stream_handler  # noqa: SLF001

    async def guarded(stream: Any) -> None:
        try:
            await inner(stream)
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not stop the node
            counters["cure.stream_guard"] += 1
            _log.info("stream handler failed: %s", type(error).__name__)
            with trio.CancelScope(shield=True), trio.move_on_after(RESET_S_MAX):
                await _quietly(stream.reset)

    host.get_network().set_stream_handler(guarded)


async def _quietly(call: Callable[[], Awaitable[object]]) -> None:
    """A reset that fails has nothing left to reset."""
    try:
        await call()
    except Exception as error:  # noqa: BLE001
        _log.debug("reset failed: %s", type(error).__name__)


def give_inbound_slots_back(host: Any) -> None:
    """An inbound connection keeps its slot until the swarm ends: after 250 of them the node accepts no more.

    swarm.py:1982 takes the slot, then waits for the swarm's end. Here the upgrade itself waits for the connection's
    end and then raises, which gives the slot back. TCP only. Test: test_260_short_connections_leave_room_....
    """
    swarm = host.get_network()
    upgrade = swarm.upgrade_inbound_raw_conn

    async def until_closed(raw: Any, maddr: Multiaddr) -> Any:
        muxed = await upgrade(raw, maddr)
        await muxed.event_closed.wait()
        raise ConnectionError("inbound connection has ended")

    swarm.upgrade_inbound_raw_conn = until_closed


def stop_auto_connector(host: Any) -> None:
    """The auto-connector dials everybody in the peerstore, whatever the watermarks say.

    Test: test_nobody_is_dialled_unasked.
    """

    async def never() -> None:
        """Dial nobody."""

    host.get_network().auto_connector.start = never


def known_protocols(host: Any, peer: ID) -> list[str]:
    """What a peer has told by identify; nothing before that."""
    try:
        return [str(protocol) for protocol in host.get_peerstore().get_protocols(peer)]
    except Exception:  # noqa: BLE001  # the peerstore raises for a peer that it does not know
        return []


def ask_identify(host: Any, peer: ID) -> None:
    """Connections made by `dial_addr` and inbound ones are not identified by the library until a stream needs it.

    Test: test_connected_peers_find_each_other_in_the_dht.
    """
    host._schedule_identify(peer, reason="introduce")  # noqa: SLF001


# --- cures of gossip ---------------------------------------------------------------------------------------


class CuredPubsub(Pubsub):
    """Pubsub whose `push_msg` cannot stop the node, knows IGNORE, and checks what the library does not.

    - A message whose `from` embeds no key and whose `key` is garbage raises out of the service (validators.py:62).
    - `key` may be another key than `from` (rust refuses that, so a py relay of it would be punished).
    - Each inbound message is a task (pubsub.py:586): no back-pressure before validation. Past
      GOSSIP_IN_FLIGHT_PER_PEER_MAX of one peer, or GOSSIP_BYTES_MAX bytes, it is dropped and counted.
    - ACCEPT and REJECT only: an IgnoredMessage raised by a validator leaves before cache, penalty and forwarding.
    - The sequence number starts at seconds, so that a restart repeats numbers seen (`counter_ns` starts it anew).
    Tests: tests/network/test_gossip.py.
    """

    def __init__(self, host: Any, router: GossipSub, counters: Counter[str], counter_ns: int) -> None:
        super().__init__(host, router, strict_signing=True)
        self.counter = counter_ns
        self._counters = counters
        self._in_flight: Counter[bytes] = Counter()

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        if msg_forwarder == self.my_id:
            await super().push_msg(msg_forwarder, msg)
            return
        reason = self._refusal(msg_forwarder, msg)
        if reason is not None:
            self._counters[f"gossip.{reason}"] += 1
            return
        forwarder = msg_forwarder.to_bytes()
        self._in_flight[forwarder] += 1
        try:
            await super().push_msg(msg_forwarder, msg)
        except IgnoredMessage:
            self._mark_msg_seen(msg)
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not stop the node
            self._counters["cure.push_msg"] += 1
            _log.info("gossip message failed: %s", type(error).__name__)
        finally:
            self._in_flight[forwarder] -= 1
            if not self._in_flight[forwarder]:
                del self._in_flight[forwarder]

    def _refusal(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> str | None:
        if len(msg.data) > names.GOSSIP_BYTES_MAX or len(msg.topicIDs) != 1:
            return "rejected_shape"
        if self._in_flight[msg_forwarder.to_bytes()] >= names.GOSSIP_IN_FLIGHT_PER_PEER_MAX:
            return "dropped_peer_in_flight"
        # An Ed25519 id embeds its key; a `key` field that says something else is refused, as rust-libp2p does.
        embedded = (
            msg.from_id[2:] if msg.from_id[:6] == names.PEER_ID_PREFIX and len(msg.from_id) == 38 else None
        )
        if embedded is None:
            return "rejected_author"
        if msg.key and msg.key != embedded:
            return "rejected_key"
        return None


def make_gossip_router() -> GossipSub:
    """Gossipsub that keeps its heartbeat: by default it slows to 30-60 s when it finds the mesh unhealthy.

    gossipsub.py:2864. Its spam limits also stop one's own publishes. Test: test_the_mesh_forms_and_stays.
    """
    from libp2p.custom_types import TProtocol

    return GossipSub(
        protocols=[TProtocol(names.GOSSIP_PROTOCOL)],
        degree=6,
        degree_low=4,
        degree_high=12,
        heartbeat_interval=1,
        adaptive_gossip_enabled=False,
        spam_protection_enabled=False,
        eclipse_protection_enabled=False,
    )


async def clear_recent_deliveries(router: GossipSub) -> None:
    """With a steady heartbeat a list of recent deliveries is never pruned: 280 MB a day at 100 messages a second.

    gossipsub.py:1089. Runs until cancelled. Test: test_recent_deliveries_are_cleared.
    """
    while True:
        await trio.sleep(DELIVERIES_CLEARED_S)
        drop_recent_deliveries(router)


def drop_recent_deliveries(router: GossipSub) -> None:
    """One round of clear_recent_deliveries."""
    router.recent_message_deliveries.clear()


# --- cures of the DHT --------------------------------------------------------------------------------------


def widen_dht_limits(dht: KadDHT) -> None:
    """Twelve inbound handlers, the rest reset; 10 ADD_PROVIDER in 10 s from a peer, the rest dropped unsaid.

    kad_dht.py:313-323. Test: test_more_than_ten_provides_in_a_row_are_all_kept.
    """
    dht._inbound_limiter = trio.CapacityLimiter(names.DHT_HANDLERS_MAX)  # noqa: SLF001
    dht._provider_rate_max = names.ADD_PROVIDER_PER_10_S_PER_PEER_MAX  # noqa: SLF001


def silence_add_provider(host: Any, dht: KadDHT) -> None:
    """ADD_PROVIDER is echoed, and py's own client does not read the echo; a go client that keeps the stream is then
    off by one answer.

    kad_dht.py:866-874. The stream given to the handler swallows that one reply. Test: test_add_provider_has_no_answer.
    """
    handle = dht.handle_stream

    async def without_echo(stream: Any) -> None:
        await handle(cast("Any", _NoEcho(stream)))

    host.set_stream_handler(names.KAD_PROTOCOL, without_echo)


class _NoEcho:
    """A stream whose writes of an ADD_PROVIDER answer (a length, then the message) go nowhere."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._length: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def write(self, data: bytes) -> None:
        if self._length is None:  # the library writes the length by itself, then the message
            self._length = data
            return
        length, self._length = self._length, None
        answer = KadMessage()
        answer.ParseFromString(data)
        if answer.type != KadMessage.MessageType.ADD_PROVIDER:
            await self._stream.write(length + data)


__all__ = [
    "CuredPubsub",
    "IgnoredMessage",
    "apply_process_cures",
    "clear_recent_deliveries",
    "give_inbound_slots_back",
    "guard_streams",
    "make_gossip_router",
    "silence_add_provider",
    "stop_auto_connector",
    "widen_dht_limits",
]

"""Cures of what py-libp2p takes in a message of identify, DHT or gossip: how much a peer may say of itself and others.

Hides: the library's readers, which stop at 1 or 4 MiB, and what of a message is never needed. Guarantees: what one
message leaves in memory, and how long it stops the event loop, is bounded by names of p2p/names.py; a message within
them is handed on as it came. See cures.py for how cures are applied and tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final

from libp2p.host import basic_host
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.identity.identify_push import identify_push
from libp2p.kad_dht import kad_dht, peer_routing, provider_store, value_store
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KadMessage
from libp2p.peer.peerdata import PeerData
from libp2p.peer.peerstore import PeerStore
from libp2p.pubsub import pubsub

from p2p import names
from p2p.addresses import is_peer_id, is_tcp_addr
from p2p.curing import dropped, reset_stream

LOOKED_AT: Final = 4  # times as many entries as are kept: to look costs too

# --- what is needed of a message ---------------------------------------------------------------------------


def cut_identify(data: bytes) -> bytes:
    """An identify message with no more addresses and protocols than are kept. Raises protobuf's DecodeError."""
    return _cut(Identify(), data, "identify.cut", _cut_identify)


def cut_kad(data: bytes) -> bytes:
    """A DHT message with no more peers and addresses than are kept. Raises protobuf's DecodeError."""
    return _cut(KadMessage(), data, "dht.cut", _cut_kad)


def _cut(message: Any, data: bytes, reason: str, cut: Callable[[Any], bool]) -> bytes:
    message.ParseFromString(data)
    if not cut(message):
        return data
    dropped[reason] += 1
    return bytes(message.SerializeToString())


def _cut_identify(message: Any) -> bool:
    is_cut = cut_signed_record(message, "signedPeerRecord")
    is_cut |= _keep(message.protocols, names.PROTOCOLS_PER_PEER_MAX, _is_short)
    is_cut |= _keep(message.listen_addrs, names.ADDRS_PER_PEER_MAX, is_tcp_addr)
    return is_cut


def _cut_kad(message: Any) -> bool:
    is_cut = cut_signed_record(message, "senderRecord")
    for peers in (message.closerPeers, message.providerPeers):
        is_cut |= _keep(peers, names.DHT_PEERS_MAX, lambda one: is_peer_id(one.id))
        for one in peers:
            is_cut |= _keep(one.addrs, names.ADDRS_PER_PEER_MAX, is_tcp_addr)
            is_cut |= cut_signed_record(one, "signedRecord")
    return is_cut


def cut_signed_record(message: Any, field: str) -> bool:
    """Take a signed record away that is longer than its limit: what else the message says is taken all the same."""
    if len(getattr(message, field)) <= names.SIGNED_RECORD_BYTES_MAX:
        return False
    message.ClearField(field)
    dropped["connections.signed_record_too_long"] += 1
    return True


def _is_short(protocol: str) -> bool:
    return len(protocol) <= names.PROTOCOL_CHARS_MAX


def _keep(field: Any, count_max: int, is_needed: Callable[[Any], bool]) -> bool:
    """Leave of a repeated field the first `count_max` that are needed, of four times as many; whether any had to go."""
    kept = list(islice(filter(is_needed, islice(field, LOOKED_AT * count_max)), count_max))
    if len(kept) == len(field):
        return False
    del field[:]
    field.extend(kept)
    return True


# --- cures of the process ----------------------------------------------------------------------------------


def limit_identify() -> None:
    """A peer's identify may be a MiB: hundreds of thousands of protocols, kept with each of a thousand identities.

    basic_host.py:1267, identify_push.py:77. IDENTIFY_BYTES_MAX is what go and js take.
    Tests: test_what_identify_tells_is_cut, test_an_identify_of_more_than_its_limit_is_not_taken.
    """
    for module in (basic_host, identify_push):
        read = module.read_length_prefixed_protobuf

        async def read_and_cut(stream: Any, use_varint_format: bool = True, read: Any = read) -> bytes:
            try:
                return cut_identify(await read(stream, use_varint_format, names.IDENTIFY_BYTES_MAX))
            except Exception:
                await reset_stream(stream)  # or what follows the refused length is read as an old form
                raise

        setattr(module, "read_length_prefixed_protobuf", read_and_cut)  # noqa: B010  # not exported


def limit_dht_messages() -> None:
    """A DHT message may be 4 MiB: an ADD_PROVIDER of 300,000 addresses stops the event loop for a second, and is kept,
    as 150 MiB, for two days.

    kad_dht/common.py:26, imported by name with its reader. Tests: test_what_a_provider_tells_of_itself_is_cut,
    test_a_dht_message_of_more_than_its_limit_is_reset.
    """
    for module in (kad_dht, peer_routing, provider_store, value_store):
        read = module.read_varint_prefixed_bytes_limited

        async def read_and_cut(reader: Any, max_length: int, read: Any = read) -> bytes:
            return cut_kad(await read(reader, min(max_length, names.DHT_MESSAGE_BYTES_MAX)))

        setattr(module, "read_varint_prefixed_bytes_limited", read_and_cut)  # noqa: B010  # not exported


def limit_signed_records() -> None:
    """A signed peer record may be as long as the RPC that it is in, and is kept for two hours, decoded.

    pubsub.py:565. Too long, it counts as none; identify and the DHT have it cut away like this (cut_signed_record).
    Test: test_a_signed_record_of_more_than_its_limit_is_not_kept.
    """
    consume = pubsub.maybe_consume_signed_record  # type: ignore[attr-defined]

    def consume_short(message: Any, *args: Any, **kwargs: Any) -> bool:
        cut_signed_record(message, "senderRecord")
        return bool(consume(message, *args, **kwargs))

    setattr(pubsub, "maybe_consume_signed_record", consume_short)  # noqa: B010  # not exported


def bound_known_addresses() -> None:
    """The addresses of a peer are added up for hours: a DHT server that lies names others of it in each answer.

    peer/peerdata.py:100. The latest stay. Test: test_the_addresses_known_of_a_peer_are_bounded.
    """

    def add_addrs(data: Any, addrs: Iterable[Any]) -> None:
        for addr in addrs:
            if addr not in data.addrs:
                data.addrs.append(addr)
                del data.addrs[: -names.ADDRS_PER_PEER_MAX]

    setattr(PeerData, "add_addrs", add_addrs)  # noqa: B010  # mypy minds the assignment


def forget_expired_records() -> None:
    """A DHT server resets each answer that would name a peer whose addresses have expired while its record is held.

    peerstore.py:366 asks for the addresses, which raises then (kad_dht.py:615 and :934): one provider that left two
    hours ago makes its world's providers unknown for two days. Here such a record is gone.
    Test: test_a_provider_that_left_long_ago_keeps_nobody_from_an_answer.
    """

    def maybe_delete(store: Any, peer: Any) -> None:
        data = store.peer_data_map.get(peer)
        if data is None or data.is_expired() or not data.get_addrs():
            store.peer_record_map.pop(peer, None)

    setattr(PeerStore, "maybe_delete_peer_record", maybe_delete)  # noqa: B010  # mypy minds the assignment


OF_MESSAGES: Final = (
    limit_identify,
    limit_dht_messages,
    limit_signed_records,
    bound_known_addresses,
    forget_expired_records,
)

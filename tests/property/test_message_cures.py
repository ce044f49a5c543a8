"""What is cut from the messages of strangers, and what is handed on as it came."""

from __future__ import annotations

import contextlib

from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KadMessage
from multiaddr import Multiaddr

from p2p import names
from p2p.addresses import is_tcp_addr
from p2p.message_cures import LOOKED_AT, cut_identify, cut_kad

TCP = [
    Multiaddr(text).to_bytes()
    for text in (
        "/ip4/192.0.2.1/tcp/1",
        "/ip6/2001:db8::1/tcp/2",
        "/dns4/a.example/tcp/3/ws",
        "/dns/b.example/tcp/4",
    )
]
OTHERS = [
    Multiaddr(text).to_bytes()
    for text in (
        "/ip4/192.0.2.1/udp/1/quic-v1",
        "/dns4/" + ".".join(["a" * 60] * 3) + "/tcp/1",
        "/ip6zone/x/ip6/::1/tcp/1",
    )
]
ADDRS = st.lists(
    st.one_of(st.sampled_from(TCP), st.sampled_from(OTHERS), st.binary(max_size=8)),
    max_size=4 * names.ADDRS_PER_PEER_MAX,
)
PEER_IDS = st.one_of(
    st.binary(max_size=64), st.binary(min_size=32, max_size=32).map(names.PEER_ID_PREFIX.__add__)
)
PEERS = st.lists(
    st.builds(lambda name, addrs: KadMessage.Peer(id=name, addrs=addrs), PEER_IDS, ADDRS),
    max_size=2 * names.DHT_PEERS_MAX,
)


@given(st.binary())
def test_any_bytes_are_cut_handed_on_or_no_message(data: bytes) -> None:
    for cut in (cut_kad, cut_identify):
        with contextlib.suppress(DecodeError):
            assert len(cut(data)) <= len(data)


@given(PEERS, PEERS)
def test_a_dht_message_keeps_the_first_peers_and_addresses_that_fit(closer, providers) -> None:
    message = KadMessage(
        type=KadMessage.MessageType.GET_PROVIDERS, closerPeers=closer, providerPeers=providers
    )
    cut = KadMessage()
    cut.ParseFromString(cut_kad(message.SerializeToString()))
    for told, kept in ((closer, cut.closerPeers), (providers, cut.providerPeers)):
        peers = [one for one in told if one.id[:6] == names.PEER_ID_PREFIX and len(one.id) == 38]
        assert [one.id for one in kept] == [one.id for one in peers[: names.DHT_PEERS_MAX]]
        for before, after in zip(peers, kept, strict=False):
            fit = [addr for addr in before.addrs if is_tcp_addr(addr)]
            assert list(after.addrs) == fit[: names.ADDRS_PER_PEER_MAX]


@given(
    st.lists(st.text(max_size=2 * names.PROTOCOL_CHARS_MAX), max_size=2 * names.PROTOCOLS_PER_PEER_MAX), ADDRS
)
def test_identify_keeps_the_first_protocols_and_addresses_that_fit(protocols, addrs) -> None:
    message = Identify(protocols=protocols, listen_addrs=addrs, agent_version="other/1")
    cut = Identify()
    cut.ParseFromString(cut_identify(message.SerializeToString()))
    fit = [protocol for protocol in protocols if len(protocol) <= names.PROTOCOL_CHARS_MAX]
    assert list(cut.protocols) == fit[: names.PROTOCOLS_PER_PEER_MAX]
    fit_addrs = [addr for addr in addrs if is_tcp_addr(addr)]
    assert list(cut.listen_addrs) == fit_addrs[: names.ADDRS_PER_PEER_MAX]
    assert cut.agent_version == "other/1"


def test_an_address_over_tcp_is_known_by_its_bytes() -> None:
    assert all(map(is_tcp_addr, TCP))
    assert not any(map(is_tcp_addr, [*OTHERS, b"", b"\x04", b"\x35\xff"]))


def test_of_endless_entries_few_are_looked_at() -> None:
    late = KadMessage.Peer(id=names.PEER_ID_PREFIX + bytes(32))
    message = KadMessage(
        closerPeers=[*(KadMessage.Peer() for _ in range(LOOKED_AT * names.DHT_PEERS_MAX)), late]
    )
    cut = KadMessage()
    cut.ParseFromString(cut_kad(message.SerializeToString()))
    assert not cut.closerPeers


def test_a_message_within_the_limits_is_handed_on_as_it_came() -> None:
    peer = KadMessage.Peer(id=names.PEER_ID_PREFIX + bytes(32), addrs=[b"\x04\xc0\x00\x02\x01\x06\x10\x00"])
    data = (
        KadMessage(key=b"k", closerPeers=[peer]).SerializeToString() + b"\xfa\x07\x01u"
    )  # and a field of later
    assert cut_kad(data) is data
    data = Identify(protocols=["/p/1"]).SerializeToString() + b"\xfa\x07\x01u"
    assert cut_identify(data) is data

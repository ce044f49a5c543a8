"""Strangers that say more of themselves and others than anybody needs, in identify, the DHT and gossip."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
import varint
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.host.exceptions import StreamFailure
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KadMessage
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.envelope import seal_record
from libp2p.peer.id import ID
from libp2p.peer.peer_record import PeerRecord
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import PeerStore
from libp2p.pubsub.pb import rpc_pb2
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.utils.varint import read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from p2p import cures, names

IDENTIFY = "/ipfs/id/1.0.0"
MESHSUB = "/meshsub/1.1.0"
TOPIC = "aw.w.action"


def prefixed(message) -> bytes:
    data = message.SerializeToString()
    return varint.encode(len(data)) + data


def addrs(count: int) -> list[Multiaddr]:
    return [Multiaddr(f"/ip4/192.0.2.1/tcp/{port}") for port in range(1_000, 1_000 + count)]


async def test_what_identify_tells_is_cut(open_node, open_stranger, honest_beside, until):
    message = Identify(
        protocols=["x" * (names.PROTOCOL_CHARS_MAX + 1), *(f"/p/{number}" for number in range(500))],
        listen_addrs=[addr.to_bytes() for addr in addrs(200)],
    )
    assert message.ByteSize() < names.IDENTIFY_BYTES_MAX

    async def tell(stream):
        await stream.write(prefixed(message))
        await stream.close()

    async with (
        open_node(1) as victim,
        honest_beside(victim),
        open_stranger(handlers={IDENTIFY: tell}) as stranger,
    ):
        await victim.connect([str(stranger.host.get_addrs()[0])])
        peer, store = ID(stranger.peer_id), victim._host.get_peerstore()
        await until(lambda: cures.known_protocols(victim._host, peer))
        assert cures.known_protocols(victim._host, peer) == [
            f"/p/{number}" for number in range(names.PROTOCOLS_PER_PEER_MAX)
        ]
        assert len(store.addrs(peer)) <= names.ADDRS_PER_PEER_MAX


async def test_an_identify_of_more_than_its_limit_is_not_taken(
    open_node, open_stranger, honest_beside, patience
):
    message = Identify(protocols=[MESHSUB], agent_version="x" * names.IDENTIFY_BYTES_MAX)
    ended = trio.Event()

    async def tell(stream):
        await stream.write(prefixed(message))
        with pytest.raises((MuxedStreamError, StreamError)):
            await stream.read(1)
        ended.set()

    async with (
        open_node(1) as victim,
        honest_beside(victim),
        open_stranger(handlers={IDENTIFY: tell}) as stranger,
    ):
        await victim.connect([str(stranger.host.get_addrs()[0])])
        with patience():
            await ended.wait()
        assert cures.known_protocols(victim._host, ID(stranger.peer_id)) == []


async def test_what_a_provider_tells_of_itself_is_cut(open_node, open_stranger, honest_beside, until):
    key = names.provider_key(bytes(32))
    async with open_node(1) as victim, honest_beside(victim), open_stranger() as stranger:
        add = KadMessage(type=KadMessage.MessageType.ADD_PROVIDER, key=key)
        provider = add.providerPeers.add(id=stranger.peer_id)
        provider.addrs.append(Multiaddr("/dns4/" + ".".join(["a" * 60] * 3) + "/tcp/1").to_bytes())
        provider.addrs.extend(addr.to_bytes() for addr in addrs(1_000))
        stream = await stranger.stream(victim, names.KAD_PROTOCOL)
        await stream.write(prefixed(add))
        held = victim.dht._kad.provider_store.providers
        await until(lambda: key in held)
        (record,) = held[key].values()
        assert record.addresses == addrs(names.ADDRS_PER_PEER_MAX)


async def test_a_dht_message_of_more_than_its_limit_is_reset(
    open_node, open_stranger, honest_beside, patience
):
    async with open_node(1) as victim, honest_beside(victim), open_stranger() as stranger:
        stream = await stranger.stream(victim, names.KAD_PROTOCOL)
        await stream.write(varint.encode(names.DHT_MESSAGE_BYTES_MAX + 1))
        with patience(), pytest.raises((MuxedStreamError, StreamError)):
            await stream.read(1)  # or it would wait for what never comes


async def test_a_signed_record_of_more_than_its_limit_is_not_kept(
    open_node, open_stranger, honest_beside, until
):
    async with open_node(1) as victim, honest_beside(victim), open_stranger() as stranger:
        peer = ID(stranger.peer_id)
        record = seal_record(
            PeerRecord(peer, addrs(300), seq=1 << 62), stranger.pair.private_key
        ).marshal_envelope()
        assert len(record) > names.SIGNED_RECORD_BYTES_MAX
        stream = await stranger.stream(victim, MESHSUB)
        await stream.write(prefixed(rpc_pb2.RPC(senderRecord=record)))
        subscribe = rpc_pb2.RPC.SubOpts(subscribe=True, topicid=TOPIC)
        await stream.write(prefixed(rpc_pb2.RPC(subscriptions=[subscribe])))
        await until(lambda: peer in victim._gossip._pubsub.peer_topics.get(TOPIC, ()))
        kept = victim._host.get_peerstore().get_peer_record(peer)
        assert kept is None or len(kept.marshal_envelope()) <= names.SIGNED_RECORD_BYTES_MAX


def test_the_addresses_known_of_a_peer_are_bounded():
    cures.apply_process_cures()
    store, peer = PeerStore(), ID(names.PEER_ID_PREFIX + bytes(32))
    for addr in addrs(100):
        store.add_addrs(peer, [addr], 60)
    assert store.addrs(peer) == addrs(100)[-names.ADDRS_PER_PEER_MAX :]


async def test_a_provider_that_left_long_ago_keeps_nobody_from_an_answer(open_node, open_stranger, patience):
    key = names.provider_key(bytes(32))
    async with open_node(1) as victim, open_stranger() as stranger:
        left, store = create_new_key_pair(bytes([77]) * 32), victim._host.get_peerstore()
        peer = ID.from_pubkey(left.public_key)
        store.consume_peer_record(seal_record(PeerRecord(peer, addrs(1)), left.private_key), 7_200)
        victim.dht._kad.provider_store.add_provider(key, PeerInfo(peer, addrs(1)))
        store.peer_data_map[peer].last_identified -= 7_201
        stream = await stranger.stream(victim, names.KAD_PROTOCOL)
        await stream.write(prefixed(KadMessage(type=KadMessage.MessageType.GET_PROVIDERS, key=key)))
        with patience():
            answer = KadMessage()
            answer.ParseFromString(
                await read_varint_prefixed_bytes_limited(stream, names.DHT_MESSAGE_BYTES_MAX)
            )
        assert [one.id for one in answer.providerPeers] == [peer.to_bytes()]


async def test_silent_dht_streams_keep_nobody_out(open_node, open_stranger, until, patience, monkeypatch):
    monkeypatch.setattr(names, "DHT_STREAMS_MAX", 20)
    monkeypatch.setattr(names, "DHT_STREAMS_PER_PEER_MAX", 4)
    content, provider = bytes(32), ID(names.PEER_ID_PREFIX + bytes(32))
    async with open_node(1) as victim, open_node(2) as other, open_stranger() as stranger:
        # Only the victim can tell of it: what a node puts or provides itself, it tells every server.
        victim.dht._kad.provider_store.add_provider(names.provider_key(content), PeerInfo(provider, addrs(1)))
        await other.connect(victim.addrs())
        await until(lambda: other.dht.counters().get("dht.introduced"))
        opened = 0
        for _ in range(30):
            with suppress(StreamFailure):  # the reset of one too many may come before what it negotiated
                await stranger.stream(victim, names.KAD_PROTOCOL)
                opened += 1
        assert opened >= names.DHT_STREAMS_PER_PEER_MAX
        with patience():
            found = await other.dht.find_providers(content)
        assert [info.peer_id for info in found] == [provider.to_bytes()]


async def test_a_silent_dht_stream_is_reset(open_node, open_stranger, patience, monkeypatch):
    monkeypatch.setattr(names, "DHT_IDLE_MS", 200)
    async with open_node(1) as victim, open_stranger() as stranger:
        stream = await stranger.stream(victim, names.KAD_PROTOCOL)
        with patience(), pytest.raises((MuxedStreamError, StreamError)):
            await stream.read(1)


async def test_a_full_peerstore_knows_who_is_connected(open_node, until):
    async with open_node(1) as victim, open_node(2) as other:
        await other.connect(victim.addrs())
        peer, store = ID(other.peer_id), victim._host.get_peerstore()
        await until(lambda: cures.known_protocols(victim._host, peer))
        for number in range(store.max_peers + 100):
            store.add_addrs(ID(names.PEER_ID_PREFIX + number.to_bytes(32, "big")), addrs(1), 600)
        assert len(store.peer_data_map) <= store.max_peers
        assert cures.known_protocols(victim._host, peer)

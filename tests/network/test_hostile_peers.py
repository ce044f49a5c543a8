"""What a peer tells of itself and what it holds: addresses, identities, places, and what follows from lies."""

from __future__ import annotations

import contextlib
import json
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest
import trio
import varint
from libp2p.crypto.secp256k1 import create_new_key_pair as secp256k1_pair
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.pb import rpc_pb2
from multiaddr import Multiaddr

from bootstrap import node as node_module
from bootstrap.data_dir import DataDir
from bootstrap.peers import AddressBook
from p2p import cures, names
from p2p.addresses import is_peer_id
from p2p.errors import RequestFailed, Unreachable
from p2p.network import Verdict

TOPIC = "aw.hostile.head"
CONTENT = b"\x05" * 32
QUIC = Multiaddr("/ip4/127.0.0.1/udp/4001/quic-v1").to_bytes()
THIRD_PARTY = Multiaddr("/ip4/192.0.2.7/tcp/80").to_bytes()
GARBAGE = b"\xff\xff\xff"


def prefixed(message) -> bytes:
    data = message.SerializeToString()
    return varint.encode(len(data)) + data


def telling(*addrs: bytes):
    """Identify as a peer with these listening addresses speaks it."""

    async def identify(stream):
        told = Identify(listen_addrs=addrs, protocols=["/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"])
        await stream.write(prefixed(told))
        await stream.close()

    return {"/ipfs/id/1.0.0": identify}


@pytest.mark.parametrize("told", [QUIC, GARBAGE, THIRD_PARTY], ids=["quic", "garbage", "third party"])
async def test_addresses_that_a_peer_only_claims_end_nobody_and_are_not_kept(
    open_node, open_stranger, honest_beside, until, monkeypatch, tmp_path, told
):
    monkeypatch.setattr(node_module, "PEERS_SAVE_MS", 20)
    saved = tmp_path / "peers.json"
    data_dir = DataDir(tmp_path)
    async with (
        open_node(1) as victim,
        open_node(2) as dialled,
        open_stranger(handlers=telling(told)) as stranger,
        honest_beside(victim),
        trio.open_nursery() as nursery,
    ):
        await victim.connect(dialled.addrs())
        await stranger.dial(victim)
        await until(lambda: cures.known_protocols(victim._host, stranger.host.get_id()))
        nursery.start_soon(node_module._remember_peers, data_dir, AddressBook(), victim)
        await until(saved.exists)
        listed = json.loads(saved.read_bytes())["peers"]
        assert [peer["addrs"] for peer in listed] == [dialled.addrs()]
        assert victim.addrs_of(stranger.peer_id) in {
            (),
            (f"/ip4/192.0.2.7/tcp/80/p2p/{stranger.host.get_id()}",),
        }
        nursery.cancel_scope.cancel()


async def test_a_peer_with_a_garbage_address_may_go_and_be_asked_again(open_node, open_stranger, until):
    async with open_node(1) as victim:
        async with open_stranger(handlers=telling(GARBAGE)) as stranger:
            await stranger.dial(victim)
            await until(lambda: cures.known_protocols(victim._host, stranger.host.get_id()))
        await until(lambda: not victim.peers())
        with pytest.raises(Unreachable):
            await victim.request(stranger.peer_id, "status", b"")
        assert await victim.request(victim.peer_id, "echo", b"alive") == b"alive"


@pytest.mark.parametrize("told", [GARBAGE, QUIC], ids=["garbage", "quic"])
async def test_a_provider_record_with_no_address_to_dial_harms_no_reader(open_node, until, patience, told):
    async with open_node(1) as server, open_node(2) as reader:
        await reader.connect(server.addrs())
        await until(lambda: reader.dht.counters().get("dht.introduced"))
        key = names.provider_key(CONTENT)
        # Ours would not take it from the wire; a server of another make may.
        provider = PeerInfo(ID(names.PEER_ID_PREFIX + bytes(32)), [Multiaddr(told)])
        server.dht._kad.provider_store.add_provider(key, provider)
        for node in (server, reader):
            with patience():
                found = await node.dht.find_providers(CONTENT)
            assert all(not info.addrs for info in found)


async def test_a_full_key_takes_a_newcomer(open_node, until, patience):
    """Twenty strangers were first: the library would take nobody else for two days."""
    async with open_node(1) as server, open_node(2) as provider:
        store, key = server.dht._kad.provider_store, names.provider_key(CONTENT)
        for number in range(names.PROVIDERS_PER_KEY_MAX):
            stranger = ID(names.PEER_ID_PREFIX + bytes([number]) * 32)
            store.add_provider(key, PeerInfo(stranger, [Multiaddr(THIRD_PARTY)]))
        await provider.connect(server.addrs())
        await until(lambda: provider.dht.counters().get("dht.introduced"))
        with patience():
            await provider.dht.provide(CONTENT)
        await until(lambda: str(ID(provider.peer_id)) in store.providers[key])
        assert len(store.providers[key]) == names.PROVIDERS_PER_KEY_MAX


async def test_a_full_key_keeps_whom_a_crowd_of_one_network_displaces(open_node):
    """Twenty names of one machine renew each second; one honest peer of another, and the server itself, stay."""
    async with open_node(1) as server:
        store, key = server.dht._kad.provider_store, names.provider_key(CONTENT)
        crowd = [ID(names.PEER_ID_PREFIX + bytes([number]) * 32) for number in range(1, 41)]
        honest, own = ID(names.PEER_ID_PREFIX + bytes(32)), ID(server.peer_id)
        server._host.get_network().get_connections = lambda peer=None: [
            SimpleNamespace(
                muxed_conn=SimpleNamespace(
                    get_remote_address=lambda: ("192.0.2.1" if peer == honest else "203.0.113.9", 1)
                )
            )
        ]
        for peer in (own, honest, *crowd):
            store.add_provider(key, PeerInfo(peer, [Multiaddr(THIRD_PARTY)]))
        del server._host.get_network().get_connections
        assert len(store.providers[key]) == names.PROVIDERS_PER_KEY_MAX
        assert {str(own), str(honest)} <= set(store.providers[key])


# --- places


@pytest.fixture
def few_places(monkeypatch):
    """Ten places, two of them kept, and a crowd from eight on."""
    monkeypatch.setattr(names, "CONNECTIONS_MAX", 10)
    monkeypatch.setattr(names, "CONNECTIONS_KEPT_MAX", 2)


async def test_idle_strangers_make_room_for_whoever_comes(
    open_node, open_stranger, few_places, until, patience
):
    """Fourteen identities that say nothing; a peer that talks, one that is new, and an authority all get in."""
    async with open_node(1) as victim, open_node(2) as talker, AsyncExitStack() as crowd:
        await talker.connect(victim.addrs())
        for number in range(100, 114):
            stranger = await crowd.enter_async_context(open_stranger(number, listen=()))
            with patience():
                await stranger.dial(victim)
            assert await talker.request(victim.peer_id, "echo", b"busy") == b"busy"
        await until(lambda: victim.counters()["connections.made_room"] >= 6)
        await until(lambda: len(victim.peers()) <= names.CONNECTIONS_MAX)
        assert talker.peer_id in victim.peers()
        async with open_node(3) as newcomer:
            await newcomer.connect(victim.addrs())
            assert await newcomer.request(victim.peer_id, "echo", b"new") == b"new"


async def test_a_kept_peer_is_not_displaced_though_it_is_idle(open_node, open_stranger, few_places, until):
    async with open_node(1) as victim, open_node(2) as authority, AsyncExitStack() as crowd:
        victim.keep([authority.peer_id])
        await authority.connect(victim.addrs())
        for number in range(100, 114):
            stranger = await crowd.enter_async_context(open_stranger(number, listen=()))
            await stranger.dial(victim)
        await until(lambda: victim.counters()["connections.made_room"] >= 6)
        assert authority.peer_id in victim.peers()


async def test_connections_that_never_shake_hands_do_not_lock_others_out(open_node, monkeypatch, until):
    monkeypatch.setattr(names, "HANDSHAKES_MAX", 5)
    async with open_node(1) as victim, open_node(2) as friend, AsyncExitStack() as silent:
        port = int(victim.addrs()[0].split("/")[4])
        for _ in range(20):
            await silent.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))
        await until(lambda: victim.counters()["connections.handshakes_over_limit"] >= 15)
        await friend.connect(victim.addrs())
        assert await friend.request(victim.peer_id, "echo", b"in") == b"in"


async def test_one_peer_id_holds_few_connections(open_node, open_stranger, monkeypatch, until):
    monkeypatch.setattr(names, "CONNECTIONS_PER_PEER_MAX", 2)
    async with open_node(1) as victim, open_stranger(listen=()) as stranger:
        for _ in range(6):
            await stranger.dial(victim)
        await until(lambda: victim.counters()["connections.over_peer_limit"] >= 4)
        await until(lambda: len(victim._host.get_network().get_connections()) <= 2)


async def test_one_address_holds_so_many_connections(open_node, open_stranger, monkeypatch, until):
    """Loopback is no stranger; here it is taken for one."""
    monkeypatch.setattr(names, "CONNECTIONS_PER_IP_MAX", 3)
    monkeypatch.setattr("p2p.admission.is_loopback", lambda host: False)
    async with open_node(1) as victim, AsyncExitStack() as crowd:
        for number in range(100, 103):
            stranger = await crowd.enter_async_context(open_stranger(number, listen=()))
            await stranger.dial(victim)
        await until(lambda: len(victim.peers()) == 3)
        stranger = await crowd.enter_async_context(open_stranger(104, listen=()))
        with pytest.raises(Exception):  # noqa: B017  # the library raises many kinds
            await stranger.dial(victim)
        assert victim.counters()["connections.refused_per_ip"] >= 1  # the dialler tries again by itself


async def test_a_peer_of_another_kind_of_key_is_not_taken(open_node, open_stranger, honest_beside):
    """Its id of 39 bytes fits no record: `status` would fail for everybody."""
    async with open_node(1) as victim, honest_beside(victim):
        async with open_stranger(pair=secp256k1_pair()) as stranger:
            with pytest.raises(Exception):  # noqa: B017  # the library raises many kinds
                await stranger.stream(victim, names.RR_PROTOCOL)
            assert all(is_peer_id(peer) for peer in victim.peers())


# --- marks


async def say(stranger, victim, data: bytes, seqno: int) -> None:
    """One signed gossip message, on a stream of its own."""
    message = rpc_pb2.Message(
        from_id=stranger.peer_id, data=data, seqno=seqno.to_bytes(8, "big"), topicIDs=[TOPIC]
    )
    message.signature = stranger.pair.private_key.sign(b"libp2p-pubsub:" + message.SerializeToString())
    stream = await stranger.stream(victim, names.GOSSIP_PROTOCOL)
    await stream.write(prefixed(rpc_pb2.RPC(publish=[message])))


async def test_a_peer_that_breaks_the_format_again_and_again_is_refused_and_others_are_not(
    open_node, open_stranger, honest_beside, until, patience
):
    async with (
        open_node(1) as victim,
        open_stranger() as stranger,
        honest_beside(victim),
    ):
        while not victim.counters().get("connections.peers_refused"):
            with contextlib.suppress(Exception):  # the library raises many kinds: reset, closed
                stream = await stranger.stream(victim, names.RR_PROTOCOL)
                await stream.write(b"\xff\xff\x7f" + bytes(100))
                await stream.read(1)
        await until(lambda: stranger.peer_id not in victim.peers())
        while not victim.counters().get("connections.refused_marked"):
            with contextlib.suppress(Exception), trio.move_on_after(5):
                await stranger.dial(victim)
        with pytest.raises(Unreachable, match="refused"):
            await victim.connect([str(stranger.host.get_addrs()[0])])


async def test_gossip_that_is_to_be_rejected_ends_its_forwarder_and_no_rate_does(
    open_node, open_stranger, until, patience
):
    async with open_node(1) as victim, open_node(2) as friend, open_stranger() as stranger:
        await victim.join(TOPIC, lambda message: Verdict(message.data.decode()))
        for number in range(60):
            await say(stranger, victim, b"ignore", number + 1)
        await until(lambda: victim.counters()["gossip.ignored"] == 60)
        assert stranger.peer_id in victim.peers()
        await friend.connect(victim.addrs())
        for _ in range(3_000):  # past what is served in a second, and no mark
            with contextlib.suppress(RequestFailed):
                await friend.request(victim.peer_id, "echo", b"again")
        for number in range(60, 85):
            with contextlib.suppress(Exception):
                await say(stranger, victim, b"reject", number + 1)
        await until(lambda: victim.counters().get("connections.peers_refused") == 1)
        await until(lambda: stranger.peer_id not in victim.peers())
        assert friend.peer_id in victim.peers()

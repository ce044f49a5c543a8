"""What a peer tells of itself and what it holds: addresses, identities, places, and what follows from lies."""

from __future__ import annotations

import json

import pytest
import trio
import varint
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KadMessage
from multiaddr import Multiaddr

from bootstrap import node as node_module
from bootstrap.data_dir import DataDir
from bootstrap.peers import AddressBook
from p2p import cures, names
from p2p.errors import Unreachable

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
async def test_a_provider_record_with_no_address_to_dial_harms_no_reader(
    open_node, open_stranger, until, patience, told
):
    async with open_node(1) as server, open_node(2) as reader, open_stranger() as stranger:
        await reader.connect(server.addrs())
        await until(lambda: reader.dht.counters().get("dht.introduced"))
        key = names.provider_key(CONTENT)
        add = KadMessage(type=KadMessage.MessageType.ADD_PROVIDER, key=key)
        provider = add.providerPeers.add()
        provider.id = stranger.peer_id
        provider.addrs.append(told)
        stream = await stranger.stream(server, names.KAD_PROTOCOL)
        await stream.write(prefixed(add))
        await until(lambda: key in server.dht._kad.provider_store.providers)
        for node in (server, reader):
            with patience():
                found = await node.dht.find_providers(CONTENT)
            assert all(not info.addrs for info in found)

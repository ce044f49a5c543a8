"""The Kad-DHT over real hosts: what the library does otherwise, and servers that come late or hang."""

from __future__ import annotations

import importlib

import pytest
import trio
from libp2p.host.exceptions import StreamFailure
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KadMessage
from libp2p.peer.id import ID

from p2p import cures, names
from p2p.errors import RecordRefused, Unreachable

KEY = names.head_key("w" * 32)
IDENTIFY = "/ipfs/id/1.0.0"
MODULES = ("kad_dht", "common", "value_store", "provider_store", "peer_routing")
IPFS_KAD = "/ipfs/kad/1.0.0"


def prefixed(data: bytes) -> bytes:
    """A varint length and the data."""
    length, out = len(data), b""
    while length > 0x7F:
        out, length = out + bytes([length & 0x7F | 0x80]), length >> 7
    return out + bytes([length]) + data


async def read_message(stream) -> KadMessage:
    """One length-prefixed message."""
    length, shift = 0, 0
    while True:
        byte = (await stream.read(1))[0]
        length, shift = length | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            break
    data = b""
    while len(data) < length:
        data += await stream.read(length - len(data))
    message = KadMessage()
    message.ParseFromString(data)
    return message


def content(number: int) -> bytes:
    return number.to_bytes(32, "big")


async def test_connected_peers_find_each_other_in_the_dht(open_node, until):
    async with open_node(1) as one, open_node(2) as other:
        await one.connect(other.addrs())
        for node in (one, other):
            await until(lambda node=node: node.dht.counters().get("dht.introduced"))


async def test_a_peer_whose_first_identify_failed_is_asked_again(open_node, open_stranger, until):
    async with open_node(1) as node, open_stranger() as stranger:
        answer, asked = stranger.host.multiselect.handlers[IDENTIFY], []

        async def fail_once(stream):
            asked.append(stream)
            await (stream.reset() if len(asked) == 1 else answer(stream))

        stranger.host.set_stream_handler(IDENTIFY, fail_once)
        await stranger.dial(node)
        await until(lambda: cures.known_protocols(node._host, ID(stranger.peer_id)))
        assert len(asked) > 1


async def test_the_dht_speaks_our_protocol_only(open_node, open_stranger):
    async with open_node(1) as node, open_stranger() as stranger:
        stream = await stranger.stream(node, names.KAD_PROTOCOL)
        await stream.reset()
        with pytest.raises(StreamFailure):
            await stranger.stream(node, IPFS_KAD)


async def test_a_record_is_told_to_a_server_that_comes_later(open_node, until):
    async with open_node(1) as early:
        await early.dht.put_record(KEY, b"v1:early")
        async with open_node(2) as late:
            await late.connect(early.addrs())
            await until(lambda: late.dht.holds(KEY))
        async with open_node(2) as back_again:  # with the same identity, and nothing in its store
            await back_again.connect(early.addrs())
            await until(lambda: back_again.dht.holds(KEY))


async def test_what_is_provided_is_told_to_a_server_that_comes_later(open_node, until, patience):
    async with open_node(1) as early:
        with pytest.raises(Exception, match="nobody"):
            await early.dht.provide(content(1))  # there is nobody to tell yet; it is kept
        async with open_node(2) as late, open_node(3) as asker:
            await late.connect(early.addrs())
            await asker.connect(late.addrs())
            with patience():
                while early.peer_id not in {
                    info.peer_id for info in await asker.dht.find_providers(content(1))
                }:
                    await trio.sleep(0.05)


async def test_who_asks_the_network_serves_what_it_holds_meanwhile(open_node, until, patience, monkeypatch):
    """A look-up takes seconds where servers are dead: whoever asks this one must not be told that there is nothing."""
    async with open_node(1) as server, open_node(2, listen=()) as client:
        async with open_node(3) as gone:
            await gone.connect(server.addrs())
            await until(lambda: gone.dht.counters().get("dht.introduced"))
            await gone.dht.provide(content(1))
        await client.connect(server.addrs())
        await until(lambda: client.dht.counters().get("dht.introduced"))
        await server.dht.put_record(KEY, b"v7:seven")
        routing, asked, answered = server.dht._kad.peer_routing, [], trio.Event()

        async def slow(key):
            asked.append(key)
            await answered.wait()
            return []

        monkeypatch.setattr(routing, "find_closest_peers_network", slow)
        with patience():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.dht.get_record, KEY)
                nursery.start_soon(server.dht.find_providers, content(1))
                await until(lambda: len(asked) == 2)
                assert await client.dht.get_record(KEY) == b"v7:seven"
                found = await client.dht.find_providers(content(1))
                assert [info.peer_id for info in found] == [gone.peer_id]
                answered.set()
        assert await server.dht.get_record(KEY) == b"v7:seven"


async def test_a_peer_that_was_dialled_during_a_look_up_is_served_for_ever_after(
    open_node, until, patience, monkeypatch
):
    """The tasks of its connection are begun by the task that asks, and are none of its own."""
    async with open_node(1) as server, open_node(2) as met:
        await server.dht.put_record(KEY, b"v7:seven")
        dialled = []

        async def dial(key):
            dialled.append(await server.connect(met.addrs()))
            return []

        monkeypatch.setattr(server.dht._kad.peer_routing, "find_closest_peers_network", dial)
        await server.dht.get_record(KEY)
        assert dialled == [met.peer_id]
        monkeypatch.setattr(
            met.dht._kad.value_store, "put_record", lambda *_: None
        )  # what it is told is not kept
        await until(lambda: met.dht.counters().get("dht.introduced"))
        with patience():
            record = await met.dht._kad.value_store._get_from_peer(ID(server.peer_id), KEY.encode())
        assert record == b"v7:seven"


async def test_what_is_found_replaces_no_better_record_and_makes_nobody_a_provider_here(open_node, until):
    async with open_node(1) as asker, open_node(2) as other, open_node(3) as provider:
        for node in (asker, provider):
            await node.connect(other.addrs())
            await until(lambda node=node: node.dht.counters().get("dht.introduced"))
        await provider.dht.provide(content(1))
        asker.dht._kad.provider_store.providers.clear()
        assert provider.peer_id in {info.peer_id for info in await asker.dht.find_providers(content(1))}
        assert not asker.dht._kad.provider_store.get_providers(names.provider_key(content(1)))
        asker.dht._kad.value_store.put(KEY.encode(), b"v7:seven")
        other.dht._kad.value_store.put(KEY.encode(), b"v3:three")
        assert await asker.dht.get_record(KEY) == b"v7:seven"
        other.dht._kad.value_store.put(KEY.encode(), b"v9:nine")
        assert await asker.dht.get_record(KEY) == b"v9:nine"


async def test_more_than_ten_provides_in_a_row_are_all_kept(open_node, until, patience):
    async with open_node(2) as server:
        async with open_node(1) as provider:
            await provider.connect(server.addrs())
            await until(lambda: provider.dht.counters().get("dht.introduced"))
            with patience():
                for number in range(40):
                    await provider.dht.provide(content(number))
        await until(lambda: not server.peers())  # from now on only the server can know
        with patience():
            found = [await server.dht.find_providers(content(number)) for number in range(40)]
        assert [[info.peer_id for info in each] for each in found] == [[provider.peer_id]] * 40


async def test_add_provider_has_no_answer(open_node, open_stranger, patience):
    # A second question on the same stream must get its own answer, not that of the first.
    async with open_node(1) as node, open_stranger() as stranger:
        stream = await stranger.stream(node, names.KAD_PROTOCOL)
        key = names.provider_key(content(1))
        add = KadMessage(type=KadMessage.MessageType.ADD_PROVIDER, key=key)
        provider = add.providerPeers.add()
        provider.id = stranger.peer_id
        provider.addrs.append(stranger.host.get_addrs()[0].to_bytes())
        ask = KadMessage(type=KadMessage.MessageType.GET_PROVIDERS, key=key)
        await stream.write(prefixed(add.SerializeToString()))
        await stream.write(prefixed(ask.SerializeToString()))
        with patience():
            answer = await read_message(stream)
        assert answer.type == KadMessage.MessageType.GET_PROVIDERS
        assert [bytes(peer.id) for peer in answer.providerPeers] == [stranger.peer_id]


async def test_a_stranger_cannot_say_that_another_provides(open_node, open_stranger, patience):
    async with open_node(1) as node, open_node(2) as asker, open_stranger() as stranger:
        await asker.connect(node.addrs())
        stream = await stranger.stream(node, names.KAD_PROTOCOL)
        key = names.provider_key(content(1))
        add = KadMessage(type=KadMessage.MessageType.ADD_PROVIDER, key=key)
        provider = add.providerPeers.add()
        provider.id = ID(asker.peer_id).to_bytes()
        provider.addrs.append(stranger.host.get_addrs()[0].to_bytes())
        ask = KadMessage(type=KadMessage.MessageType.GET_PROVIDERS, key=key)
        await stream.write(prefixed(add.SerializeToString()) + prefixed(ask.SerializeToString()))
        with patience():
            assert not (await read_message(stream)).providerPeers


@pytest.mark.parametrize("value", [b"no version", b"v1:" + bytes(names.RECORD_BYTES_MAX)])
async def test_a_record_that_breaks_the_rule_is_not_taken_from_a_stranger(
    open_node, open_stranger, patience, value
):
    async with open_node(1) as node, open_stranger() as stranger:
        await put(stranger, node, KEY, value, patience)
        assert not node.dht.holds(KEY)
        await put(stranger, node, KEY, b"v1:right", patience)
        assert node.dht.holds(KEY)


async def test_an_older_record_is_not_taken_from_a_stranger(open_node, open_stranger, patience):
    async with open_node(1) as node, open_stranger() as stranger:
        await node.dht.put_record(KEY, b"v2:newer")
        await put(stranger, node, KEY, b"v1:older", patience)
        with patience():
            assert await node.dht.get_record(KEY) == b"v2:newer"


@pytest.mark.parametrize("key", ["/other/world/x/head", "no-namespace", "/aw/world/" + "w" * 60])
async def test_a_record_under_another_key_is_not_taken_from_a_stranger(
    open_node, open_stranger, patience, key
):
    async with open_node(1) as node, open_stranger() as stranger:
        await put(stranger, node, key, b"v1:right", patience)
        assert not node.dht.holds(key)


async def put(stranger, node, key, value, patience):
    """Send a PUT_VALUE and wait for its answer or the reset."""
    stream = await stranger.stream(node, names.KAD_PROTOCOL)
    message = KadMessage(type=KadMessage.MessageType.PUT_VALUE, key=key.encode())
    message.record.key, message.record.value = key.encode(), value
    await stream.write(prefixed(message.SerializeToString()))
    await stream.close_write()
    with patience():
        try:
            await read_message(stream)
        except Exception:  # noqa: BLE001  # the library raises many kinds: all mean that it was not answered
            return


async def test_what_strangers_store_is_bounded(open_node, open_stranger, patience, until, monkeypatch):
    monkeypatch.setattr(names, "RECORDS_HELD_MAX", 5)
    monkeypatch.setattr(names, "PROVIDER_RECORDS_HELD_MAX", 7)
    async with open_node(1) as node, open_stranger() as stranger:
        keys = [names.head_key(f"{number:032}") for number in range(12)]
        for key in keys:
            await put(stranger, node, key, b"v1:mine", patience)
        assert [node.dht.holds(key) for key in keys] == [False] * 7 + [True] * 5
        await say_that_it_provides(stranger, node, range(20))
        held = node.dht._kad.provider_store.providers
        await until(lambda: names.provider_key(content(19)) in held)
        assert len(held) == 7


async def test_who_provides_little_is_not_displaced(open_node, open_stranger, until, monkeypatch):
    monkeypatch.setattr(names, "PROVIDER_RECORDS_HELD_MAX", 7)
    async with open_node(1) as node, open_stranger(2) as honest, open_stranger(3) as stranger:
        held = node.dht._kad.provider_store.providers
        with pytest.raises(Unreachable):
            await node.dht.provide(content(100))  # its own store has it
        await say_that_it_provides(honest, node, [50])
        await until(lambda: names.provider_key(content(50)) in held)
        await say_that_it_provides(stranger, node, range(20))
        await until(lambda: names.provider_key(content(19)) in held)
        assert set(held) == {names.provider_key(content(number)) for number in (100, 50, *range(14, 20))}
        assert {gauge.name: gauge.value for gauge in node.dht.gauges()}["dht_provider_records_held"] == 7


async def say_that_it_provides(stranger, node, numbers):
    """One ADD_PROVIDER for each number, on one stream."""
    stream = await stranger.stream(node, names.KAD_PROTOCOL)
    for number in numbers:
        add = KadMessage(type=KadMessage.MessageType.ADD_PROVIDER, key=names.provider_key(content(number)))
        provider = add.providerPeers.add()
        provider.id = stranger.peer_id
        provider.addrs.append(stranger.host.get_addrs()[0].to_bytes())
        await stream.write(prefixed(add.SerializeToString()))


async def test_a_key_of_more_than_the_limit_is_refused(open_node):
    async with open_node(1) as node:
        with pytest.raises(RecordRefused, match="key"):
            await node.dht.put_record("/aw/world/" + "w" * 60, b"v1:right")


async def test_a_hung_dht_peer_is_not_waited_for_for_ever(open_node, open_stranger, patience, monkeypatch):
    """The stranger takes every DHT stream and never answers."""
    cures.apply_process_cures()
    for module in MODULES:
        monkeypatch.setattr(f"libp2p.kad_dht.{module}.QUERY_TIMEOUT", 0.5, raising=False)

    async def hang(stream):
        await trio.sleep_forever()

    async with (
        open_stranger(handlers={names.KAD_PROTOCOL: hang}) as hung,
        open_node(1) as one,
        open_node(2) as other,
    ):
        for node in (one, other):
            await node.connect([str(hung.host.get_addrs()[0])])
        await one.connect(other.addrs())
        with patience():
            await other.dht.put_record(KEY, b"v1:there")
            assert await one.dht.get_record(KEY) == b"v1:there"


@pytest.mark.parametrize("module", MODULES)
def test_a_query_waits_for_a_hung_peer_no_longer_than_a_negotiation(module):
    import p2p.host  # noqa: F401
    from p2p import cures

    cures.apply_process_cures()
    loaded = importlib.import_module(f"libp2p.kad_dht.{module}")
    assert getattr(loaded, "QUERY_TIMEOUT", names.NEGOTIATION_S) == names.NEGOTIATION_S

"""What any peer on the internet may send: each costs the sender its stream, and nobody else anything."""

from __future__ import annotations

import pytest
import trio
from libp2p.pubsub.pb import rpc_pb2

from p2p import names

MULTISTREAM = b"/multistream/1.0.0\n"


def prefixed(data: bytes) -> bytes:
    """A varint length and the data."""
    length, out = len(data), b""
    while length > 0x7F:
        out, length = out + bytes([length & 0x7F | 0x80]), length >> 7
    return out + bytes([length]) + data


async def read_to_end(stream) -> bytes:
    """All that the other side sends until its end or a reset."""
    found = b""
    while True:
        try:
            data = await stream.read(65_536)
        except Exception:  # noqa: BLE001  # the library raises many kinds: all are an end
            return found
        if not data:
            return found
        found += data


async def test_a_token_that_is_no_utf_8_costs_nothing(open_node, open_stranger, honest_beside, patience):
    async with open_node(1) as victim, open_stranger() as stranger, honest_beside(victim):
        stream = await stranger.raw_stream(victim)
        await stream.write(prefixed(MULTISTREAM) + prefixed(b"\xff\xfe\xfd\n"))
        with patience():
            await read_to_end(stream)
        assert victim.counters()["cure.stream_guard"] == 1


async def test_an_rpc_that_is_no_protobuf_costs_nothing(open_node, open_stranger, honest_beside, patience):
    async with open_node(1) as victim, open_stranger() as stranger, honest_beside(victim):
        stream = await stranger.stream(victim, names.GOSSIP_PROTOCOL)
        await stream.write(prefixed(b"\xff" * 64))
        with patience():
            await read_to_end(stream)
        assert victim.counters()["cure.stream_guard"] == 1


async def test_a_message_with_a_garbage_key_costs_nothing(open_node, open_stranger, honest_beside, until):
    # It is refused twice over: by its author, which is no Ed25519 peer id, and by the guard behind that.
    async with open_node(1) as victim, open_stranger() as stranger, honest_beside(victim):
        stream = await stranger.stream(victim, names.GOSSIP_PROTOCOL)
        message = rpc_pb2.Message(
            from_id=b"\x12\x20" + bytes(32), data=b"x", seqno=bytes(8), topicIDs=["aw.honest.head"]
        )
        message.key, message.signature = b"garbage", bytes(64)
        await stream.write(prefixed(rpc_pb2.RPC(publish=[message]).SerializeToString()))
        await until(
            lambda: victim.counters().get("gossip.refused_author", victim.counters().get("cure.push_msg"))
        )


@pytest.mark.parametrize(
    "protocol", [names.RR_PROTOCOL, names.KAD_PROTOCOL, "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"]
)
async def test_garbage_and_a_reset_on_every_protocol_cost_nothing(
    open_node, open_stranger, honest_beside, protocol
):
    async with open_node(1) as victim, open_stranger() as stranger, honest_beside(victim):
        for data in (b"\xff" * 1_000, prefixed(b"\xff" * 100), b"\x00", prefixed(b""), b"\x80" * 20):
            stream = await stranger.stream(victim, protocol)
            await stream.write(data)
            await stream.reset()
            stream = await stranger.stream(victim, protocol)
            await stream.write(data)
            await stream.close()


async def test_garbage_before_the_handshake_costs_nothing(open_node, honest_beside, patience):
    async with open_node(1) as victim, honest_beside(victim):
        port = int(victim.addrs()[0].split("/")[4])
        noise = prefixed(MULTISTREAM) + prefixed(b"/noise\n") + b"\xff" * 99
        for data in (b"\n", b"\x00" * 100, b"GET / HTTP/1.1\r\n\r\n", noise):
            connection = await trio.open_tcp_stream("127.0.0.1", port)
            async with connection:
                await connection.send_all(data)
                await connection.send_eof()
                with patience():
                    while True:
                        try:
                            if not await connection.receive_some(65_536):
                                break
                        except trio.BrokenResourceError:
                            break


async def test_a_frame_over_the_limit_is_answered_by_a_reset_and_nothing_more(
    open_node, open_stranger, honest_beside, patience
):
    async with open_node(1) as victim, open_stranger() as stranger, honest_beside(victim):
        stream = await stranger.stream(victim, names.RR_PROTOCOL)
        await stream.write(b"\xff\xff\x7f" + bytes(1_000))  # says 2 MiB - 1
        with patience():
            assert await read_to_end(stream) == b""
        assert victim.counters()["rr.bad_frame"] == 1


async def test_a_flood_of_streams_is_cut_and_others_are_served(
    open_node, open_stranger, honest_beside, until, monkeypatch
):
    most = 64  # few, so that all are open before the first of them has had its time for negotiating
    monkeypatch.setattr(names, "INBOUND_STREAMS_PER_PEER_MAX", most)
    async with open_node(1) as victim, open_stranger() as stranger, honest_beside(victim):
        connection = await stranger.dial(victim)
        connection.muxed_conn.stream_backlog_semaphore = trio.Semaphore(10_000)  # its own modesty, off
        for _ in range(2 * most):
            await connection.muxed_conn.open_stream()
        await until(lambda: victim.counters().get("cure.streams_over_limit", 0) >= most)


async def test_260_short_connections_leave_room_for_more(
    open_node, open_stranger, honest_beside, patience, until, monkeypatch
):
    monkeypatch.setattr(
        names, "CONNECTIONS_MAX", 100
    )  # of which a node can never give away more than it gets back
    async with open_node(1) as victim, honest_beside(victim):

        async def come_and_go(number):
            async with open_stranger(number, listen=()) as stranger:
                for _ in range(26):
                    connection = await stranger.dial(victim)
                    await connection.muxed_conn.secured_conn.close()

        with patience():
            for first in (100, 105):
                async with trio.open_nursery() as nursery:
                    for number in range(first, first + 5):
                        nursery.start_soon(come_and_go, number)
        await until(lambda: len(victim.peers()) == 1)
        assert victim.counters()["connections.accepted"] >= 260
        async with open_stranger(201) as late:
            stream = await late.stream(victim, names.RR_PROTOCOL)
            await stream.reset()

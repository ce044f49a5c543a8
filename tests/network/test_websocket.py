"""A node that listens for browsers too: who speaks WebSocket is a peer like any, who does not is no loss."""

from __future__ import annotations

import socket
import struct

import pytest
import trio
from libp2p.io.trio import TrioTCPStream
from libp2p.peer.id import ID
from multiaddr import Multiaddr
from wsproto import ConnectionType, WSConnection
from wsproto.events import Ping, Request

from p2p import frames, names
from p2p.network import PartsRoute
from p2p.websocket_listener import WebSocketStream

BOTH = ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws")
OVER_WS = ("/ip4/127.0.0.1/tcp/0/ws",)  # a stranger that has no other transport
BLOB = bytes(range(256)) * 4_096


def ws_addr(node) -> Multiaddr:
    [addr] = [Multiaddr(addr) for addr in node.addrs() if "/ws" in addr]
    return addr


async def tcp_stream(node) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", int(ws_addr(node).value_for_protocol("tcp")))


async def send_blob(caller, body, part) -> bytes:
    for start in range(0, len(BLOB), names.PART_BYTES_MAX):
        await part(BLOB[start : start + names.PART_BYTES_MAX])
    return b"last"


async def ask(stranger, node, request: bytes) -> list:
    """All frames of the answer to one request."""
    stream = await stranger.host.new_stream(ID(node.peer_id), [names.RR_PROTOCOL])
    await stream.write(request)
    reader, found = frames.FrameReader(), []
    while not found or isinstance(found[-1], frames.Part):
        frame = reader.next_frame()
        if frame is frames.NEED_DATA:
            reader.feed(await stream.read(65_536))
        else:
            found.append(frame)
    await stream.close()
    return found


async def test_a_stock_websocket_peer_asks_and_fetches(open_node, open_stranger, honest_beside, patience):
    routes = {"blob": PartsRoute(send_blob)}
    async with open_node(1, listen=BOTH, routes=routes) as node, open_stranger(listen=OVER_WS) as stranger:
        async with honest_beside(node):
            with patience():
                await stranger.host.get_network().dial_addr(ws_addr(node), ID(node.peer_id))
                [answer] = await ask(stranger, node, frames.encode_request(0, "echo", b"x" * 20_000))
                assert answer.body == b"x" * 20_000
                *parts, last = await ask(stranger, node, frames.encode_request(0, "blob", b""))
                assert (b"".join(part.body for part in parts), last.body) == (BLOB, b"last")
            assert stranger.peer_id in node.peers()


async def test_a_node_tells_both_addresses_and_is_dialled_by_tcp(open_node):
    async with open_node(1, listen=BOTH) as node, open_node(2) as other:
        tcp, web = node.addrs()
        assert ("/ws" in tcp, "/ws" in web) == (False, True)
        await other.connect([tcp])
        assert all("/ws" not in addr for addr in other.addrs_of(node.peer_id))


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"x" * 40_000, b"/multistream/1.0.0\n\r\n\r\n", b""],
    ids=["no upgrade", "long", "multistream", "nothing"],
)
async def test_who_speaks_no_websocket_is_closed_and_costs_nothing(open_node, honest_beside, patience, said):
    async with open_node(1, listen=BOTH) as node, honest_beside(node), await tcp_stream(node) as stream:
        with patience():
            await stream.send_all(said)
            if not said:
                await stream.send_eof()
            try:
                while await stream.receive_some():
                    continue
            except trio.BrokenResourceError:
                pass  # closed while bytes were on their way: a reset


async def test_who_says_nothing_is_closed_in_the_time_of_a_handshake(open_node, patience):
    async with open_node(1, listen=BOTH) as node, await tcp_stream(node) as stream:
        with patience():
            assert await stream.receive_some() == b""


async def test_a_flood_of_pings_and_empty_messages_costs_nobody_else(open_node, honest_beside, patience):
    client = WSConnection(ConnectionType.CLIENT)
    hello = client.send(Request(host="x", target="/"))
    async with (
        open_node(1, listen=BOTH) as node,
        honest_beside(node) as honest,
        await tcp_stream(node) as stream,
    ):
        await stream.send_all(hello)
        client.receive_data(await stream.receive_some())
        flood = client.send(Ping(payload=b"x" * 100)) * 200 + b"\x82\x80\x00\x00\x00\x00" * 2_000

        async def pour() -> None:
            try:
                while True:
                    await stream.send_all(flood)
            except trio.BrokenResourceError:
                return  # it was closed, which is as good

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour)
            with patience():
                for _ in range(5):
                    await honest.round()
            nursery.cancel_scope.cancel()


async def test_the_socket_is_closed_whatever_becomes_of_the_last_word(patience):
    for is_cancelled in (False, True):
        client = WSConnection(ConnectionType.CLIENT)
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener, await trio.open_tcp_stream(*listener.socket.getsockname()) as far:
            near = await listener.accept()
            stream = WebSocketStream(TrioTCPStream(near))
            with patience():
                await far.send_all(client.send(Request(host="x", target="/")))
                await stream.write(b"hello")  # the handshake is done
                far.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await far.aclose()  # with unread bytes and no linger: a reset
                with trio.CancelScope() as scope:
                    if is_cancelled:
                        scope.cancel()
                    await stream.close()
            assert near.socket.fileno() == -1

"""Strangers that take what nobody gave them, or do not take what they asked for: memory, places, time."""

from __future__ import annotations

import contextlib
import struct
from contextlib import AsyncExitStack

import pytest
import trio
from libp2p.crypto import rsa
from libp2p.crypto.rsa import create_new_key_pair as rsa_pair
from libp2p.crypto.serialization import deserialize_public_key
from libp2p.peer.envelope import seal_record, unmarshal_envelope
from libp2p.peer.id import ID
from libp2p.peer.peer_record import PeerRecord
from libp2p.stream_muxer.yamux import yamux

from p2p import frames, loads, names
from p2p.errors import RequestFailed
from p2p.loads import RouterLimits
from p2p.network import PartsRoute


def yamux_frame(kind: int, stream_id: int, length: int, payload: bytes = b"") -> bytes:
    return struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, kind, 0, stream_id, length) + payload


async def never(bytes_max=None):
    await trio.sleep_forever()


async def endless_parts(caller, body, send):
    while True:
        await send(bytes(names.PART_BYTES_MAX))


async def test_no_key_but_ed25519_is_parsed(open_node, open_stranger, honest_beside, monkeypatch):
    """Neither before anybody is known, nor in a signed record."""
    parsed = []
    async with open_node(1) as victim, honest_beside(victim):
        pair = rsa_pair(1_024)
        sealed = seal_record(PeerRecord(peer_id=ID.from_pubkey(pair.public_key)), pair.private_key)
        monkeypatch.setattr(rsa.RSA, "import_key", parsed.append)
        async with open_stranger(pair=pair) as stranger:
            with pytest.raises(Exception):  # noqa: B017  # the library raises many kinds
                await stranger.stream(victim, names.RR_PROTOCOL)
        for read, data in (
            (deserialize_public_key, pair.public_key.serialize()),
            (unmarshal_envelope, sealed.marshal_envelope()),
        ):
            with pytest.raises(Exception):  # noqa: B017
                read(data)
    assert parsed == []


async def test_who_sends_more_than_its_window_is_closed(open_node, open_stranger, honest_beside, until):
    """On a stream that nobody reads: each of them would take all that is sent."""
    opened = []

    async def hold(stream):
        opened.append(stream)
        await trio.sleep_forever()

    async with open_node(1) as victim, honest_beside(victim):
        async with open_stranger(handlers={names.GOSSIP_PROTOCOL: hold}) as stranger:
            await stranger.dial(victim)
            await until(lambda: opened)  # the victim says there what it has subscribed to, and reads nothing
            muxed = opened[0].muxed_stream
            room = muxed.send_window
            frame = yamux_frame(yamux.TYPE_DATA, muxed.stream_id, 60_000, bytes(60_000))
            for _ in range(room // 60_000):
                await muxed.conn._write_frame(frame)
            assert stranger.peer_id in victim.peers()
            with contextlib.suppress(Exception):  # closed while it writes
                for _ in range(100):
                    await muxed.conn._write_frame(frame)
            await until(lambda: stranger.peer_id not in victim.peers())


async def test_who_stops_reading_its_socket_is_closed(
    open_node, open_stranger, honest_beside, until, monkeypatch
):
    """Though it goes on talking, so that it seems to live."""
    monkeypatch.setattr(names, "WRITE_STUCK_MS", 500)
    monkeypatch.setattr(names, "LIVENESS_PERIOD_MS", 100)
    async with open_node(1, routes={"parts": PartsRoute(endless_parts)}) as victim, honest_beside(victim):
        async with open_stranger() as stranger:
            stream = await stranger.stream(victim, names.RR_PROTOCOL)
            conn = stream.muxed_stream.conn
            socket = conn.secured_conn.conn.read_writer.read_write_closer
            socket = getattr(socket, "stream", socket)
            socket.read = never
            stream_id = stream.muxed_stream.stream_id
            await conn._write_frame(yamux_frame(yamux.TYPE_WINDOW_UPDATE, stream_id, 1 << 30))
            await stream.write(frames.encode_request(0, "parts", b""))

            async def talk():
                while True:
                    await conn._write_frame(yamux_frame(yamux.TYPE_WINDOW_UPDATE, 99_999, 0))
                    await trio.sleep(0.05)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk_until_closed, talk)
                await until(lambda: victim.counters().get("connections.found_stuck"))
                await until(lambda: stranger.peer_id not in victim.peers())
                nursery.cancel_scope.cancel()


async def talk_until_closed(talk):
    with contextlib.suppress(Exception):
        await talk()


async def test_who_does_not_read_its_answers_gives_its_places_to_others(
    open_node, open_stranger, monkeypatch, patience
):
    monkeypatch.setattr(loads, "UNREAD_S_MAX", 0.2)
    limits = RouterLimits(in_flight_total_max=8)  # 6 of them for strangers
    routes = {"parts": PartsRoute(endless_parts)}
    async with open_node(1, routes=routes, router_limits=limits) as victim, open_node(2) as honest:
        await honest.connect(victim.addrs())
        async with AsyncExitStack() as crowd:
            for number in (100, 101):
                stranger = await crowd.enter_async_context(open_stranger(number, listen=()))
                for _ in range(3):
                    stream = await stranger.stream(victim, names.RR_PROTOCOL)
                    await stream.write(frames.encode_request(0, "parts", b""))
            with patience():
                while True:
                    try:
                        assert await honest.request(victim.peer_id, "echo", b"in") == b"in"
                        break
                    except RequestFailed as busy:
                        await trio.sleep(busy.retry_after_ms / 1_000)
        assert victim.counters()["rr.unread_closed"] >= 1
        assert honest.peer_id in victim.peers()


async def test_ipv6_clients_are_told_apart(open_node, open_stranger, until):
    async with open_node(1, listen=("/ip6/::1/tcp/0",)) as victim, open_stranger(listen=()) as stranger:
        await stranger.dial(victim)
        await until(lambda: stranger.peer_id in victim.peers())
        [conn] = victim._host.get_network().get_connections(ID(stranger.peer_id))
        host, port = conn.muxed_conn.secured_conn.get_remote_address()
        assert (host, port > 0) == ("::1", True)


async def test_half_open_connections_of_one_place_push_out_none_of_another(open_node, monkeypatch, until):
    monkeypatch.setattr(names, "HANDSHAKES_MAX", 5)
    async with open_node(1, listen=("/ip4/0.0.0.0/tcp/0",)) as victim, AsyncExitStack() as silent:
        port = int(victim.addrs()[0].split("/")[4])
        slow = await silent.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))
        for _ in range(20):
            flood = await trio.open_tcp_stream("127.0.0.1", port, local_address="127.0.0.2")
            await silent.enter_async_context(flood)
        await until(lambda: victim.counters().get("connections.handshakes_over_limit", 0) >= 15)
        with trio.move_on_after(0.2) as waited:  # it would be told of its end at once
            while await slow.receive_some():
                continue
        assert waited.cancelled_caught

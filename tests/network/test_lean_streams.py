"""What a byte costs on its way: frames, system calls, turns of the scheduler, copies."""

from __future__ import annotations

import math

import pytest
import trio
import trio.testing
from libp2p.io import msgio
from libp2p.security.noise.io import NoiseTransportReadWriter
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.yamux import yamux

from p2p import cures, frames, names, stream_cures
from p2p.errors import StreamBroken
from p2p.host import _open_stream
from p2p.network import PartsRoute, Route

# Per request and answer, both sides: 22 were counted, 28 with the library's own read or its own write.
TURNS_MAX = 25
REQUESTS = 50


async def echo(caller, body):
    return body


async def send_parts(caller, body, send):
    for _ in range(int(body)):
        await send(bytes(names.PART_BYTES_MAX))
    return b""


async def read_parts(node, peer, count):
    size = 0
    async with node.request_parts(peer, "parts", b"%d" % count) as answer:
        while (part := await answer.part()) is not None:
            size += len(part)
    assert size == count * names.PART_BYTES_MAX


async def test_small_reads_send_no_window_updates(open_node, patience, monkeypatch):
    routes = {"parts": PartsRoute(send_parts)}
    async with open_node(1, routes=routes) as server, open_node(2, listen=()) as client:
        await client.connect(server.addrs())
        await client.request(server.peer_id, "echo", b"first")
        updates, write = [], yamux.Yamux._write_frame

        async def counted(conn, data):
            if data[1] == yamux.TYPE_WINDOW_UPDATE and data[2:4] == b"\0\0":
                updates.append(data)
            await write(conn, data)

        monkeypatch.setattr(yamux.Yamux, "_write_frame", counted)
        with patience():
            for _ in range(REQUESTS):
                await client.request(server.peer_id, "echo", bytes(200))
            assert not updates
            await read_parts(client, server.peer_id, 8)
    assert updates, "room is given back when half of the window is read"


async def test_a_full_frame_is_one_noise_message(open_node, open_stranger, patience, monkeypatch):
    routes = {"large": Route(echo, names.REQUEST_LARGE_BYTES_MAX)}
    async with open_node(1, routes=routes) as server, open_stranger() as stranger:
        stream = await stranger.stream(server, names.RR_PROTOCOL)
        messages, encrypt = [], NoiseTransportReadWriter.encrypt

        def counted(session, data):
            messages.append(len(data))
            return encrypt(session, data)

        monkeypatch.setattr(NoiseTransportReadWriter, "encrypt", counted)
        with patience():
            await stream.muxed_stream.write(frames.encode_request(0, "large", bytes(200_000)))
        assert 17 not in messages
        assert max(messages) == 65_519


def has_no_window(node) -> bool:
    """Whether one of its streams waits until its reader has read."""
    connections = node._host.get_network().get_connections()
    return any(
        stream.send_window <= 0
        for connection in connections
        for stream in connection.muxed_conn.streams.values()
    )


async def test_a_sender_waits_for_window_longer_than_the_library_would(open_node, patience, monkeypatch):
    class Hurried:
        """trio as the library sees it: its five seconds without window are half a one."""

        def __getattr__(self, name):
            return getattr(trio, name)

        def move_on_after(self, seconds):
            return trio.move_on_after(seconds / 10)

    monkeypatch.setattr(yamux, "trio", Hurried())
    async with open_node(1, routes={"parts": PartsRoute(send_parts)}) as server, open_node(2) as client:
        await client.connect(server.addrs())
        with patience():
            async with client.request_parts(server.peer_id, "parts", b"40") as answer:
                # The network is alive, and the sender without window, thrice as long as the library would wait.
                stuck_s = math.inf
                while trio.current_time() < stuck_s + 1.5:
                    await client.request(server.peer_id, "echo", b"x")
                    if stuck_s == math.inf and has_no_window(server):
                        stuck_s = trio.current_time()
                for _ in range(40):
                    assert await answer.part()


async def test_many_messages_are_read_in_few_calls(open_node, patience, monkeypatch):
    async with open_node(1, routes={"parts": PartsRoute(send_parts)}) as server, open_node(2) as client:
        await client.connect(server.addrs())
        asked, receive = [], trio.SocketStream.receive_some

        async def counted(stream, bytes_max=None):
            asked.append(bytes_max)
            return await receive(stream, bytes_max)

        monkeypatch.setattr(trio.SocketStream, "receive_some", counted)
        with patience():
            await read_parts(client, server.peer_id, 4)
    assert set(asked) == {stream_cures.SOCKET_READ_BYTES_MAX}


async def test_a_secured_read_gives_what_is_there(patience):
    cures.apply_process_cures()

    class Four:
        def __init__(self):
            self.messages = [b"four", b"more"]

        async def read_msg(self):
            if not self.messages:
                await trio.sleep_forever()
            return self.messages.pop(0)

    session = SecureSession.__new__(SecureSession)
    session._reset_internal_buffer()
    session.conn = Four()
    with patience():
        assert await session.read(10) == b"four"
        assert await session.read(1) == b"m"
        assert await session.read() == b"ore"


async def test_what_comes_whole_is_not_copied():
    cures.apply_process_cures()
    data = bytes(1_000)

    class Whole:
        async def read(self, n):
            assert n == len(data)
            return data

    assert await msgio.read_exactly(Whole(), len(data)) is data


async def test_a_writer_is_woken_when_the_window_opens(open_node, until, patience, monkeypatch):
    monkeypatch.setattr(stream_cures, "WINDOW_POLL_S", 3_600.0)
    async with open_node(1, routes={"parts": PartsRoute(send_parts)}) as server, open_node(2) as client:
        await client.connect(server.addrs())

        def is_blocked():
            connections = server._host.get_network().get_connections()
            streams = [stream for conn in connections for stream in conn.muxed_conn.streams.values()]
            return any(stream.send_window <= 0 and "_aw_room" in vars(stream) for stream in streams)

        with patience():
            async with client.request_parts(server.peer_id, "parts", b"32") as answer:
                await until(is_blocked)
                while await answer.part() is not None:
                    pass


async def test_a_reader_is_told_when_its_own_side_resets_the_stream(open_node, patience):
    async with open_node(1) as server, open_node(2) as client:
        await client.connect(server.addrs())
        stream = await _open_stream(client._host, server.peer_id, lambda: None)
        ended = trio.Event()

        async def read():
            with pytest.raises(StreamBroken):
                await stream.read(1)
            ended.set()

        with patience():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked(0.05)
                await stream.reset()
                await ended.wait()


class Turns(trio.abc.Instrument):
    def __init__(self):
        self.count = 0

    def before_task_step(self, task):
        self.count += 1


async def test_a_request_and_its_answer_take_few_turns(open_node, patience):
    async with open_node(1) as server, open_node(2, listen=()) as client:
        await client.connect(server.addrs())
        with patience():
            await client.request(server.peer_id, "echo", b"first")
            turns = Turns()
            trio.lowlevel.add_instrument(turns)
            for _ in range(REQUESTS):
                await client.request(server.peer_id, "echo", bytes(200))
            trio.lowlevel.remove_instrument(turns)
    assert turns.count / REQUESTS < TURNS_MAX

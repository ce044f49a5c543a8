"""A peer that knows nothing of sessions: py-libp2p's own request_response helper against our server."""

from __future__ import annotations

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.request_response import BytesCodec, RequestResponse, RequestResponseConfig

from p2p import frames, names
from p2p.errors import Code
from p2p.network import PartsRoute

PROTOCOLS = [TProtocol(names.RR_PROTOCOL)]
CODEC = BytesCodec()
CONFIG = RequestResponseConfig(timeout=30)


def request_of(method: str, body: bytes) -> bytes:
    """What the helper sends after its own length: a frame without its length."""
    return without_length(frames.encode_request(0, method, body))


def without_length(frame: bytes) -> bytes:
    start = next(index for index, byte in enumerate(frame) if byte < 0x80) + 1
    return frame[start:]


async def send(stranger, node, method, body):
    """One request by the helper: the answer's frame, without its length."""
    await stranger.dial(node)
    helper = RequestResponse(stranger.host)
    return await helper.send_request(
        ID(node.peer_id), PROTOCOLS, request_of(method, body), codec=CODEC, config=CONFIG
    )


@pytest.mark.parametrize("size", [0, 1, 100, 16_383, 16_384, 60_000])
async def test_the_helper_of_py_libp2p_gets_its_answer(open_node, open_stranger, size):
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    async with open_node(1) as node, open_stranger(listen=()) as stranger:
        answer = await send(stranger, node, "echo", body)
        assert answer == without_length(frames.encode_answer(0, body))


async def test_the_helper_is_told_an_error_in_its_frame(open_node, open_stranger):
    async with open_node(1) as node, open_stranger(listen=()) as stranger:
        answer = await send(stranger, node, "missing", b"")
        reader = frames.FrameReader()
        reader.feed(
            bytes([len(answer) | 0x80, len(answer) >> 7]) if len(answer) > 0x7F else bytes([len(answer)])
        )
        reader.feed(answer)
        frame = reader.next_frame()
        assert isinstance(frame, frames.ErrorFrame)
        assert frame.code is Code.ERR_UNSUPPORTED


async def test_many_helpers_at_once_are_all_answered(open_node, open_stranger):
    async with open_node(1) as node, open_stranger(listen=()) as stranger:
        await stranger.dial(node)
        helper, answers = RequestResponse(stranger.host), []

        async def ask(number):
            body = b"%d" % number
            answer = await helper.send_request(
                ID(node.peer_id), PROTOCOLS, request_of("echo", body), codec=CODEC, config=CONFIG
            )
            answers.append(answer == without_length(frames.encode_answer(0, body)))

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(ask, number)
        assert answers == [True] * 50


async def test_a_client_that_leaves_in_the_middle_frees_the_server(open_node, open_stranger, until):
    stopped = trio.Event()

    async def flood(caller, body, send_part):
        try:
            while True:
                await send_part(bytes(names.PART_BYTES_MAX))
        finally:
            stopped.set()

    async with (
        open_node(1, routes={"flood": PartsRoute(flood)}) as node,
        open_stranger(listen=()) as stranger,
    ):
        stream = await stranger.stream(node, names.RR_PROTOCOL)
        await stream.write(frames.encode_request(0, "flood", b""))
        assert await stream.read(1_000)
        (connection,) = stranger.host.get_network().get_connections(ID(node.peer_id))
        await connection.muxed_conn.secured_conn.close()
        await until(stopped.is_set)

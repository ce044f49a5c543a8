"""Streams of /aw/rr/1 that are spoken by hand: one request alone, bytes as they are, and a reset in the middle.

Hides: that these reach past p2p's own ports, into the host; nothing but this peer does. Guarantees: a stream that was
opened here is closed or reset here.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final

import trio
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.exceptions import IncompleteReadError
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import TYPE_WINDOW_UPDATE, YAMUX_HEADER_FORMAT
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited

from p2p import frames, names
from p2p.errors import AnswerTooLarge, FrameError, RequestFailed, RequestTimeout, StreamBroken, Unreachable
from p2p.host import Libp2pNetwork, Libp2pStream

READ_BYTES: Final = 64 * 1024
QUIET_S: Final = 1.0
ANSWER_BYTES_MAX: Final = 1 << 20
ROOM_BYTES: Final = 1 << 30
TALK_S: Final = 1.0
_served: ContextVar[Any] = ContextVar("served")


def serve_by_hand(network: Libp2pNetwork) -> None:
    """Serve the routes as p2p/host.py does, with the stream at hand for whoever answers on it."""
    router = network._router

    async def serve(stream: Any) -> None:
        _served.set(stream)
        await router.serve(Libp2pStream(stream), stream.muxed_conn.peer_id.to_bytes())

    network._host.set_stream_handler(TProtocol(names.RR_PROTOCOL), serve)


def take_streams(network: Libp2pNetwork, take: Callable[[Libp2pStream], Awaitable[None]]) -> None:
    """Hand each stream that is opened to `take`, in place of the routes; a stream ends no later than `take` does."""

    async def serve(stream: Any) -> None:
        taken = Libp2pStream(stream)
        try:
            await take(taken)
        finally:
            await _end(taken)

    network._host.set_stream_handler(TProtocol(names.RR_PROTOCOL), serve)


def answer_dht(network: Libp2pNetwork, answer: Callable[[Message], Message]) -> None:
    """Answer what comes on DHT streams so, in place of the DHT."""

    async def serve(stream: Any) -> None:
        with suppress(IncompleteReadError, StreamError, MuxedStreamError):  # who asked has gone
            while True:
                asked = Message()
                asked.ParseFromString(
                    await read_varint_prefixed_bytes_limited(stream, names.DHT_MESSAGE_BYTES_MAX)
                )
                await stream.write(encode_varint_prefixed(answer(asked).SerializeToString()))

    network._host.set_stream_handler(TProtocol(names.KAD_PROTOCOL), serve)


async def ask_dht(network: Libp2pNetwork, peer: bytes, asked: Message, *told: Message) -> Message:
    """The answer to a DHT message, behind others of another type, which are read before it. Raises Unreachable,
    StreamBroken."""
    stream = await open_stream(network, peer, names.KAD_PROTOCOL)
    try:
        data = (encode_varint_prefixed(message.SerializeToString()) for message in (*told, asked))
        await stream.write(b"".join(data))
        while True:
            answer = Message()
            answer.ParseFromString(
                await read_varint_prefixed_bytes_limited(stream._stream, names.DHT_MESSAGE_BYTES_MAX)
            )
            if answer.type == asked.type:
                return answer
    except (IncompleteReadError, StreamError, MuxedStreamError) as error:
        raise StreamBroken("the DHT stream ended before the answer") from error
    finally:
        await _end(stream)


def keep_to(network: Libp2pNetwork, peer: bytes) -> None:
    """Dial nobody but this peer from now on: its DHT names others."""
    swarm = network._host.get_network()
    dial = swarm.dial_peer

    async def dial_peer(peer_id: ID) -> Any:
        if peer_id.to_bytes() != peer:
            raise SwarmException("this host keeps to one neighbour")
        return await dial(peer_id)

    swarm.dial_peer = dial_peer


async def reset_served_stream() -> None:
    """Reset the stream whose request is being answered."""
    await _served.get().reset()


async def open_stream(network: Libp2pNetwork, peer: bytes, protocol: str = names.RR_PROTOCOL) -> Libp2pStream:
    """A stream of its own. Raises Unreachable."""
    try:
        with trio.fail_after(names.NEGOTIATION_S * 2):
            return Libp2pStream(await network._host.new_stream(ID(peer), [TProtocol(protocol)]), lambda: None)
    except Exception as error:
        raise Unreachable(names.peer_text(peer), f"no stream ({type(error).__name__})") from error


async def open_unnegotiated(network: Libp2pNetwork, peer: bytes) -> Libp2pStream:
    """A stream on which nobody has said yet what it is for."""
    connection = network._host.get_network().get_connections(ID(peer))[0]
    return Libp2pStream(await connection.new_stream())


async def _never(_: int | None = None) -> bytes:
    await trio.sleep_forever()


def is_reset(stream: Libp2pStream) -> bool:
    """Whether the other side has reset the stream."""
    return bool(stream._stream.muxed_stream.reset_received)


async def fill(stream: Libp2pStream) -> None:
    """Read nothing more of the stream's connection, however much may come; talk on until the other side closes it."""
    muxed = stream._stream.muxed_stream
    secured = muxed.conn.secured_conn
    socket = secured.conn.read_writer.read_write_closer
    getattr(socket, "stream", socket).read = _never
    window = ROOM_BYTES
    with suppress(BaseLibp2pError, trio.BrokenResourceError, trio.ClosedResourceError):
        while True:
            update = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_WINDOW_UPDATE, 0, muxed.stream_id, window)
            await muxed.conn._write_frame(update)
            window = 0
            secured._aw_heard += 1  # else this host would take the other one for dead
            await trio.sleep(TALK_S)


async def request_alone(
    network: Libp2pNetwork, peer: bytes, method: str, body: bytes, timeout_ms: int
) -> bytes:
    """One request with id 0 on a stream of its own. Raises as DistributedNetwork.request."""
    with trio.move_on_after(timeout_ms / 1_000):
        stream = await open_stream(network, peer)
        try:
            await stream.write(frames.encode_request(0, method, body))
            reader = frames.FrameReader()
            while True:
                match reader.next_frame():
                    case frames.Answer(request_id=0, body=answer):
                        return answer
                    case frames.ErrorFrame(request_id=0) as failure:
                        raise RequestFailed(
                            failure.code,
                            failure.message,
                            retry_after_ms=failure.retry_after_ms,
                            detail=failure.detail,
                        )
                    case frames.NEED_DATA:
                        data = await stream.read(READ_BYTES)
                        if not data:
                            raise Unreachable(names.peer_text(peer), "the stream ended before the answer")
                        reader.feed(data)
                    case other:
                        raise FrameError("type", f"{type(other).__name__} is no answer to one request")
        finally:
            await _end(stream)
    raise RequestTimeout(names.peer_text(peer), method, timeout_ms)


async def send_raw(network: Libp2pNetwork, peer: bytes, data: bytes, timeout_ms: int) -> tuple[bytes, str]:
    """Write these bytes; what came back, and how it ended: eof, reset or open (nothing for a second)."""
    stream, answer = await open_stream(network, peer), bytearray()
    with trio.move_on_after(timeout_ms / 1_000):
        try:
            await stream.write(data)
            while len(answer) <= ANSWER_BYTES_MAX:
                with trio.move_on_after(QUIET_S) as quiet:
                    more = await stream.read(READ_BYTES)
                    if not more:
                        return bytes(answer), "eof"
                    answer += more
                if quiet.cancelled_caught:
                    return bytes(answer), "open"
            raise AnswerTooLarge(names.peer_text(peer), "raw bytes", ANSWER_BYTES_MAX)
        except StreamBroken:
            return bytes(answer), "reset"
        finally:
            await _end(stream)
    raise RequestTimeout(names.peer_text(peer), "raw bytes", timeout_ms)


async def _end(stream: Libp2pStream) -> None:
    with trio.move_on_after(1, shield=True):
        await stream.reset()

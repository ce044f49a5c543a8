"""What the bytes of a WebSocket client mean, fed in any pieces, good and bad."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    Request,
    TextMessage,
)

from p2p.websocket import PROTOCOL_ERROR, UNSUPPORTED_DATA, ServerSide

HEADER_BYTES_MAX = 16 * 1024


class Client:
    """Another WebSocket's view of ours."""

    def __init__(self) -> None:
        self.wire = WSConnection(ConnectionType.CLIENT)

    def hello(self) -> bytes:
        return self.wire.send(Request(host="a.example", target="/"))

    def hear(self, data: bytes) -> list[Event]:
        self.wire.receive_data(data)
        return list(self.wire.events())


def opened() -> tuple[ServerSide, Client]:
    server, client = ServerSide(), Client()
    server.feed(client.hello())
    assert isinstance(client.hear(server.to_send())[0], AcceptConnection)
    return server, client


@given(st.lists(st.binary(min_size=1, max_size=70_000), min_size=1, max_size=3), st.integers(1, 5_000))
def test_payload_comes_out_whatever_the_messages_and_the_pieces(messages: list[bytes], piece: int) -> None:
    server, client = ServerSide(), Client()
    hello = client.hello()
    for start in range(0, len(hello), piece):
        server.feed(hello[start : start + piece])
    client.hear(server.to_send())
    sent = b"".join(client.wire.send(BytesMessage(data=message)) for message in messages)
    taken = b""
    for start in range(0, len(sent), piece):
        server.feed(sent[start : start + piece])
        given_now = server.take()
        assert len(given_now) <= piece
        taken += given_now
    assert taken == b"".join(messages)
    assert not server.ended


def test_what_we_write_is_one_binary_message() -> None:
    server, client = opened()
    [message] = client.hear(server.framed(b"answer" * 100))
    assert isinstance(message, BytesMessage)
    assert message.data == b"answer" * 100


def test_a_ping_is_answered_and_is_no_payload() -> None:
    server, client = opened()
    server.feed(client.wire.send(Ping(payload=b"there?")))
    assert server.take() == b""
    assert client.hear(server.to_send()) == [Pong(payload=b"there?")]


def test_the_end_is_answered_once_and_nothing_is_read_after_it() -> None:
    server, client = opened()
    server.feed(client.wire.send(CloseConnection(1000)))
    assert isinstance(client.hear(server.to_send())[0], CloseConnection)
    server.feed(b"\x82\x80\x00\x00\x00\x00")
    server.close()
    assert (server.take(), server.to_send()) == (b"", b"")


@pytest.mark.parametrize(
    ("hello", "answer"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", b"HTTP/1.1 400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20) + b"\r\n\r\n", b""),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * HEADER_BYTES_MAX, b""),
        (Client().hello().replace(b"a.example", b"\xff\xfe"), b""),
        (Client().hello().replace(b"Version: 13", b"Version: 12"), b"HTTP/1.1 426"),
        (b"/multistream/1.0.0\n\r\n\r\n", b""),
    ],
    ids=["no upgrade", "post", "tls", "long header", "host", "version", "not HTTP"],
)
def test_a_handshake_that_is_none_ends_it_with_an_answer_at_most(hello: bytes, answer: bytes) -> None:
    server = ServerSide()
    server.feed(hello)
    assert server.ended
    assert not server.is_open
    assert server.to_send().startswith(answer)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (b"\x81\x80\x00\x00\x00\x00", UNSUPPORTED_DATA),
        (b"\x82\x01x", PROTOCOL_ERROR),  # not masked
        (b"\xc2\x80\x00\x00\x00\x00", PROTOCOL_ERROR),  # compressed
        (b"\x83\x80\x00\x00\x00\x00", PROTOCOL_ERROR),  # of no known kind
        (b"\x89\xfe\x00\x7e\x00\x00\x00\x00", PROTOCOL_ERROR),  # a ping of 126 bytes
        (b"\x80\x80\x00\x00\x00\x00", PROTOCOL_ERROR),  # goes on with nothing
    ],
    ids=["text", "unmasked", "compressed", "unknown", "long ping", "continuation"],
)
def test_a_frame_that_is_forbidden_ends_it_and_says_why(frames: bytes, code: int) -> None:
    server, client = opened()
    server.feed(frames)
    assert server.ended
    [end] = client.hear(server.to_send())
    assert isinstance(end, CloseConnection)
    assert end.code == code


def test_a_text_message_is_no_payload() -> None:
    server, client = opened()
    server.feed(client.wire.send(TextMessage(data="hello")) + client.wire.send(BytesMessage(data=b"after")))
    assert server.take() == b""


def conversation() -> bytes:
    """A handshake, and a frame of each kind that a client may send."""
    client = Client()
    hello = client.hello()
    server = ServerSide()
    server.feed(hello)
    client.hear(server.to_send())
    events = (BytesMessage(data=b"x" * 200), Ping(payload=b"p"), Pong(payload=b"q"), TextMessage(data="t"))
    said = [client.wire.send(event) for event in (*events, CloseConnection(1000))]
    return hello + b"".join(said)


@given(st.data())
def test_no_bytes_raise_however_a_conversation_is_changed(data: st.DataObject) -> None:
    said = bytearray(conversation())
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(said) - 1))
        said[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    piece = data.draw(st.integers(1, len(said)))
    server = ServerSide()
    for start in range(0, len(said), piece):
        server.feed(bytes(said[start : start + piece]))
        assert len(server.take()) <= piece
        server.to_send()
    server.close()
    server.to_send()

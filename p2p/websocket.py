"""What a WebSocket client's bytes mean, and what it is owed. Pure.

Hides: wsproto. Guarantees: nothing that is fed raises, and no more is held than was fed: bytes are passed on as they
come, whatever message or size of message they are in. Implements docs/protocol.md, section "Connections"; RFC 6455
without extensions.
"""

from __future__ import annotations

from typing import Final

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import RemoteProtocolError

UNSUPPORTED_DATA: Final = 1003  # RFC 6455, 7.4.1
PROTOCOL_ERROR: Final = 1002


class ServerSide:
    """The server's side of one connection.

    A header above 16 KiB, a text message, an unmasked frame and what else RFC 6455 forbids end it: then `to_send` says
    why. `payload` is to be taken after each `feed`.
    """

    def __init__(self) -> None:
        self._wire = WSConnection(ConnectionType.SERVER)
        self._payload: list[bytes] = []
        self._to_send: list[bytes] = []
        self.is_open = False
        self.ended = ""

    def feed(self, data: bytes) -> None:
        """Bytes of the client, b"" when it has ended."""
        if not data:
            self.ended = self.ended or "the client has ended"
        if self.ended:
            return
        try:
            self._wire.receive_data(data)
            for event in self._wire.events():
                self._on(event)
        except RemoteProtocolError as error:
            hint = error.event_hint
            self._end(str(error), hint if isinstance(hint, RejectConnection | CloseConnection) else None)
        except Exception as error:  # noqa: BLE001  # a parser of strangers' bytes: host names that are none, and more
            self._end(type(error).__name__, CloseConnection(PROTOCOL_ERROR) if self.is_open else None)

    def take(self) -> bytes:
        """The payload so far."""
        payload, self._payload = b"".join(self._payload), []
        return payload

    def to_send(self) -> bytes:
        """What the client is owed: the answer to its handshake, pongs, the end."""
        owed, self._to_send = b"".join(self._to_send), []
        return owed

    def framed(self, data: bytes) -> bytes:
        """One binary message."""
        return self._wire.send(BytesMessage(data=data))

    def close(self) -> None:
        """Say the end, when there is somebody to say it to."""
        self._end("closed", CloseConnection(1000) if self.is_open else None)

    def _on(self, event: Event) -> None:
        if self.ended:
            return
        match event:
            case Request():
                self._to_send.append(self._wire.send(AcceptConnection()))
                self.is_open = True
            case BytesMessage():
                self._payload.append(bytes(event.data))
            case Ping():
                self._to_send.append(self._wire.send(event.response()))
            case TextMessage():
                self._end("a text message", CloseConnection(UNSUPPORTED_DATA))
            case CloseConnection():
                self._end("closed by the client", event.response())

    def _end(self, reason: str, last_word: Event | None) -> None:
        if self.ended:
            return
        self.ended = reason
        if last_word is not None:
            self._to_send.append(self._wire.send(last_word))

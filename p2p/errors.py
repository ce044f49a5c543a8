"""What can go wrong between peers, and the ten codes that say it on the wire.

Hides: nothing. Guarantees: a caller decides by class and code, never by text.
Implements docs/protocol.md, section "Error codes".
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """Wire code of a failed request: 1..6 are final, 7..10 may be tried again, elsewhere first."""

    ERR_NOT_FOUND = 1
    ERR_BAD_REQUEST = 2
    ERR_INVALID_HASH = 3
    ERR_STATE_MISMATCH = 4
    ERR_UNSUPPORTED = 5
    ERR_UNAUTHORIZED = 6
    ERR_BUSY = 7
    ERR_RATE_LIMITED = 8
    ERR_TIMEOUT = 9
    ERR_NOT_AVAILABLE = 10

    @property
    def retryable(self) -> bool:
        """True when the same request may succeed later, or at another peer."""
        return self >= Code.ERR_BUSY


class NetworkError(Exception):
    """Root of everything that a peer or the network can do to a caller."""


class FrameError(NetworkError):
    """Bytes that are no frame: the stream cannot be read any further. `field` names what is wrong.

    `request_id` is there when the frame still said whom to tell.
    """

    def __init__(self, field: str, why: str, *, request_id: int | None = None) -> None:
        super().__init__(f"frame {field}: {why}")
        self.field = field
        self.why = why
        self.request_id = request_id


class StreamBroken(NetworkError):
    """A raw stream was reset, by either side, or its connection is gone."""


class RequestFailed(NetworkError):
    """A peer answered with an error. Handlers raise it too: what they raise is what the caller sees.

    `detail` is opaque (canonical CBOR where a method defines one); `retry_after_ms` is 0 when not given.
    """

    def __init__(self, code: Code, message: str, *, retry_after_ms: int = 0, detail: bytes = b"") -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.detail = detail

    @property
    def retryable(self) -> bool:
        return self.code.retryable


class Unreachable(NetworkError):
    """No usable connection or stream to the peer: not dialled, refused, reset, or gone half-way."""

    def __init__(self, peer: str, why: str) -> None:
        super().__init__(f"peer {peer} not reached: {why}")
        self.peer = peer
        self.why = why


class RequestTimeout(NetworkError):
    """The peer took the request but gave no (whole) answer within the caller's deadline."""

    def __init__(self, peer: str, method: str, deadline_ms: int) -> None:
        super().__init__(f"peer {peer}: no answer to {method} within {deadline_ms} ms")
        self.peer = peer
        self.method = method
        self.deadline_ms = deadline_ms


class AnswerTooLarge(NetworkError):
    """A streamed answer passed the caller's byte limit; the stream was reset."""

    def __init__(self, peer: str, method: str, bytes_max: int) -> None:
        super().__init__(f"peer {peer}: answer to {method} is over {bytes_max} bytes")
        self.peer = peer
        self.method = method
        self.bytes_max = bytes_max


class RecordRefused(NetworkError):
    """A DHT record failed its own validator, or an older one was put over a newer one."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(f"record {key}: {why}")
        self.key = key
        self.why = why


class ListenFailed(NetworkError):
    """No listener could be opened; `addr` is the multiaddr that was asked for."""

    def __init__(self, addr: str, why: str) -> None:
        super().__init__(f"listen {addr}: {why}")
        self.addr = addr
        self.why = why

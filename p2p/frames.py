"""Frames of /aw/rr/1: bytes in, frames out, without any I/O.

Hides: the byte layout of a frame and the buffering of half-read ones.
Guarantees: exactly one encoding of each frame is accepted; a frame's size is judged from its length prefix,
and a request's from its method, before its body is buffered; the reader holds at most one frame and one fed
chunk.
Every malformed thing is a FrameError that names field and limit, and ends the reader.
Implements docs/protocol.md, section "Request / response", "Frames".

    frame   = length (varint, 1..3 bytes, counts all that follows) type (u8) id (varint) rest
    request = 00: u8 n, method of n bytes, body         answer = 01: body        part = 02: body
    error   = 03: u8 code, varint retry_after_ms, u16 big-endian n, message of n UTF-8 bytes, detail
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, TypeAlias

from p2p import names
from p2p.errors import Code, FrameError

_REQUEST: Final = 0
_ANSWER: Final = 1
_PART: Final = 2
_ERROR: Final = 3

_METHOD: Final = re.compile(rb"[a-z_]{1,%d}" % names.METHOD_BYTES_MAX)
_U32_VARINT_BYTES_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class Request:
    """Asks for `method`; `request_id` is the caller's name for the answer."""

    request_id: int
    method: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The last (often the only) frame of a good answer."""

    request_id: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a streamed answer; an Answer or an ErrorFrame follows some time."""

    request_id: int
    body: bytes


@dataclass(frozen=True, slots=True)
class ErrorFrame:
    """The last frame of a failed answer."""

    request_id: int
    code: Code
    retry_after_ms: int
    message: str
    detail: bytes


@dataclass(frozen=True, slots=True)
class OversizeRequest:
    """A well-formed request over its method's limit: its body is skipped unread and the stream goes on."""

    request_id: int
    method: str
    size_bytes: int
    bytes_max: int


Frame: TypeAlias = Request | Answer | Part | ErrorFrame | OversizeRequest


class _NeedData(Enum):
    NEED_DATA = "need data"


NEED_DATA: Final = _NeedData.NEED_DATA
NeedData: TypeAlias = Literal[_NeedData.NEED_DATA]


# --- writing ------------------------------------------------------------------------------------------------


def encode_request(request_id: int, method: str, body: bytes) -> bytes:
    """Bytes of a request frame. Raises FrameError when id, method or size are out of range."""
    name = method.encode("utf-8")
    if _METHOD.fullmatch(name) is None:
        raise FrameError("method", f"{method!r} is not 1..{names.METHOD_BYTES_MAX} of a-z and _")
    return _frame(_REQUEST, request_id, bytes((len(name),)) + name, body)


def encode_answer(request_id: int, body: bytes) -> bytes:
    """Bytes of a last answer. Raises FrameError when it does not fit a frame."""
    return _frame(_ANSWER, request_id, b"", body)


def encode_part(request_id: int, body: bytes) -> bytes:
    """Bytes of one part. Raises FrameError over PART_BYTES_MAX."""
    if len(body) > names.PART_BYTES_MAX:
        raise FrameError("part", f"{len(body)} bytes is over {names.PART_BYTES_MAX}")
    return _frame(_PART, request_id, b"", body)


def encode_error(
    request_id: int, code: Code, message: str, *, retry_after_ms: int = 0, detail: bytes = b""
) -> bytes:
    """Bytes of an error frame. Raises FrameError when message, retry_after_ms or size are out of range."""
    text = message.encode("utf-8")
    if len(text) > names.ERROR_MESSAGE_BYTES_MAX:
        raise FrameError("message", f"{len(text)} bytes is over {names.ERROR_MESSAGE_BYTES_MAX}")
    if not 0 <= retry_after_ms <= names.RETRY_AFTER_MS_MAX:
        raise FrameError("retry_after_ms", f"{retry_after_ms} is not in 0..{names.RETRY_AFTER_MS_MAX}")
    rest = bytes((code,)) + _varint(retry_after_ms) + len(text).to_bytes(2, "big") + text
    return _frame(_ERROR, request_id, rest, detail)


def _frame(kind: int, request_id: int, rest: bytes, body: bytes) -> bytes:
    if not 0 <= request_id <= names.REQUEST_ID_MAX:
        raise FrameError("id", f"{request_id} is not in 0..{names.REQUEST_ID_MAX}")
    head = bytes((kind,)) + _varint(request_id) + rest
    length = len(head) + len(body)
    if length > names.FRAME_BYTES_MAX:
        raise FrameError("length", f"{length} bytes is over {names.FRAME_BYTES_MAX}")
    return b"".join((_varint(length), head, body))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# --- reading ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Head:
    kind: int
    request_id: int
    method: str
    body_at: int


def _any_request(_method: str) -> int:
    return names.FRAME_BYTES_MAX


class FrameReader:
    """Feed it what came; take frames until NEED_DATA.

    `request_bytes_max(method)` is the largest request frame (head and body, in bytes) of that method.
    """

    __slots__ = ("_buffer", "_failed", "_head", "_length", "_request_bytes_max", "_skip")

    def __init__(self, request_bytes_max: Callable[[str], int] = _any_request) -> None:
        self._request_bytes_max = request_bytes_max
        self._buffer = bytearray()
        self._length: int | None = None  # of the frame whose first byte is now the buffer's first
        self._head: _Head | None = None
        self._skip = 0  # bytes of an oversize request still to come and go
        self._failed: FrameError | None = None

    @property
    def mid_frame(self) -> bool:
        """True while a frame has begun and is not whole."""
        return bool(self._buffer) or self._length is not None or self._skip > 0

    def feed(self, data: bytes) -> None:
        """Take bytes as they came from the stream, cut anywhere."""
        self._buffer += data

    def next_frame(self) -> Frame | NeedData:
        """The next whole frame, or NEED_DATA. Raises FrameError, the same one again ever after."""
        if self._failed is not None:
            raise self._failed
        try:
            return self._next()
        except FrameError as error:
            self._failed = error
            self._buffer.clear()
            raise

    def _next(self) -> Frame | NeedData:
        buffer = self._buffer
        if self._skip:
            gone = min(self._skip, len(buffer))
            del buffer[:gone]
            self._skip -= gone
        if self._length is None and not self._read_length():
            return NEED_DATA
        assert self._length is not None
        length = self._length
        whole = len(buffer) >= length
        head = self._head
        if head is None:
            head = _read_head(buffer, min(length, len(buffer)), whole)
            if head is None:
                return NEED_DATA
            bytes_max = self._request_bytes_max(head.method) if head.kind == _REQUEST else length
            if length > bytes_max:
                self._length, self._skip = None, length
                return OversizeRequest(head.request_id, head.method, length, bytes_max)
            self._head = head
        if not whole:
            return NEED_DATA
        frame = _read_rest(buffer, head, length)
        del buffer[:length]
        self._length = self._head = None
        return frame

    def _read_length(self) -> bool:
        found = _read_varint(self._buffer, 0, len(self._buffer), "length", names.FRAME_LENGTH_BYTES_MAX)
        if found is None:
            return False
        length, at = found
        if length > names.FRAME_BYTES_MAX:
            raise FrameError("length", f"{length} bytes is over {names.FRAME_BYTES_MAX}")
        if length < 2:
            raise FrameError("length", f"{length} bytes cannot hold a type and an id")
        del self._buffer[:at]
        self._length = length
        return True


def _read_head(data: bytearray, end: int, whole: bool) -> _Head | None:
    """Type, id and method from data[:end]; None when more is needed and `whole` is false."""
    if end == 0:
        return None
    kind = data[0]
    found = _read_varint(data, 1, end, "id", _U32_VARINT_BYTES_MAX)
    if found is None:
        return _head_cut_off("id", whole, None)
    request_id, at = found
    if kind > _ERROR:
        raise FrameError("type", f"{kind} is none of 0..{_ERROR}", request_id=request_id)
    if request_id > names.REQUEST_ID_MAX:
        raise FrameError("id", f"{request_id} is over {names.REQUEST_ID_MAX}")
    if kind != _REQUEST:
        return _Head(kind, request_id, "", at)
    if at >= end:
        return _head_cut_off("method", whole, request_id)
    size = data[at]
    if not 1 <= size <= names.METHOD_BYTES_MAX:
        why = f"length {size} is not in 1..{names.METHOD_BYTES_MAX}"
        raise FrameError("method", why, request_id=request_id)
    at += 1
    if at + size > end:
        return _head_cut_off("method", whole, request_id)
    method = bytes(data[at : at + size])
    if _METHOD.fullmatch(method) is None:
        raise FrameError("method", "is not made of a-z and _", request_id=request_id)
    return _Head(kind, request_id, method.decode("ascii"), at + size)


def _head_cut_off(field: str, whole: bool, request_id: int | None) -> _Head | None:
    if whole:
        raise FrameError(field, "the frame ends inside it", request_id=request_id)
    return None


def _read_rest(data: bytearray, head: _Head, end: int) -> Frame:
    if head.kind == _ERROR:
        return _read_error(data, head, end)
    with memoryview(data) as view:
        body = bytes(view[head.body_at : end])  # copied once
    if head.kind == _REQUEST:
        return Request(head.request_id, head.method, body)
    if head.kind == _ANSWER:
        return Answer(head.request_id, body)
    if len(body) > names.PART_BYTES_MAX:
        raise FrameError("part", f"{len(body)} bytes is over {names.PART_BYTES_MAX}")
    return Part(head.request_id, body)


def _read_error(data: bytearray, head: _Head, end: int) -> ErrorFrame:
    at = head.body_at
    if at >= end:
        raise FrameError("code", "the frame ends before it")
    try:
        code = Code(data[at])
    except ValueError:
        raise FrameError("code", f"{data[at]} is not in 1..{max(Code)}") from None
    found = _read_varint(data, at + 1, end, "retry_after_ms", _U32_VARINT_BYTES_MAX)
    if found is None:
        raise FrameError("retry_after_ms", "the frame ends inside it")
    retry_after_ms, at = found
    if retry_after_ms > names.RETRY_AFTER_MS_MAX:
        raise FrameError("retry_after_ms", f"{retry_after_ms} is over {names.RETRY_AFTER_MS_MAX}")
    if at + 2 > end:
        raise FrameError("message", "the frame ends before its length")
    size = int.from_bytes(data[at : at + 2], "big")
    at += 2
    if size > names.ERROR_MESSAGE_BYTES_MAX:
        raise FrameError("message", f"{size} bytes is over {names.ERROR_MESSAGE_BYTES_MAX}")
    if at + size > end:
        raise FrameError("message", "the frame ends inside it")
    try:
        message = data[at : at + size].decode("utf-8")
    except UnicodeDecodeError:
        raise FrameError("message", "is not UTF-8") from None
    return ErrorFrame(head.request_id, code, retry_after_ms, message, bytes(data[at + size : end]))


def _read_varint(data: bytearray, at: int, end: int, field: str, bytes_max: int) -> tuple[int, int] | None:
    """(value, index after it) of the minimal varint at data[at:end]; None when it is not all there."""
    value = 0
    for index in range(bytes_max):
        if at + index >= end:
            return None
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if byte == 0 and index > 0:
                raise FrameError(field, "is not a minimal varint")
            return value, at + index + 1
    raise FrameError(field, f"takes more than {bytes_max} bytes")

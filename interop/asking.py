"""Rows of the matrix: requests and their answers, and blobs.

`one` asks, `other` answers. What the asker does to its streams is seen in on_the_wire.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import trio
from blake3 import blake3

from interop.driver import Ground, Peer
from interop.steps import Scenario, body, connected, encoded, one_connection
from p2p import frames, names
from p2p.errors import Code
from runtime import codec

QUICK_STREAMS: Final = 1_000
QUICK_AT_ONCE: Final = 48  # below streams_per_peer_max, beside the session
SLOW_MS: Final = 3_000
QUICK_MIN: Final = 10  # requests, while a slow one is answered
BRIEF_MS: Final = 300
BUSY_MS: Final = 500  # longer than anybody waits before it says BUSY, shorter than send_raw waits for more
SIZES: Final = (1_024, 256 * 1_024, 8 << 20)
LARGE: Final = 60_000  # nearly request_bytes_max
LARGE_AT_ONCE: Final = 8
MANY_PARTS: Final = 250  # of 256 KiB: more than anybody reads in ENOUGH_MS
ENOUGH_MS: Final = 40
# Frames that are none, and the id of the error that is due before the reset; None where no id can be read.
GARBAGE: Final = {"00": None, "0100": None, "02ff00": 0, "8000": None, "04050000ff": 0}
BLIND: Final = ("py",)  # py-libp2p takes a reset for the end of the stream (docs/interop.md)


async def rr_one_shot(ground: Ground, one: Peer, other: Peer) -> None:
    """A stream, a request with id 0, an answer."""
    del ground
    text = body(text="one shot", number=-5, data=bytes(300))
    answer = await one.do("request", peer=other.peer_id, method="x_echo", body=text, one_shot=True)
    assert answer["body"] == text
    hello = await one.do("request", peer=other.peer_id, method="hello", body="a0", one_shot=True)
    assert codec.decode(bytes.fromhex(hello["body"]), 4_096)["versions"] == [1]


async def rr_session(ground: Ground, one: Peer, other: Peer) -> None:
    """Many requests on one stream, answered as they finish."""
    del ground
    quick, is_answered = 0, trio.Event()

    async def ask_slowly() -> None:
        await one.do("request", peer=other.peer_id, method="x_wait", body=body(ms=SLOW_MS))
        is_answered.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_slowly)
        while not is_answered.is_set():  # a server that answers in order would let few of them by
            await one.do("request", peer=other.peer_id, method="x_echo", body="a0")
            quick += 1
    assert quick >= QUICK_MIN, quick
    done = await one.do(
        "requests", peer=other.peer_id, method="x_echo", body=body(data=bytes(200)), count=500, in_flight=32
    )
    assert (done["ok"], done["failed"]) == (500, 0), done
    await _answered_as_they_finish(one, other)
    await _large_ones_at_once(one, other)


async def _answered_as_they_finish(one: Peer, other: Peer) -> None:
    slow, first = encoded(ms=BRIEF_MS), encoded(number=1)
    both = frames.encode_request(1, "x_wait", slow) + frames.encode_request(2, "x_echo", first)
    answered = await one.do("send_raw", peer=other.peer_id, data=both.hex())
    assert _frames(answered)[0] == frames.Answer(2, first), answered
    # A session has so many places; whoever asks for more is told so, and the session goes on.
    places, slow = names.IN_FLIGHT_PER_SESSION_MAX, encoded(ms=BUSY_MS)
    asked = b"".join(frames.encode_request(number, "x_wait", slow) for number in range(1, places + 2))
    answered = await one.do("send_raw", peer=other.peer_id, data=asked.hex())
    told = _frames(answered)
    busy = [(frame.request_id, frame.code) for frame in told if isinstance(frame, frames.ErrorFrame)]
    assert busy == [(places + 1, Code.ERR_BUSY)], answered
    done = {frame.request_id for frame in told if isinstance(frame, frames.Answer)}
    assert done == set(range(1, places + 1)), answered


async def _large_ones_at_once(one: Peer, other: Peer) -> None:
    """Requests of which a server holds one at a time come in one piece, and nothing after them: all are answered."""
    data = encoded(data=bytes(LARGE))
    requests = b"".join(frames.encode_request(n, "x_echo", data) for n in range(LARGE_AT_ONCE))
    answered = await one.do("send_raw", peer=other.peer_id, data=requests.hex())
    answers = {
        frame.request_id: frame.body == data
        for frame in _frames(answered)
        if isinstance(frame, frames.Answer)
    }
    assert answers == dict.fromkeys(range(LARGE_AT_ONCE), True), answers


async def rr_streamed(ground: Ground, one: Peer, other: Peer) -> None:
    """An answer in parts, of all sizes up to the largest."""
    del ground
    for count, size in ((0, 0), (1, 1), (300, 7), (9, names.PART_BYTES_MAX)):
        whole = b"".join(bytes([number % 256]) * size for number in range(count))
        answer = await one.do(
            "request_parts", peer=other.peer_id, method="x_parts", body=body(count=count, size=size)
        )
        assert (answer["parts"], answer["bytes"]) == (count, len(whole))
        assert answer["hash"] == blake3(whole).hexdigest()
        assert answer["last"] == body(count=count)


async def rr_errors(ground: Ground, one: Peer, other: Peer) -> None:
    """Every code with all that an error frame carries, in a session, alone, and for what is not served."""
    del ground
    for one_shot in (False, True):
        for code in Code:
            sent = {"code": int(code), "retry_after_ms": 1_234, "message": "why: ü", "detail": b"\x01\x02"}
            error = await one.refused(
                "request", "rr", peer=other.peer_id, method="x_error", body=body(**sent), one_shot=one_shot
            )
            assert (error["code"], error["name"]) == (int(code), code.name), error
            assert (error["retry_after_ms"], error["detail"]) == (1_234, "0102"), error
            assert error["message"] == "why: ü", error
    unknown = await one.refused("request", "rr", peer=other.peer_id, method="no_such_method", body="a0")
    assert unknown["name"] == "ERR_UNSUPPORTED", unknown
    nobody = "a" * 32
    unserved = await one.refused(
        "request", "rr", peer=other.peer_id, method="get_genesis", body=body(world_id=nobody)
    )
    assert unserved["name"] in {"ERR_NOT_AVAILABLE", "ERR_NOT_FOUND"}, unserved
    missing = await one.refused(
        "request_parts", "rr", peer=other.peer_id, method="fetch_blob", body=body(content_hash=bytes(32))
    )
    assert missing["name"] == "ERR_NOT_FOUND", missing
    for bad in ("80", "bf", "a1616101f6"):  # no map; indefinite; bytes after the end
        refused = await one.refused("request", "rr", peer=other.peer_id, method="x_wait", body=bad)
        assert refused["name"] == "ERR_BAD_REQUEST", refused
    await one.do("request", peer=other.peer_id, method="x_echo", body="a0")


async def rr_oversize(ground: Ground, one: Peer, other: Peer) -> None:
    """Frames and bodies past their limits end their stream or request, and nothing else."""
    # A Python peer cuts off who breaks ten rules in ten minutes: not who asks on, nor one for all of it.
    for number, break_rules in enumerate((_oversize, _garbage), start=907):
        breaker = await ground.start(one.language, number)
        await connected(breaker, other)
        async with one_connection(breaker, other), one_connection(one, other):
            await break_rules(breaker, other)
        await breaker.stop()


async def _oversize(one: Peer, other: Peer) -> None:
    # A frame one byte over 1 MiB by its length; the rest need not come.
    length = names.FRAME_BYTES_MAX + 1
    varint = bytes([length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14])
    await _broken_off(one, other, varint + b"\x00\x00", told=[[]])
    # A request over 64 KiB for a method that takes no more: told so, and the session goes on.
    large = frames.encode_request(7, "x_echo", codec.encode({"data": bytes(names.REQUEST_BYTES_MAX)}))
    small = frames.encode_request(8, "x_echo", b"\xa0")
    answered = await one.do("send_raw", peer=other.peer_id, data=(large + small).hex())
    assert _errors(answered) == [7], answered
    assert _frames(answered)[1] == frames.Answer(8, b"\xa0"), answered
    slow = frames.encode_request(5, "x_wait", encoded(ms=BRIEF_MS))
    await _broken_off(one, other, slow + slow, told=[[5]])
    parts = frames.encode_request(0, "x_parts", encoded(count=MANY_PARTS, size=0))
    await _broken_off(one, other, parts + small, told=[[], [8]])
    # A method of parts wants a stream of its own: told so, and the session goes on.
    answered = await one.do("send_raw", peer=other.peer_id, data=(slow + parts + small).hex())
    assert _errors(answered) == [0], answered
    assert frames.Answer(8, b"\xa0") in _frames(answered), answered


async def _garbage(one: Peer, other: Peer) -> None:
    for garbage, request_id in GARBAGE.items():
        await _broken_off(
            one, other, bytes.fromhex(garbage), told=[[] if request_id is None else [request_id]]
        )


async def _broken_off(one: Peer, other: Peer, data: bytes, told: list[list[int]]) -> None:
    """The stream is ended behind an error, or reset where there is none; `told`: ids of the errors, one of these."""
    answered = await one.do("send_raw", peer=other.peer_id, data=data.hex())
    errors = _errors(answered)
    assert errors in told, (data, answered)
    assert answered["end"] in ({"reset", "eof"} if errors else ends_of_reset(one)), (data, answered)


def ends_of_reset(one: Peer) -> set[str]:
    """What a reset may be to the one who asked."""
    return {"reset", "eof"} if one.language in BLIND else {"reset"}


def _frames(answered: dict[str, Any]) -> list[object]:
    reader, found = frames.FrameReader(), list[object]()
    reader.feed(bytes.fromhex(answered["answer"]))
    while (frame := reader.next_frame()) is not frames.NEED_DATA:
        found.append(frame)
    return found


def _errors(answered: dict[str, Any]) -> list[int]:
    """Ids of the errors, each of them BAD_REQUEST."""
    errors = [frame for frame in _frames(answered) if isinstance(frame, frames.ErrorFrame)]
    assert all(error.code is Code.ERR_BAD_REQUEST for error in errors), errors
    return [error.request_id for error in errors]


async def rr_reset(ground: Ground, one: Peer, other: Peer) -> None:
    """A stream that either side resets in the middle of an answer is an error, and the connection lives."""
    del ground
    for after in (0, 1, 40):
        async with one_connection(one, other):
            await one.refused(
                "request_parts", "stream", peer=other.peer_id, method="x_reset", body=body(after=after)
            )
            asked = frames.encode_request(0, "x_reset", encoded(after=after))
            answered = await one.do("send_raw", peer=other.peer_id, data=asked.hex())
            assert answered["end"] in ends_of_reset(one), answered
            # A reset takes along what was not read yet.
            assert all(isinstance(frame, frames.Part) for frame in _frames(answered)), answered
    async with one_connection(one, other):  # who asks has had enough of it, long before its end
        many = body(count=MANY_PARTS, size=names.PART_BYTES_MAX)
        ask: dict[str, Any] = {"peer": other.peer_id, "method": "x_parts", "body": many}
        await one.refused("request_parts", "timeout", timeout_ms=ENOUGH_MS, **ask)


async def quick_streams(ground: Ground, one: Peer, other: Peer) -> None:
    """1,000 streams, each for one request, many at a time: none is lost, and the connection lives."""
    del ground
    async with one_connection(one, other):
        done = await one.do(
            "requests",
            peer=other.peer_id,
            method="x_echo",
            body="a0",
            count=QUICK_STREAMS,
            in_flight=QUICK_AT_ONCE,
            one_shot=True,
            timeout_ms=60_000,
            within_s=180,
        )
        assert (done["ok"], done["failed"]) == (QUICK_STREAMS, 0), done


async def blobs(ground: Ground, one: Peer, other: Peer) -> None:
    """Blobs are fetched and checked; false bytes are refused."""
    del ground
    for size in SIZES:
        put = await other.do("put_blob", seed=size, size=size)
        made = blake3(size.to_bytes(8, "big")).digest(length=size)
        assert put["content_hash"] == codec.content_id(made).hex()
        begun = await one.do("fetch", peer=other.peer_id, content_hash=put["content_hash"], length=size // 2)
        assert begun["size"] == size // 2
        fetched = await one.do("fetch", peer=other.peer_id, content_hash=put["content_hash"])
        assert fetched["size"] == size
    for forged, asked in _forgeries():
        content = codec.content_id(asked).hex()
        await other.do("forge_blob", content_hash=content, data=forged.hex())
        await one.refused("fetch", "refused", peer=other.peer_id, content_hash=content)
    await one.refused("fetch", "rr", peer=other.peer_id, content_hash=bytes(32).hex())


def _forgeries() -> Iterator[tuple[bytes, bytes]]:
    """(what is served, what was asked for): the last byte or the first is another, one is missing, or one is more."""
    for size in SIZES:
        sound = blake3(b"forged").digest(length=size)
        yield sound[:-1] + bytes([sound[-1] ^ 1]), sound
    sound = sound[: SIZES[1]]
    yield bytes([sound[0] ^ 1]) + sound[1:], sound
    yield sound[:-1], sound
    yield sound + b"\x00", sound
    yield b"", sound


ASKING: Final[dict[str, Scenario]] = {
    "rr one-shot": rr_one_shot,
    "rr session": rr_session,
    "rr streamed": rr_streamed,
    "rr error codes": rr_errors,
    "rr oversize": rr_oversize,
    "rr reset midway": rr_reset,
    "1,000 quick streams": quick_streams,
    "fetch + verify": blobs,
}

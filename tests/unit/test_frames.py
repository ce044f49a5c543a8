"""The frames of /aw/rr/1: exact bytes, and every way in which bytes are no frame."""

from __future__ import annotations

import pytest

from p2p import names
from p2p.errors import Code, FrameError
from p2p.frames import (
    NEED_DATA,
    Answer,
    ErrorFrame,
    FrameReader,
    OversizeRequest,
    Part,
    Request,
    encode_answer,
    encode_error,
    encode_part,
    encode_request,
)


def read_all(data, **kwargs):
    reader = FrameReader(**kwargs)
    reader.feed(data)
    frames = []
    while (frame := reader.next_frame()) is not NEED_DATA:
        frames.append(frame)
    return frames


def test_frames_have_these_bytes():
    assert encode_request(0, "status", b"\xa0") == bytes.fromhex("0a 00 00 06") + b"status" + b"\xa0"
    assert encode_answer(1, b"\xa0") == bytes.fromhex("03 01 01 a0")
    assert encode_part(300, b"xyz") == bytes.fromhex("06 02 ac02") + b"xyz"
    error = encode_error(7, Code.ERR_BUSY, "no", retry_after_ms=250, detail=b"\x80")
    assert error == bytes.fromhex("0a 03 07 07 fa01 0002") + b"no" + b"\x80"


def test_what_was_encoded_is_read_back():
    data = (
        encode_request(names.REQUEST_ID_MAX, "a_b", b"body")
        + encode_part(5, b"")
        + encode_answer(5, b"last")
        + encode_error(6, Code.ERR_NOT_AVAILABLE, "später", retry_after_ms=names.RETRY_AFTER_MS_MAX)
    )
    assert read_all(data) == [
        Request(names.REQUEST_ID_MAX, "a_b", b"body"),
        Part(5, b""),
        Answer(5, b"last"),
        ErrorFrame(6, Code.ERR_NOT_AVAILABLE, names.RETRY_AFTER_MS_MAX, "später", b""),
    ]


def test_a_frame_of_the_largest_size_passes_and_one_byte_more_does_not():
    head = 2
    largest = encode_answer(0, bytes(names.FRAME_BYTES_MAX - head))
    assert read_all(largest) == [Answer(0, bytes(names.FRAME_BYTES_MAX - head))]
    with pytest.raises(FrameError, match="length"):
        encode_answer(0, bytes(names.FRAME_BYTES_MAX - head + 1))


def test_a_frame_cut_off_is_waited_for():
    data = encode_request(1, "status", b"\xa0")
    reader = FrameReader()
    assert not reader.mid_frame
    for index, byte in enumerate(data):
        assert reader.next_frame() is NEED_DATA
        assert reader.mid_frame == (index > 0)
        reader.feed(bytes((byte,)))
    assert reader.next_frame() == Request(1, "status", b"\xa0")
    assert not reader.mid_frame


BAD = {
    "length over the limit": ("81 80 40", "length"),
    "length of four bytes": ("80 80 80 01", "length"),
    "length not minimal": ("83 00 01 01 a0", "length"),
    "length zero": ("00", "length"),
    "length one": ("01 01", "length"),
    "unknown type": ("03 04 01 a0", "type"),
    "id not minimal": ("04 01 81 00 a0", "id"),
    "id over 32 bits": ("06 01 80 80 80 80 10", "id"),
    "id of six bytes": ("08 01 80 80 80 80 80 01 a0", "id"),
    "id cut off by the frame's end": ("02 01 80", "id"),
    "method missing": ("02 00 01", "method"),
    "method empty": ("03 00 01 00", "method"),
    "method too long": ("44 00 01 41" + "61" * 65, "method"),
    "method cut off by the frame's end": ("04 00 01 02 61", "method"),
    "method in capitals": ("04 00 01 01 41", "method"),
    "method with a digit": ("04 00 01 01 31", "method"),
    "method with a line end": ("05 00 01 02 61 0a", "method"),
    "code missing": ("02 03 01", "code"),
    "code zero": ("06 03 01 00 00 00 00", "code"),
    "code eleven": ("06 03 01 0b 00 00 00", "code"),
    "retry_after_ms missing": ("03 03 01 01", "retry_after_ms"),
    "retry_after_ms not minimal": ("07 03 01 01 80 00 00 00", "retry_after_ms"),
    "retry_after_ms over 32 bits": ("0a 03 01 01 80 80 80 80 10 00 00", "retry_after_ms"),
    "message length missing": ("05 03 01 01 00 00", "message"),
    "message over the limit": ("06 03 01 01 00 04 01", "message"),
    "message cut off by the frame's end": ("07 03 01 01 00 00 02 61", "message"),
    "message not UTF-8": ("07 03 01 01 00 00 01 ff", "message"),
    "message of a surrogate": ("09 03 01 01 00 00 03 ed a0 80", "message"),
}


@pytest.mark.parametrize(("data", "field"), BAD.values(), ids=list(BAD))
def test_malformed_bytes_are_refused_with_the_field(data, field):
    with pytest.raises(FrameError) as error:
        read_all(bytes.fromhex(data))
    assert error.value.field == field


def test_a_part_over_its_limit_is_refused_in_both_directions():
    body = bytes(names.PART_BYTES_MAX + 1)
    with pytest.raises(FrameError, match=str(names.PART_BYTES_MAX)):
        encode_part(1, body)
    as_answer = bytearray(encode_answer(1, body))
    as_answer[3] = 2
    with pytest.raises(FrameError, match="part"):
        read_all(bytes(as_answer))


def test_a_bad_method_still_says_whom_to_tell():
    with pytest.raises(FrameError) as error:
        read_all(bytes.fromhex("04 00 09 01 41"))
    assert error.value.request_id == 9


def test_good_frames_before_a_bad_one_are_given_and_the_error_stays():
    reader = FrameReader()
    reader.feed(encode_answer(1, b"good") + b"\x03\x04\x01\xa0" + encode_answer(2, b"lost"))
    assert reader.next_frame() == Answer(1, b"good")
    for _ in range(2):
        with pytest.raises(FrameError, match="type"):
            reader.next_frame()


def test_the_type_is_judged_before_the_body_has_come():
    reader = FrameReader()
    reader.feed(encode_answer(1, bytes(1_000))[:2])
    assert reader.next_frame() is NEED_DATA
    reader.feed(b"\x09\x07")
    with pytest.raises(FrameError, match="type") as caught:
        reader.next_frame()
    assert caught.value.request_id == 7  # it can be read, so whoever sent it is told of which frame


def test_an_oversize_request_is_told_from_its_head_and_its_body_is_skipped():
    big = encode_request(3, "submit", bytes(5_000))
    reader = FrameReader(lambda method: {"submit": 1_000}.get(method, 64))
    reader.feed(big[:20])
    told = reader.next_frame()
    assert told == OversizeRequest(3, "submit", len(big) - 2, 1_000)
    assert reader.mid_frame
    for at in range(20, len(big), 100):
        assert reader.next_frame() is NEED_DATA
        reader.feed(big[at : at + 100])
        assert len(reader._buffer) <= 100
    reader.feed(encode_request(4, "other", b"fits"))
    assert reader.next_frame() == Request(4, "other", b"fits")


@pytest.mark.parametrize(
    ("encode", "field"),
    [
        (lambda: encode_request(-1, "a", b""), "id"),
        (lambda: encode_request(1 << 32, "a", b""), "id"),
        (lambda: encode_request(1, "", b""), "method"),
        (lambda: encode_request(1, "Upper", b""), "method"),
        (lambda: encode_request(1, "a" * 65, b""), "method"),
        (lambda: encode_request(1, "naïve", b""), "method"),
        (lambda: encode_request(1, "a", bytes(names.FRAME_BYTES_MAX)), "length"),
        (lambda: encode_error(1, Code.ERR_BUSY, "x" * 1_025), "message"),
        (lambda: encode_error(1, Code.ERR_BUSY, "ä" * 513), "message"),
        (lambda: encode_error(1, Code.ERR_BUSY, "", retry_after_ms=-1), "retry_after_ms"),
        (lambda: encode_error(1, Code.ERR_BUSY, "", retry_after_ms=1 << 32), "retry_after_ms"),
    ],
)
def test_what_no_frame_can_hold_is_not_encoded(encode, field):
    with pytest.raises(FrameError) as error:
        encode()
    assert error.value.field == field


def test_a_peer_id_is_spelled_in_base58_and_read_back():
    # A known answer: the hash of a published base58 example, with its leading zero byte.
    raw = bytes.fromhex("00010966776006953d5567439e5e39f86a0d273beed61967f6")
    assert names.peer_text(raw) == "16UwLL9Risc3QfPqBUvKofHmBQ7wMtjvM"
    assert names.peer_from_text("16UwLL9Risc3QfPqBUvKofHmBQ7wMtjvM") == raw
    peer = bytes.fromhex("002408011220") + bytes(range(32))
    assert names.peer_text(peer).startswith("12D3KooW")
    assert names.peer_from_text(names.peer_text(peer)) == peer
    assert names.peer_from_text("1") == b"\0"
    for bad in ("", "0", "l", "1" * 65, "12D3 "):
        with pytest.raises(ValueError, match="base58"):
            names.peer_from_text(bad)

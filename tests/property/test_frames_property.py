"""Frames over all values and all cuts."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from p2p import names
from p2p.errors import Code, FrameError
from p2p.frames import (
    NEED_DATA,
    Answer,
    ErrorFrame,
    FrameReader,
    Part,
    Request,
    encode_answer,
    encode_error,
    encode_part,
    encode_request,
)

ids = st.integers(0, names.REQUEST_ID_MAX)
bodies = st.binary(max_size=300)
methods = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=names.METHOD_BYTES_MAX)
messages = st.text(st.characters(exclude_categories=["Cs"]), max_size=names.ERROR_MESSAGE_BYTES_MAX // 4)
frames = st.one_of(
    st.builds(Request, ids, methods, bodies),
    st.builds(Answer, ids, bodies),
    st.builds(Part, ids, bodies),
    st.builds(ErrorFrame, ids, st.sampled_from(Code), st.integers(0, (1 << 32) - 1), messages, bodies),
)


def encode(frame):
    match frame:
        case Request(request_id, method, body):
            return encode_request(request_id, method, body)
        case Answer(request_id, body):
            return encode_answer(request_id, body)
        case Part(request_id, body):
            return encode_part(request_id, body)
        case ErrorFrame(request_id, code, retry_after_ms, message, detail):
            return encode_error(request_id, code, message, retry_after_ms=retry_after_ms, detail=detail)


def drain(reader):
    found = []
    while (frame := reader.next_frame()) is not NEED_DATA:
        found.append(frame)
    return found


@given(st.lists(frames, max_size=6), st.lists(st.integers(1, 400), min_size=1, max_size=20))
def test_frames_come_back_in_order_however_the_bytes_are_cut(sent, cuts):
    data = b"".join(encode(frame) for frame in sent)
    reader, found, at = FrameReader(), [], 0
    while at < len(data):
        for size in cuts:
            reader.feed(data[at : at + size])
            found += drain(reader)
            at += size
    assert found == sent
    assert not reader.mid_frame


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_of_one_spelling_or_refused(data):
    reader = FrameReader()
    reader.feed(data)
    found = []
    try:
        found = drain(reader)
    except FrameError:
        return
    spelled = b"".join(encode(frame) for frame in found)
    assert data.startswith(spelled)
    assert reader.mid_frame == (len(spelled) < len(data))


@given(frames, st.data())
def test_any_changed_byte_is_another_frame_or_refused(frame, data):
    raw = bytearray(encode(frame))
    index = data.draw(st.integers(0, len(raw) - 1))
    raw[index] ^= data.draw(st.integers(1, 255))
    reader = FrameReader()
    reader.feed(bytes(raw))
    with contextlib.suppress(FrameError):
        assert reader.next_frame() != frame


@given(st.binary(max_size=64))
def test_every_peer_id_survives_its_spelling(peer):
    text = names.peer_text(peer)
    if 1 <= len(text) <= 64:
        assert names.peer_from_text(text) == peer

"""Answers in parts over in-memory streams, as their caller takes them."""

from __future__ import annotations

import pytest

from p2p import frames
from p2p.errors import StreamBroken, Unreachable

SERVER = b"server"


async def test_a_streamed_answer_that_ends_early_is_unreachable(autojump_clock, asking):
    async with asking() as (asker, _), asker.client.request_parts(SERVER, "parts", b"") as answer:
        wire = await asker.far.next()
        await wire.frame()
        await wire.send(frames.encode_part(0, b"one"))
        await wire.stream.close()
        assert await answer.part() == b"one"
        with pytest.raises(Unreachable):
            await answer.part()


async def test_a_streamed_answer_of_another_id_is_marked(autojump_clock, asking):
    async with asking() as (asker, _), asker.client.request_parts(SERVER, "parts", b"") as answer:
        wire = await asker.far.next()
        await wire.frame()
        await wire.send(frames.encode_part(1, b"one"))
        with pytest.raises(Unreachable):
            await answer.part()
        assert asker.marks == ["an answer to no request"]


async def test_leaving_before_the_answer_resets_the_stream(autojump_clock, asking):
    async with asking() as (asker, _):
        async with asker.client.request_parts(SERVER, "parts", b""):
            wire = await asker.far.next()
            await wire.frame()
        with pytest.raises(StreamBroken):
            await wire.frame()


async def test_a_whole_streamed_answer_ends_in_order(autojump_clock, asking):
    async with asking() as (asker, _):
        async with asker.client.request_parts(SERVER, "parts", b"") as answer:
            wire = await asker.far.next()
            await wire.frame()
            await wire.send(frames.encode_answer(0, b"all"))
            assert await answer.part() is None
            assert answer.last == b"all"
        assert await wire.frame() is None

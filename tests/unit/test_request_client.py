"""RequestClient over in-memory streams, against scripted servers, under trio's mock clock."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import trio

from p2p import frames, names, sessions
from p2p.errors import Code, RequestTimeout, StreamBroken, Unreachable
from p2p.network import Route
from p2p.request_response import RequestClient, Router

OWN = b"own"


async def answer_all(wire, count=None):
    """Echo every request."""
    served = 0
    while served != count and (frame := await wire.frame()) is not None:
        await wire.send(frames.encode_answer(frame.request_id, frame.body))
        served += 1


async def test_requests_to_a_peer_share_one_stream(autojump_clock, asking):
    async with asking() as (asker, nursery):
        for number in range(5):
            nursery.start_soon(asker.ask, number, 1_000, b"%d" % number)
        wire = await asker.far.next()
        await answer_all(wire, 5)
        await trio.testing.wait_all_tasks_blocked()
        assert asker.outcomes == {number: b"%d" % number for number in range(5)}
        assert asker.far.opened == 1
        assert len(asker.far.near[0].writes) <= 2  # and writes


async def test_at_most_32_requests_are_on_the_wire(autojump_clock, asking):
    async with asking() as (asker, nursery):
        for number in range(40):
            nursery.start_soon(asker.ask, number)
        wire = await asker.far.next()
        first = [await wire.frame() for _ in range(32)]
        assert len({frame.request_id for frame in first}) == 32
        with trio.move_on_after(1) as quiet:
            await wire.frame()
        assert quiet.cancelled_caught
        await wire.send(frames.encode_answer(first[0].request_id, b""))
        assert isinstance(await wire.frame(), frames.Request)


async def test_a_dead_stream_is_replaced_for_the_next_request(autojump_clock, asking):
    async with asking() as (asker, nursery):
        nursery.start_soon(asker.ask, "first")
        wire = await asker.far.next()
        await answer_all(wire, 1)
        await trio.testing.wait_all_tasks_blocked()
        await wire.stream.reset()
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(asker.ask, "second")
        await answer_all(await asker.far.next(), 1)
        await trio.testing.wait_all_tasks_blocked()
        assert asker.outcomes == {"first": b"", "second": b""}


async def test_what_was_sent_is_unreachable_and_what_was_not_is_sent_on_a_new_stream(autojump_clock, asking):
    async with asking() as (asker, nursery):
        for number in range(36):
            nursery.start_soon(asker.ask, number)
        wire = await asker.far.next()
        for _ in range(32):
            await wire.frame()
        await wire.stream.reset()
        second = await asker.far.next()
        await answer_all(second, 4)
        await trio.testing.wait_all_tasks_blocked()
        lost = [outcome for outcome in asker.outcomes.values() if isinstance(outcome, Unreachable)]
        assert (len(lost), len(asker.outcomes)) == (32, 36)
        assert asker.far.opened == 2
        assert asker.counters["rr.retries"] == 4


async def test_a_peer_that_cannot_be_opened_is_tried_once(autojump_clock, asking):
    async with asking() as (asker, nursery):
        asker.far.fail_with = Unreachable("server", "refused")
        for name in ("one", "two"):
            nursery.start_soon(asker.ask, name)
        await trio.testing.wait_all_tasks_blocked()
        assert [type(outcome) for outcome in asker.outcomes.values()] == [Unreachable, Unreachable]
        assert asker.far.opened == 1
        asker.far.fail_with = None
        nursery.start_soon(asker.ask, "three")
        await answer_all(await asker.far.next(), 1)
        await trio.testing.wait_all_tasks_blocked()
        assert asker.outcomes["three"] == b""


async def test_after_too_many_abandoned_requests_a_new_session_serves_and_the_old_one_ends(
    autojump_clock, asking
):
    async with asking() as (asker, nursery):
        nursery.start_soon(asker.ask, "patient", 20_000)
        quiet = await asker.far.next()
        patient = await quiet.frame()
        for number in range(sessions.ABANDONED_PER_SESSION_MAX):
            nursery.start_soon(asker.ask, number, 100)
        await trio.sleep(1)
        nursery.start_soon(asker.ask, "next")
        await answer_all(await asker.far.next(), 1)
        await quiet.send(frames.encode_answer(patient.request_id, b"at last"))
        await trio.testing.wait_all_tasks_blocked()
        assert asker.outcomes["next"] == b""
        assert asker.outcomes["patient"] == b"at last"
        assert isinstance(asker.outcomes[0], RequestTimeout)
        while await quiet.frame() is not None:  # the old session ends its writing, since nobody waits on it
            pass


class DeafStream:
    """One whose reader is never told the end, as of a connection that died in the library; `fails`: writes tell."""

    def __init__(self, inner, *, fails):
        self._inner = inner
        self._fails = fails
        self.cancelled = 0  # its reads are given up on purpose
        self.is_up = True
        self.ended = trio.Event()

    async def read(self, bytes_max):
        if self.is_up:
            with trio.move_on_after(1):
                return await self._inner.read(bytes_max)
        await self.ended.wait()
        return b""

    async def write(self, data):
        if not self.is_up and self._fails:
            raise StreamBroken("MuxedStreamClosed")
        if not self.is_up:
            await self.ended.wait()
        await self._inner.write(data)

    async def close(self):
        await self._inner.close()

    async def reset(self):
        await self._inner.reset()


@pytest.mark.parametrize("fails", [True, False])
async def test_a_stream_whose_reader_is_never_told_the_end_holds_up_nobody_for_long(
    autojump_clock, asking, fails
):
    async with asking() as (asker, nursery):
        usual, asker.far.wrap = asker.far.wrap, partial(DeafStream, fails=fails)
        nursery.start_soon(asker.ask, "first")
        await answer_all(await asker.far.next(), 1)
        await trio.testing.wait_all_tasks_blocked()
        deaf = asker.far.near[-1]
        deaf.is_up = False
        await trio.sleep(2)
        asker.far.wrap = usual
        for number in range(1 if fails else sessions.ABANDONED_PER_SESSION_MAX):
            await asker.ask(number, 100)
        nursery.start_soon(asker.ask, "next", 1_000)
        await answer_all(await asker.far.next(), 1)
        await trio.testing.wait_all_tasks_blocked()
        assert asker.outcomes["next"] == b""
        deaf.ended.set()


async def test_a_late_answer_is_discarded(autojump_clock, asking):
    async with asking() as (asker, nursery):
        nursery.start_soon(asker.ask, "late", 100)
        wire = await asker.far.next()
        late = await wire.frame()
        await trio.sleep(1)
        await wire.send(frames.encode_answer(late.request_id, b"late"))
        nursery.start_soon(asker.ask, "next")
        await answer_all(wire, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert asker.outcomes["next"] == b""
        assert asker.counters["rr.late_answers"] == 1
        assert asker.marks == []


async def test_a_request_abandoned_before_it_was_written_is_never_written(autojump_clock, asking):
    async with asking() as (asker, nursery):
        for number in range(32):
            nursery.start_soon(asker.ask, number)
        wire = await asker.far.next()
        on_wire = [await wire.frame() for _ in range(32)]
        await asker.ask("impatient", 100, b"never")
        assert isinstance(asker.outcomes["impatient"], RequestTimeout)
        for frame in on_wire:
            await wire.send(frames.encode_answer(frame.request_id, b""))
        nursery.start_soon(asker.ask, "next", 1_000, b"next")
        assert (await wire.frame()).body == b"next"


async def test_an_idle_session_is_closed_in_order_and_opened_again(autojump_clock, asking):
    async with asking() as (asker, nursery):
        nursery.start_soon(asker.ask, "first")
        wire = await asker.far.next()
        await answer_all(wire, 1)
        started = trio.current_time()
        assert await wire.frame() is None
        assert trio.current_time() - started == pytest.approx(names.SESSION_IDLE_MS / 1000)
        await wire.stream.close()
        nursery.start_soon(asker.ask, "second")
        await answer_all(await asker.far.next(), 1)
        await trio.testing.wait_all_tasks_blocked()
        assert asker.outcomes["second"] == b""


@pytest.mark.parametrize("attempt", range(10))
async def test_a_request_at_the_very_end_of_the_idle_time_is_answered_however_late(
    autojump_clock, asking, attempt
):
    async with asking() as (asker, nursery):
        nursery.start_soon(asker.ask, "first")
        wire = await asker.far.next()
        idle_from = trio.current_time()
        await answer_all(wire, 1)

        async def ask_at_the_end():
            await trio.sleep_until(idle_from + names.SESSION_IDLE_MS / 1000)
            await asker.ask("second")  # in the same turn as the idle timer: either may come first

        nursery.start_soon(ask_at_the_end)
        await trio.sleep_until(idle_from + names.SESSION_IDLE_MS / 1000)
        with trio.move_on_after(1) as same_stream:
            frame = await wire.frame()
        if same_stream.cancelled_caught or frame is None:
            await wire.stream.close()
            wire = await asker.far.next()
            frame = await wire.frame()
        await trio.sleep(20)
        await wire.send(frames.encode_answer(frame.request_id, b"late"))
        await trio.testing.wait_all_tasks_blocked()
        assert asker.outcomes["second"] == b"late"


async def test_a_closed_stream_whose_peer_does_not_end_is_reset(autojump_clock, asking):
    async with asking() as (asker, nursery):
        nursery.start_soon(asker.ask, "first")
        wire = await asker.far.next()
        await answer_all(wire, 1)
        assert await wire.frame() is None
        await trio.sleep(10)
        with pytest.raises(StreamBroken):
            await wire.frame()


@pytest.mark.parametrize(
    "reply",
    [
        frames.encode_answer(99, b""),
        frames.encode_part(0, b""),
        frames.encode_request(0, "echo", b""),
        b"\xff\xff\xff",
        b"\x03\x09\x00\x00",
    ],
    ids=["unknown id", "part", "request", "length", "type"],
)
async def test_an_answer_against_the_rules_is_marked_and_the_stream_reset(autojump_clock, asking, reply):
    async with asking() as (asker, nursery):
        nursery.start_soon(asker.ask, "victim")
        wire = await asker.far.next()
        await wire.frame()
        await wire.send(reply)
        with pytest.raises(StreamBroken):
            await wire.frame()
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(asker.outcomes["victim"], Unreachable)
        assert len(asker.marks) == 1


async def test_a_request_that_fits_no_frame_is_a_bad_request_and_opens_nothing_twice(autojump_clock, asking):
    async with asking() as (asker, _):
        await asker.ask("huge", body=bytes(names.FRAME_BYTES_MAX))
        assert asker.outcomes["huge"].code is Code.ERR_BAD_REQUEST


async def test_when_the_client_ends_its_waiters_are_told(autojump_clock, new_asker):
    asker = new_asker()
    async with trio.open_nursery() as callers:
        async with trio.open_nursery() as owner:
            await owner.start(asker.client.run)
            callers.start_soon(asker.ask, "waiting")
            wire = await asker.far.next()
            await wire.frame()
            owner.cancel_scope.cancel()
    await asker.ask("after")
    assert [type(outcome) for outcome in asker.outcomes.values()] == [Unreachable, Unreachable]


async def test_an_own_request_goes_on_when_its_waiter_leaves(autojump_clock):
    done = trio.Event()

    async def slow(caller, body):
        await trio.sleep(5)
        done.set()
        return b""

    async def open_stream(peer):
        raise Unreachable("own", "nobody dials itself")

    counters = Counter()
    client = RequestClient(open_stream, OWN, Router({"slow": Route(slow)}, counters), counters)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        with pytest.raises(RequestTimeout):
            await client.request(OWN, "slow", b"", deadline_ms=1_000)
        await done.wait()
        nursery.cancel_scope.cancel()

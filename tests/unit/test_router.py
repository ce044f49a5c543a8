"""Router over in-memory streams, against scripted callers, under trio's mock clock."""

from __future__ import annotations

import pytest
import trio

from p2p import frames, names
from p2p.errors import Code, RequestFailed, StreamBroken, Unreachable
from p2p.memory_streams import WINDOW_BYTES_MAX
from p2p.network import PartsRoute, Route

KEPT = b"kept"  # has a place held
ECHO = frames.encode_request(0, "echo", b"hi")


async def echo(caller, body):
    return body


async def hang(caller, body):
    await trio.sleep_forever()


async def test_one_request_is_answered_without_waiting_for_the_peers_end(autojump_clock, serving):
    async with serving({"echo": Route(echo)}) as server:
        wire = server.open()
        await wire.send(ECHO)
        assert await wire.frame() == frames.Answer(0, b"hi")
        await wire.stream.reset()
        await wire.served.wait()


async def test_a_peer_that_ends_its_writing_first_still_gets_its_answer_and_an_end(autojump_clock, serving):
    async def slow(caller, body):
        await trio.sleep(5)
        return body

    async with serving({"echo": Route(slow)}) as server:
        wire = server.open()
        await wire.send(ECHO)
        await wire.stream.close()
        assert await wire.frame() == frames.Answer(0, b"hi")
        assert await wire.frame() is None
        await wire.served.wait()
        assert server.marks == []


async def test_answers_go_out_as_they_finish(autojump_clock, serving):
    async def nap(caller, body):
        await trio.sleep(int(body))
        return body

    async with serving({"nap": Route(nap)}) as server:
        wire = server.open()
        await wire.send(*(frames.encode_request(n, "nap", b"%d" % n) for n in (3, 1, 2)))
        assert [(await wire.frame()).request_id for _ in range(3)] == [1, 2, 3]


async def test_small_answers_share_a_write(autojump_clock, serving):
    async with serving({"echo": Route(echo)}) as server:
        wire = server.open()
        await wire.send(*(frames.encode_request(n, "echo", b"x") for n in range(20)))
        for _ in range(20):
            assert isinstance(await wire.frame(), frames.Answer)
        assert len(wire.server_stream.writes) <= 2


async def test_an_id_in_flight_used_again_is_told_and_ends_the_stream(autojump_clock, serving):
    async with serving({"hang": Route(hang)}) as server:
        wire = server.open()
        request = frames.encode_request(7, "hang", b"")
        await wire.send(request, request)
        frame = await wire.frame()
        assert (frame.request_id, frame.code) == (7, Code.ERR_BAD_REQUEST)
        assert await wire.frame() is None
        await wire.served.wait()  # also when the peer never ends its writing
        assert server.marks == ["an id in flight used again"]
        assert server.counters["rr.bad_frame"] == 1


async def test_an_id_may_be_used_again_after_its_answer(autojump_clock, serving):
    async with serving({"echo": Route(echo)}) as server:
        wire = server.open()
        for _ in range(3):
            await wire.send(ECHO)
            assert await wire.frame() == frames.Answer(0, b"hi")
        assert server.marks == []


@pytest.mark.parametrize(("data", "field"), [("04 00 09 01 41", "method"), ("03 04 09 00", "type")])
async def test_a_bad_method_or_type_is_told_to_its_request(autojump_clock, serving, data, field):
    async with serving({}) as server:
        wire = server.open()
        await wire.send(bytes.fromhex(data))
        frame = await wire.frame()
        assert (frame.request_id, frame.code) == (9, Code.ERR_BAD_REQUEST)
        assert await wire.frame() is None
        assert server.marks == [f"bad frame: {field}"]


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff", frames.encode_answer(0, b""), frames.encode_part(0, b"")],
    ids=["length", "answer", "part"],
)
async def test_what_cannot_be_told_resets_the_stream_and_ends_its_handlers(autojump_clock, serving, data):
    cancelled = trio.Event()

    async def until_cancelled(caller, body):
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with serving({"wait": Route(until_cancelled)}) as server:
        wire = server.open()
        await wire.send(frames.encode_request(1, "wait", b""))
        await trio.testing.wait_all_tasks_blocked()
        await wire.send(data)
        with pytest.raises(StreamBroken):
            await wire.frame()
        await wire.served.wait()
        assert cancelled.is_set()
        assert len(server.marks) == 1


async def test_a_stream_that_is_reset_cancels_its_handlers(autojump_clock, serving):
    cancelled = trio.Event()

    async def until_cancelled(caller, body):
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with serving({"wait": Route(until_cancelled)}) as server:
        wire = server.open()
        await wire.send(frames.encode_request(1, "wait", b""))
        await trio.testing.wait_all_tasks_blocked()
        await wire.stream.reset()
        await wire.served.wait()
        assert cancelled.is_set()
        assert server.router.loads.in_flight == 0


async def test_a_stream_that_ends_inside_a_frame_is_marked(autojump_clock, serving):
    async with serving({"echo": Route(echo)}) as server:
        wire = server.open()
        await wire.send(ECHO[:-1])
        await wire.stream.close()
        await wire.served.wait()
        assert server.marks == ["unfinished"]


async def test_busy_past_what_one_session_may_have_in_flight(autojump_clock, serving):
    async with serving({"hang": Route(hang), "echo": Route(echo)}) as server:
        wire = server.open()
        limit = names.IN_FLIGHT_PER_SESSION_MAX
        await wire.send(*(frames.encode_request(n, "hang", b"") for n in range(limit + 1)))
        frame = await wire.frame()
        assert (frame.request_id, frame.code) == (limit, Code.ERR_BUSY)
        assert frame.retry_after_ms > 0
        assert server.marks == []


async def test_busy_past_what_one_peer_may_have_in_flight_while_others_are_served(autojump_clock, serving):
    routes = {"hang": Route(hang), "echo": Route(echo)}
    async with serving(routes, in_flight_per_peer_max=3) as server:
        first, second = server.open(), server.open()
        await first.send(*(frames.encode_request(n, "hang", b"") for n in range(3)))
        await trio.testing.wait_all_tasks_blocked()
        await second.send(ECHO)
        assert await second.error_code() is Code.ERR_BUSY
        other = server.open(b"another peer")
        await other.send(ECHO)
        assert await other.frame() == frames.Answer(0, b"hi")
        await first.stream.reset()
        await first.served.wait()
        await second.send(ECHO)
        assert await second.frame() == frames.Answer(0, b"hi")


async def test_busy_past_what_all_may_have_in_flight(autojump_clock, serving):
    routes = {"hang": Route(hang), "echo": Route(echo)}
    async with serving(routes, in_flight_total_max=2) as server:
        for peer in (b"a", b"b"):
            await server.open(peer).send(frames.encode_request(0, "hang", b""))
        await trio.testing.wait_all_tasks_blocked()
        wire = server.open(b"c")
        await wire.send(ECHO)
        assert await wire.error_code() is Code.ERR_BUSY


async def test_too_many_requests_in_a_second_are_told_when_to_come_again(autojump_clock, serving):
    async with serving({"echo": Route(echo)}, requests_per_s_max=5) as server:
        wire = server.open()
        for _ in range(5):
            await wire.send(ECHO)
            assert isinstance(await wire.frame(), frames.Answer)
        await wire.send(ECHO)
        frame = await wire.frame()
        assert (frame.code, frame.retry_after_ms) == (Code.ERR_RATE_LIMITED, 200)
        await trio.sleep(0.2)
        await wire.send(ECHO)
        assert isinstance(await wire.frame(), frames.Answer)
        assert server.counters["rr.rate_limited"] == 1
        assert server.marks == []


async def test_a_costly_method_counts_as_several_requests(autojump_clock, serving):
    async with serving({"echo": Route(echo), "dear": Route(echo, cost=4)}, requests_per_s_max=5) as server:
        wire = server.open()
        await wire.send(frames.encode_request(0, "dear", b""))
        assert isinstance(await wire.frame(), frames.Answer)
        await wire.send(frames.encode_request(0, "dear", b""))
        frame = await wire.frame()
        assert (frame.code, frame.retry_after_ms) == (Code.ERR_RATE_LIMITED, 600)
        await wire.send(ECHO)
        assert isinstance(await wire.frame(), frames.Answer)


async def test_a_strangers_large_request_counts_as_several_and_a_kept_peers_as_one(autojump_clock, serving):
    large = frames.encode_request(0, "echo", bytes(3 * names.REQUEST_BYTES_AS_ONE))
    async with serving({"echo": Route(echo)}, requests_per_s_max=5) as server:
        for peer, second in ((b"stranger", frames.ErrorFrame), (KEPT, frames.Answer)):
            wire = server.open(peer)
            await wire.send(large)
            assert isinstance(await wire.frame(), frames.Answer)
            await wire.send(large)
            assert isinstance(await wire.frame(), second)


async def test_the_last_quarter_of_all_places_is_for_kept_peers(autojump_clock, serving):
    routes = {"hang": Route(hang), "echo": Route(echo)}
    async with serving(routes, in_flight_total_max=4) as server:
        for peer in (b"a", b"b", b"c"):
            await server.open(peer).send(frames.encode_request(0, "hang", b""))
        await trio.testing.wait_all_tasks_blocked()
        stranger, kept = server.open(b"d"), server.open(KEPT)
        await stranger.send(ECHO)
        assert await stranger.error_code() is Code.ERR_BUSY
        await kept.send(ECHO)
        assert isinstance(await kept.frame(), frames.Answer)


async def test_the_rate_is_the_peers_and_not_the_streams(autojump_clock, serving):
    async with serving({"echo": Route(echo)}, requests_per_s_max=1) as server:
        first, second = server.open(), server.open()
        await first.send(ECHO)
        assert isinstance(await first.frame(), frames.Answer)
        await first.stream.reset()
        await second.send(ECHO)
        assert await second.error_code() is Code.ERR_RATE_LIMITED


async def test_too_many_bytes_in_a_second_are_refused_even_when_oversize(autojump_clock, serving):
    route = Route(echo, request_bytes_max=1_000)
    async with serving({"echo": route}, request_bytes_per_s_max=2_500) as server:
        wire = server.open()
        for size, code in ((2_400, Code.ERR_BAD_REQUEST), (900, Code.ERR_RATE_LIMITED)):
            await wire.send(frames.encode_request(0, "echo", bytes(size)))
            assert await wire.error_code() is code


async def test_streams_past_the_limit_are_told_busy_and_far_past_it_reset(autojump_clock, serving):
    async with serving({"echo": Route(echo)}, streams_per_peer_max=2) as server:
        good = [server.open() for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked()
        refused = [server.open() for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked()
        reset = server.open()
        with pytest.raises(StreamBroken):
            await reset.frame()
        for wire in refused:
            await wire.send(ECHO)
            assert await wire.error_code() is Code.ERR_BUSY
            assert await wire.frame() is None
        await good[0].send(ECHO)
        assert await good[0].frame() == frames.Answer(0, b"hi")
        assert server.marks == []


async def test_a_stream_without_a_first_byte_is_reset_in_time(autojump_clock, serving):
    async with serving({}) as server:
        wire = server.open()
        started = trio.current_time()
        with pytest.raises(StreamBroken):
            await wire.frame()
        assert trio.current_time() - started == pytest.approx(names.REQUEST_FIRST_BYTE_MS / 1000)


async def test_a_frame_that_comes_too_slowly_resets_the_stream(autojump_clock, serving):
    async with serving({"echo": Route(echo)}) as server:
        wire = server.open()
        started = trio.current_time()

        async def trickle():
            for byte in frames.encode_request(0, "echo", bytes(100)):
                await wire.send(bytes((byte,)))
                await trio.sleep(1)

        with pytest.raises(StreamBroken):
            await trickle()
        assert trio.current_time() - started == pytest.approx(names.REQUEST_TOTAL_MS / 1000, abs=1.5)


async def test_a_session_outlives_the_frame_deadline_after_an_oversize_request(autojump_clock, serving):
    async with serving({"echo": Route(echo, request_bytes_max=1_000)}) as server:
        wire = server.open()
        request = frames.encode_request(0, "echo", bytes(5_000))
        await wire.send(request[:2_000])
        assert await wire.error_code() is Code.ERR_BAD_REQUEST
        await wire.send(request[2_000:])
        await trio.sleep(names.REQUEST_TOTAL_MS / 1000 + 1)
        await wire.send(ECHO)
        assert await wire.frame() == frames.Answer(0, b"hi")


async def test_an_idle_session_is_reset_after_the_client_should_have_closed_it(autojump_clock, serving):
    async with serving({"echo": Route(echo)}) as server:
        wire = server.open()
        await wire.send(ECHO)
        assert await wire.frame() == frames.Answer(0, b"hi")
        started = trio.current_time()
        with pytest.raises(StreamBroken):
            await wire.frame()
        assert trio.current_time() - started > names.SESSION_IDLE_MS / 1000


async def test_a_peer_that_does_not_read_its_answers_is_reset_and_holds_little(autojump_clock, serving):
    async def large(caller, body):
        return bytes(200_000)

    async with serving({"large": Route(large)}) as server:
        wire = server.open()
        await wire.send(*(frames.encode_request(n, "large", b"") for n in range(30)))
        await wire.served.wait()
        assert sum(len(data) for data in wire.server_stream.writes) < WINDOW_BYTES_MAX + 400_000
        assert server.router.loads.in_flight == 0


async def test_a_request_for_parts_needs_a_stream_of_its_own(autojump_clock, serving):
    async def parts(caller, body, send_part):
        await send_part(b"part")
        return b"last"

    routes = {"hang": Route(hang), "parts": PartsRoute(parts)}
    async with serving(routes) as server:
        wire = server.open()
        await wire.send(frames.encode_request(1, "hang", b""), frames.encode_request(2, "parts", b""))
        frame = await wire.frame()
        assert (frame.request_id, frame.code) == (2, Code.ERR_BAD_REQUEST)
        alone = server.open()
        await alone.send(frames.encode_request(2, "parts", b""))
        assert [await alone.frame() for _ in range(3)] == [
            frames.Part(2, b"part"),
            frames.Answer(2, b"last"),
            None,
        ]
        assert server.marks == []


async def test_a_slow_caller_still_gets_the_end_of_a_streamed_answer(autojump_clock, serving):
    async def parts(caller, body, send_part):
        await send_part(bytes(100_000))
        return b"last"

    async with serving({"parts": PartsRoute(parts)}) as server:
        wire = server.open()
        await wire.send(frames.encode_request(0, "parts", b""))
        await trio.sleep(20)
        assert await wire.frame() == frames.Part(0, bytes(100_000))
        assert await wire.frame() == frames.Answer(0, b"last")
        assert await wire.frame() is None
        await wire.served.wait()  # a caller that never ends its writing is let go of


async def test_anything_after_a_request_for_parts_resets_and_ends_the_handler(autojump_clock, serving):
    cancelled = trio.Event()

    async def parts(caller, body, send_part):
        try:
            await send_part(b"part")
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with serving({"parts": PartsRoute(parts)}) as server:
        wire = server.open()
        await wire.send(frames.encode_request(0, "parts", b""))
        assert await wire.frame() == frames.Part(0, b"part")
        await wire.send(ECHO)
        with pytest.raises(StreamBroken):
            await wire.frame()
        await wire.served.wait()
        assert cancelled.is_set()
        assert server.marks == ["more after a request for parts"]


async def test_what_comes_in_one_piece_with_a_request_for_parts_resets_too(autojump_clock, serving):
    async def parts(caller, body, send_part):
        await trio.sleep_forever()

    async with serving({"parts": PartsRoute(parts)}) as server:
        wire = server.open()
        await wire.send(frames.encode_request(0, "parts", b"") + ECHO)
        with pytest.raises(StreamBroken):
            await wire.frame()
        await wire.served.wait()
        assert server.marks == ["more after a request for parts"]


async def test_a_parts_handler_is_never_more_than_two_parts_ahead_of_the_stream(autojump_clock, serving):
    sent = 0

    async def flood(caller, body, send_part):
        nonlocal sent
        while True:
            await send_part(bytes(names.PART_BYTES_MAX))
            sent += 1

    async with serving({"flood": PartsRoute(flood)}) as server:
        wire = server.open()
        await wire.send(frames.encode_request(0, "flood", b""))
        await trio.testing.wait_all_tasks_blocked()
        assert sent <= 3  # one in the window, one being written, one waiting
        await wire.stream.reset()
        await wire.served.wait()


async def test_a_handler_that_another_peer_failed_is_no_bug(autojump_clock, serving):
    async def relay(caller, body):
        raise Unreachable("12D3", "gone")

    async with serving({"relay": Route(relay)}) as server:
        wire = server.open()
        await wire.send(frames.encode_request(0, "relay", b""))
        assert await wire.error_code() is Code.ERR_NOT_AVAILABLE
        assert server.counters["rr.handler_bug"] == 0


async def test_an_overlong_error_is_cut_to_fit(autojump_clock, serving):
    async def wordy(caller, body):
        raise RequestFailed(Code.ERR_NOT_FOUND, "ä" * 5_000, retry_after_ms=1 << 40, detail=bytes(1 << 21))

    async with serving({"wordy": Route(wordy)}) as server:
        wire = server.open()
        await wire.send(frames.encode_request(0, "wordy", b""))
        frame = await wire.frame()
        assert frame.code is Code.ERR_NOT_FOUND
        assert frame.message == "ä" * 512
        assert (frame.retry_after_ms, frame.detail) == (names.RETRY_AFTER_MS_MAX, b"")


@pytest.mark.parametrize("answer", [bytes(names.ANSWER_BYTES_MAX + 1), None, "text"])
async def test_an_answer_that_fits_no_frame_is_a_bug(autojump_clock, serving, answer):
    async def bad(caller, body):
        return answer

    async with serving({"bad": Route(bad)}) as server:
        wire = server.open()
        await wire.send(frames.encode_request(0, "bad", b""))
        assert await wire.error_code() is Code.ERR_NOT_AVAILABLE
        assert server.counters["rr.handler_bug"] == 1


async def test_the_account_of_peers_is_bounded(autojump_clock, serving):
    async with serving({"echo": Route(echo)}, peers_remembered_max=10) as server:
        staying = server.open(b"staying")
        await staying.send(ECHO)
        assert await staying.frame() == frames.Answer(0, b"hi")
        for number in range(100):
            wire = server.open(b"peer %d" % number)
            await wire.stream.reset()
            await wire.served.wait()
        assert len(server.router.loads) <= 10
        assert server.router.loads.of(b"staying", trio.current_time()).streams == 1

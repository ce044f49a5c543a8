"""Router and RequestClient over in-memory streams, against scripted peers, under trio's mock clock."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from p2p import frames, names, sessions
from p2p.errors import Code, RequestFailed, RequestTimeout, StreamBroken, Unreachable
from p2p.loads import TokenBucket
from p2p.memory_streams import WINDOW_BYTES_MAX, stream_pair
from p2p.network import PartsRoute, Route
from p2p.request_response import RequestClient, Router, RouterLimits

CALLER = b"caller"
SERVER = b"server"
OWN = b"own"


class WatchedStream:
    """A stream that counts writes and notices when raw I/O is cancelled, which libp2p would not survive."""

    def __init__(self, inner):
        self._inner = inner
        self.writes = []
        self.cancelled = 0

    async def read(self, bytes_max):
        return await self._uncancelled(self._inner.read(bytes_max))

    async def write(self, data):
        self.writes.append(data)
        await self._uncancelled(self._inner.write(data))

    async def close(self):
        await self._inner.close()

    async def reset(self):
        await self._inner.reset()

    async def _uncancelled(self, work):
        try:
            return await work
        except trio.Cancelled:
            self.cancelled += 1
            raise


class Wire:
    """The far end of a stream: speaks frames by hand."""

    def __init__(self, stream):
        self.stream = stream
        self.reader = frames.FrameReader()

    async def send(self, *data):
        await self.stream.write(b"".join(data))

    async def frame(self):
        """The next frame, or None at the end."""
        while (frame := self.reader.next_frame()) is frames.NEED_DATA:
            data = await self.stream.read(65_536)
            if not data:
                return None
            self.reader.feed(data)
        return frame

    async def error_code(self):
        frame = await self.frame()
        assert isinstance(frame, frames.ErrorFrame), frame
        return frame.code


KEPT = b"kept"  # has a place held


class Serving:
    """A router with its account of marks and its running streams."""

    def __init__(self, nursery, routes, limits):
        self.counters = Counter()
        self.marks = []
        self.router = Router(
            routes,
            self.counters,
            limits=limits,
            on_mark=lambda peer, reason: self.marks.append(reason),
            is_kept=lambda peer: peer == KEPT,
        )
        self.streams = []
        self._nursery = nursery

    def open(self, peer=CALLER):
        """A new stream of `peer`: its far end, and an event for when `serve` has returned."""
        near, far = stream_pair()
        stream = WatchedStream(near)
        self.streams.append(stream)
        wire = Wire(far)
        wire.served = trio.Event()
        wire.server_stream = stream

        async def serve():
            await self.router.serve(stream, peer)
            wire.served.set()

        self._nursery.start_soon(serve)
        return wire


@asynccontextmanager
async def serving(routes, **limits):
    async with trio.open_nursery() as nursery:
        server = Serving(nursery, routes, RouterLimits(**limits))
        yield server
        assert [stream.cancelled for stream in server.streams] == [0] * len(server.streams)
        nursery.cancel_scope.cancel()


async def echo(caller, body):
    return body


async def hang(caller, body):
    await trio.sleep_forever()


ECHO = frames.encode_request(0, "echo", b"hi")


# --- the server


async def test_one_request_is_answered_without_waiting_for_the_peers_end(autojump_clock):
    async with serving({"echo": Route(echo)}) as server:
        wire = server.open()
        await wire.send(ECHO)
        assert await wire.frame() == frames.Answer(0, b"hi")
        await wire.stream.reset()
        await wire.served.wait()


async def test_a_peer_that_ends_its_writing_first_still_gets_its_answer_and_an_end(autojump_clock):
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


async def test_answers_go_out_as_they_finish(autojump_clock):
    async def nap(caller, body):
        await trio.sleep(int(body))
        return body

    async with serving({"nap": Route(nap)}) as server:
        wire = server.open()
        await wire.send(*(frames.encode_request(n, "nap", b"%d" % n) for n in (3, 1, 2)))
        assert [(await wire.frame()).request_id for _ in range(3)] == [1, 2, 3]


async def test_small_answers_share_a_write(autojump_clock):
    async with serving({"echo": Route(echo)}) as server:
        wire = server.open()
        await wire.send(*(frames.encode_request(n, "echo", b"x") for n in range(20)))
        for _ in range(20):
            assert isinstance(await wire.frame(), frames.Answer)
        assert len(wire.server_stream.writes) <= 2


async def test_an_id_in_flight_used_again_is_told_and_ends_the_stream(autojump_clock):
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


async def test_an_id_may_be_used_again_after_its_answer(autojump_clock):
    async with serving({"echo": Route(echo)}) as server:
        wire = server.open()
        for _ in range(3):
            await wire.send(ECHO)
            assert await wire.frame() == frames.Answer(0, b"hi")
        assert server.marks == []


@pytest.mark.parametrize(("data", "field"), [("04 00 09 01 41", "method"), ("03 04 09 00", "type")])
async def test_a_bad_method_or_type_is_told_to_its_request(autojump_clock, data, field):
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
async def test_what_cannot_be_told_resets_the_stream_and_ends_its_handlers(autojump_clock, data):
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


async def test_a_stream_that_is_reset_cancels_its_handlers(autojump_clock):
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


async def test_a_stream_that_ends_inside_a_frame_is_marked(autojump_clock):
    async with serving({"echo": Route(echo)}) as server:
        wire = server.open()
        await wire.send(ECHO[:-1])
        await wire.stream.close()
        await wire.served.wait()
        assert server.marks == ["unfinished"]


async def test_busy_past_what_one_session_may_have_in_flight(autojump_clock):
    async with serving({"hang": Route(hang), "echo": Route(echo)}) as server:
        wire = server.open()
        limit = names.IN_FLIGHT_PER_SESSION_MAX
        await wire.send(*(frames.encode_request(n, "hang", b"") for n in range(limit + 1)))
        frame = await wire.frame()
        assert (frame.request_id, frame.code) == (limit, Code.ERR_BUSY)
        assert frame.retry_after_ms > 0
        assert server.marks == []


async def test_busy_past_what_one_peer_may_have_in_flight_while_others_are_served(autojump_clock):
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


async def test_busy_past_what_all_may_have_in_flight(autojump_clock):
    routes = {"hang": Route(hang), "echo": Route(echo)}
    async with serving(routes, in_flight_total_max=2) as server:
        for peer in (b"a", b"b"):
            await server.open(peer).send(frames.encode_request(0, "hang", b""))
        await trio.testing.wait_all_tasks_blocked()
        wire = server.open(b"c")
        await wire.send(ECHO)
        assert await wire.error_code() is Code.ERR_BUSY


async def test_too_many_requests_in_a_second_are_told_when_to_come_again(autojump_clock):
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


async def test_a_costly_method_counts_as_several_requests(autojump_clock):
    async with serving({"echo": Route(echo), "dear": Route(echo, cost=4)}, requests_per_s_max=5) as server:
        wire = server.open()
        await wire.send(frames.encode_request(0, "dear", b""))
        assert isinstance(await wire.frame(), frames.Answer)
        await wire.send(frames.encode_request(0, "dear", b""))
        frame = await wire.frame()
        assert (frame.code, frame.retry_after_ms) == (Code.ERR_RATE_LIMITED, 600)
        await wire.send(ECHO)
        assert isinstance(await wire.frame(), frames.Answer)


async def test_a_strangers_large_request_counts_as_several_and_a_kept_peers_as_one(autojump_clock):
    large = frames.encode_request(0, "echo", bytes(3 * names.REQUEST_BYTES_AS_ONE))
    async with serving({"echo": Route(echo)}, requests_per_s_max=5) as server:
        for peer, second in ((b"stranger", frames.ErrorFrame), (KEPT, frames.Answer)):
            wire = server.open(peer)
            await wire.send(large)
            assert isinstance(await wire.frame(), frames.Answer)
            await wire.send(large)
            assert isinstance(await wire.frame(), second)


async def test_the_last_quarter_of_all_places_is_for_kept_peers(autojump_clock):
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


async def test_the_rate_is_the_peers_and_not_the_streams(autojump_clock):
    async with serving({"echo": Route(echo)}, requests_per_s_max=1) as server:
        first, second = server.open(), server.open()
        await first.send(ECHO)
        assert isinstance(await first.frame(), frames.Answer)
        await first.stream.reset()
        await second.send(ECHO)
        assert await second.error_code() is Code.ERR_RATE_LIMITED


async def test_too_many_bytes_in_a_second_are_refused_even_when_oversize(autojump_clock):
    route = Route(echo, request_bytes_max=1_000)
    async with serving({"echo": route}, request_bytes_per_s_max=2_500) as server:
        wire = server.open()
        for size, code in ((2_400, Code.ERR_BAD_REQUEST), (900, Code.ERR_RATE_LIMITED)):
            await wire.send(frames.encode_request(0, "echo", bytes(size)))
            assert await wire.error_code() is code


def test_a_token_bucket_holds_one_second_and_says_when():
    bucket = TokenBucket(10, 0.0)
    for _ in range(10):
        assert bucket.wait_ms(1, 0.0) == 0
        bucket.take(1)
    assert bucket.wait_ms(1, 0.0) == 100
    assert bucket.wait_ms(5, 0.3) == 200
    assert bucket.wait_ms(5, 0.5) == 0
    bucket.take(5)
    assert bucket.wait_ms(1_000, 100.0) == 0  # more than a second's worth costs a full bucket, not for ever


async def test_streams_past_the_limit_are_told_busy_and_far_past_it_reset(autojump_clock):
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


async def test_a_stream_without_a_first_byte_is_reset_in_time(autojump_clock):
    async with serving({}) as server:
        wire = server.open()
        started = trio.current_time()
        with pytest.raises(StreamBroken):
            await wire.frame()
        assert trio.current_time() - started == pytest.approx(names.REQUEST_FIRST_BYTE_MS / 1000)


async def test_a_frame_that_comes_too_slowly_resets_the_stream(autojump_clock):
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


async def test_a_session_outlives_the_frame_deadline_after_an_oversize_request(autojump_clock):
    async with serving({"echo": Route(echo, request_bytes_max=1_000)}) as server:
        wire = server.open()
        request = frames.encode_request(0, "echo", bytes(5_000))
        await wire.send(request[:2_000])
        assert await wire.error_code() is Code.ERR_BAD_REQUEST
        await wire.send(request[2_000:])
        await trio.sleep(names.REQUEST_TOTAL_MS / 1000 + 1)
        await wire.send(ECHO)
        assert await wire.frame() == frames.Answer(0, b"hi")


async def test_an_idle_session_is_reset_after_the_client_should_have_closed_it(autojump_clock):
    async with serving({"echo": Route(echo)}) as server:
        wire = server.open()
        await wire.send(ECHO)
        assert await wire.frame() == frames.Answer(0, b"hi")
        started = trio.current_time()
        with pytest.raises(StreamBroken):
            await wire.frame()
        assert trio.current_time() - started > names.SESSION_IDLE_MS / 1000


async def test_a_peer_that_does_not_read_its_answers_is_reset_and_holds_little(autojump_clock):
    async def large(caller, body):
        return bytes(200_000)

    async with serving({"large": Route(large)}) as server:
        wire = server.open()
        await wire.send(*(frames.encode_request(n, "large", b"") for n in range(30)))
        await wire.served.wait()
        assert sum(len(data) for data in wire.server_stream.writes) < WINDOW_BYTES_MAX + 400_000
        assert server.router.loads.in_flight == 0


async def test_a_request_for_parts_needs_a_stream_of_its_own(autojump_clock):
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


async def test_a_slow_caller_still_gets_the_end_of_a_streamed_answer(autojump_clock):
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


async def test_anything_after_a_request_for_parts_resets_and_ends_the_handler(autojump_clock):
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


async def test_what_comes_in_one_piece_with_a_request_for_parts_resets_too(autojump_clock):
    async def parts(caller, body, send_part):
        await trio.sleep_forever()

    async with serving({"parts": PartsRoute(parts)}) as server:
        wire = server.open()
        await wire.send(frames.encode_request(0, "parts", b"") + ECHO)
        with pytest.raises(StreamBroken):
            await wire.frame()
        await wire.served.wait()
        assert server.marks == ["more after a request for parts"]


async def test_a_parts_handler_is_never_more_than_two_parts_ahead_of_the_stream(autojump_clock):
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


async def test_a_handler_that_another_peer_failed_is_no_bug(autojump_clock):
    async def relay(caller, body):
        raise Unreachable("12D3", "gone")

    async with serving({"relay": Route(relay)}) as server:
        wire = server.open()
        await wire.send(frames.encode_request(0, "relay", b""))
        assert await wire.error_code() is Code.ERR_NOT_AVAILABLE
        assert server.counters["rr.handler_bug"] == 0


async def test_an_overlong_error_is_cut_to_fit(autojump_clock):
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
async def test_an_answer_that_fits_no_frame_is_a_bug(autojump_clock, answer):
    async def bad(caller, body):
        return answer

    async with serving({"bad": Route(bad)}) as server:
        wire = server.open()
        await wire.send(frames.encode_request(0, "bad", b""))
        assert await wire.error_code() is Code.ERR_NOT_AVAILABLE
        assert server.counters["rr.handler_bug"] == 1


async def test_the_account_of_peers_is_bounded(autojump_clock):
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


# --- the client


class FarEnds:
    """Streams that the client opened, as seen by a scripted server."""

    def __init__(self):
        self.opened = 0
        self.fail_with = None
        self.near = []
        self._send, self._receive = trio.open_memory_channel(100)

    async def open_stream(self, peer):
        self.opened += 1
        await trio.lowlevel.checkpoint()
        if self.fail_with is not None:
            raise self.fail_with
        near, far = stream_pair()
        self.near.append(WatchedStream(near))
        self._send.send_nowait(Wire(far))
        return self.near[-1]

    async def next(self):
        return await self._receive.receive()


class Asking:
    def __init__(self):
        self.far = FarEnds()
        self.counters = Counter()
        self.marks = []
        self.outcomes = {}
        self.client = RequestClient(
            self.far.open_stream,
            OWN,
            Router({"echo": Route(echo)}, self.counters),
            self.counters,
            on_mark=lambda peer, reason: self.marks.append(reason),
        )

    async def ask(self, name, deadline_ms=names.REQUEST_TOTAL_MS, body=b""):
        """Keep what becomes of a request under its name."""
        try:
            self.outcomes[name] = await self.client.request(SERVER, "echo", body, deadline_ms=deadline_ms)
        except (RequestFailed, RequestTimeout, Unreachable) as error:
            self.outcomes[name] = error


@asynccontextmanager
async def asking():
    async with trio.open_nursery() as nursery:
        asker = Asking()
        await nursery.start(asker.client.run)
        yield asker, nursery
        assert [stream.cancelled for stream in asker.far.near] == [0] * len(asker.far.near)
        nursery.cancel_scope.cancel()


async def answer_all(wire, count=None):
    """Echo every request."""
    served = 0
    while served != count and (frame := await wire.frame()) is not None:
        await wire.send(frames.encode_answer(frame.request_id, frame.body))
        served += 1


async def test_requests_to_a_peer_share_one_stream(autojump_clock):
    async with asking() as (asker, nursery):
        for number in range(5):
            nursery.start_soon(asker.ask, number, 1_000, b"%d" % number)
        wire = await asker.far.next()
        await answer_all(wire, 5)
        await trio.testing.wait_all_tasks_blocked()
        assert asker.outcomes == {number: b"%d" % number for number in range(5)}
        assert asker.far.opened == 1
        assert len(asker.far.near[0].writes) <= 2  # and writes


async def test_at_most_32_requests_are_on_the_wire(autojump_clock):
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


async def test_a_dead_stream_is_replaced_for_the_next_request(autojump_clock):
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


async def test_what_was_sent_is_unreachable_and_what_was_not_is_sent_on_a_new_stream(autojump_clock):
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


async def test_a_peer_that_cannot_be_opened_is_tried_once(autojump_clock):
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


async def test_after_too_many_abandoned_requests_a_new_session_serves_and_the_old_one_ends(autojump_clock):
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


class DeafStream(WatchedStream):
    """One whose reader is never told the end, as of a connection that died in the library; `fails`: writes tell."""

    def __init__(self, inner, *, fails):
        super().__init__(inner)
        self.fails = fails
        self.is_up = True
        self.ended = trio.Event()

    async def read(self, bytes_max):
        if self.is_up:
            with trio.move_on_after(1):
                return await self._inner._inner.read(bytes_max)
        await self.ended.wait()
        return b""

    async def write(self, data):
        if not self.is_up and self.fails:
            raise StreamBroken("MuxedStreamClosed")
        if not self.is_up:
            await self.ended.wait()
        await super().write(data)


@pytest.mark.parametrize("fails", [True, False])
async def test_a_stream_whose_reader_is_never_told_the_end_holds_up_nobody_for_long(autojump_clock, fails):
    async with asking() as (asker, nursery):
        open_stream = asker.far.open_stream

        async def open_deaf(peer):
            asker.far.near.append(DeafStream(await open_stream(peer), fails=fails))
            return asker.far.near[-1]

        asker.client._outside = replace(asker.client._outside, open_stream=open_deaf)
        nursery.start_soon(asker.ask, "first")
        await answer_all(await asker.far.next(), 1)
        await trio.testing.wait_all_tasks_blocked()
        deaf = asker.far.near[-1]
        deaf.is_up = False
        await trio.sleep(2)
        asker.client._outside = replace(asker.client._outside, open_stream=open_stream)
        for number in range(1 if fails else sessions.ABANDONED_PER_SESSION_MAX):
            await asker.ask(number, 100)
        nursery.start_soon(asker.ask, "next", 1_000)
        await answer_all(await asker.far.next(), 1)
        await trio.testing.wait_all_tasks_blocked()
        assert asker.outcomes["next"] == b""
        deaf.ended.set()


async def test_a_late_answer_is_discarded(autojump_clock):
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


async def test_a_request_abandoned_before_it_was_written_is_never_written(autojump_clock):
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


async def test_an_idle_session_is_closed_in_order_and_opened_again(autojump_clock):
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
async def test_a_request_at_the_very_end_of_the_idle_time_is_answered_however_late(autojump_clock, attempt):
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


async def test_a_closed_stream_whose_peer_does_not_end_is_reset(autojump_clock):
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
async def test_an_answer_against_the_rules_is_marked_and_the_stream_reset(autojump_clock, reply):
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


async def test_a_request_that_fits_no_frame_is_a_bad_request_and_opens_nothing_twice(autojump_clock):
    async with asking() as (asker, _):
        await asker.ask("huge", body=bytes(names.FRAME_BYTES_MAX))
        assert asker.outcomes["huge"].code is Code.ERR_BAD_REQUEST


async def test_when_the_client_ends_its_waiters_are_told(autojump_clock):
    asker = Asking()
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

    counters = Counter()
    client = RequestClient(FarEnds().open_stream, OWN, Router({"slow": Route(slow)}, counters), counters)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        with pytest.raises(RequestTimeout):
            await client.request(OWN, "slow", b"", deadline_ms=1_000)
        await done.wait()
        nursery.cancel_scope.cancel()


async def test_a_streamed_answer_that_ends_early_is_unreachable(autojump_clock):
    async with asking() as (asker, _), asker.client.request_parts(SERVER, "parts", b"") as answer:
        wire = await asker.far.next()
        await wire.frame()
        await wire.send(frames.encode_part(0, b"one"))
        await wire.stream.close()
        assert await answer.part() == b"one"
        with pytest.raises(Unreachable):
            await answer.part()


async def test_a_streamed_answer_of_another_id_is_marked(autojump_clock):
    async with asking() as (asker, _), asker.client.request_parts(SERVER, "parts", b"") as answer:
        wire = await asker.far.next()
        await wire.frame()
        await wire.send(frames.encode_part(1, b"one"))
        with pytest.raises(Unreachable):
            await answer.part()
        assert asker.marks == ["an answer to no request"]


async def test_leaving_before_the_answer_resets_the_stream(autojump_clock):
    async with asking() as (asker, _):
        async with asker.client.request_parts(SERVER, "parts", b""):
            wire = await asker.far.next()
            await wire.frame()
        with pytest.raises(StreamBroken):
            await wire.frame()


async def test_a_whole_streamed_answer_ends_in_order(autojump_clock):
    async with asking() as (asker, _):
        async with asker.client.request_parts(SERVER, "parts", b"") as answer:
            wire = await asker.far.next()
            await wire.frame()
            await wire.send(frames.encode_answer(0, b"all"))
            assert await answer.part() is None
            assert answer.last == b"all"
        assert await wire.frame() is None

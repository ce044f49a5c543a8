"""What every DistributedNetwork does. Run on each kind of network by the `make_nodes` fixture."""

from __future__ import annotations

import pytest
import trio

from p2p import names
from p2p.errors import AnswerTooLarge, Code, RequestFailed, RequestTimeout, Unreachable
from p2p.network import Message, PartsRoute, Route, Verdict

PATIENCE_S = 30  # nothing here takes this long; without it a lost message would hang the suite


async def echo(caller, body):
    return body


async def whoami(caller, body):
    return caller


def serving(**routes):
    """Routes for every node of a test."""
    return lambda index: dict(routes)


# --- requests


async def test_a_request_is_answered_and_the_handler_knows_the_caller(make_nodes):
    async with make_nodes(2, serving(echo=Route(echo), whoami=Route(whoami))) as (one, other):
        assert await one.network.request(other.network.peer_id, "echo", b"\x00\xffbytes") == b"\x00\xffbytes"
        assert await one.network.request(other.network.peer_id, "echo", b"") == b""
        assert await one.network.request(other.network.peer_id, "whoami", b"") == one.network.peer_id
        assert await other.network.request(one.network.peer_id, "whoami", b"") == other.network.peer_id


async def test_connected_nodes_see_each_other(make_nodes):
    async with make_nodes(3) as nodes:
        everyone = sorted(node.network.peer_id for node in nodes)
        for node in nodes:
            assert node.network.peers() == [peer for peer in everyone if peer != node.network.peer_id]
            assert node.network.addrs()
            suffix = "/p2p/" + names.peer_text(node.network.peer_id)
            assert all(addr.endswith(suffix) for addr in node.network.addrs())


async def test_a_request_to_the_own_peer_id_is_served_by_the_own_routes(make_nodes):
    async with make_nodes(1, serving(whoami=Route(whoami))) as (node,):
        assert await node.network.request(node.network.peer_id, "whoami", b"") == node.network.peer_id
        with pytest.raises(RequestFailed) as failed:
            await node.network.request(node.network.peer_id, "missing", b"")
        assert failed.value.code is Code.ERR_UNSUPPORTED


async def test_an_unknown_method_is_unsupported_and_final(make_nodes):
    async with make_nodes(2) as (one, other):
        with pytest.raises(RequestFailed) as failed:
            await one.network.request(other.network.peer_id, "missing", b"")
        assert failed.value.code is Code.ERR_UNSUPPORTED
        assert not failed.value.retryable


@pytest.mark.parametrize("local", [False, True])
async def test_the_caller_sees_what_the_handler_raises(make_nodes, local):
    async def refuse(caller, body):
        raise RequestFailed(
            Code.ERR_STATE_MISMATCH, "another one is here", retry_after_ms=1_234, detail=b"\x81\x01"
        )

    async with make_nodes(2, serving(refuse=Route(refuse))) as (one, other):
        server = one if local else other
        with pytest.raises(RequestFailed) as failed:
            await one.network.request(server.network.peer_id, "refuse", b"")
        error = failed.value
        assert (error.code, error.message) == (Code.ERR_STATE_MISMATCH, "another one is here")
        assert (error.retry_after_ms, error.detail) == (1_234, b"\x81\x01")


@pytest.mark.parametrize("local", [False, True])
async def test_a_handlers_bug_is_not_available_and_the_node_lives_on(make_nodes, local):
    async def broken(caller, body):
        raise KeyError("a secret of the server")

    async with make_nodes(2, serving(broken=Route(broken), echo=Route(echo))) as (one, other):
        server = one if local else other
        with pytest.raises(RequestFailed) as failed:
            await one.network.request(server.network.peer_id, "broken", b"")
        assert failed.value.code is Code.ERR_NOT_AVAILABLE
        assert "secret" not in failed.value.message
        assert server.network.counters()["rr.handler_bug"] == 1
        assert await one.network.request(server.network.peer_id, "echo", b"still here") == b"still here"


async def test_a_handler_past_its_deadline_is_a_timeout_for_the_caller(make_nodes):
    async def stuck(caller, body):
        await trio.sleep_forever()

    async with make_nodes(2, serving(stuck=Route(stuck, deadline_ms=50))) as (one, other):
        with pytest.raises(RequestFailed) as failed:
            await one.network.request(other.network.peer_id, "stuck", b"")
        assert failed.value.code is Code.ERR_TIMEOUT
        assert failed.value.retryable


async def test_thirty_two_requests_run_at_once_and_are_answered_as_they_finish(make_nodes):
    arrived = 0
    all_here = trio.Event()

    async def meet(caller, body):
        nonlocal arrived
        arrived += 1
        if arrived == 32:
            all_here.set()
        await all_here.wait()
        return body

    async with make_nodes(2, serving(meet=Route(meet))) as (one, other):
        answers = {}

        async def ask(number):
            answers[number] = await one.network.request(other.network.peer_id, "meet", b"%d" % number)

        async with trio.open_nursery() as nursery:
            for number in range(32):
                nursery.start_soon(ask, number)
        assert answers == {number: b"%d" % number for number in range(32)}


async def test_more_callers_than_room_all_get_their_answers(make_nodes):
    async with make_nodes(2, serving(echo=Route(echo))) as (one, other):
        answers = []

        async def ask(number):
            body = b"%d" % number * (1 + number * 37 % 5_000)
            answers.append(await one.network.request(other.network.peer_id, "echo", body) == body)

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(ask, number)
        assert answers == [True] * 200


async def test_a_waiters_deadline_ends_only_that_waiter(make_nodes):
    release = trio.Event()

    async def wait(caller, body):
        if body == b"late":
            await release.wait()
        return body

    async with make_nodes(2, serving(wait=Route(wait))) as (one, other):
        with pytest.raises(RequestTimeout) as late:
            await one.network.request(other.network.peer_id, "wait", b"late", deadline_ms=100)
        assert (late.value.method, late.value.deadline_ms) == ("wait", 100)
        assert await one.network.request(other.network.peer_id, "wait", b"quick") == b"quick"
        release.set()
        # The late answer comes on the same session, is dropped, and harms nobody.
        for number in range(10):
            assert await one.network.request(other.network.peer_id, "wait", b"%d" % number) == b"%d" % number


async def test_a_cancelled_caller_does_not_disturb_the_others(make_nodes):
    started = trio.Event()

    async def hang(caller, body):
        started.set()
        await trio.sleep_forever()

    async with make_nodes(2, serving(hang=Route(hang), echo=Route(echo))) as (one, other):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.network.request, other.network.peer_id, "hang", b"")
            await started.wait()
            nursery.cancel_scope.cancel()
        assert await one.network.request(other.network.peer_id, "echo", b"fine") == b"fine"


async def test_a_request_over_its_methods_limit_is_refused_and_the_session_lives(make_nodes):
    limited = Route(echo, request_bytes_max=1_000)
    async with make_nodes(2, serving(limited=limited)) as (one, other):
        for size in (1_001, names.REQUEST_BYTES_MAX, 900_000, names.FRAME_BYTES_MAX):
            with pytest.raises(RequestFailed) as failed:
                await one.network.request(other.network.peer_id, "limited", bytes(size))
            assert failed.value.code is Code.ERR_BAD_REQUEST
        assert await one.network.request(other.network.peer_id, "limited", bytes(900)) == bytes(900)


async def test_a_large_request_and_a_large_answer_pass_where_the_route_allows_it(make_nodes):
    large = Route(echo, request_bytes_max=names.REQUEST_LARGE_BYTES_MAX)
    body = bytes(range(256)) * 3_900
    async with make_nodes(2, serving(large=large)) as (one, other):
        assert await one.network.request(other.network.peer_id, "large", body) == body


async def test_a_peer_that_is_not_connected_is_unreachable(make_nodes):
    async with make_nodes(1) as (node,):
        nobody = bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20)) + b"\x99" * 32
        with pytest.raises(Unreachable):
            await node.network.request(nobody, "echo", b"")
        with pytest.raises(Unreachable):
            async with node.network.request_parts(nobody, "echo", b"") as answer:
                await answer.part()


async def test_an_address_that_answers_nothing_is_unreachable(make_nodes):
    async with make_nodes(1) as (node,):
        text = names.peer_text(bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20)) + b"\x99" * 32)
        with pytest.raises(Unreachable):
            await node.network.connect([f"/ip4/127.0.0.1/tcp/1/p2p/{text}"])
        with pytest.raises(Unreachable):
            await node.network.connect([f"/memory/999/p2p/{text}"])


# --- streamed answers


def part_number(number, size=names.PART_BYTES_MAX):
    return number.to_bytes(4, "big") * (size // 4)


async def count_parts(caller, body, send_part):
    for number in range(int(body)):
        await send_part(part_number(number))
    return b"that was all"


@pytest.mark.parametrize("local", [False, True])
async def test_parts_come_in_order_and_then_the_last_body(make_nodes, local):
    async with make_nodes(2, serving(count=PartsRoute(count_parts))) as (one, other):
        server = one if local else other
        async with one.network.request_parts(server.network.peer_id, "count", b"12") as answer:
            parts = []
            while (part := await answer.part()) is not None:
                parts.append(part)
            assert parts == [part_number(number) for number in range(12)]
            assert answer.last == b"that was all"
            assert await answer.part() is None


async def test_a_streamed_answer_without_parts_is_only_its_last_body(make_nodes):
    async with make_nodes(2, serving(count=PartsRoute(count_parts))) as (one, other):
        async with one.network.request_parts(other.network.peer_id, "count", b"0") as answer:
            assert await answer.part() is None
            assert answer.last == b"that was all"


@pytest.mark.parametrize("local", [False, True])
async def test_a_slow_reader_makes_the_sender_wait(make_nodes, local):
    sent = 0

    async def flood(caller, body, send_part):
        nonlocal sent
        while sent < 200:
            await send_part(part_number(sent))
            sent += 1
        return b""

    async with make_nodes(2, serving(flood=PartsRoute(flood), echo=Route(echo))) as (one, other):
        server = one if local else other
        async with one.network.request_parts(server.network.peer_id, "flood", b"") as answer:
            assert await answer.part() == part_number(0)
            for _ in range(50):  # the network is alive, the sender is not moving
                await one.network.request(server.network.peer_id, "echo", b"x")
            assert sent < 50
            for number in range(1, 100):
                assert await answer.part() == part_number(number)
            assert sent >= 99


@pytest.mark.parametrize("local", [False, True])
async def test_leaving_early_stops_the_sender(make_nodes, local):
    stopped = trio.Event()

    async def flood(caller, body, send_part):
        try:
            while True:
                await send_part(part_number(0))
        finally:
            stopped.set()

    async with make_nodes(2, serving(flood=PartsRoute(flood), echo=Route(echo))) as (one, other):
        server = one if local else other
        async with one.network.request_parts(server.network.peer_id, "flood", b"") as answer:
            assert await answer.part() == part_number(0)
        with trio.fail_after(PATIENCE_S):
            await stopped.wait()
        assert await one.network.request(server.network.peer_id, "echo", b"fine") == b"fine"


@pytest.mark.parametrize("local", [False, True])
async def test_an_answer_over_the_callers_limit_is_cut_off(make_nodes, local):
    async with make_nodes(2, serving(count=PartsRoute(count_parts))) as (one, other):
        server = one if local else other
        limit = 3 * names.PART_BYTES_MAX
        async with one.network.request_parts(
            server.network.peer_id, "count", b"20", bytes_max=limit
        ) as answer:
            for number in range(3):
                assert await answer.part() == part_number(number)
            with pytest.raises(AnswerTooLarge) as error:
                await answer.part()
        assert error.value.bytes_max == limit


@pytest.mark.parametrize("local", [False, True])
async def test_an_answer_of_empty_parts_has_an_end(make_nodes, local, monkeypatch):
    monkeypatch.setattr(names, "ANSWER_PARTS_BYTES_MAX", 64 * 10)

    async def nothing(caller, body, send_part):
        while True:
            await send_part(b"")

    async with make_nodes(2, serving(nothing=PartsRoute(nothing))) as (one, other):
        server = one if local else other
        async with one.network.request_parts(server.network.peer_id, "nothing", b"") as answer:
            for _ in range(10):
                assert await answer.part() == b""
            with pytest.raises(AnswerTooLarge):
                await answer.part()


@pytest.mark.parametrize("local", [False, True])
async def test_an_error_after_parts_reaches_the_caller(make_nodes, local):
    async def half(caller, body, send_part):
        await send_part(b"first")
        raise RequestFailed(Code.ERR_NOT_FOUND, "the rest is gone", detail=b"7")

    async with make_nodes(2, serving(half=PartsRoute(half))) as (one, other):
        server = one if local else other
        async with one.network.request_parts(server.network.peer_id, "half", b"") as answer:
            assert await answer.part() == b"first"
            with pytest.raises(RequestFailed) as failed:
                await answer.part()
            assert (failed.value.code, failed.value.detail) == (Code.ERR_NOT_FOUND, b"7")


async def test_a_streamed_answer_past_its_deadline_is_a_timeout(make_nodes):
    async def stuck(caller, body, send_part):
        await send_part(b"first")
        await trio.sleep_forever()

    async with make_nodes(2, serving(stuck=PartsRoute(stuck))) as (one, other):
        async with one.network.request_parts(
            other.network.peer_id, "stuck", b"", deadline_ms=1_000
        ) as answer:
            assert await answer.part() == b"first"
            with pytest.raises(RequestTimeout):
                await answer.part()


async def test_a_part_over_the_limit_is_a_bug_of_the_handler(make_nodes):
    async def huge(caller, body, send_part):
        await send_part(bytes(names.PART_BYTES_MAX + 1))
        return b""

    async with make_nodes(2, serving(huge=PartsRoute(huge))) as (one, other):
        for server in (one, other):
            async with one.network.request_parts(server.network.peer_id, "huge", b"") as answer:
                with pytest.raises(RequestFailed) as failed:
                    await answer.part()
            assert failed.value.code is Code.ERR_NOT_AVAILABLE
            assert server.network.counters()["rr.handler_bug"] == 1


async def test_streamed_answers_and_requests_do_not_wait_for_each_other(make_nodes):
    async with make_nodes(2, serving(count=PartsRoute(count_parts), echo=Route(echo))) as (one, other):
        peer = other.network.peer_id
        async with (
            one.network.request_parts(peer, "count", b"30") as first,
            one.network.request_parts(peer, "count", b"30") as second,
        ):
            assert await first.part() == part_number(0)
            assert await one.network.request(peer, "echo", b"between") == b"between"
            for number in range(30):
                assert await second.part() == part_number(number)
            assert await second.part() is None
            assert await first.part() == part_number(1)


# --- gossip


def accept(message):
    return Verdict.ACCEPT


async def publish_until_received(publisher, subscription, data):
    """A mesh takes a moment to form, and a message sent before that is lost: send until one arrives."""
    with trio.fail_after(PATIENCE_S):
        while True:
            await publisher.publish(data)
            with trio.move_on_after(0.5):
                return await subscription.receive()


async def test_an_accepted_message_reaches_the_subscriber_with_its_author(make_nodes):
    async with make_nodes(2) as (one, other):
        here = await one.network.join("aw.w.head", accept)
        there = await other.network.join("aw.w.head", accept)
        message = await publish_until_received(here, there, b"news")
        assert message == Message("aw.w.head", b"news", one.network.peer_id, one.network.peer_id)
        assert there.topic == "aw.w.head"


@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.IGNORE])
async def test_what_the_check_does_not_accept_is_counted_and_not_delivered(make_nodes, verdict):
    def check(message):
        return verdict if message.data.startswith(b"bad") else Verdict.ACCEPT

    async with make_nodes(2) as (one, other):
        here = await one.network.join("aw.w.head", accept)
        there = await other.network.join("aw.w.head", check)
        await publish_until_received(here, there, b"warm up")
        await here.publish(b"bad news")
        while (message := await publish_until_received(here, there, b"good news")).data == b"warm up":
            pass
        assert message.data == b"good news"
        counter = "gossip.rejected" if verdict is Verdict.REJECT else "gossip.ignored"
        assert other.network.counters()[counter] == 1


async def test_publishing_what_our_own_check_does_not_accept_raises(make_nodes):
    def check(message):
        return Verdict.REJECT if message.data == b"bad" else Verdict.IGNORE

    async with make_nodes(1) as (node,):
        subscription = await node.network.join("aw.w.head", check)
        for data in (b"bad", b"old"):
            with pytest.raises(ValueError, match="check"):
                await subscription.publish(data)


async def test_topics_are_separate_and_own_messages_do_not_come_back(make_nodes):
    async with make_nodes(2) as (one, other):
        heads, their_heads = (
            await one.network.join("aw.w.head", accept),
            await other.network.join("aw.w.head", accept),
        )
        blocks, their_blocks = (
            await one.network.join("aw.w.block", accept),
            await other.network.join("aw.w.block", accept),
        )
        assert (await publish_until_received(heads, their_heads, b"a head")).data == b"a head"
        assert (await publish_until_received(blocks, their_blocks, b"a block")).data == b"a block"
        # What comes back first is the answer of the other, not what was published here.
        assert (await publish_until_received(their_heads, heads, b"answer")).data == b"answer"
        assert (await publish_until_received(their_blocks, blocks, b"reply")).data == b"reply"


async def test_joining_a_topic_twice_is_an_error(make_nodes):
    async with make_nodes(1) as (node,):
        await node.network.join("aw.w.head", accept)
        with pytest.raises(ValueError, match="joined"):
            await node.network.join("aw.w.head", accept)


async def test_gossip_data_has_a_limit(make_nodes):
    async with make_nodes(2) as (one, other):
        here = await one.network.join("aw.w.action", accept)
        there = await other.network.join("aw.w.action", accept)
        with pytest.raises(ValueError, match=str(names.GOSSIP_BYTES_MAX)):
            await here.publish(bytes(names.GOSSIP_BYTES_MAX + 1))
        largest = bytes(names.GOSSIP_BYTES_MAX)
        assert (await publish_until_received(here, there, largest)).data == largest

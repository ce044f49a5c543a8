"""How a peer asks, seen by who answers its streams by hand, and what it makes of answers that no peer gives.

Guarantees: streams, ids and places are counted where they arrive. Implements docs/protocol.md, "Request / response".
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeAlias

import trio
from blake3 import blake3

from interop.driver import CommandFailed, Ground, Peer
from interop.steps import body, encoded
from interop.witness import Asked, Wire, open_wire
from p2p import frames, names
from p2p.errors import Code, StreamBroken

ALONE: Final = 20  # requests, each on a stream of its own
ALONE_BY: Final[dict[str, dict[str, Any]]] = {"request": {"one_shot": True}, "request_parts": {}}
PLACES: Final = names.IN_FLIGHT_PER_SESSION_MAX
SILENT_S: Final = 0.5
BRIEF_MS: Final = 300
GIVE_UP_MS: Final = 2_000  # long enough for a new stream and the request on it
PART: Final = bytes(names.PART_BYTES_MAX)
TOO_MANY_PARTS: Final = names.ANSWER_PARTS_BYTES_MAX // len(PART) + 1
LENGTH_BYTES: Final = 3  # of a frame that is longer than 16 KiB
PART_TYPE: Final = 2
ERROR_TYPE: Final = 3
UNKNOWN_TYPE: Final = 4
OTHER: Final = 50  # so far is the id that nobody has asked with
Answering: TypeAlias = Callable[[int], bytes]
"""A frame for the request of this id, which is below 128."""
TOO_LONG: Final = bytes.fromhex("818040")  # the length of a frame: one byte over 1 MiB


async def on_the_wire(ground: Ground, *, language: str) -> None:
    """Streams of their own, one session, places, late answers, cut and false ones, and too large ones."""
    asker = await ground.start(language, 1)
    async with open_wire() as wire:
        await asker.do("dial", addr=wire.addr)
        await each_alone(asker, wire)
        session = await one_session(asker, wire)
        await late_answer(asker, wire, session)
        await parts_alone(asker, wire)
        await given_up(asker, wire)
        await cut_short(asker, wire)
        await too_much(asker, wire)
        await asks_in(session, asker, wire)
    # Who answers falsely may be cut off for it, so that each kind has a host of its own.
    async with open_wire() as wire:
        await asker.do("dial", addr=wire.addr)
        await false_in_a_session(asker, wire)
    for do, fields in ALONE_BY.items():
        async with open_wire() as wire:
            await asker.do("dial", addr=wire.addr)
            await false_alone(asker, wire, do, fields)


def _ask(wire: Wire, number: int = 0) -> dict[str, Any]:
    return {"peer": wire.peer_id, "method": "x_echo", "body": body(number=number)}


async def each_alone(asker: Peer, wire: Wire) -> None:
    """one_shot: as many streams as requests, each with id 0."""
    before = wire.opened

    async def answer() -> None:
        for _ in range(ALONE):
            stream = await wire.stream()
            request = await stream.request()
            assert request.request_id == 0, request
            await stream.send(frames.encode_answer(0, request.body))
            await stream.end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        done = await asker.do("requests", count=ALONE, in_flight=5, one_shot=True, **_ask(wire))
    assert (done["ok"], wire.opened - before) == (ALONE, ALONE), (done, wire.opened - before)


async def one_session(asker: Peer, wire: Wire) -> Asked:
    """One stream for all; no more in flight than there are places; each answer goes to who asked for it."""
    before, found = wire.opened, dict[int, str]()
    numbers = range(PLACES + PLACES // 2)

    async def ask(number: int) -> None:
        found[number] = (await asker.do("request", **_ask(wire, number)))["body"]

    async with trio.open_nursery() as nursery:
        for number in numbers:
            nursery.start_soon(ask, number)
        session = await wire.stream()
        asked = [await session.request() for _ in range(PLACES)]
        assert len({request.request_id for request in asked}) == PLACES, asked
        assert await session.is_silent(SILENT_S), f"more than {PLACES} requests in flight"
        await session.send(*(frames.encode_answer(one.request_id, one.body) for one in reversed(asked)))
        for _ in range(len(numbers) - PLACES):
            request = await session.request()
            await session.send(frames.encode_answer(request.request_id, request.body))
    assert found == {number: body(number=number) for number in numbers}, found
    await asks_in(session, asker, wire)
    assert wire.opened == before + 1, wire.opened - before
    return session


async def asks_in(session: Asked, asker: Peer, wire: Wire) -> None:
    """The session goes on: the next request comes in it."""
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            request = await session.request()
            await session.send(frames.encode_answer(request.request_id, request.body))

        nursery.start_soon(answer)
        assert (await asker.do("request", **_ask(wire, 77)))["body"] == body(number=77)


async def late_answer(asker: Peer, wire: Wire, session: Asked) -> None:
    """It goes to nobody, and ends nothing."""
    async with trio.open_nursery() as nursery:

        async def give_up() -> None:
            await asker.refused("request", "timeout", timeout_ms=BRIEF_MS, **_ask(wire))

        nursery.start_soon(give_up)
        late = await session.request()
    await session.send(frames.encode_answer(late.request_id, b"\xa0"))
    await asks_in(session, asker, wire)


async def parts_alone(asker: Peer, wire: Wire) -> None:
    """A method of parts has a stream of its own."""
    sent = [b"one", b"", PART]
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            stream = await wire.stream()
            number = (await stream.request()).request_id
            await stream.send(*(frames.encode_part(number, part) for part in sent))
            await stream.send(frames.encode_answer(number, b"\xa0"))
            await stream.end()

        nursery.start_soon(answer)
        found = await asker.do("request_parts", **_ask(wire))
    whole = b"".join(sent)
    assert (found["parts"], found["bytes"], found["last"]) == (len(sent), len(whole), "a0"), found
    assert found["hash"] == blake3(whole).hexdigest(), found


async def cut_short(asker: Peer, wire: Wire) -> None:
    """A stream that ends before the last frame is whole, however it ends, is no answer."""
    whole = frames.encode_answer(0, encoded(text="the last"))
    for do, fields in ALONE_BY.items():
        for sent in (b"", whole[: len(whole) // 2], whole[:1]):
            for is_reset in (False, True):
                async with trio.open_nursery() as nursery:

                    async def answer(sent: bytes = sent, *, is_reset: bool = is_reset) -> None:
                        stream = await wire.stream()
                        await stream.request()
                        await stream.send(sent)
                        await (stream.reset if is_reset else stream.end)()

                    nursery.start_soon(answer)
                    await asker.refused(do, "stream", **fields, **_ask(wire))


def _of_another(number: int) -> bytes:
    return frames.encode_answer(number + OTHER, b"\xa0")


def _error_of_another(number: int) -> bytes:
    return frames.encode_error(number + OTHER, Code.ERR_NOT_FOUND, "nobody asked")


def _a_request(number: int) -> bytes:
    return frames.encode_request(number, "x_echo", b"\xa0")


def _a_part(number: int) -> bytes:
    return frames.encode_part(number, b"a part")


def _a_part_of_another(number: int) -> bytes:
    return frames.encode_part(number + OTHER, b"a part")


def _a_part_too_large(number: int) -> bytes:
    part = bytearray(frames.encode_answer(number, bytes(len(PART) + 1)))
    part[LENGTH_BYTES] = PART_TYPE
    return bytes(part)


def _of_no_type(number: int) -> bytes:
    return bytes([3, UNKNOWN_TYPE, number, 0xA0])


def _of_no_code(number: int) -> bytes:
    return bytes([6, ERROR_TYPE, number, 0, 0, 0, 0])


def _too_long(number: int) -> bytes:
    del number
    return TOO_LONG


FALSE: Final = (_of_another, _error_of_another, _a_request, _of_no_type, _of_no_code, _too_long)
FALSE_BY: Final = {
    "request": (*FALSE, _a_part),
    "request_parts": (*FALSE, _a_part_of_another, _a_part_too_large),
}


async def false_in_a_session(asker: Peer, wire: Wire) -> None:
    """What no server sends ends the session, and those who wait in it learn so; the next request begins another."""
    for false in (*FALSE, _a_part):
        session = await next_session(asker, wire)
        async with trio.open_nursery() as nursery:

            async def answer(session: Asked = session, false: Answering = false) -> None:
                first, _second = await session.request(), await session.request()
                await session.send(false(first.request_id))
                await session.given_up()

            nursery.start_soon(answer)
            nursery.start_soon(no_answer, asker, "request", false, _ask(wire, 1))
            nursery.start_soon(no_answer, asker, "request", false, _ask(wire, 2))


async def false_alone(asker: Peer, wire: Wire, do: str, fields: dict[str, Any]) -> None:
    """The same on a stream of its own, which is given up."""
    for false in FALSE_BY[do]:
        async with trio.open_nursery() as nursery:

            async def answer(false: Answering = false) -> None:
                stream = await wire.stream()
                await stream.send(false((await stream.request()).request_id))
                await stream.given_up()

            nursery.start_soon(answer)
            await no_answer(asker, do, false, fields | _ask(wire))


async def no_answer(asker: Peer, do: str, false: Answering, fields: dict[str, Any]) -> None:
    """It is told that there was none. Raises AssertionError with the name of what was taken for one."""
    try:
        await asker.refused(do, "stream", **fields)
    except (AssertionError, CommandFailed) as error:
        raise AssertionError(f"{do}: {false.__name__}: {error}") from error


async def given_up(asker: Peer, wire: Wire) -> None:
    """Whose time is over gives its stream up."""
    for do, fields in ALONE_BY.items():
        async with trio.open_nursery() as nursery:

            async def answer(do: str = do) -> None:
                stream = await wire.stream()
                number = (await stream.request()).request_id
                if do == "request_parts":
                    await stream.send(frames.encode_part(number, b"a part"))
                await stream.given_up()

            nursery.start_soon(answer)
            await asker.refused(do, "timeout", timeout_ms=GIVE_UP_MS, **fields, **_ask(wire))


async def next_session(asker: Peer, wire: Wire) -> Asked:
    """Ask, where there is no session: the one that is opened."""
    before, opened = wire.opened, list[Asked]()
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            opened.append(await wire.stream())
            request = await opened[0].request()
            await opened[0].send(frames.encode_answer(request.request_id, request.body))

        nursery.start_soon(answer)
        await asker.do("request", **_ask(wire))
    assert wire.opened == before + 1
    return opened[0]


async def too_much(asker: Peer, wire: Wire) -> None:
    """An answer whose parts are above the limit is given up, and not before."""
    sent = 0
    async with trio.open_nursery() as nursery:

        async def pour() -> None:
            nonlocal sent
            stream = await wire.stream()
            number = (await stream.request()).request_id
            with suppress(StreamBroken):  # it may be given up at the last part that it takes
                for _ in range(TOO_MANY_PARTS):
                    await stream.send(frames.encode_part(number, PART))
                    sent += 1
            await stream.given_up()

        nursery.start_soon(pour)
        await asker.refused("request_parts", "too_large", timeout_ms=60_000, **_ask(wire))
    assert sent >= TOO_MANY_PARTS - 1, f"given up after {sent} parts of {len(PART)} bytes"

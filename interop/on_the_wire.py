"""How a peer asks, seen by who answers its streams by hand, and what it makes of answers that no peer gives.

Guarantees: streams, ids and places are counted where they arrive. Implements docs/protocol.md, "Request / response".
"""

from __future__ import annotations

from typing import Any, Final

import trio
from blake3 import blake3

from interop.driver import Ground, Peer
from interop.steps import body, encoded
from interop.witness import Asked, Wire, open_wire
from p2p import frames, names
from p2p.errors import StreamBroken

ALONE: Final = 20  # requests, each on a stream of its own
PLACES: Final = names.IN_FLIGHT_PER_SESSION_MAX
SILENT_S: Final = 0.5
BRIEF_MS: Final = 300
PART: Final = bytes(names.PART_BYTES_MAX)
TOO_MANY_PARTS: Final = names.ANSWER_PARTS_BYTES_MAX // len(PART) + 1
TOO_LONG: Final = bytes.fromhex("818040")  # the length of a frame: one byte over 1 MiB


async def on_the_wire(ground: Ground, *, language: str) -> None:
    """Streams of their own, one session, places, late answers, cut and false ones, and too large ones."""
    async with open_wire() as wire:
        asker = await ground.start(language, 1)
        await asker.do("dial", addr=wire.addr)
        await each_alone(asker, wire)
        session = await one_session(asker, wire)
        await late_answer(asker, wire, session)
        await parts_alone(asker, wire)
        await asks_in(session, asker, wire)
        await cut_short(asker, wire)
        session = await false_answers(asker, wire, session)
        await too_much(asker, wire)
        await asks_in(session, asker, wire)


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
    for do, fields in (("request", {"one_shot": True}), ("request_parts", {})):
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


async def false_answers(asker: Peer, wire: Wire, session: Asked) -> Asked:
    """What no server sends ends the session, and those who wait in it learn so; the next request begins another."""

    def of_another(number: int) -> bytes:
        return frames.encode_answer(number + 1, b"\xa0")

    def a_request(number: int) -> bytes:
        return frames.encode_request(number, "x_echo", b"\xa0")

    def a_part(number: int) -> bytes:
        return frames.encode_part(number, b"a part of no parts method")

    def unknown(number: int) -> bytes:
        frame = bytearray(frames.encode_answer(number, b"\xa0"))
        frame[1] = 4  # its type
        return bytes(frame)

    def too_long(number: int) -> bytes:
        del number
        return TOO_LONG

    for false in (of_another, a_request, a_part, unknown, too_long):
        async with trio.open_nursery() as nursery:

            async def answer(session: Asked = session, false: Any = false) -> None:
                await session.send(false((await session.request()).request_id))

            nursery.start_soon(answer)
            try:
                await asker.refused("request", "stream", **_ask(wire))
            except AssertionError as error:
                raise AssertionError(f"{false.__name__}: {error}") from error
        session = await next_session(asker, wire)
    return session


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
    """An answer in parts above the limit is given up, and so is a frame, and a part of one."""
    async with trio.open_nursery() as nursery:

        async def pour() -> None:
            stream = await wire.stream()
            number = (await stream.request()).request_id
            try:
                for _ in range(TOO_MANY_PARTS):
                    await stream.send(frames.encode_part(number, PART))
                await stream.send(frames.encode_answer(number, b"\xa0"))
            except StreamBroken:  # has been given up, as it should be
                return

        nursery.start_soon(pour)
        await asker.refused("request_parts", "too_large", timeout_ms=60_000, **_ask(wire))
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            stream = await wire.stream()
            await stream.request()
            await stream.send(TOO_LONG)

        nursery.start_soon(answer)
        await asker.refused("request_parts", "stream", **_ask(wire))

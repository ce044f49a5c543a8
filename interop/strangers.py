"""What a peer makes of those that are slow, dead, greedy or not there: one row for each language.

Guarantees: what must come first comes seconds earlier, and nothing else depends on how fast a machine is. Implements
docs/protocol.md, "Request / response", "Connections" and "Finding things".
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Final

import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr

from interop.driver import CommandFailed, Ground, Peer
from interop.steps import body, connected, encoded, in_table, until
from interop.witness import Asked, Wire, open_wire
from p2p import frames, names
from p2p.errors import StreamBroken, Unreachable

REST_S: Final = 12.0  # less than a reader may take (request_total_ms)
UNREAD_PARTS: Final = 200  # more than the sockets of both sides hold
STUCK_S: Final = 60.0
ECHO: Final = frames.encode_request(0, "x_echo", encoded(data=b""))
UNREAD: Final = frames.encode_request(1, "x_parts", encoded(count=40, size=100_000))  # far more than may wait
GREEDY: Final = 6  # with STREAMS_PER_PEER_MAX of these each, of which at least 390 kB wait beside a window
HURRIED_S: Final = names.REQUEST_TOTAL_MS / 2_000  # before each of them is too slow by itself
FILLED_S: Final = 3.0  # then the sockets are full
PARTS: Final = 40  # of 256 KiB: more than anybody sends ahead of who reads
SHORT_MS, BETWEEN_MS, LONG_MS = 500, 3_500, 7_000  # far apart: whoever measures them may be held up
TIMES: Final = {"short": SHORT_MS, "long": LONG_MS}
CHOSEN_S, PARTED_S = 6.0, 1.0  # js-libp2p looks every 5 s whom it should keep
PARTINGS: Final = 3  # a look-up in the DHT may dial after one of them
ENDLESS: Final = b"\x80" * 256 * 1024  # a length without a last byte, as far as it is taken of a stream ahead
ENDLESS_S: Final = 8.0  # js-libp2p gives a stream up that says nothing for 10 s
NO_PROTOCOL: Final = b"\x01\n"  # an empty line where a protocol is named
NO_RPC: Final = b"\x00"  # an empty message
PING: Final = encode_varint_prefixed(Message(type=Message.MessageType.PING).SerializeToString())
TALK_BYTES: Final = 512 * 1024
TALKERS: Final = 8  # js-libp2p would be busy with that for 12 s at least
SOON_S: Final = 0.1  # for a command to be on its way before the next one
PROVIDERS: Final = 5_000  # as many as a DHT message holds
LONG_KEY: Final = 2 * names.ERROR_MESSAGE_BYTES_MAX
LONG_ADDR: Final = f"/dns4/{'.'.join(['a' * 60] * 3)}.invalid/tcp/4001"
FLOOD_EACH: Final = names.ADD_PROVIDER_PER_10_S_PER_PEER_MAX - 1  # and one of a key that all of them tell
FLOODERS: Final = names.PROVIDER_RECORDS_HELD_MAX // FLOOD_EACH + 2
LEFT_EACH: Final = names.PROVIDER_RECORDS_HELD_MAX // FLOODERS
GONE, KEPT = FLOOD_EACH - LEFT_EACH - 4, FLOOD_EACH - LEFT_EACH + 4  # of each flooder's records
FLOODERS_AT_ONCE: Final = 4
MOVED_TO: Final = "/ip4/127.0.0.1/tcp/4001"
RSA_ID: Final = bytes([0x12, 32]) + bytes(32)
LONG_HASH: Final = bytes([0x1E, 127]) + bytes(127)
SHARED: Final = names.provider_key(bytes(32))
FAR: Final = bytes(range(32))  # what nobody here holds


async def strangers(ground: Ground, *, language: str) -> None:
    """Slow readers, no readers, dead addresses, words too long, peers that stand still, who tells too much, nobody."""
    peer, other, third = [await ground.start(language, number) for number in (1, 2, 3)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow_reader, peer)
        nursery.start_soon(reads_no_more, peer)
        nursery.start_soon(partial(reads_no_more, peer, part=True))
        await dead_address(peer, other)
        await long_words(peer, other)
        await place_given_back(peer, other)
    if language != "py":  # it holds less of each stream: GREEDY are too few
        await unread_by_many(peer)
    await stands_still(ground, peer, other)
    await names_thousands(peer, other)
    await long_address(peer, await ground.start(language, 5))
    await long_address_told(peer)
    await strange_key(peer)
    await long_message(peer)
    await endless_length(peer)
    await endless_talk(peer)
    if language != "rust":  # it has 32, and a newcomer takes the place of a silent one
        await many_dht_streams(peer)
    await flood(peer, other)
    if language == "js":  # its library keeps whom it chose; the others' DHT may dial by chance
        await stays_parted(peer, other)
    await alone(ground, third)


async def slow_reader(peer: Peer) -> None:
    """Who reads the whole answer, but not at once, gets all of it."""
    async with open_wire() as wire:
        await peer.do("dial", addr=wire.addr)
        request = encoded(count=PARTS, size=names.PART_BYTES_MAX)
        stream = await wire.ask(peer.peer_id, frames.encode_request(0, "x_parts", request))
        await trio.sleep(REST_S)
        came = [await stream.frame() for _ in range(PARTS + 1)]
    parts = [frames.Part(0, bytes([number]) * names.PART_BYTES_MAX) for number in range(PARTS)]
    assert came == [*parts, frames.Answer(0, encoded(count=PARTS))], [type(frame) for frame in came]


async def reads_no_more(peer: Peer, *, part: bool = False) -> None:
    """Who asks for much and takes nothing is closed, though it talks on; also where the peer was to `part` from it."""
    async with open_wire() as wire, trio.open_nursery() as nursery:
        await peer.do("dial", addr=wire.addr)
        request = encoded(count=UNREAD_PARTS, size=names.PART_BYTES_MAX)
        stream = await wire.ask(peer.peer_id, frames.encode_request(0, "x_parts", request))
        nursery.start_soon(stream.fill)
        if part:
            await trio.sleep(FILLED_S)
            await peer.do("disconnect", peer=wire.peer_id)
        await peer.event("disconnected", peer=wire.peer_id, within_s=STUCK_S)
        nursery.cancel_scope.cancel()


async def unread_by_many(peer: Peer) -> None:
    """Where more waits for those who do not read than may wait in all, they lose it soon, and others are served."""

    async def open_streams(task_status: trio.TaskStatus[list[Asked]]) -> None:
        async with open_wire() as wire:
            await peer.do("dial", addr=wire.addr)
            streams = [await wire.ask(peer.peer_id, ECHO) for _ in range(names.STREAMS_PER_PEER_MAX)]
            for stream in streams:
                assert isinstance(await stream.frame(), frames.Answer)
            task_status.started(streams)
            await trio.sleep_forever()

    async with open_wire() as asking, trio.open_nursery() as nursery:
        await peer.do("dial", addr=asking.addr)
        greedy = [stream for _ in range(GREEDY) for stream in await nursery.start(open_streams)]
        for stream in greedy:
            await stream.send(UNREAD)

        async def is_lost() -> bool:
            return any(stream.is_reset for stream in greedy)

        async def is_served() -> bool:
            try:
                stream = await asking.ask(peer.peer_id, ECHO)
                answer = await stream.frame()
                await stream.end()
            except (StreamBroken, Unreachable, trio.TooSlowError):  # this host itself is busy
                return False
            return isinstance(answer, frames.Answer)

        await until(is_lost, f"{peer.name} gives up who does not read", HURRIED_S)
        await until(is_served, f"{peer.name} answers who reads")
        nursery.cancel_scope.cancel()


async def dead_address(peer: Peer, other: Peer) -> None:
    """A dial to an address where nobody answers holds up none to another address of that peer."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    silent = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}/p2p/{other.peer_id}"

    async def dial() -> None:
        with suppress(CommandFailed):  # or it is told of the other dial's connection
            await peer.do("dial", addr=silent)

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        await trio.sleep(SOON_S)
        await connected(peer, other)


async def long_words(peer: Peer, other: Peer) -> None:
    """What an error says of a request is cut: a frame against the rules would end the session for all."""
    async with trio.open_nursery() as nursery:
        wait = partial(peer.do, "request", peer=other.peer_id, method="x_wait", body=body(ms=SHORT_MS))
        nursery.start_soon(wait)
        await trio.sleep(SOON_S)
        asked = body(world_id="a" * 32, envelopes=[[{"k" * LONG_KEY: 1}, bytes(64)]])
        await peer.refused("request", "rr", peer=other.peer_id, method="submit_actions", body=asked)


async def place_given_back(peer: Peer, other: Peer) -> None:
    """A request that waits for a place, and then is larger than a frame, keeps it from nobody."""
    order = list[str]()

    async def ask(name: str, method: str, body: str) -> None:
        await peer.do("request", peer=other.peer_id, method=method, body=body, timeout_ms=4 * LONG_MS)
        order.append(name)

    async def ask_too_much() -> None:
        data = body(data=bytes(names.FRAME_BYTES_MAX))
        await peer.refused("request", "usage", peer=other.peer_id, method="x_echo", body=data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "short", "x_wait", body(ms=SHORT_MS))
        for _ in range(names.IN_FLIGHT_PER_SESSION_MAX - 1):
            nursery.start_soon(ask, "long", "x_wait", body(ms=LONG_MS))
        await trio.sleep(SOON_S)
        nursery.start_soon(ask_too_much)
        await trio.sleep(SOON_S)
        nursery.start_soon(ask, "behind", "x_echo", "a0")
    assert "behind" in order[: order.index("long")], order


async def stands_still(ground: Ground, peer: Peer, other: Peer) -> None:
    """Of requests to a peer that says nothing each ends in its own time, whoever opened the session."""
    for number, first in enumerate(TIMES, start=904):
        stuck, order = await ground.start(peer.language, number), list[str]()
        await connected(peer, stuck)
        await stuck.freeze()

        async def give_up(name: str, stuck: Peer = stuck, order: list[str] = order) -> None:
            with suppress(CommandFailed):
                await peer.do(
                    "request", peer=stuck.peer_id, method="x_echo", body="a0", timeout_ms=TIMES[name]
                )
            order.append(name)

        async def wait(order: list[str] = order) -> None:
            await peer.do("request", peer=other.peer_id, method="x_wait", body=body(ms=BETWEEN_MS))
            order.append("between")

        async with trio.open_nursery() as nursery:
            for name in sorted(TIMES, key=lambda name: name != first):
                nursery.start_soon(give_up, name)
                await trio.sleep(SOON_S)
            nursery.start_soon(wait)
        assert order == ["short", "between", "long"], (first, order)
        await stuck.stop()


async def names_thousands(peer: Peer, other: Peer) -> None:
    """Of one answer of the DHT so many are taken as a bucket has, and they hide nobody that another one names."""
    content = (await other.do("put_blob", data="bcde"))["content_hash"]
    await in_table(other, peer)
    await other.do("provide", content_hash=content)
    async with open_wire() as wire:
        wire.answer_dht(_thousands)
        await _has_in_table(peer, wire)
        found = (await peer.do("find_providers", content_hash=content))["providers"]
    assert other.peer_id in {one["peer"] for one in found}, found
    assert len(found) <= names.DHT_PEERS_MAX + 1, len(found)


def _thousands(asked: Message) -> Message:
    answer = Message(type=asked.type, key=asked.key)
    if asked.type == Message.MessageType.GET_PROVIDERS:
        for number in range(PROVIDERS):
            answer.providerPeers.add(id=names.PEER_ID_PREFIX + number.to_bytes(32, "big"))
    return answer


async def long_address(peer: Peer, unknown: Peer) -> None:
    """Of what one tells about others no address is taken that is too long, and nobody with another key; the rest is."""
    told = {
        "id": ID.from_base58(unknown.peer_id).to_bytes(),
        "addrs": [_short(addr) for addr in (LONG_ADDR, unknown.addr)],
    }

    def answer(asked: Message) -> Message:
        answer = Message(type=asked.type, key=asked.key)
        if asked.type == Message.MessageType.GET_PROVIDERS:
            answer.providerPeers.add(id=RSA_ID, addrs=told["addrs"])
            answer.providerPeers.add(**told)
        if asked.type == Message.MessageType.FIND_NODE:
            answer.closerPeers.add(**told)
        return answer

    async with open_wire() as wire:
        wire.answer_dht(answer)
        await _has_in_table(peer, wire)
        found = (await peer.do("find_providers", content_hash=FAR.hex()))["providers"]
    by_peer = {one["peer"]: one["addrs"] for one in found}
    assert ID(RSA_ID).to_base58() not in by_peer, found
    addrs = by_peer[unknown.peer_id]
    assert [addr.partition("/p2p/")[0] for addr in addrs] == [unknown.addr.partition("/p2p/")[0]], addrs


async def long_address_told(peer: Peer) -> None:
    """Nor of what one tells about itself: nobody is told of it, and of the others only of those it told last."""
    key = names.provider_key(FAR)
    asked = Message(type=Message.MessageType.GET_PROVIDERS, key=key)
    async with open_wire() as wire, open_wire() as asking:
        for one in (wire, asking):
            await peer.do("dial", addr=one.addr)
        for addr in (wire.addr, MOVED_TO):
            await wire.ask_dht(peer.peer_id, asked, _provides(wire.peer_id, key, [LONG_ADDR, addr]))
            answer = await asking.ask_dht(peer.peer_id, asked)
            (addrs,) = [one.addrs for one in answer.providerPeers if ID(one.id).to_base58() == wire.peer_id]
            assert list(addrs) == [_short(addr)], (addrs, addr)


async def strange_key(peer: Peer) -> None:
    """Nobody is kept as the provider of what is no BLAKE3 multihash: a key may be as long as a message."""
    asked = Message(type=Message.MessageType.GET_PROVIDERS, key=LONG_HASH)
    async with open_wire() as wire, open_wire() as asking:
        for one in (wire, asking):
            await peer.do("dial", addr=one.addr)
        with suppress(StreamBroken):  # as whoever refuses may answer
            await wire.ask_dht(peer.peer_id, asked, _provides(wire.peer_id, LONG_HASH, [wire.addr]))
        with suppress(StreamBroken):
            answer = await asking.ask_dht(peer.peer_id, asked)
            assert not answer.providerPeers, answer


async def long_message(peer: Peer) -> None:
    """A DHT message that is longer than it may be is refused."""
    asked = Message(type=Message.MessageType.FIND_NODE, key=bytes(names.DHT_MESSAGE_BYTES_MAX))
    async with open_wire() as wire:
        await peer.do("dial", addr=wire.addr)
        try:
            answer = await wire.ask_dht(peer.peer_id, asked)
        except StreamBroken:
            return
        raise AssertionError(f"{len(answer.key)} bytes of a key were answered")


async def endless_length(peer: Peer) -> None:
    """A length that is longer than any is refused there, also where it is still negotiated what a stream is for."""
    async with open_wire() as wire:
        await peer.do("dial", addr=wire.addr)
        for open_stream in (wire.open_unnegotiated, wire.hold_dht):
            stream = await open_stream(peer.peer_id)

            async def is_refused(stream: Asked = stream) -> bool:
                return stream.is_reset

            with suppress(StreamBroken):
                await stream.send(ENDLESS)
            await until(is_refused, f"{peer.name} refuses a length without an end", ENDLESS_S)


async def endless_talk(peer: Peer) -> None:
    """Who says the same again and again, in a negotiation, to the DHT or as gossip, holds up nobody."""
    for said, open_stream, talkers in (
        (NO_PROTOCOL, Wire.open_unnegotiated, TALKERS),
        (PING, Wire.hold_dht, TALKERS),
        (NO_RPC, Wire.hold_gossip, 1),
    ):
        async with open_wire() as wire, trio.open_nursery() as nursery:
            await peer.do("dial", addr=wire.addr)
            streams = [await open_stream(wire, peer.peer_id) for _ in range(talkers)]
            for stream in streams:
                nursery.start_soon(_talk, stream, said * (TALKERS * TALK_BYTES // talkers // len(said)))

            async def answers() -> bool:
                for _ in range(TALKERS):
                    await trio.sleep(SOON_S)
                    await peer.do("peers")
                return True

            async def are_refused(streams: list[Asked] = streams) -> bool:
                return all(stream.is_reset for stream in streams)

            await until(answers, f"{peer.name} answers while others say the same again and again", ENDLESS_S)
            if said == NO_PROTOCOL and peer.language == "js":  # it can answer nobody else meanwhile
                await until(are_refused, f"{peer.name} refuses to negotiate without an end", ENDLESS_S)
            nursery.cancel_scope.cancel()


async def _talk(stream: Asked, said: bytes) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.forget)
        with suppress(StreamBroken):  # it may be reset
            await stream.send(said)


async def many_dht_streams(peer: Peer) -> None:
    """Who holds as many DHT streams as a peer may gets no other, until it lets go of them."""
    asked = Message(type=Message.MessageType.FIND_NODE, key=SHARED)
    async with open_wire() as wire:
        await peer.do("dial", addr=wire.addr)

        async def is_answered() -> bool:
            try:
                await wire.ask_dht(peer.peer_id, asked)
            except (StreamBroken, Unreachable, trio.TooSlowError):
                return False
            return True

        await until(is_answered, f"{peer.name} answers")
        silent: list[Asked] = []

        async def is_full() -> bool:
            silent[:] = [stream for stream in silent if not stream.is_reset]  # each is given up after a while
            with suppress(Unreachable):  # this host's own DHT may hold one of them for a moment
                while len(silent) < names.DHT_STREAMS_PER_PEER_MAX:
                    silent.append(await wire.hold_dht(peer.peer_id))
            if len(silent) < names.DHT_STREAMS_PER_PEER_MAX or await is_answered():
                return False
            return not await is_answered()

        await until(is_full, f"{peer.name} lets nobody hold more DHT streams than a peer may")
        for stream in silent:
            await stream.end()
        await until(is_answered, f"{peer.name} answers again, now that the silent streams have ended")


async def flood(peer: Peer, other: Peer) -> None:
    """Many who tell as much as they may, more than is held in all, displace what they told first, and nobody else."""
    honest = bytes.fromhex((await other.do("put_blob", data="cdef"))["content_hash"])
    await other.do("provide", content_hash=honest.hex())
    places = trio.Semaphore(FLOODERS_AT_ONCE)

    async def tell(flooder: int) -> None:
        keys = [_key(flooder, number) for number in range(FLOOD_EACH)]
        async with places, open_wire() as wire:
            await peer.do("dial", addr=wire.addr)
            told = [_provides(wire.peer_id, key, [wire.addr]) for key in (*keys, SHARED)]
            await wire.ask_dht(peer.peer_id, Message(type=Message.MessageType.FIND_NODE, key=SHARED), *told)

    async with trio.open_nursery() as nursery:
        for flooder in range(FLOODERS):
            nursery.start_soon(tell, flooder)
    async with open_wire() as asking:
        await peer.do("dial", addr=asking.addr)

        async def count(key: bytes) -> int:
            asked = Message(type=Message.MessageType.GET_PROVIDERS, key=key)
            return len((await asking.ask_dht(peer.peer_id, asked)).providerPeers)

        assert await count(names.provider_key(honest)) == 1
        assert await count(SHARED) == names.PROVIDERS_PER_KEY_MAX
        held = {
            number: [await count(_key(flooder, number)) for flooder in range(FLOODERS)]
            for number in (GONE, KEPT)
        }
    assert held == {GONE: [0] * FLOODERS, KEPT: [1] * FLOODERS}, held


def _key(flooder: int, number: int) -> bytes:
    return names.provider_key(flooder.to_bytes(16, "big") + number.to_bytes(16, "big"))


def _provides(peer_id: str, key: bytes, addrs: list[str]) -> Message:
    told = Message(type=Message.MessageType.ADD_PROVIDER, key=key)
    told.providerPeers.add(id=ID.from_base58(peer_id).to_bytes(), addrs=[_short(addr) for addr in addrs])
    return told


def _short(addr: str) -> bytes:
    return bytes(Multiaddr(addr.partition("/p2p/")[0]).to_bytes())


async def _has_in_table(peer: Peer, wire: Wire) -> None:
    await peer.do("dial", addr=wire.addr)

    async def has() -> bool:
        return wire.peer_id in (await peer.do("dht_peers"))["peers"]

    await until(has, f"{peer.name} has who answers by hand in its table")


async def stays_parted(peer: Peer, other: Peer) -> None:
    """Who is let go is not dialled again every time, by either side, however near they are in the DHT."""
    for _ in range(PARTINGS):
        await peer.do("dial", addr=other.addr)
        await in_table(peer, other)
        await in_table(other, peer)
        await trio.sleep(CHOSEN_S)
        await peer.do("disconnect", peer=other.peer_id)
        await trio.sleep(PARTED_S)
        if other.peer_id not in (await peer.do("peers"))["peers"]:
            return
    raise AssertionError(f"{peer.name} is connected again, each of {PARTINGS} times")


async def alone(ground: Ground, peer: Peer) -> None:
    """A server that has provided names itself, also to who comes later."""
    content = (await peer.do("put_blob", data="abcd"))["content_hash"]
    with suppress(CommandFailed):  # of kind stream: there is nobody to be told
        await peer.do("provide", content_hash=content)
    late = await ground.start(peer.language, 4)
    await connected(late, peer)
    await in_table(late, peer)
    found = (await late.do("find_providers", content_hash=content))["providers"]
    assert [one["peer"] for one in found] == [peer.peer_id], found

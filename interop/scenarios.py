"""What must hold between a peer of one language and a peer of another: one function a row of the matrix.

Hides: what is said to whom. Guarantees: a scenario ends without an error only when everything that it asserts was seen,
in processes of their own. `one` asks, `other` answers; both are fresh for each pairing and stay for its scenarios.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeAlias

import trio
from blake3 import blake3

from interop.driver import CommandFailed, Ground, Peer
from interop.worlds import CREATED_MS, HandMadeWorld
from p2p import frames, names
from p2p.errors import Code
from runtime import codec

Scenario: TypeAlias = Callable[[Ground, Peer, Peer], Awaitable[None]]
QUICK_STREAMS: Final = 1_000
QUICK_AT_ONCE: Final = 48  # below streams_per_peer_max, beside the session
FROZEN_S: Final = 60.0
SLOW_MS: Final = 3_000
QUICK_MIN: Final = 10  # requests, while a slow one is answered
MESH_S: Final = 30.0
HEARTBEAT_S: Final = 1.0  # of gossipsub
TOLD_S: Final = 2.0
SIZES: Final = (1_024, 256 * 1_024, 8 << 20)
MANY_PARTS: Final = 250  # of 256 KiB: more than anybody reads in ENOUGH_MS
ENOUGH_MS: Final = 40
# Frames that are none, and the id of the error that is due before the reset; None where no id can be read.
GARBAGE: Final = {"00": None, "0100": None, "02ff00": 0, "8000": None, "04050000ff": 0}


def body(**fields: Any) -> str:
    """A request body, hex of its canonical bytes."""
    return codec.encode(fields).hex()


async def until(holds: Callable[[], Awaitable[bool]], what: str, within_s: float = MESH_S) -> None:
    """Look until it holds. Raises AssertionError."""
    with trio.move_on_after(within_s):
        while not await holds():
            await trio.sleep(0.05)
        return
    raise AssertionError(f"{what}: not within {within_s:.0f} s")


async def connected(one: Peer, other: Peer) -> None:
    """A connection that both know of."""
    await one.do("dial", addr=other.addr)
    await other.event("connected", peer=one.peer_id)


@asynccontextmanager
async def one_connection(one: Peer, other: Peer) -> AsyncIterator[None]:
    """What is done here leaves the connection as it was: it answers afterwards, and was never another one."""
    before = len(one.events), len(other.events)
    yield
    await one.do("request", peer=other.peer_id, method="x_echo", body="a0")
    assert not one.lost(other, before[0]), f"{one.name} has lost {other.name}"
    assert not other.lost(one, before[1]), f"{other.name} has lost {one.name}"


# --- connections and requests ------------------------------------------------------------------------------


async def connect_identify(ground: Ground, one: Peer, other: Peer) -> None:
    """Connect, learn each other's protocols."""
    del ground
    assert (await one.do("dial", addr=other.addr))["peer"] == other.peer_id
    await other.event("connected", peer=one.peer_id)
    for peer, about in ((one, other), (other, one)):
        spoken = (await peer.do("identify", peer=about.peer_id))["protocols"]
        assert {names.RR_PROTOCOL, names.KAD_PROTOCOL, names.GOSSIP_PROTOCOL} <= set(spoken), spoken
        assert about.peer_id in (await peer.do("peers"))["peers"]


async def parting(ground: Ground, one: Peer, other: Peer) -> None:
    """Who is left dials back at once: both know that they are connected, and serve each other."""
    del ground
    for leaver, left in ((one, other), (other, one)) * 3:
        before = len(left.events)

        async def is_back(leaver: Peer = leaver, left: Peer = left) -> bool:
            try:
                await left.do("dial", addr=leaver.addr)
            except CommandFailed as failure:  # the leaver is not done with leaving
                if failure.kind != "stream":
                    raise
                return False
            return left.peer_id in await peers_of(leaver) and leaver.peer_id in await peers_of(left)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(leaver.do, "disconnect", peer=left.peer_id))
            # It is never told where the leaver's own DHT has dialled again before it noticed.
            with trio.move_on_after(TOLD_S):
                while not left.lost(leaver, before):
                    await trio.sleep(0.005)
            await until(is_back, f"{left.name} and {leaver.name} are connected again")
        await until(is_back, f"{left.name} and {leaver.name} stay connected")
        for asker, asked in ((leaver, left), (left, leaver)):
            await asker.do("request", peer=asked.peer_id, method="x_echo", body="a0")


async def peers_of(peer: Peer) -> list[str]:
    """Whom it says that it is connected to."""
    return list((await peer.do("peers"))["peers"])


async def rr_one_shot(ground: Ground, one: Peer, other: Peer) -> None:
    """A stream, a request with id 0, an answer."""
    del ground
    text = body(text="one shot", number=-5, data=bytes(300))
    answer = await one.do("request", peer=other.peer_id, method="x_echo", body=text, one_shot=True)
    assert answer["body"] == text
    hello = await one.do("request", peer=other.peer_id, method="hello", body="a0", one_shot=True)
    assert codec.decode(bytes.fromhex(hello["body"]), 4_096)["versions"] == [1]


async def rr_session(ground: Ground, one: Peer, other: Peer) -> None:
    """Many requests on one stream, answered as they finish."""
    del ground
    quick, is_answered = 0, trio.Event()

    async def ask_slowly() -> None:
        await one.do("request", peer=other.peer_id, method="x_wait", body=body(ms=SLOW_MS))
        is_answered.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_slowly)
        while not is_answered.is_set():  # a server that answers in order would let few of them by
            await one.do("request", peer=other.peer_id, method="x_echo", body="a0")
            quick += 1
    assert quick >= QUICK_MIN, quick
    done = await one.do(
        "requests", peer=other.peer_id, method="x_echo", body=body(data=bytes(200)), count=500, in_flight=32
    )
    assert (done["ok"], done["failed"]) == (500, 0), done


async def rr_streamed(ground: Ground, one: Peer, other: Peer) -> None:
    """An answer in parts, of all sizes up to the largest."""
    del ground
    for count, size in ((0, 0), (1, 1), (300, 7), (9, names.PART_BYTES_MAX)):
        whole = b"".join(bytes([number % 256]) * size for number in range(count))
        answer = await one.do(
            "request_parts", peer=other.peer_id, method="x_parts", body=body(count=count, size=size)
        )
        assert (answer["parts"], answer["bytes"]) == (count, len(whole))
        assert answer["hash"] == blake3(whole).hexdigest()
        assert answer["last"] == body(count=count)


async def rr_errors(ground: Ground, one: Peer, other: Peer) -> None:
    """Every code with all that an error frame carries, in a session, alone, and for what is not served."""
    del ground
    for one_shot in (False, True):
        for code in Code:
            sent = {"code": int(code), "retry_after_ms": 1_234, "message": "why: ü", "detail": b"\x01\x02"}
            error = await one.refused(
                "request", "rr", peer=other.peer_id, method="x_error", body=body(**sent), one_shot=one_shot
            )
            assert (error["code"], error["name"]) == (int(code), code.name), error
            assert (error["retry_after_ms"], error["detail"]) == (1_234, "0102"), error
            assert error["message"] == "why: ü", error
    unknown = await one.refused("request", "rr", peer=other.peer_id, method="no_such_method", body="a0")
    assert unknown["name"] == "ERR_UNSUPPORTED", unknown
    nobody = "a" * 32
    unserved = await one.refused(
        "request", "rr", peer=other.peer_id, method="get_genesis", body=body(world_id=nobody)
    )
    assert unserved["name"] in {"ERR_NOT_AVAILABLE", "ERR_NOT_FOUND"}, unserved
    missing = await one.refused(
        "request_parts", "rr", peer=other.peer_id, method="fetch_blob", body=body(content_hash=bytes(32))
    )
    assert missing["name"] == "ERR_NOT_FOUND", missing
    for bad in ("80", "bf", "a1616101f6"):  # no map; indefinite; bytes after the end
        refused = await one.refused("request", "rr", peer=other.peer_id, method="x_wait", body=bad)
        assert refused["name"] == "ERR_BAD_REQUEST", refused
    await one.do("request", peer=other.peer_id, method="x_echo", body="a0")


async def rr_oversize(ground: Ground, one: Peer, other: Peer) -> None:
    """Frames and bodies past their limits end their stream or request, and nothing else."""
    del ground
    async with one_connection(one, other):
        await _oversize(one, other)


async def _oversize(one: Peer, other: Peer) -> None:
    # A frame one byte over 1 MiB by its length; the rest need not come.
    length = names.FRAME_BYTES_MAX + 1
    varint = bytes([length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14])
    answered = await one.do("send_raw", peer=other.peer_id, data=(varint + b"\x00\x00").hex())
    assert answered["end"] != "open", answered
    # A request over 64 KiB for a method that takes no more: told so, and the session goes on.
    large = frames.encode_request(7, "x_echo", codec.encode({"data": bytes(names.REQUEST_BYTES_MAX)}))
    small = frames.encode_request(8, "x_echo", b"\xa0")
    answered = await one.do("send_raw", peer=other.peer_id, data=(large + small).hex())
    error, answer = _frames(bytes.fromhex(answered["answer"]))
    assert isinstance(error, frames.ErrorFrame), answered
    assert (error.request_id, error.code) == (7, Code.ERR_BAD_REQUEST), error
    assert answer == frames.Answer(8, b"\xa0"), answer
    for garbage, request_id in GARBAGE.items():
        answered = await one.do("send_raw", peer=other.peer_id, data=garbage)
        assert answered["end"] != "open", (garbage, answered)
        said = [
            (frame.request_id, frame.code)
            for frame in _frames(bytes.fromhex(answered["answer"]))
            if isinstance(frame, frames.ErrorFrame)
        ]
        assert said == ([] if request_id is None else [(request_id, Code.ERR_BAD_REQUEST)]), (
            garbage,
            answered,
        )


def _frames(data: bytes) -> list[object]:
    reader, found = frames.FrameReader(), list[object]()
    reader.feed(data)
    while (frame := reader.next_frame()) is not frames.NEED_DATA:
        found.append(frame)
    return found


async def rr_reset(ground: Ground, one: Peer, other: Peer) -> None:
    """A stream that either side resets in the middle of an answer is an error, and the connection lives."""
    del ground
    for after in (0, 1, 40):
        async with one_connection(one, other):
            await one.refused(
                "request_parts", "stream", peer=other.peer_id, method="x_reset", body=body(after=after)
            )
    async with one_connection(one, other):  # who asks has had enough of it, long before its end
        many = body(count=MANY_PARTS, size=names.PART_BYTES_MAX)
        ask: dict[str, Any] = {"peer": other.peer_id, "method": "x_parts", "body": many}
        await one.refused("request_parts", "timeout", timeout_ms=ENOUGH_MS, **ask)


async def quick_streams(ground: Ground, one: Peer, other: Peer) -> None:
    """1,000 streams, each for one request, many at a time: none is lost, and the connection lives."""
    del ground
    async with one_connection(one, other):
        done = await one.do(
            "requests",
            peer=other.peer_id,
            method="x_echo",
            body="a0",
            count=QUICK_STREAMS,
            in_flight=QUICK_AT_ONCE,
            one_shot=True,
            timeout_ms=60_000,
            within_s=180,
        )
        assert (done["ok"], done["failed"]) == (QUICK_STREAMS, 0), done


async def blobs(ground: Ground, one: Peer, other: Peer) -> None:
    """Blobs are fetched and checked; false bytes are refused."""
    del ground
    for size in SIZES:
        put = await other.do("put_blob", seed=size, size=size)
        made = blake3(size.to_bytes(8, "big")).digest(length=size)
        assert put["content_hash"] == codec.content_id(made).hex()
        begun = await one.do("fetch", peer=other.peer_id, content_hash=put["content_hash"], length=size // 2)
        assert begun["size"] == size // 2
        fetched = await one.do("fetch", peer=other.peer_id, content_hash=put["content_hash"])
        assert fetched["size"] == size
    wrong = codec.content_id(b"what was asked for").hex()
    await other.do("forge_blob", content_hash=wrong, data=b"something else".hex())
    await one.refused("fetch", "refused", peer=other.peer_id, content_hash=wrong)
    await one.refused("fetch", "rr", peer=other.peer_id, content_hash=bytes(32).hex())


# --- gossip ------------------------------------------------------------------------------------------------


async def joined(world: HandMadeWorld, topic: str, *peers: Peer) -> None:
    """All of them know the world, are subscribed, and know that the others are."""
    for peer in peers:
        await peer.do("world", genesis=world.genesis.to_bytes().hex())
        await peer.do("join", topic=topic)
    for one in peers:
        for other in peers:
            if one is not other:
                await knows_subscriber(one, other, topic)


async def knows_subscriber(one: Peer, other: Peer, topic: str) -> None:
    """One knows that the other is subscribed."""

    async def knows() -> bool:
        return other.peer_id in (await one.do("mesh", topic=topic))["peers"]

    await until(knows, f"{one.name} knows that {other.name} is subscribed to {topic}")


async def gossip(ground: Ground, one: Peer, other: Peer) -> None:
    """Signed messages are heard both ways; forged ones are rejected, one of another version is ignored."""
    world = HandMadeWorld(f"gossip-{one.name}-{other.name}")
    action, head = names.topic(world.world_id, "action"), names.topic(world.world_id, "head")
    await joined(world, action, one, other)
    await joined(world, head, one, other)
    for nonce, (sender, hearer) in enumerate(((one, other), (other, one))):
        acted, announced = world.envelope(nonce).hex(), world.head(nonce + 1).hex()
        await sender.do("publish", topic=action, data=acted)
        heard = await hearer.event("gossip", topic=action, verdict="accept", data=acted)
        assert heard["from"] == sender.peer_id, heard
        await sender.do("publish", topic=head, data=announced)
        await hearer.event("gossip", topic=head, verdict="accept", data=announced)
    bad = (
        (head, world.head(9, by=world.actor), "reject"),
        (action, world.envelope(9, by=world.executor), "reject"),
        (action, world.newer_envelope(9), "ignore"),
    )
    for topic, data, _verdict in bad:
        await one.refused("publish", "refused", topic=topic, data=data.hex())
    liar = await ground.start(one.name.partition("-")[0], 900, careless=True)
    await connected(liar, other)
    await joined(world, head, liar)
    await joined(world, action, liar)
    for topic, data, verdict in bad:
        await knows_subscriber(liar, other, topic)
        await liar.do("publish", topic=topic, data=data.hex())
        await other.event("gossip", topic=topic, verdict=verdict, data=data.hex())
    await liar.stop()


# --- DHT ---------------------------------------------------------------------------------------------------


async def in_table(one: Peer, other: Peer) -> None:
    """Both have each other in their routing tables."""
    for peer, about in ((one, other), (other, one)):

        async def has(peer: Peer = peer, about: Peer = about) -> bool:
            return about.peer_id in (await peer.do("dht_peers"))["peers"]

        await until(has, f"{peer.name} has {about.name} in its table")


async def dht_heads(ground: Ground, one: Peer, other: Peer) -> None:
    """The newer head wins, a later word on an equal one too, an older or a forged one is refused: whoever puts it.

    What `other` holds is looked at, not what a look-up makes of several answers.
    """
    world = HandMadeWorld(f"dht-{one.name}-{other.name}")
    key = names.head_key(world.world_id)
    await in_table(one, other)
    await one.refused("dht_get", "not_found", key=key)
    await one.refused("dht_held", "not_found", key=key)
    newest = world.head(6, as_of_ms=CREATED_MS + 10_000)
    for writer, holder, value in (
        (one, other, world.head(5)),
        (other, one, world.head(6)),
        (one, other, newest),
        (one, other, newest),
    ):
        await writer.do("dht_put", key=key, value=value.hex())
        await holds(holder, key, value)
        assert (await holder.do("dht_get", key=key))["value"] == value.hex()
    for forged in (world.head(7, by=world.actor), b"\xa0", HandMadeWorld("another").head(9)):
        await one.refused("dht_put", "refused", key=key, value=forged.hex())
    liar = await ground.start(one.name.partition("-")[0], 901, careless=True)
    await connected(liar, other)
    await in_table(liar, other)
    for bad in (world.head(4), world.head(8, by=world.actor), HandMadeWorld("another").head(9)):
        try:
            await liar.do("dht_put", key=key, value=bad.hex())
        except CommandFailed as failure:  # whether a refusal is told to whoever put it differs by library
            if failure.kind not in {"refused", "stream", "timeout"}:
                raise
        held = (await other.do("dht_held", key=key))["value"]
        assert held == newest.hex(), f"{other.name} holds what {liar.name} put"
    honest = world.head(6, as_of_ms=CREATED_MS + 20_000)
    await liar.do("dht_put", key=key, value=honest.hex())
    await holds(other, key, honest)  # so what the liar puts arrives
    await liar.stop()


async def dht_reads(ground: Ground, one: Peer, other: Peer) -> None:
    """A newcomer learns from others what nobody has put or provided to it, and the best of several answers.

    Who puts or provides something tells new servers of it, so whoever did is killed before the newcomer starts.
    """
    asking, answering = (peer.name.partition("-")[0] for peer in (one, other))
    world = HandMadeWorld(f"reads-{one.name}-{other.name}")
    key, best = names.head_key(world.world_id), world.head(6)
    writer = await ground.start(asking, 903)
    await connected(writer, other)
    await in_table(writer, other)
    await writer.do("dht_put", key=key, value=best.hex())
    await holds(other, key, best)
    content = (await writer.do("put_blob", data=f"held by {writer.name}".encode().hex()))["content_hash"]
    await writer.do("provide", content_hash=content)
    await provider_is_known(other, content, writer)
    await writer.kill()
    await other.event("disconnected", peer=writer.peer_id, within_s=FROZEN_S)

    stale = await ground.start(answering, 904)
    liar = await ground.start(answering, 905, careless=True)
    for peer, value in ((stale, world.head(5)), (liar, world.head(9, by=world.actor))):
        await peer.do("dht_put", key=key, value=value.hex())
        assert (await peer.do("dht_held", key=key))["value"] == value.hex()
    newcomer = await ground.start(asking, 906)
    for peer in (stale, liar, other):
        await connected(newcomer, peer)
        await in_table(newcomer, peer)
    assert not await has_record(newcomer, key, best), "nobody who has put the best one is there"
    assert (await newcomer.do("dht_get", key=key))["value"] == best.hex()
    await provider_is_known(newcomer, content, writer)
    for peer in (stale, liar, newcomer):
        await peer.stop()


async def provider_is_known(seeker: Peer, content_hash: str, provider: Peer) -> None:
    """The seeker finds this provider of a blob."""

    async def finds() -> bool:
        found = (await seeker.do("find_providers", content_hash=content_hash))["providers"]
        return provider.peer_id in {one["peer"] for one in found}

    await until(finds, f"{seeker.name} finds {provider.name}")


async def holds(peer: Peer, key: str, value: bytes) -> None:
    """The peer's own store has this under the key."""

    await until(partial(has_record, peer, key, value), f"{peer.name} holds what was put")


async def has_record(peer: Peer, key: str, value: bytes) -> bool:
    """Whether the peer's own store has just this under the key."""
    try:
        return bool((await peer.do("dht_held", key=key))["value"] == value.hex())
    except CommandFailed as failure:
        if failure.kind != "not_found":
            raise
        return False


async def dht_providers(ground: Ground, one: Peer, other: Peer) -> None:
    """Who provides a blob is found by its BLAKE3 multihash, with addresses that can be dialled."""
    del ground
    await in_table(one, other)
    for provider, seeker in ((one, other), (other, one)):
        put = await provider.do("put_blob", data=f"held by {provider.name}".encode().hex())
        await provider.do("provide", content_hash=put["content_hash"])
        found = (await seeker.do("find_providers", content_hash=put["content_hash"]))["providers"]
        by_peer = {one["peer"]: one["addrs"] for one in found}
        assert len(by_peer) == len(found), found
        ports = {addr.split("/p2p/")[0] for addr in by_peer[provider.peer_id]}
        assert provider.addr.split("/p2p/")[0] in ports, (by_peer, provider.addr)


# --- faults ------------------------------------------------------------------------------------------------


async def restart(ground: Ground, one: Peer, other: Peer) -> None:
    """A peer that is killed and back with its identity is asked and heard again, whichever side dials."""
    world = HandMadeWorld(f"restart-{one.name}-{other.name}")
    topic = names.topic(world.world_id, "action")
    await joined(world, topic, one, other)
    await one.do("publish", topic=topic, data=world.envelope(0).hex())
    await other.event("gossip", topic=topic, data=world.envelope(0).hex())
    language, seed = other.name.split("-")
    for first, redials in ((100, one), (300, None)):
        one.events.clear()
        await other.kill()
        await one.event("disconnected", peer=other.peer_id, within_s=FROZEN_S)
        back = await ground.start(language, int(seed), listen=other.addr.split("/p2p/")[0])
        assert back.peer_id == other.peer_id
        await connected(*((one, back) if redials else (back, one)))
        for asker, asked in ((one, back), (back, one)):
            await asker.do("request", peer=asked.peer_id, method="x_echo", body="a0")
        await joined(world, topic, back)
        for nonce, sender, hearer in ((first, back, one), (first + 100, one, back)):
            await knows_subscriber(sender, hearer, topic)
            await heard_at_last(world, topic, sender, hearer, nonce)
        other = back


async def heard_at_last(world: HandMadeWorld, topic: str, sender: Peer, hearer: Peer, first: int) -> None:
    """Nonces from `first` on, until one is heard: what is published before the mesh has grown back reaches nobody."""
    published: set[str] = set()

    async def is_heard() -> bool:
        data = world.envelope(first + len(published)).hex()
        published.add(data)
        await sender.do("publish", topic=topic, data=data)
        await trio.sleep(HEARTBEAT_S / 2)
        return any(event.get("data") in published for event in hearer.events if event["event"] == "gossip")

    await until(is_heard, f"{hearer.name} hears {sender.name}")


async def frozen(ground: Ground, one: Peer, other: Peer) -> None:
    """A peer that says nothing any more is dropped, and does not hold up whoever asks it."""
    language = other.name.partition("-")[0]
    stuck = await ground.start(language, 902)
    await connected(one, stuck)
    await stuck.freeze()
    await one.refused("request", "timeout", peer=stuck.peer_id, method="x_echo", body="a0", timeout_ms=2_000)
    await one.do("request", peer=other.peer_id, method="x_echo", body="a0")
    await one.event("disconnected", peer=stuck.peer_id, within_s=FROZEN_S)
    await stuck.stop()


PAIRS: Final[dict[str, Scenario]] = {
    "connect + identify": connect_identify,
    "disconnect + dial back": parting,
    "rr one-shot": rr_one_shot,
    "rr session": rr_session,
    "rr streamed": rr_streamed,
    "rr error codes": rr_errors,
    "rr oversize": rr_oversize,
    "rr reset midway": rr_reset,
    "1,000 quick streams": quick_streams,
    "fetch + verify": blobs,
    "gossip": gossip,
    "dht heads": dht_heads,
    "dht providers": dht_providers,
    "dht reads": dht_reads,
    "frozen peer": frozen,
    "restart": restart,  # the last: `other` has ended by then
}

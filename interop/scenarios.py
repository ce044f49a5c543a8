"""What must hold between a peer of one language and a peer of another: one function a row of the matrix.

Hides: what is said to whom. Guarantees: a scenario ends without an error only when everything that it asserts was seen,
in processes of their own. `one` asks, `other` answers; both are fresh for each pairing and stay for its scenarios.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import trio
from blake3 import blake3

from interop.driver import Ground, Peer
from interop.worlds import HandMadeWorld
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
SIZES: Final = (1_024, 256 * 1_024, 8 << 20)


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
    # A frame one byte over 1 MiB by its length; the rest need not come.
    length = names.FRAME_BYTES_MAX + 1
    varint = bytes([length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14])
    answered = await one.do("send_raw", peer=other.peer_id, data=(varint + b"\x00\x00").hex())
    assert answered["end"] != "open", answered
    # A request over 64 KiB for a method that takes no more: told so, where the frame is well formed.
    large = frames.encode_request(7, "x_echo", codec.encode({"data": bytes(names.REQUEST_BYTES_MAX)}))
    answered = await one.do("send_raw", peer=other.peer_id, data=large.hex())
    error = _first_frame(bytes.fromhex(answered["answer"]))
    assert isinstance(error, frames.ErrorFrame), answered
    assert (error.request_id, error.code) == (7, Code.ERR_BAD_REQUEST), error
    for garbage in ("00", "0100", "02ff00", "8000", "04050000ff"):
        answered = await one.do("send_raw", peer=other.peer_id, data=garbage)
        assert answered["end"] != "open" or not answered["answer"], (garbage, answered)
    await one.do("request", peer=other.peer_id, method="x_echo", body="a0")


def _first_frame(data: bytes) -> object:
    reader = frames.FrameReader()
    reader.feed(data)
    return reader.next_frame()


async def rr_reset(ground: Ground, one: Peer, other: Peer) -> None:
    """A stream that is reset in the middle of an answer is an error, and the connection lives."""
    del ground
    for after in (0, 1, 40):
        await one.refused(
            "request_parts", "stream", peer=other.peer_id, method="x_reset", body=body(after=after)
        )
        await one.do("request", peer=other.peer_id, method="x_echo", body="a0")


async def quick_streams(ground: Ground, one: Peer, other: Peer) -> None:
    """1,000 streams, each for one request, many at a time: none is lost, and the connection lives."""
    del ground
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
    await one.do("request", peer=other.peer_id, method="x_echo", body="a0")


async def blobs(ground: Ground, one: Peer, other: Peer) -> None:
    """Blobs are fetched and checked; false bytes are refused."""
    del ground
    for size in SIZES:
        put = await other.do("put_blob", seed=size, size=size)
        made = blake3(size.to_bytes(8, "big")).digest(length=size)
        assert put["content_hash"] == codec.content_id(made).hex()
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
    """Signed messages are heard both ways; a forged one is rejected, one of another version ignored."""
    world = HandMadeWorld(f"gossip-{one.name}-{other.name}")
    action, head = names.topic(world.world_id, "action"), names.topic(world.world_id, "head")
    await joined(world, action, one, other)
    await joined(world, head, one, other)
    for nonce, (sender, hearer) in enumerate(((one, other), (other, one))):
        data = world.envelope(nonce).hex()
        await sender.do("publish", topic=action, data=data)
        heard = await hearer.event("gossip", topic=action, verdict="accept", data=data)
        assert heard["from"] == sender.peer_id, heard
        data = world.head(nonce + 1).hex()
        await sender.do("publish", topic=head, data=data)
        await hearer.event("gossip", topic=head, verdict="accept", data=data)
    forged = world.head(9, by=world.actor)
    await one.refused("publish", "refused", topic=head, data=forged.hex())
    liar = await ground.start(one.name.partition("-")[0], 900, careless=True)
    await connected(liar, other)
    await joined(world, head, liar)

    await knows_subscriber(liar, other, head)
    await liar.do("publish", topic=head, data=forged.hex())
    await other.event("gossip", topic=head, verdict="reject", data=forged.hex())
    await liar.stop()


# --- DHT ---------------------------------------------------------------------------------------------------


async def in_table(one: Peer, other: Peer) -> None:
    """Both have each other in their routing tables."""
    for peer, about in ((one, other), (other, one)):

        async def has(peer: Peer = peer, about: Peer = about) -> bool:
            return about.peer_id in (await peer.do("dht_peers"))["peers"]

        await until(has, f"{peer.name} has {about.name} in its table")


async def dht_heads(ground: Ground, one: Peer, other: Peer) -> None:
    """The newer head wins, an equal one refreshes, an older or a forged one is refused: whoever puts it."""
    world = HandMadeWorld(f"dht-{one.name}-{other.name}")
    key = names.head_key(world.world_id)
    await in_table(one, other)
    await one.refused("dht_get", "not_found", key=key)
    await one.do("dht_put", key=key, value=world.head(5).hex())
    assert (await other.do("dht_get", key=key))["value"] == world.head(5).hex()
    await other.do("dht_put", key=key, value=world.head(6).hex())
    assert (await one.do("dht_get", key=key))["value"] == world.head(6).hex()
    await one.do("dht_put", key=key, value=world.head(6).hex())  # refreshed
    for bad in (world.head(7, by=world.actor), b"\xa0", HandMadeWorld("another").head(9)):
        await one.refused("dht_put", "refused", key=key, value=bad.hex())
    liar = await ground.start(one.name.partition("-")[0], 901, careless=True)
    await connected(liar, other)
    await in_table(liar, other)
    for bad in (world.head(4), world.head(8, by=world.actor)):
        try:
            await liar.do("dht_put", key=key, value=bad.hex())
        except Exception as error:  # noqa: BLE001  # whether a refusal is told to whoever put it differs by library
            del error
        assert (await other.do("dht_get", key=key))["value"] == world.head(6).hex()
    await liar.stop()
    assert (await one.do("dht_get", key=key))["value"] == world.head(6).hex()


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
    """A peer that is killed and back with its identity is asked and heard again."""
    world = HandMadeWorld(f"restart-{one.name}-{other.name}")
    topic = names.topic(world.world_id, "action")
    await joined(world, topic, one, other)
    await one.do("publish", topic=topic, data=world.envelope(0).hex())
    await other.event("gossip", topic=topic, data=world.envelope(0).hex())
    await other.kill()
    await one.event("disconnected", peer=other.peer_id, within_s=FROZEN_S)
    language, seed = other.name.split("-")
    back = await ground.start(language, int(seed), listen=other.addr.split("/p2p/")[0])
    assert back.peer_id == other.peer_id
    one.events = [event for event in one.events if event["event"] != "connected"]
    await connected(one, back)
    await one.do("request", peer=back.peer_id, method="x_echo", body="a0")
    await joined(world, topic, back)
    for first, sender, hearer in ((100, back, one), (200, one, back)):
        await knows_subscriber(sender, hearer, topic)
        await heard_at_last(world, topic, sender, hearer, first)


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
    stuck.freeze()
    await one.refused("request", "timeout", peer=stuck.peer_id, method="x_echo", body="a0", timeout_ms=2_000)
    await one.do("request", peer=other.peer_id, method="x_echo", body="a0")
    await one.event("disconnected", peer=stuck.peer_id, within_s=FROZEN_S)
    await stuck.stop()


PAIRS: Final[dict[str, Scenario]] = {
    "connect + identify": connect_identify,
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
    "frozen peer": frozen,
    "restart": restart,  # the last: `other` has ended by then
}

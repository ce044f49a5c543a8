"""Attacks on connections, streams and frames: too many of them, idle ones, slow ones, malformed ones.

Each function is one attack as `stranger.Attack` says: it runs until cancelled, at the pace it is given.
"""

from __future__ import annotations

from typing import Any, Final

import trio

from benchmarks.hostile.stranger import (
    READ_BYTES,
    Ground,
    Pace,
    Stranger,
    Tally,
    keep_many,
    open_stranger,
    port_of,
    prefixed,
    quietly,
)
from p2p import frames, names
from runtime import limits, messages

STREAMS_AT_ONCE: Final = 32
CONNECTIONS_OF_ONE_KEY: Final = 40  # then a new key
HOSTS_MAX: Final = 12  # of one attack at once: they take as much of the machine as their victims
SOCKETS_MAX: Final = 800
HELD_S: Final = 20.0  # how long what is idle or slow is held open
SLOW_BYTE_S: Final = 1.0
REQUESTS_AT_ONCE: Final = 48
ROUNDS_OF_ONE_KEY: Final = 50
MULTISTREAM: Final = prefixed(b"/multistream/1.0.0\n")
EMPTY: Final = messages.Empty().to_bytes()
GARBAGE: Final = (
    b"\n",
    b"\x00" * 100,
    b"GET / HTTP/1.1\r\n\r\n",
    b"\xff" * 1_000,
    prefixed(b"\xff" * 64),
    prefixed(b""),
    b"\x80" * 20,
    MULTISTREAM + prefixed(b"\xff\xfe\xfd\n"),
    MULTISTREAM + prefixed(b"/noise\n") + b"\xff" * 99,
)
BAD_FRAMES: Final = (
    b"\xff\xff\x7f" + bytes(100),  # says 2 MiB - 1
    prefixed(b"\x09\x01"),  # a type that there is not
    prefixed(b"\x00\x01\x03ab!" + EMPTY),  # a method that is no name
    frames.encode_answer(1, b""),  # an answer to nothing
    frames.encode_request(7, "hello", EMPTY)[:-1],  # ends inside
    2 * frames.encode_request(7, "hello", b"\xa1"),  # a body that is no CBOR; the id again
)


async def streams(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Opens streams in bursts and negotiates none of them."""
    addr = ground.victim()
    async with open_stranger() as stranger:
        connection = await stranger.dial(addr)
        connection.muxed_conn.stream_backlog_semaphore = trio.Semaphore(1 << 20)  # its own modesty, off
        for _ in range(ROUNDS_OF_ONE_KEY):
            await pace()
            for _ in range(STREAMS_AT_ONCE):
                await connection.muxed_conn.open_stream()
            tally["streams"] += STREAMS_AT_ONCE


async def short_connections(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Whole connections, closed as soon as they stand."""
    async with open_stranger() as stranger:
        for _ in range(CONNECTIONS_OF_ONE_KEY):
            await pace()
            connection = await stranger.dial(ground.victim())
            tally["connections"] += 1
            await connection.muxed_conn.secured_conn.close()


async def idle_connections(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Holds places: connections of fresh keys that say nothing, each at one node after the other."""
    await keep_many(HOSTS_MAX, pace, tally, lambda: _idle(ground, tally))


async def _idle(ground: Ground, tally: Tally) -> None:
    async with open_stranger() as stranger:
        for addr in ground.addrs:
            await stranger.dial(addr)
            tally["held"] += 1
        await trio.sleep(HELD_S)


async def silent_sockets(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Holds handshakes: sockets that are connected and say nothing."""
    await keep_many(SOCKETS_MAX, pace, tally, lambda: _silent(ground.victim(), tally))


async def _silent(addr: str, tally: Tally) -> None:
    async with await trio.open_tcp_stream(*port_of(addr)) as socket:
        tally["sockets"] += 1
        with trio.move_on_after(HELD_S):
            while await socket.receive_some(READ_BYTES):
                tally["words heard"] += 1


async def changing_identities(ground: Ground, tally: Tally, pace: Pace) -> None:
    """A new key for each connection: a good request, a frame that breaks the rules, gone before anybody can mark it."""
    await keep_many(
        HOSTS_MAX,
        pace,
        tally,
        lambda: _come_and_go(ground.victim(), ground.rng.choice(BAD_FRAMES), tally),
    )


async def _come_and_go(addr: str, last_words: bytes, tally: Tally) -> None:
    async with open_stranger() as stranger:
        await stranger.ask(addr, "hello", EMPTY)
        stream = await stranger.stream(addr, names.RR_PROTOCOL)
        await stream.write(last_words)
        tally["identities"] += 1
        await stream.close()
        with trio.move_on_after(SLOW_BYTE_S):
            await stream.read(READ_BYTES)  # they were heard


# --- requests ------------------------------------------------------------------------------------------------


async def requests(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Good requests without end over one stream, many at once, the answers read and thrown away."""
    await _flood(ground, tally, pace, "hello", EMPTY)


async def account_requests(ground: Ground, tally: Tally, pace: Pace) -> None:
    """`status`: a request of ten bytes, an answer of some thousand, which a node has to look together."""
    await _flood(ground, tally, pace, "status", EMPTY)


async def _flood(ground: Ground, tally: Tally, pace: Pace, method: str, body: bytes) -> None:
    async with open_stranger() as stranger:
        stream = await stranger.stream(ground.victim(), names.RR_PROTOCOL)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_throw_away, stream, tally)
            first = 1
            for _ in range(ROUNDS_OF_ONE_KEY):
                await pace()
                ids = range(first, first + REQUESTS_AT_ONCE)
                await stream.write(b"".join(frames.encode_request(one, method, body) for one in ids))
                tally["requests"] += len(ids)
                first += len(ids)
            nursery.cancel_scope.cancel()


async def _throw_away(stream: Any, tally: Tally) -> None:
    while data := await stream.read(READ_BYTES):
        tally["bytes read"] += len(data)


async def costly_requests(ground: Ground, tally: Tally, pace: Pace) -> None:
    """What is cheap to ask and dear to answer: blocks, a bundle, proofs, evidence, many hashes."""
    head = await ground.newest_head()
    height, world_id = head.commit.record.height, ground.world_id
    genesis = await ground.known_genesis()
    hashes = tuple(ground.rng.randbytes(32) for _ in range(256))
    costly = (
        (
            "get_blocks",
            messages.BlocksRequest(
                world_id=world_id,
                from_height=max(1, height - limits.BLOCKS_PER_ANSWER_MAX),
                count=limits.BLOCKS_PER_ANSWER_MAX,
            ),
        ),
        ("get_bundle", messages.BundleRequest(world_id=world_id, block_hash=head.block_hash, lists=True)),
        ("get_batch", messages.BatchRequest(world_id=world_id, height=height)),
        ("get_genesis", messages.WorldRequest(world_id=world_id)),
        ("get_world_head", messages.WorldRequest(world_id=world_id)),
        ("get_commit", messages.WorldRequest(world_id=world_id)),
        ("get_evidence", messages.EvidenceRequest(world_id=world_id)),
        (
            "get_state_proof",
            messages.StateProofRequest(
                world_id=world_id, namespace="actors", key=genesis.header.root_keys[0]
            ),
        ),
        ("get_receipt", messages.ReceiptRequest(world_id=world_id, envelope_hash=hashes[0])),
        ("has_blobs", messages.HasBlobsRequest(hashes=hashes)),
    )
    async with open_stranger() as stranger:
        for _ in range(ROUNDS_OF_ONE_KEY):
            await pace()
            method, request = ground.rng.choice(costly)
            found = await stranger.ask(ground.victim(), method, request.to_bytes())
            tally[f"{method} {'answered' if found else 'refused'}"] += 1


# --- slow ----------------------------------------------------------------------------------------------------


async def slow_readers(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Asks for far more than a window holds, and reads nothing of it."""
    await keep_many(HOSTS_MAX, pace, tally, lambda: _read_nothing(ground.victim(), tally))


async def _read_nothing(addr: str, tally: Tally) -> None:
    async with open_stranger() as stranger:
        stream = await stranger.stream(addr, names.RR_PROTOCOL)
        for first in range(0, 20 * REQUESTS_AT_ONCE, REQUESTS_AT_ONCE):
            ids = range(first, first + REQUESTS_AT_ONCE)
            with trio.move_on_after(SLOW_BYTE_S):
                await stream.write(b"".join(frames.encode_request(one, "status", EMPTY) for one in ids))
                tally["requests"] += len(ids)
        await trio.sleep(HELD_S)


async def slow_writers(ground: Ground, tally: Tally, pace: Pace) -> None:
    """A byte a second: of the first handshake, of a negotiation, of a frame."""
    await keep_many(
        HOSTS_MAX,
        pace,
        tally,
        lambda: ground.rng.choice((_slow_socket, _slow_negotiation, _slow_frame))(ground.victim(), tally),
    )


async def _slow_socket(addr: str, tally: Tally) -> None:
    async with await trio.open_tcp_stream(*port_of(addr)) as socket:
        for byte in MULTISTREAM:
            await socket.send_all(bytes([byte]))
            tally["bytes of handshakes"] += 1
            await trio.sleep(SLOW_BYTE_S)


async def _slow_negotiation(addr: str, tally: Tally) -> None:
    async with open_stranger() as stranger:
        stream = await stranger.raw_stream(addr)
        for byte in MULTISTREAM:
            await stream.write(bytes([byte]))
            tally["bytes of negotiations"] += 1
            await trio.sleep(SLOW_BYTE_S)


async def _slow_frame(addr: str, tally: Tally) -> None:
    async with open_stranger() as stranger:
        stream = await stranger.stream(addr, names.RR_PROTOCOL)
        frame = frames.encode_request(1, "submit_actions", bytes(500_000))
        for byte in frame[: int(HELD_S / SLOW_BYTE_S)]:
            await stream.write(bytes([byte]))
            tally["bytes of frames"] += 1
            await trio.sleep(SLOW_BYTE_S)
        await stream.close()  # inside the frame


# --- malformed -----------------------------------------------------------------------------------------------


async def malformed_bytes(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Garbage where nothing is secured yet, and garbage in the place of yamux frames."""
    for data in GARBAGE:
        await pace()
        await quietly(_garbage_on_socket, ground.victim(), data, tally=tally)
        tally["sockets"] += 1
    async with open_stranger() as stranger:
        for data in (b"\xff" * 12, b"\x00\x07" + bytes(10), b"\x00\x00\x00\x01" + b"\xff" * 8, bytes(600)):
            await pace()
            connection = await stranger.dial(ground.victim())
            await connection.muxed_conn.secured_conn.write(data)
            tally["connections"] += 1


async def _garbage_on_socket(addr: str, data: bytes) -> None:
    async with await trio.open_tcp_stream(*port_of(addr)) as socket:
        await socket.send_all(data)
        await socket.send_eof()
        with trio.move_on_after(SLOW_BYTE_S):
            while await socket.receive_some(READ_BYTES):
                pass


async def malformed_streams(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Garbage on every protocol that a node speaks, ended by a reset or in order; and frames that nobody makes."""
    protocols = (
        names.RR_PROTOCOL,
        names.KAD_PROTOCOL,
        names.GOSSIP_PROTOCOL,
        "/ipfs/id/1.0.0",
        "/ipfs/ping/1.0.0",
    )
    async with open_stranger() as stranger:
        addr = ground.victim()
        for data in GARBAGE:
            await pace()
            stream = await stranger.raw_stream(addr)
            await _end(stream, data, ground)
            tally["negotiations"] += 1
            await quietly(_on_all, stranger, addr, protocols, data, ground, tally, tally=tally)
        for data in BAD_FRAMES:
            await pace()
            await quietly(_on_all, stranger, addr, protocols[:1], data, ground, tally, tally=tally)


async def _on_all(
    stranger: Stranger, addr: str, protocols: tuple[str, ...], data: bytes, ground: Ground, tally: Tally
) -> None:
    for protocol in protocols:
        stream = await stranger.stream(addr, protocol)
        await _end(stream, data, ground)
        tally[f"streams of {protocol}"] += 1


async def _end(stream: Any, data: bytes, ground: Ground) -> None:
    await stream.write(data)
    if ground.rng.random() < 0.5:
        await stream.reset()
    else:
        await stream.close()

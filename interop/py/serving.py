"""What this peer answers: blobs, worlds that it mirrors, and the methods that exist to be tested with.

Hides: what is kept in memory. Guarantees: answers are bounded by the protocol's limits, a blob is served as it was put
(so that a liar can lie). Implements docs/protocol.md, "Methods" (in part), and docs/interop.md, "Request / response".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from interop.py.raw import reset_served_stream
from p2p import names
from p2p.errors import Code, RequestFailed
from p2p.network import PartsRoute, PeerId, Route, Routes, SendPart
from runtime import codec, limits
from runtime.errors import Invalid, WorldError
from runtime.messages import (
    BatchAnswer,
    BatchRequest,
    BlobEnd,
    BlobRequest,
    BlockAnswer,
    BlockRequest,
    BlocksRequest,
    GenesisAnswer,
    HasBlobsAnswer,
    HasBlobsRequest,
    HeadAnswer,
    HelloAnswer,
    WorldRequest,
)
from runtime.records import Genesis, WorldBlock, WorldHeadAnnounce
from runtime.services import as_failure

WAIT_MS_MAX: Final = 60_000
RESET_PART_BYTES: Final = 1_024
BLOCKS_PER_PART: Final = 128
HELLO_WORLDS_MAX: Final = 64


@dataclass(slots=True)
class MirroredWorld:
    """A world as it was fetched: its blobs are on the shelf."""

    genesis: Genesis
    head: WorldHeadAnnounce
    blocks: list[WorldBlock]  # heights 1, 2, ...
    batches: dict[int, BatchAnswer] = field(default_factory=dict)


@dataclass(slots=True)
class Shelf:
    """All that this peer serves."""

    blobs: dict[bytes, bytes] = field(default_factory=dict)
    worlds: dict[str, MirroredWorld] = field(default_factory=dict)
    served_blobs: int = 0
    served_bytes: int = 0

    def world(self, world_id: str) -> MirroredWorld:
        """A mirrored world. Raises RequestFailed."""
        if world_id not in self.worlds:
            raise RequestFailed(Code.ERR_NOT_AVAILABLE, f"world {world_id} is not mirrored here")
        return self.worlds[world_id]


def _open_map(body: bytes) -> dict[str, Any]:
    value = codec.decode(body, names.REQUEST_BYTES_MAX, "request")
    if type(value) is not dict:
        raise Invalid("request", "must be a map")
    return value


def _number(request: dict[str, Any], name: str, most: int) -> int:
    value = request.get(name)
    if type(value) is not int or not 0 <= value <= most:
        raise Invalid(f"request.{name}", f"must be 0..{most}")
    return value


def _one(answer: Callable[[bytes], Awaitable[bytes]]) -> Route:
    async def handler(caller: PeerId, body: bytes) -> bytes:
        del caller
        try:
            return await answer(body)
        except WorldError as error:
            raise as_failure(error) from error

    return Route(handler, deadline_ms=WAIT_MS_MAX + 1_000)


def _parts(answer: Callable[[bytes, SendPart], Awaitable[bytes]]) -> PartsRoute:
    async def handler(caller: PeerId, body: bytes, send: SendPart) -> bytes:
        del caller
        try:
            return await answer(body, send)
        except WorldError as error:
            raise as_failure(error) from error

    return PartsRoute(handler)


def routes_of(shelf: Shelf) -> Routes:
    """Every method of this peer."""

    async def hello(body: bytes) -> bytes:
        _open_map(body)
        worlds = tuple(sorted(shelf.worlds)[:HELLO_WORLDS_MAX])
        return HelloAnswer(
            versions=(1,), max_in_flight=names.IN_FLIGHT_PER_SESSION_MAX, worlds=worlds
        ).to_bytes()

    async def has_blobs(body: bytes) -> bytes:
        hashes = HasBlobsRequest.from_bytes(body).hashes
        return HasBlobsAnswer(has=tuple(content in shelf.blobs for content in hashes)).to_bytes()

    async def fetch_blob(body: bytes, send: SendPart) -> bytes:
        request = BlobRequest.from_bytes(body)
        blob = shelf.blobs.get(request.content_hash)
        if blob is None:
            raise RequestFailed(Code.ERR_NOT_FOUND, f"blob {request.content_hash.hex()}")
        at = request.offset or 0
        if at > len(blob):
            raise Invalid("fetch_blob.offset", f"{at} is beyond the size {len(blob)}")
        end = len(blob) if request.length is None else min(len(blob), at + request.length)
        while at < end:
            part = blob[at : min(end, at + names.PART_BYTES_MAX)]
            await send(part)
            at += len(part)
        shelf.served_bytes += end - (request.offset or 0)
        shelf.served_blobs += 1
        return BlobEnd(size=len(blob)).to_bytes()

    return {
        "hello": _one(hello),
        "has_blobs": _one(has_blobs),
        "fetch_blob": _parts(fetch_blob),
        **_world_routes(shelf),
        **_test_routes(),
    }


def _world_routes(shelf: Shelf) -> Routes:
    async def get_genesis(body: bytes) -> bytes:
        world = shelf.world(WorldRequest.from_bytes(body).world_id)
        return GenesisAnswer(genesis=world.genesis).to_bytes()

    async def get_world_head(body: bytes) -> bytes:
        return HeadAnswer(head=shelf.world(WorldRequest.from_bytes(body).world_id).head).to_bytes()

    async def get_block(body: bytes) -> bytes:
        request = BlockRequest.from_bytes(body)
        for block in shelf.world(request.world_id).blocks:
            if request.height == block.height or request.block_hash == block.hash():
                return BlockAnswer(block=block).to_bytes()
        raise RequestFailed(Code.ERR_NOT_FOUND, "no such block")

    async def get_batch(body: bytes) -> bytes:
        request = BatchRequest.from_bytes(body)
        found = shelf.world(request.world_id).batches.get(request.height)
        if found is None:
            raise RequestFailed(Code.ERR_NOT_FOUND, f"batch {request.height}")
        return found.to_bytes()

    async def get_blocks(body: bytes, send: SendPart) -> bytes:
        request = BlocksRequest.from_bytes(body)
        count = min(request.count, limits.BLOCKS_PER_ANSWER_MAX)
        blocks = shelf.world(request.world_id).blocks[request.from_height - 1 :][:count]
        for first in range(0, len(blocks), BLOCKS_PER_PART):
            part = blocks[first : first + BLOCKS_PER_PART]
            await send(codec.encode([block.to_value() for block in part]))
        return codec.encode({})

    return {
        "get_genesis": _one(get_genesis),
        "get_world_head": _one(get_world_head),
        "get_block": _one(get_block),
        "get_batch": _one(get_batch),
        "get_blocks": _parts(get_blocks),
    }


def _test_routes() -> Routes:
    async def echo(body: bytes) -> bytes:
        _open_map(body)
        return body

    async def error(body: bytes) -> bytes:
        request = _open_map(body)
        code = _number(request, "code", max(Code))
        message, detail = request.get("message"), request.get("detail")
        if code < 1 or type(message) is not str or type(detail) is not bytes:
            raise Invalid("x_error", "takes code 1..10, retry_after_ms, message (text), detail (bytes)")
        wait_ms = _number(request, "retry_after_ms", names.RETRY_AFTER_MS_MAX)
        raise RequestFailed(Code(code), message, retry_after_ms=wait_ms, detail=detail)

    async def wait(body: bytes) -> bytes:
        await trio.sleep(_number(_open_map(body), "ms", WAIT_MS_MAX) / 1_000)
        return codec.encode({})

    async def parts(body: bytes, send: SendPart) -> bytes:
        request = _open_map(body)
        count, size = _number(request, "count", 1 << 16), _number(request, "size", names.PART_BYTES_MAX)
        for number in range(count):
            await send(bytes([number % 256]) * size)
        return codec.encode({"count": count})

    async def reset(body: bytes, send: SendPart) -> bytes:
        for _ in range(_number(_open_map(body), "after", 1 << 16)):
            await send(bytes(RESET_PART_BYTES))
        await reset_served_stream()
        raise RequestFailed(Code.ERR_NOT_AVAILABLE, "the stream was reset")

    return {
        "x_echo": _one(echo),
        "x_error": _one(error),
        "x_wait": _one(wait),
        "x_parts": _parts(parts),
        "x_reset": _parts(reset),
    }

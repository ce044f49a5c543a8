"""A blob by content id: from the own store, from one provider, or in ranges from several at once.

Hides: who serves which bytes. Guarantees: what is returned hashes to its id; ranges are only a way to be quick: when
they do not add up, each provider is asked for the whole alone, so that the one whose bytes are false is known.
A provider that fails in the middle costs what it had not sent yet. Memory: the blob, and a few parts a provider.
Implements docs/protocol.md, section "Methods" (fetch_blob, client side).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import trio

from p2p import names
from p2p.errors import AnswerTooLarge, NetworkError, RequestFailed
from p2p.network import PeerId
from runtime import codec, limits
from runtime.errors import HashMismatch, Invalid, WorldError
from runtime.messages import BlobEnd, BlobRequest
from runtime.services.context import Context
from runtime.services.fetch import TRY_MS, Sources, ask_any

BLOB_BYTES_MAX: Final = 64 << 20
FIRST_RANGE_BYTES: Final = names.PART_BYTES_MAX  # most blobs end within it
RANGE_BYTES_MIN: Final = 1 << 20  # a range costs a stream
RANGES_PER_PROVIDER: Final = 2  # of what is left: the quicker one takes more of them


async def fetch_blob(sources: Sources, content_id: bytes, bytes_max: int = BLOB_BYTES_MAX) -> bytes:
    """A blob by content id, its hash checked. Raises Missing."""
    context = sources.context
    own = context.blobs.find(content_id)
    if own is not None:
        return own

    async def begin(peer: PeerId) -> _Blob:
        blob = _Blob(context, content_id, bytes_max, peer)
        await blob.fetch(peer, 0, FIRST_RANGE_BYTES)
        if blob.size is not None and blob.size <= FIRST_RANGE_BYTES:
            blob.whole()
        return blob

    async def fetch_alone(peer: PeerId) -> bytes:
        return await fetch_from(context, peer, content_id, bytes_max)

    blob = await ask_any(sources, "blob", content_id.hex(), begin)
    if not blob.is_complete:
        await _fetch_rest(sources, blob)
    try:
        data = blob.whole()
    except WorldError:
        context.counters["fetch.ranges_failed"] += 1
        return await ask_any(sources, "blob", content_id.hex(), fetch_alone)
    context.counters["fetch.blobs"] += 1
    context.counters["fetch.bytes"] += len(data)
    return data


async def fetch_from(context: Context, peer: PeerId, content_id: bytes, bytes_max: int) -> bytes:
    """A whole blob from one peer, its hash checked. Raises p2p errors, or Invalid when the bytes are false."""
    blob = _Blob(context, content_id, bytes_max, peer)
    await blob.fetch(peer, 0, None)
    data = blob.whole()
    context.counters["fetch.blobs"] += 1
    context.counters["fetch.bytes"] += len(data)
    return data


@dataclass(slots=True)
class _Blob:
    """A blob on its way: the pieces that came, by their offset. `size` is what the first provider says it is."""

    context: Context
    content_id: bytes
    bytes_max: int
    first: PeerId
    size: int | None = None
    pieces: dict[int, bytes] = field(default_factory=dict)

    async def fetch(self, peer: PeerId, start: int, length: int | None) -> int:
        """Bytes start..start+length from a peer, fewer at the blob's end; gives where they ended.

        What came before an error is kept. Raises p2p errors, and Invalid for an answer that cannot be right.
        """
        request = BlobRequest(content_hash=self.content_id, offset=start or None, length=length)
        allowed = self.bytes_max - start if length is None else length
        at = start
        async with self.context.network.request_parts(
            peer, "fetch_blob", request.to_bytes(), deadline_ms=TRY_MS, bytes_max=allowed + 1_024
        ) as answer:
            while (part := await answer.part()) is not None:
                if at + len(part) - start > allowed:
                    raise AnswerTooLarge(peer.hex(), "fetch_blob", allowed)
                if part:
                    self.pieces[at] = part
                at += len(part)
            size = BlobEnd.from_bytes(answer.last).size
        if size > self.bytes_max:
            raise Invalid("fetch_blob.size", f"{size} bytes, at most {self.bytes_max}")
        if self.size not in {None, size} or at != (size if length is None else min(size, start + length)):
            raise Invalid("fetch_blob", f"range {start}..{at} of {size} bytes is not what was asked for")
        self.size = size
        return at

    def reached(self, start: int) -> int:
        """Where the pieces that follow each other from `start` on end."""
        while start in self.pieces:
            start += len(self.pieces[start])
        return start

    @property
    def is_complete(self) -> bool:
        return self.size is not None and self.reached(0) == self.size

    def whole(self) -> bytes:
        """The blob. Raises Invalid when bytes are missing or are not what the content id says."""
        data = b"".join([self.pieces[at] for at in sorted(self.pieces)])
        if not self.is_complete or len(data) != self.size:
            raise Invalid("fetch_blob", f"{len(data)} bytes of {self.size}")
        actual = codec.content_id(data)
        if actual != self.content_id:
            raise HashMismatch(self.content_id, actual)
        return data


async def _fetch_rest(sources: Sources, blob: _Blob) -> None:
    """What follows the first range, from the first provider and others that help, each taking range after range."""
    assert blob.size is not None
    helpers = [blob.first, *(peer for peer in await sources.candidates() if peer != blob.first)]
    helpers = helpers[: limits.FETCH_PROVIDERS_MAX]
    start = blob.reached(0)
    left = blob.size - start
    step = (
        max(RANGE_BYTES_MIN, -(-left // (RANGES_PER_PROVIDER * len(helpers)))) if len(helpers) > 1 else left
    )
    ranges = [(at, min(at + step, blob.size)) for at in range(start, blob.size, step)][::-1]
    async with trio.open_nursery() as nursery:
        for peer in helpers:
            nursery.start_soon(_help, sources, blob, peer, ranges)
    await _help(sources, blob, blob.first, ranges)  # what somebody gave back when the others were done


async def _help(sources: Sources, blob: _Blob, peer: PeerId, ranges: list[tuple[int, int]]) -> None:
    """One provider's part: the next range while there are any. A range that failed goes on where it stopped."""
    while ranges:
        start, end = ranges.pop()
        try:
            await sources.reach(peer)
            await blob.fetch(peer, start, end - start)
        except (NetworkError, WorldError) as error:
            reached = blob.reached(start)
            if reached < end:
                ranges.append((reached, end))
            if not isinstance(error, RequestFailed):  # one that has not this blob is no worse for that
                sources.rest(peer, limits.FETCH_COOLDOWN_MS)
            return

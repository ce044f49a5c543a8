"""What a node does for the blobs that it holds: looks for damage, gets lost ones back, makes room.

Hides: the pace. Guarantees: every blob is read and compared, round after round, with at most `scrub_bytes_per_s` of the
disk; what was damaged or is needed and not held is asked for at the world's providers until somebody gives it; what
nobody needs goes when space is short. Documented in docs/operations.md, section "The store".
"""

from __future__ import annotations

import logging
from functools import partial
from itertools import islice
from typing import Final, NoReturn

import trio

from runtime.errors import Missing, StoreFull
from runtime.services.blobs import fetch_blob
from runtime.services.context import Context
from runtime.services.fetch import Sources

HEAL_POLL_S: Final = 1.0
HEAL_RETRY_S: Final = 5.0
ROOM_POLL_S: Final = 5.0
ROOM_RETRY_S: Final = 60.0
IDS_PER_STEP: Final = 256
BYTES_PER_STEP: Final = 256 * 1024
_log = logging.getLogger(__name__)


# --- scrub -------------------------------------------------------------------------------------------------


async def scrub(context: Context, bytes_per_s: int, interval_ms: int) -> NoReturn:
    """Read every blob and compare, round after round, at a bounded rate; note what is needed and not held."""
    while True:
        start = trio.current_time()
        await _scrub_once(context, bytes_per_s)
        context.counters["scrub.rounds"] += 1
        spent_ms = int((trio.current_time() - start) * 1_000)
        await trio.sleep(max(context.jittered_s(interval_ms) - spent_ms / 1_000, 1.0))


async def _scrub_once(context: Context, bytes_per_s: int) -> None:
    after: bytes | None = b""
    while after is not None:
        after, read = await context.offload(partial(_scrub_step, context, after))
        await trio.sleep(read / bytes_per_s)
    after = b""
    while after is not None:
        ids = await context.offload(partial(_wanted_step, context, after))
        for content in ids:
            context.blobs.want(content)
        after = ids[-1] if len(ids) == IDS_PER_STEP else None


def _scrub_step(context: Context, after: bytes) -> tuple[bytes | None, int]:
    """Read blobs above `after`, BYTES_PER_STEP of them; gives the last one's id (None: no more) and the bytes."""
    read, last = 0, None
    for content in islice(context.db.blobs.iterate(after), IDS_PER_STEP):
        last = content
        try:
            read += context.blobs.verify(content)
        except Missing:  # deleted this moment, or damaged: then it is counted and wanted already
            continue
        context.counters["scrub.blobs"] += 1
        if read >= BYTES_PER_STEP:
            break
    context.counters["scrub.bytes"] += read
    return last, read


def _wanted_step(context: Context, after: bytes) -> list[bytes]:
    return list(islice(context.db.blobs.wanted(after), IDS_PER_STEP))


# --- heal --------------------------------------------------------------------------------------------------


async def heal(context: Context, sources: Sources) -> NoReturn:
    """Fetch again what was lost, from whoever serves this world; one loop for each world of the node."""
    while True:
        await trio.sleep(HEAL_POLL_S)
        for content in list(context.blobs.lost):
            try:
                await bring_back(context, sources, content)
            except (Missing, StoreFull):
                context.counters["store.heal_failed"] += 1
                await trio.sleep(HEAL_RETRY_S)


async def bring_back(context: Context, sources: Sources, content: bytes) -> None:
    """Have a blob that is needed in the store again. Raises Missing (nobody gives it) and StoreFull."""
    data = await fetch_blob(sources, content)
    await context.offload(partial(context.db.commit, (), [data]))
    if content in context.blobs.lost:
        del context.blobs.lost[content]
        context.counters["store.healed"] += 1


# --- room --------------------------------------------------------------------------------------------------


async def keep_room(context: Context, disk_bytes_max: int) -> NoReturn:
    """When the disk or its budget is full, delete the blobs that nobody pinned and no chain needs."""
    refused = context.counters["store.full"]
    while True:
        await trio.sleep(ROOM_POLL_S)
        used = await context.offload(context.db.disk_bytes)
        if context.counters["store.full"] == refused and used < disk_bytes_max - disk_bytes_max // 16:
            continue
        refused = context.counters["store.full"]
        try:
            freed = await context.offload(lambda: context.db.blobs.prune_unpinned(0))
        except StoreFull:  # not even deleting has room
            freed = 0
        context.counters["store.pruned_bytes"] += freed
        _log.warning("%d of %d bytes in use (disk_bytes_max), %d freed", used, disk_bytes_max, freed)
        if not freed:
            await trio.sleep(ROOM_RETRY_S)

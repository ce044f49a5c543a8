"""Index: keeps the newest head of its worlds on disk and in the DHT, whoever put it there first.

Hides: nothing. Guarantees: after a restart of every index node the head is found again; the record is put again well
before it expires. Any node that holds a valid head may publish it, so this needs no key of the world.
Implements docs/protocol.md, section "DHT" (heads).
"""

from __future__ import annotations

from typing import Final, NoReturn

import trio

from p2p import names
from p2p.errors import NetworkError
from runtime.services.context import Context
from runtime.services.heads import HeadTracker

HEAD_REPUT_MS: Final = 20_000  # under half of HEAD_AGE_MS_MAX, so that a quiet world does not look old


async def keep_indexed(
    context: Context, tracker: HeadTracker, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> NoReturn:
    """Put the best known head at start, and again every HEAD_REPUT_MS."""
    task_status.started()
    while True:
        await tracker.keep()
        head = tracker.head
        if head is None:
            await tracker.changed.wait()
            continue
        try:
            fresh = await tracker.freshest(head)
            await context.dht.put_record(names.head_key(tracker.world_id), fresh.to_bytes())
            context.counters["index.head_put"] += 1
        except NetworkError:  # an older one than the network holds, or nobody there: both mend themselves
            context.counters["index.head_put_failed"] += 1
        await trio.sleep(context.jittered_s(HEAD_REPUT_MS))

"""Puts the newest head into the DHT: the executor every new one, everybody else what the DHT lacks.

Hides: who puts when. Guarantees: a world stays findable as long as one node that serves its blocks runs, also after a
restart of all of them; no node puts more than once a second; none but the executor puts over a head that is as good.
Any node that holds a valid head may publish it, so this needs no key of the world.
Implements docs/protocol.md, sections "Head" (publishing) and "DHT".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

import trio

from p2p import names
from p2p.errors import NetworkError
from runtime import limits, rules
from runtime.errors import WorldError
from runtime.heads import head_order
from runtime.records import WorldHeadAnnounce
from runtime.services.context import Context
from runtime.services.heads import HeadTracker

DHT_PUT_MS: Final = 1_000
HEAD_LOOK_MS: Final = 20_000
HEAD_BEHIND_MS: Final = 15_000  # with the two periods before it well under HEAD_AGE_MS_MAX: quiet is not old

Newest = Callable[[], WorldHeadAnnounce | None]


async def keep_newest(context: Context, tracker: HeadTracker, newest: Newest) -> NoReturn:
    """The executor's: put each new head, at most one a second; the same again when its commit has grown old."""
    put, put_at = (0, 0), trio.current_time()
    while True:
        head = newest()
        is_old = trio.current_time() - put_at > limits.COMMIT_REFRESH_MS / 1_000
        if head is not None and (head_order(head)[:2] > put or is_old):
            fresh = await tracker.freshest(head)
            if await _put(context, tracker, fresh):
                put, put_at = head_order(fresh)[:2], trio.current_time()
        await trio.sleep(DHT_PUT_MS / 1_000)


async def keep_findable(context: Context, tracker: HeadTracker, newest: Newest) -> NoReturn:
    """Everybody else's: look at start and every HEAD_LOOK_MS, and put where the DHT has nothing, or something older."""
    while True:
        head = newest()
        if head is None:
            await trio.sleep(DHT_PUT_MS / 1_000)
            continue
        fresh = await tracker.freshest(head)
        try:
            found = await _published(context, tracker)
        except NetworkError:  # it cannot be read: then it cannot be written either
            context.counters["publish.lookup_failed"] += 1
        else:
            if found is None or is_behind(found, fresh):
                await _put(context, tracker, fresh)
            else:
                context.counters["publish.left"] += 1
        await trio.sleep(context.jittered_s(HEAD_LOOK_MS))


def is_behind(published: WorldHeadAnnounce, held: WorldHeadAnnounce) -> bool:
    """Whether the DHT's head is of an earlier epoch or height, or vouched for so long before that it must look old."""
    theirs, ours = head_order(published), head_order(held)
    if theirs[:2] != ours[:2]:
        return theirs[:2] < ours[:2]
    return ours[2] - theirs[2] > HEAD_BEHIND_MS


async def _published(context: Context, tracker: HeadTracker) -> WorldHeadAnnounce | None:
    """The head that the DHT gives now, which may be news to this node; None for none."""
    record = await context.dht.get_record(names.head_key(tracker.world_id))
    if record is None:
        return None
    try:
        head = rules.check_head_message(record, tracker.world_id)
    except WorldError:  # no honest server keeps such a record
        context.counters["publish.false_record"] += 1
        return None
    tracker.offer(head)
    return head


async def _put(context: Context, tracker: HeadTracker, head: WorldHeadAnnounce) -> bool:
    try:
        await context.dht.put_record(names.head_key(tracker.world_id), head.to_bytes())
    except NetworkError:  # an older one than the network holds, or nobody there: both mend themselves
        context.counters["publish.put_failed"] += 1
        return False
    context.counters["publish.put"] += 1
    return True

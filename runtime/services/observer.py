"""The observer: trusts nobody, executes every batch itself, and says what it found.

Hides: nothing; the work is in follow.py and chain.verify_block. Guarantees: `verified` is a height whose blocks this
process executed from genesis and found equal, root by root, to what was certified and attested. A forged state behind
valid hashes ends as a Divergence with both values, and the next best head is tried.
Implements docs/protocol.md, section "Head" (following); trust `replayed_from_genesis`.
"""

from __future__ import annotations

import logging

import trio

from runtime.services.authorities import Authorities
from runtime.services.evidence import EvidenceKeeper
from runtime.services.fetch import Sources
from runtime.services.follow import follow
from runtime.services.heads import HeadTracker
from runtime.services.replica import Progress, Replica

_log = logging.getLogger(__name__)


async def keep_verified(
    replica: Replica,
    tracker: HeadTracker,
    sources: Sources,
    progress: Progress,
    authorities: Authorities,
    evidence: EvidenceKeeper,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Replay whatever the best head leads to; ends only by cancellation."""
    assert replica.cursor == "verified"
    task_status.started()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_report, replica)
        await follow(replica, tracker, sources, progress, authorities, evidence)


async def _report(replica: Replica) -> None:
    while True:
        await replica.applied.wait()
        _log.info(
            "verified height %d of world %s, block %s",
            replica.height,
            replica.world_id,
            replica.block_hash.hex(),
            extra={"event": "height", "world": replica.world_id, "height": replica.height},
        )

"""Storage: holds every blob of the world's blocks and says so in the DHT; executes nothing.

Hides: nothing. Guarantees: what is stored hash-links to a head that was certified and attested (trust `attested`).
Implements docs/protocol.md, sections "DHT" (providers) and "Head" (following).
"""

from __future__ import annotations

import trio

from runtime.services.authorities import Authorities
from runtime.services.evidence import EvidenceKeeper
from runtime.services.fetch import Sources
from runtime.services.follow import follow
from runtime.services.heads import HeadTracker
from runtime.services.replica import Progress, Replica


async def keep_stored(
    replica: Replica,
    tracker: HeadTracker,
    sources: Sources,
    progress: Progress,
    authorities: Authorities,
    evidence: EvidenceKeeper,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Fetch, check, store whatever the best head leads to; ends only by cancellation."""
    task_status.started()
    await follow(replica, tracker, sources, progress, authorities, evidence)

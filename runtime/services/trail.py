"""The trail of an envelope: a debug line at each station, with the same field `envelope` on every node.

Hides: nothing. Guarantees: when debug is off a station costs one look at the level, and no hash is printed.
Stations: accepted, refused, gossiped, resent, pooled, mended, evicted, expired, cut, committed, then stored, executed
or verified. Documented in docs/operations.md, section "Following one envelope".
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from runtime.records import Envelope


def station(
    log: logging.Logger, event: str, world_id: str, envelopes: Iterable[Envelope], **fields: object
) -> None:
    """Say that these envelopes have come to the station `event`."""
    if not log.isEnabledFor(logging.DEBUG):
        return
    for envelope in envelopes:
        told = {"event": event, "world": world_id, "envelope": envelope.hash().hex()}
        log.debug(event, extra=told | fields)

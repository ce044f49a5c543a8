"""All attacks, the pace of each, and by which counters of a node one sees that it was met.

To add one: a function in wire.py or lies.py, a row here. The test and the benchmark take it from the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from benchmarks.hostile import lies, wire
from benchmarks.hostile.stranger import Attack


@dataclass(frozen=True, slots=True)
class Row:
    """`per_s`: how often a second the attack strikes, against all nodes together, in the benchmark.

    `met_by`: words of `aw status --counters`, one of which grows on some node because of it; none where a node answers
    or holds what comes, and has nothing to count.
    """

    attack: Attack
    per_s: float
    met_by: tuple[str, ...]


ATTACKS: Final[dict[str, Row]] = {
    "streams": Row(wire.streams, 2, ("cure.streams_over_limit",)),
    "short connections": Row(wire.short_connections, 2, ("connections.accepted",)),
    "idle connections": Row(wire.idle_connections, 0.5, ("connections.accepted",)),
    "silent sockets": Row(wire.silent_sockets, 20, ("connections.handshakes_over_limit",)),
    "changing identities": Row(wire.changing_identities, 1, ("rr.bad_frame",)),
    "requests": Row(wire.requests, 10, ("rr.busy", "rr.rate_limited")),
    "account requests": Row(wire.account_requests, 1, ("rr.busy", "rr.rate_limited")),
    "costly requests": Row(wire.costly_requests, 4, ()),
    "slow readers": Row(wire.slow_readers, 0.2, ("rr.busy",)),
    "slow writers": Row(wire.slow_writers, 1, ()),
    "malformed bytes": Row(wire.malformed_bytes, 3, ("connections.accepted",)),
    "malformed streams": Row(wire.malformed_streams, 2, ("rr.bad_frame", "cure.stream_guard")),
    "false gossip": Row(lies.false_gossip, 10, ("gossip.rejected",)),
    "unknown actors": Row(lies.unknown_actors, 5, ("mempool.gaps_found",)),
    "false heads": Row(lies.false_heads, 5, ("gossip.rejected",)),
    "false commits": Row(lies.false_commits, 5, ("executor.foreign_commit",)),
    "false attestations": Row(lies.false_attestations, 5, ("evidence.foreign_attestation",)),
    "false evidence": Row(lies.false_evidence, 2, ("evidence.false", "evidence.not_had")),
    "DHT records": Row(lies.dht_records, 4, ("dht.records_refused",)),
    "provider records": Row(lies.provider_records, 4, ("dht.dropped_provider_rate",)),
    "provider crowd": Row(lies.provider_crowd, 0.5, ()),
    "lying provider": Row(lies.lying_provider, 5, ("evidence.false", "evidence.not_had")),
    "slow provider": Row(lies.slow_provider, 5, ("evidence.not_had",)),
    "dying provider": Row(lies.dying_provider, 5, ("evidence.not_had",)),
}

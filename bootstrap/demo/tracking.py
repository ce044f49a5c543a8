"""What became of the demo's envelopes: submitted, accepted, in a block, verified by another process.

Hides: nothing. Guarantees: an envelope counts as verified only when the observer says that it has replayed the height
at which the envelope stands, and as lost when it was accepted and never was. Pure: the clock is an argument.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from runtime.records import Envelope, Receipt


@dataclass(slots=True)
class Tracker:
    """Times are in seconds of one monotonic clock."""

    submitted_s: dict[bytes, float] = field(default_factory=dict)
    accepted: set[bytes] = field(default_factory=set)
    verified_s: dict[bytes, float] = field(default_factory=dict)
    applied: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    submitted_actions: int = 0
    refused_envelopes: set[bytes] = field(default_factory=set)
    turned_away: Counter[str] = field(default_factory=Counter)
    height: int = 0

    def submit(self, envelopes: Iterable[Envelope], now_s: float) -> None:
        """Handed to the gateway (again: the first time counts)."""
        for envelope in envelopes:
            if self.submitted_s.setdefault(envelope.hash(), now_s) == now_s:
                self.submitted_actions += len(envelope.record.actions)

    def block(self, height: int, receipts: Sequence[Receipt], now_s: float) -> None:
        """The observer has replayed this height, and these are its receipts."""
        self.height = height
        for receipt in receipts:
            if receipt.code == "Applied":
                self.applied += 1
            else:
                self.refused[receipt.code] += 1
                self.refused_envelopes.add(receipt.envelope_hash)
            if receipt.envelope_hash in self.submitted_s:
                self.verified_s.setdefault(receipt.envelope_hash, now_s)

    def applied_of(self, envelopes: Iterable[Envelope]) -> int:
        """How many of them stand in a verified block with every action applied."""
        applied = self.verified_s.keys() - self.refused_envelopes
        return sum(envelope.hash() in applied for envelope in envelopes)

    def lost(self) -> set[bytes]:
        """Accepted, and in no verified block."""
        return self.accepted - self.verified_s.keys()

    def delays_ms(self) -> list[int]:
        """From submit to verified, ascending."""
        return sorted(int((self.verified_s[one] - self.submitted_s[one]) * 1_000) for one in self.verified_s)


def percentile(ascending: Sequence[int], percent: int) -> int:
    """The value that `percent` of the sorted values do not exceed; 0 for none."""
    if not ascending:
        return 0
    return ascending[min(len(ascending) - 1, len(ascending) * percent // 100)]

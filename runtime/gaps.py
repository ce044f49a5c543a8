"""When to ask for missing nonces: after a short wait, then ever more seldom. Decisions only.

Hides: the account of what was asked when. Guarantees: at most GAPS_PER_ROUND_MAX gaps a round, the longest due first; a
gap is asked for at most once in its period, which doubles up to GAP_ASK_AGAIN_MS_MAX; what is no gap any more is
forgotten, so that the account is never larger than the mempool.
Implements docs/protocol.md, section "Gossip" (repair).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime import limits
from runtime.sequencing import Gap


@dataclass(slots=True)
class _Asked:
    due_ms: int
    again_ms: int


class GapLedger:
    """One per mempool. Times are ms of a monotonic clock; `jittered_ms` spreads sequencers that see the same gap."""

    def __init__(self, jittered_ms: Callable[[int], int]) -> None:
        self._jittered_ms = jittered_ms
        self._asked: dict[tuple[bytes, int], _Asked] = {}
        self.found = 0

    def __len__(self) -> int:
        return len(self._asked)

    def due(self, gaps: Sequence[Gap], now_ms: int) -> list[Gap]:
        """Those of the present gaps that are to be asked for now; they count as asked."""
        by_key = {(gap.actor_id, gap.nonce): gap for gap in gaps}
        kept = {key: asked for key, asked in self._asked.items() if key in by_key}
        for key in sorted(by_key.keys() - kept.keys()):
            self.found += 1
            kept[key] = _Asked(now_ms + self._jittered_ms(limits.GAP_FIRST_ASK_MS), limits.GAP_ASK_AGAIN_MS)
        self._asked = kept
        ready = sorted(((asked.due_ms, key) for key, asked in kept.items() if asked.due_ms <= now_ms))
        chosen = [key for _due_ms, key in ready[: limits.GAPS_PER_ROUND_MAX]]
        for key in chosen:
            asked = kept[key]
            asked.due_ms = now_ms + self._jittered_ms(asked.again_ms)
            asked.again_ms = min(2 * asked.again_ms, limits.GAP_ASK_AGAIN_MS_MAX)
        return [by_key[key] for key in chosen]

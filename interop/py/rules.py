"""What this peer refuses, and how a careless one refuses nothing; the limits of a peer that is made to be tested.

Pure. The rules themselves are runtime/rules.py; implements docs/interop.md, "Starting a peer".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from p2p import names
from p2p.loads import RouterLimits
from p2p.network import Check, Message, RecordRule, Verdict
from runtime import rules
from runtime.records import Genesis
from runtime.services import as_check

TOPIC: Final = re.compile(r"aw\.([a-z2-7]{32})\.([a-z]+)")
# A driver asks as fast as it can; what a node allows a stranger in a second is no matter of interoperability.
TEST_LIMITS: Final = RouterLimits(requests_per_s_max=1_000_000, request_bytes_per_s_max=1 << 40)


class _AnyRecord:
    """Takes every record and prefers the one that was met last; of equal ones the later, so that it is held anew."""

    def __init__(self) -> None:
        self._met: dict[bytes, int] = {}

    def validate(self, key: str, value: bytes) -> None:
        del key
        self._met.setdefault(value, len(self._met))

    def select(self, key: str, values: Sequence[bytes]) -> int:
        for value in values:
            self.validate(key, value)
        return max(range(len(values)), key=lambda index: (self._met[values[index]], index))


def careless_records() -> RecordRule:
    """The record rule of `--careless`."""
    return _AnyRecord()


def split_topic(topic: str) -> tuple[str, str]:
    """World id and kind of `aw.<world_id>.<kind>`. Raises ValueError."""
    found = TOPIC.fullmatch(topic)
    if found is None or topic != names.topic(*found.groups()):
        raise ValueError(f"topic: {topic[:80]!r} is not aw.<world id>.<kind>")
    return found[1], found[2]


def topic_check(
    known: Genesis, kind: str, judged: Callable[[Message, Verdict], None], *, is_careless: bool
) -> Check:
    """The check of a world's topic of this kind; `judged` is told each verdict."""
    of_kind = rules.gossip_rules(known.header.world_id, known.body.limits.envelope_bytes_max)
    strict = as_check(of_kind[kind])

    def check(message: Message) -> Verdict:
        verdict = Verdict.ACCEPT if is_careless else strict(message)
        judged(message, verdict)
        return verdict

    return check

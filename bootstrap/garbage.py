"""How often a process that runs for long looks for garbage that counts on itself."""

from __future__ import annotations

import gc
from typing import Final

YOUNG_MAX: Final = 50_000  # Python's own is 700: a node makes that many in a few milliseconds


def collect_seldom() -> None:
    """Call once, when everything is imported: that is never looked at again, and the rest less often.

    A node spends 3 to 9 % less CPU, a run of the simulation a tenth (docs/performance.md). What is not part of a
    cycle is freed at once as ever; of what is, some 10 MB more can wait.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX, 20, 20)

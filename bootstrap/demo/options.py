"""What `aw demo` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`flights` None: all of them; `kills`: (role, seconds after the start) to kill -9."""

    flights: int | None = None
    data: Path | None = None
    keep: bool = False
    data_dir: Path | None = None
    kills: tuple[tuple[str, float], ...] = ()
    seed: int = 0
    json: bool = False

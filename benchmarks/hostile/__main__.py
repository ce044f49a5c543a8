"""Honest work while every attack goes on: how much of it is verified, and what the nodes take.

`python -m benchmarks.hostile [--minutes 10] [--json]`. Five node processes as in the demo. First, undisturbed, what the
network verifies when there is always work; then a quarter of that is offered while attacker processes, with lower
priority, run every attack of table.py at its pace. Exit 0 when 80 % of what was offered is verified, nothing accepted
is lost, nobody was turned away, no node ended, memory is flat and every attack has struck; 1 otherwise.
docs/performance.md, "Under attack", has the figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import trio

from benchmarks.harness import progress, rounded
from benchmarks.hostile.load import PATIENCE_S, Besieged, capacity, counters, offer, open_besieged, settle
from benchmarks.hostile.stranger import strikes
from benchmarks.hostile.table import ATTACKS
from bootstrap.demo.tracking import percentile

SHARE: Final = 0.25  # of what the network does undisturbed
RATIO_MIN: Final = 0.8
SAMPLE_S: Final = 5.0
MIB: Final = 1 << 20
GROWTH_MAX: Final = 1.25
GROWTH_BYTES_MAX: Final = 32 * MIB
SIEGE_ENDS_S: Final = 10.0
ATTACKERS: Final = 4
NICE: Final = 5
REFUSALS: Final = (
    "refused", "dropped", "limit", "busy", "bad_frame", "rejected", "ignored", "false", "guard", "not_believed",
    "foreign", "reset", "unsupported", "oversize", "push_msg", "not_had", "made_room", "evicted", "expired",
    "failed", "timeout", "too_slow", "missing", "astray", "bug", "found_dead", "dial", "accepted",
)  # fmt: skip


@dataclass(slots=True)
class Memory:
    """What one node took, every SAMPLE_S: all resident bytes, and those of them that are no file's pages."""

    resident: list[int] = field(default_factory=list)
    anonymous: list[int] = field(default_factory=list)

    def sample(self, pid: int) -> None:
        """Look once; a process that is away just now is not counted."""
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return
        found = {
            line.split(":")[0]: line.split()[1:] for line in lines if line.startswith(("VmRSS", "RssAnon"))
        }
        if len(found) == 2:
            self.resident.append(int(found["VmRSS"][0]) * 1_024)
            self.anonymous.append(int(found["RssAnon"][0]) * 1_024)

    def is_flat(self) -> bool:
        """Whether the last third is near the first: pages of the database's file are the kernel's to give back."""
        third = len(self.anonymous) // 3
        if not third:
            return True
        first, last = median(self.anonymous[:third]), median(self.anonymous[-third:])
        return last <= GROWTH_MAX * first + GROWTH_BYTES_MAX

    def by_minute(self, bytes_at: Sequence[int]) -> list[int]:
        """MiB at each minute."""
        step = int(60 / SAMPLE_S)
        return [round(size / MIB) for size in bytes_at[::step]] + [
            round(size / MIB) for size in bytes_at[-1:]
        ]


@dataclass(slots=True)
class Attacker:
    """A process of siege.py."""

    process: trio.Process
    said: bytearray
    is_under_way: trio.Event

    @property
    def tallies(self) -> dict[str, dict[str, int]]:
        """What each of its attacks did; nothing when it died."""
        said = [json.loads(line) for line in bytes(self.said).splitlines()]
        return dict(said[-1]) if len(said) > 1 else {}


@asynccontextmanager
async def attackers(besieged: Besieged, options: argparse.Namespace) -> AsyncIterator[list[Attacker]]:
    """Attacks under way in processes of their own; leaving the block ends them. Raises trio.TooSlowError."""
    chosen = options.attacks or list(ATTACKS)
    running: list[Attacker] = []
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        for number in range(ATTACKERS):
            names = chosen[number::ATTACKERS]
            if not names:
                continue
            order = {
                "addrs": [node.addr for node in besieged.network.nodes.values()],
                "world_id": besieged.work.world_id,
                "attacks": names,
                "pace": options.pace,
                "nice": NICE,
                "seed": number,
            }
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "benchmarks.hostile.siege"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            attacker = Attacker(process, bytearray(), trio.Event())
            running.append(attacker)
            nursery.start_soon(_read_all, attacker)
            assert process.stdin is not None
            await process.stdin.send_all(json.dumps(order).encode() + b"\n")
        try:
            with trio.fail_after(PATIENCE_S):
                for attacker in running:
                    await attacker.is_under_way.wait()
            yield running
        finally:
            with trio.CancelScope(shield=True):
                for attacker in running:
                    await _end(attacker)


async def _read_all(attacker: Attacker) -> None:
    assert attacker.process.stdout is not None
    async for data in attacker.process.stdout:
        attacker.said += data
        if b"\n" in attacker.said:
            attacker.is_under_way.set()


async def _end(attacker: Attacker) -> None:
    assert attacker.process.stdin is not None
    await attacker.process.stdin.aclose()
    with trio.move_on_after(SIEGE_ENDS_S):
        await attacker.process.wait()
        return
    attacker.process.kill()
    await attacker.process.wait()


async def siege(besieged: Besieged, options: argparse.Namespace, rate: float) -> dict[str, Any]:
    """Honest work at `rate` actions a second under every attack, for so many minutes."""
    network, tracker, seconds = besieged.network, besieged.tracker, options.minutes * 60
    memory = {name: Memory() for name in network.nodes}
    pids = {name: node.pid for name, node in network.nodes.items()}
    before = await counters(besieged)
    async with attackers(besieged, options) as running, trio.open_nursery() as nursery:
        nursery.start_soon(_watch, besieged, memory)
        nursery.start_soon(offer, besieged, rate, options.per_envelope)
        applied, since, seen = tracker.applied, trio.current_time(), len(tracker.verified_s)
        await trio.sleep(seconds)
        verified_rate = (tracker.applied - applied) / (trio.current_time() - since)
        delays_ms = sorted(
            int((at_s - tracker.submitted_s[one]) * 1_000)
            for one, at_s in list(tracker.verified_s.items())[seen:]
        )
        nursery.cancel_scope.cancel()
    after = await counters(besieged)
    await settle(besieged)
    tallies = {name: tally for one in running for name, tally in one.tallies.items()}
    grown = {name: count - before[name] for name, count in sorted(after.items()) if count > before[name]}
    return {
        "offered_per_s": rounded(rate),
        "verified_per_s": rounded(verified_rate),
        "ratio": rounded(verified_rate / rate),
        "delay_ms": {"p50": percentile(delays_ms, 50), "p99": percentile(delays_ms, 99)},
        "lost": len(tracker.lost()),
        "turned_away": dict(tracker.turned_away),
        "restarts": network.restarts,
        "ended": sorted(name for name, node in network.nodes.items() if node.pid != pids[name]),
        "memory_flat": all(one.is_flat() for one in memory.values()),
        "resident_mib": {name: one.by_minute(one.resident) for name, one in memory.items()},
        "anonymous_mib": {name: one.by_minute(one.anonymous) for name, one in memory.items()},
        "attacks": tallies,
        "idle_attacks": [name for name in options.attacks or ATTACKS if not strikes(tallies.get(name, {}))],
        "counted": {name: count for name, count in grown.items() if any(word in name for word in REFUSALS)},
    }


async def _watch(besieged: Besieged, memory: dict[str, Memory]) -> None:
    """Memory of each node, and a line a minute for people who wait."""
    begun, applied = trio.current_time(), besieged.tracker.applied
    for number in range(1 << 30):
        for name, node in besieged.network.nodes.items():
            memory[name].sample(node.pid)
        if number % int(60 / SAMPLE_S) == 0:
            took = trio.current_time() - begun
            progress(
                f"{took:.0f} s: {besieged.tracker.applied - applied} actions verified, {besieged.unverified} envelopes "
                f"waiting, MiB { ({name: one.resident[-1] // MIB for name, one in memory.items() if one.resident}) }"
            )
        await trio.sleep(SAMPLE_S)


async def measure(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The capacity, then the siege."""
    async with open_besieged(directory) as besieged:
        calm = await capacity(besieged, options.calm_s, options.per_envelope)
        progress(f"undisturbed: {calm:.0f} actions a second")
        await settle(besieged)
        report = await siege(besieged, options, SHARE * calm)
    report = {
        "minutes": options.minutes,
        "actions_per_envelope": options.per_envelope,
        "undisturbed_per_s": rounded(calm),
        **report,
        "paces_per_s": {name: row.per_s * options.pace for name, row in ATTACKS.items()},
    }
    report["within_bounds"] = (
        report["ratio"] >= RATIO_MIN
        and report["memory_flat"]
        and not report["restarts"]
        and not report["lost"]
        and not report["turned_away"]
        and not report["idle_attacks"]
    )
    return report


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--calm-s", type=float, default=45.0, help="how long the capacity is measured")
    parser.add_argument("--per-envelope", type=int, default=1, help="actions in an envelope")
    parser.add_argument("--pace", type=float, default=1.0, help="times the paces of the table")
    parser.add_argument("--attacks", nargs="*", choices=list(ATTACKS), help="these only")
    parser.add_argument("--data-dir", type=Path, help="keep the nodes' data and logs there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aw-hostile-") as temporary:
        report = trio.run(measure, options.data_dir or Path(temporary), options)
    if options.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name}: {value}")
    return 0 if report["within_bounds"] else 1


if __name__ == "__main__":
    sys.exit(main())

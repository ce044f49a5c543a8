"""The same work between peers of every language: `make bench ARGS=interop`.

Each row is a pairing X>Y (X asks, Y answers) beside py>py, measured in turn in one run: `ours` is py>py, the peer's
side the pairing. The peers are those of interop/, driven by the commands of docs/interop.md. They are built first,
and optimised; with --quick they are those of `make interop`, as it is then not asked how fast they are.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, TypeAlias

import trio

from benchmarks.harness import Options, Peer, Row, main, progress, rounded, spread
from interop.driver import CommandFailed, Ground, open_ground
from interop.driver import Peer as Process
from interop.languages import LANGUAGES, BuildFailed, Missing, build, command
from interop.steps import body, joined, until
from interop.worlds import HandMadeWorld
from p2p import names

HERE: Final = "py"
SIZE: Final = 200
BLOB_BYTES: Final = 8 << 20
PARTING_S: Final = 1.0  # then whoever dialled again is disconnected again
LOOK_S: Final = 0.005
Commands: TypeAlias = dict[str, Sequence[str]]
Measure: TypeAlias = Callable[[Process, Process, int], Awaitable[float]]


async def rows(options: Options) -> list[Row]:
    """Every measure for every pairing, `runs` times after one that does not count. Raises PeerFailed.

    Ends the process where a peer cannot be built.
    """
    optimised = not options.quick
    try:
        for language in LANGUAGES:
            build(language, optimised=optimised)
    except (Missing, BuildFailed) as failed:
        raise SystemExit(f"error: {failed}") from None
    runs, scale = (1, 10) if options.quick else (5, 1)
    commands = {language: command(language, optimised=optimised) for language in LANGUAGES}
    with tempfile.TemporaryDirectory(prefix="aw-bench-") as directory:
        return await _rows(commands, Path(directory), runs, scale)


async def _rows(commands: Commands, directory: Path, runs: int, scale: int) -> list[Row]:
    """The same of peers that are built; their logs go to `directory`, and a tenth of the work is done at scale 10."""
    measures: tuple[tuple[str, str, str, Measure], ...] = (
        ("rr-1", "rr, one in flight, 200 B", "requests/s", requests(500 // scale, 1)),
        ("rr-32", "rr, 32 in flight, 200 B", "requests/s", requests(4_000 // scale, 32)),
        ("blob-8m", "blob of 8 MiB, hash checked", "MB/s", fetched),
        ("gossip", "one action published, judged and told by the other", "messages/s", gossip(50 // scale)),
        ("connect", "dial, noise, yamux, identify", "connects/s", connects(commands, directory, 10 // scale)),
    )
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    async with open_ground(commands, directory) as ground:
        pairs = await start_all(ground)
        for name, _what, unit, measure in measures:
            for run in range(runs + 1):
                for pair, (one, other) in pairs.items():
                    value = await measure(one, other, run)
                    if run:  # the first warms caches, connections and windows up
                        found[name, pair].append(value)
                if run:
                    told = ", ".join(f"{pair} {rounded(found[name, pair][-1])}" for pair in pairs)
                    progress(f"{name}: run {run} of {runs}: {told} {unit}")
    own = f"{HERE}>{HERE}"
    return [
        Row(
            f"{name} {pair}", what, unit, spread(found[name, own]), Peer(pair, ""), spread(found[name, pair]), runs
        )
        for name, what, unit, _measure in measures
        for pair in pairs
        if pair != own
    ]  # fmt: skip


async def start_all(ground: Ground) -> dict[str, tuple[Process, Process]]:
    """Two peers of each language; the pairings: each with itself, and with Python both ways."""
    asking = {language: await ground.start(language, n) for n, language in enumerate(LANGUAGES, start=1)}
    answering = {language: await ground.start(language, n) for n, language in enumerate(LANGUAGES, start=101)}
    pairs = [(one, other) for one in LANGUAGES for other in LANGUAGES if one == other or HERE in (one, other)]
    for one, other in pairs:
        await asking[one].do("dial", addr=answering[other].addr)
    return {f"{one}>{other}": (asking[one], answering[other]) for one, other in pairs}


def requests(count: int, in_flight: int) -> Measure:
    """So many requests in one session, so many at a time."""

    async def measure(one: Process, other: Process, run: int) -> float:
        del run
        done = await one.do(
            "requests",
            peer=other.peer_id,
            method="x_echo",
            body=body(data=bytes(SIZE)),
            count=count,
            in_flight=in_flight,
        )
        assert done["ok"] == count, done
        return float(1_000 * count / done["ms"])

    return measure


async def fetched(one: Process, other: Process, run: int) -> float:
    """A blob that the asker has not seen."""
    seed = 1_000 * run + int(one.name.rpartition("-")[2])
    content_hash = (await other.do("put_blob", seed=seed, size=BLOB_BYTES))["content_hash"]
    done = await one.do("fetch", peer=other.peer_id, content_hash=content_hash)
    assert done["size"] == BLOB_BYTES, done
    return float(BLOB_BYTES / 1_000 / done["ms"])


def connects(commands: Commands, directory: Path, count: int) -> Measure:
    """Dialled and identified, one after the other, by the median; what it takes to part is not counted.

    By two peers that have just started, so that neither looks up anybody in the DHT, and dials in between.
    """

    async def measure(one: Process, other: Process, run: int) -> float:
        async with open_ground(commands, directory / f"{one.name}-{other.name}-{run}") as apart:
            dialler = await apart.start(one.name.partition("-")[0], 201)
            answerer = await apart.start(other.name.partition("-")[0], 202)
            return 1 / median((await dialled(dialler, answerer, count + 1))[1:])

    return measure


async def dialled(one: Process, other: Process, count: int) -> list[float]:
    """What so many dials took, in seconds. Raises AssertionError, CommandFailed."""
    took_s: list[float] = []
    for _ in range(2 * count):
        began_s = time.perf_counter()
        try:
            await one.do("dial", addr=other.addr)
        except CommandFailed as failure:  # met the other's own dial, and one of the two is given up
            if failure.kind != "stream":
                raise
        else:
            took_s.append(time.perf_counter() - began_s)
        if len(took_s) == count:
            return took_s
        await until(partial(parted, one, other), f"{one.name} parts from {other.name}")
    raise AssertionError(f"{one.name}: {len(took_s)} of {2 * count} dials reached {other.name}")


async def parted(one: Process, other: Process) -> bool:
    """Whether who asks has no connection. The other one's DHT may have dialled again: so that is ended too."""
    await one.do("disconnect", peer=other.peer_id)
    with trio.move_on_after(PARTING_S):
        while other.peer_id in (await one.do("peers"))["peers"]:
            await trio.sleep(LOOK_S)
        return True
    return False


def gossip(count: int) -> Measure:
    """Signed actions, each published when the one before was judged."""

    async def measure(one: Process, other: Process, run: int) -> float:
        world = HandMadeWorld(f"bench-{one.name}-{other.name}-{run}")
        topic = names.topic(world.world_id, "action")
        await joined(world, topic, one, other)
        took_s = 0.0
        for nonce in range(count):
            data = world.envelope(nonce).hex()
            other.events.clear()
            began_s = time.perf_counter()
            await one.do("publish", topic=topic, data=data)
            await other.event("gossip", topic=topic, verdict="accept", data=data)
            took_s += time.perf_counter() - began_s
        return count / took_s

    return measure


if __name__ == "__main__":
    main(rows)

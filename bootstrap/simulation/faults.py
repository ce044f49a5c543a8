"""What goes wrong: one function per kind of trouble, and how a seed draws them.

Hides: nothing. Guarantees: each trouble takes a bounded time and undoes itself, so that a run can end; which, when and
to whom is drawn by the seed alone. A new one is a function and a row of TROUBLES (docs/testing.md).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import trio

from bootstrap.simulation.network import NODES, Network
from bootstrap.simulation.ports import CLOCK_SKEW_MS_MAX
from p2p.memory import Faults

Trouble = Callable[[Network, random.Random], None]

TROUBLES_MAX: Final = 8  # in one run
TROUBLES_WITHIN_S: Final = 12.0  # all have begun by then
STORM: Final = Faults(
    delay_ms=(20, 400), gossip_loss=0.7, gossip_duplication=0.3, gossip_late=0.3, stream_break=0.1
)


def faults_of(rng: random.Random) -> Faults:
    """The weather of a whole run: delay, loss, duplicates, late messages, broken streams."""
    return Faults(
        delay_ms=(1, rng.randrange(2, 60)),
        gossip_loss=rng.randrange(40) / 100,
        gossip_duplication=rng.randrange(20) / 100,
        gossip_late=rng.randrange(20) / 100,
        stream_break=rng.randrange(3) / 100,
    )


def _seconds(rng: random.Random, most: float) -> float:
    return rng.randrange(100, int(most * 1_000)) / 1_000


def kill(network: Network, rng: random.Random) -> None:
    """kill -9, and a start later."""
    network.kill(rng.choice(list(NODES)), _seconds(rng, 8))


def stop(network: Network, rng: random.Random) -> None:
    """SIGTERM, and a start later."""
    network.stop(rng.choice(list(NODES)), _seconds(rng, 4))


def freeze(network: Network, rng: random.Random) -> None:
    """SIGSTOP, often past the lease, and SIGCONT."""
    network.freeze(rng.choice(list(NODES)), _seconds(rng, 12))


def cut(network: Network, rng: random.Random) -> None:
    """One node and some of the others do not reach each other."""
    name = rng.choice(list(NODES))
    others = [other for other in NODES if other != name]
    network.cut([name], rng.sample(others, rng.randrange(1, len(others) + 1)), _seconds(rng, 10))


def split(network: Network, rng: random.Random) -> None:
    """Two halves do not reach each other."""
    half = rng.sample(list(NODES), rng.randrange(2, len(NODES) - 1))
    network.cut(half, [name for name in NODES if name not in half], _seconds(rng, 10))


def fill_disk(network: Network, rng: random.Random) -> None:
    """A node's database refuses every write for a while."""
    name = rng.choice(list(NODES))

    def fill(is_full: bool) -> None:
        network.note(name, "has a full disk" if is_full else "has space again")
        network.disks[name].is_full = is_full

    fill(True)
    network.later(_seconds(rng, 10), fill, False)


def slow(network: Network, rng: random.Random) -> None:
    """Everything to and from a node takes long."""
    name = rng.choice(list(NODES))

    def delay(extra_ms: int) -> None:
        network.note(name, f"is slow, by {extra_ms} ms" if extra_ms else "is fast again")
        network.hub.slow(network.keys[name].identity, extra_ms)

    delay(rng.randrange(50, 1_500))
    network.later(_seconds(rng, 10), delay, 0)


def skew(network: Network, rng: random.Random) -> None:
    """A node's clock jumps and then drifts, within CLOCK_SKEW_MS_MAX; it stays wrong."""
    name = rng.choice(list(NODES))
    offset_ms = rng.randrange(-CLOCK_SKEW_MS_MAX, CLOCK_SKEW_MS_MAX + 1)
    per_mille = rng.randrange(-200, 201)
    network.note(name, f"has its clock set wrong by {offset_ms} ms, drifting {per_mille} ms a second")
    network.clocks[name].set(offset_ms, per_mille)


def storm(network: Network, rng: random.Random) -> None:
    """For a while most gossip is lost and streams break all the time."""

    def blow(weather: Faults) -> None:
        network.note("links", "are in a storm" if weather is STORM else "are calm again")
        network.hub.faults = weather

    blow(STORM)
    network.later(_seconds(rng, 6), blow, network.weather)


TROUBLES: Final[dict[str, Trouble]] = {
    "kill": kill,
    "stop": stop,
    "freeze": freeze,
    "cut": cut,
    "split": split,
    "fill_disk": fill_disk,
    "slow": slow,
    "skew": skew,
    "storm": storm,
}


async def make_trouble(network: Network, rng: random.Random, count: int) -> None:
    """Begin `count` troubles, at moments of the first TROUBLES_WITHIN_S."""
    for at_s in sorted(_seconds(rng, TROUBLES_WITHIN_S) for _ in range(count)):
        await trio.sleep_until(at_s)
        name = rng.choice(list(TROUBLES))
        network.troubles[name] += 1
        TROUBLES[name](network, rng)

"""The users of the simulated world: what they sign, and how they hand it in.

Hides: retrying. Guarantees: what a careful actor signs is taken in the end; a careless one signs two envelopes for one
nonce, and some that expire soon, so that promises also end by death.
"""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from bootstrap.simulation.network import ACTORS, GATEWAYS, NODES, Network, key_of
from bootstrap.simulation.ports import START_MS
from p2p.errors import NetworkError
from p2p.memory import InMemoryNetwork
from runtime.messages import SubmitAnswer, SubmitRequest
from runtime.records import ActionEnvelope, Envelope, seal

CARELESS: Final = 2  # of ACTORS, the last ones
CARELESS_FROM: Final = 24  # envelopes: a smaller load is all careful
CHUNK: Final = 8
DEADLINE_MS: Final = 5_000
FAR: Final = 4_000  # an expiry height that no run reaches


@dataclass(slots=True)
class Load:
    """What is handed in: `careful` must be taken, `careless` may be refused, taken or dead."""

    careful: list[Envelope] = field(default_factory=list)
    careless: list[Envelope] = field(default_factory=list)

    def ending(self, accepted: Container[bytes]) -> list[Envelope]:
        """What must end: all of the careful, and of the careless what was accepted."""
        return [*self.careful, *(one for one in self.careless if one.hash() in accepted)]


def make_load(network: Network, rng: random.Random, count: int) -> Load:
    """About `count` envelopes of careful actors, and a few of careless ones."""
    load = Load()
    for number in range(ACTORS - CARELESS):
        actor = f"actor {number}"
        for nonce in range(count // (ACTORS - CARELESS)):
            load.careful.append(_envelope(network, actor, nonce, FAR, _actions(rng, number, nonce)))
    for number in range(ACTORS - CARELESS, ACTORS) if count >= CARELESS_FROM else ():
        actor = f"actor {number}"
        for nonce in range(2):
            for rival in range(rng.randrange(1, 3)):
                expires = rng.randrange(2, 9)
                actions = [("register_agent", _place(rng, f"careless-{number}-{nonce}-{rival}"))]
                load.careless.append(_envelope(network, actor, nonce, expires, actions))
    rng.shuffle(load.careful)
    rng.shuffle(load.careless)
    return load


def _place(rng: random.Random, agent: str) -> dict[str, Any]:
    return {"agent_id": agent, "x_cm": rng.randrange(1_000_001), "y_cm": rng.randrange(1_000_001), "z_cm": 0}


def _actions(rng: random.Random, number: int, nonce: int) -> list[tuple[str, dict[str, Any]]]:
    """First an agent with some fuel; then walks, gifts to other agents, and gifts that are too large."""
    agent = f"agent-{number}"
    if nonce == 0:
        return [("register_agent", {**_place(rng, agent), "endow": {"fuel": 1_000}})]
    other = f"agent-{rng.randrange(ACTORS - CARELESS)}"
    gift = {"kind": "fuel", "amount": rng.randrange(1, 600), "from_agent": agent, "to_agent": other}
    return [("move_agent", _place(rng, agent)), ("transfer_resource", gift)][: rng.randrange(1, 3)]


def _envelope(
    network: Network, actor: str, nonce: int, expires: int, actions: list[tuple[str, dict[str, Any]]]
) -> Envelope:
    key = key_of(network.seed, actor)
    return seal(
        ActionEnvelope(
            world_id=network.genesis.header.world_id,
            actor_id=key.identity,
            nonce=nonce,
            expires_at_height=expires,
            timestamp_ms=START_MS,
            atomic=False,
            actions=tuple(actions),
        ),
        key,
    )


async def hand_in(
    network: Network, client: InMemoryNetwork, rng: random.Random, load: Load, envelopes: list[Envelope]
) -> None:
    """Until each is accepted or finally refused, through one gateway or the other."""
    careful = {envelope.hash() for envelope in load.careful}
    waiting = list(envelopes)
    while waiting:
        chunk, waiting = waiting[:CHUNK], waiting[CHUNK:]
        request = SubmitRequest(world_id=network.genesis.header.world_id, envelopes=tuple(chunk))
        gateway = network.keys[rng.choice(GATEWAYS)].identity
        try:
            data = await client.request(
                gateway, "submit_actions", request.to_bytes(), deadline_ms=DEADLINE_MS
            )
        except NetworkError:
            waiting += chunk  # accepted or not: handing in the same envelope again is no mistake
            await trio.sleep(0.5)
            continue
        for envelope, result in zip(chunk, SubmitAnswer.from_bytes(data).results, strict=True):
            if result.retry_after_ms is not None:
                waiting.append(envelope)
            elif result.outcome != "accepted" and envelope.hash() in careful:
                network.checks.fail("honest_refused", f"{result.reason}: {result.message}")
        await trio.sleep(rng.randrange(1_000) / 1_000)


async def until_settled(network: Network, envelopes: Sequence[Envelope]) -> None:
    """Wait until every promise among these has ended on the observer, and every node is where the last commit is."""
    waiting = list(envelopes)
    while waiting or not _all_there(network):
        await trio.sleep(0.2)
        waiting = [envelope for envelope in waiting if not network.checks.is_settled("observer", envelope)]


def check_taken(network: Network, load: Load) -> None:
    """At the end: what careful actors signed is in a verified block."""
    for envelope in load.careful:
        if not network.checks.is_taken("observer", envelope):
            record = envelope.record
            network.checks.fail(
                "nothing_lost", f"nonce {record.nonce} of {record.actor_id.hex()[:20]} was not taken"
            )


def _all_there(network: Network) -> bool:
    """Whether every node is up and has applied the last block."""
    worlds, target = network.worlds, network.checks.committed()
    heights = [world.replica.height for world in worlds.values() if world.replica is not None]
    return len(worlds) == len(NODES) and all(height == target for height in heights)


def missing(network: Network, load: Load) -> str:
    """Which promises have not ended, for the text of a failed run."""
    checks = network.checks
    waiting = [
        f"{envelope.hash().hex()[:16]} (nonce {envelope.record.nonce}, accepted by {checks.accepted[envelope.hash()]})"
        for envelope in [*load.careful, *load.careless]
        if envelope.hash() in checks.accepted and not checks.is_settled("observer", envelope)
    ]
    return f"{len(waiting)} accepted envelopes have not ended: {', '.join(waiting[:4])}" if waiting else ""

"""The same work for both sides of an end-to-end run: a world, actors with agents, and signed envelopes that move them.

Imports the core only: a stock side uses it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from runtime import codec
from runtime import genesis as genesis_module
from runtime.keys import SigningKey
from runtime.records import ActionEnvelope, Bounds, Envelope, Genesis, seal

ACTORS: Final = 64
AGENTS: Final = 16  # of each actor
SIDE_CM: Final = 1_000_000
EXPIRES_AT: Final = 2_000  # half of expiry_blocks_max: a gateway that is behind under load still takes it


def key(name: str) -> SigningKey:
    """A key of the benchmarks, by its name."""
    return SigningKey(codec.content_id(f"aw benchmarks {name}".encode()))


def make_genesis(leader: bytes, certifier: bytes, created_ms: int) -> Genesis:
    """A world whose batches `leader` proposes and executes."""
    return genesis_module.make_genesis(
        name="benchmarks",
        root_keys=[key("root").identity],
        root_threshold=1,
        proposers=[leader],
        executors=[leader],
        certifier=certifier,
        body=genesis_module.make_body(
            bounds=Bounds(0, SIDE_CM, 0, SIDE_CM, 0, SIDE_CM),
            max_move_cm=2 * SIDE_CM,
            resource_kinds=["fuel"],
            balances={},
        ),
        created_ms=created_ms,
    )


class Workload:
    """Envelopes in an order that every actor's nonces allow. Each actor moves its agents in turn."""

    def __init__(self, world_id: str, timestamp_ms: int, actors: int = ACTORS) -> None:
        self.world_id = world_id
        self.height = 0  # as far as the world is known to be
        self._timestamp_ms = timestamp_ms
        self._moves = 0
        self._actors = [key(f"actor {number}") for number in range(actors)]
        self._nonces = [0] * actors
        self._turns = 0

    def registrations(self) -> list[Envelope]:
        """One envelope for each actor, which registers all its agents."""
        return [
            self._sealed(
                actor,
                [("register_agent", self._place(actor, number)) for number in range(AGENTS)],
            )
            for actor in range(len(self._actors))
        ]

    def envelopes(self, actions: int, per_envelope: int) -> list[Envelope]:
        """Envelopes with `actions` moves in all."""
        made: list[Envelope] = []
        for _ in range(actions // per_envelope):
            actor = self._turns % len(self._actors)
            self._turns += 1
            moves = []
            for _ in range(per_envelope):
                self._moves += 1
                moves.append(("move_agent", self._place(actor, self._moves % AGENTS)))
            made.append(self._sealed(actor, moves))
        return made

    def _place(self, actor: int, number: int) -> dict[str, object]:
        x_cm, y_cm = self._moves * 7_919 % SIDE_CM, self._moves * 104_729 % SIDE_CM
        return {"agent_id": f"agent-{actor}-{number}", "x_cm": x_cm, "y_cm": y_cm, "z_cm": 0}

    def _sealed(self, actor: int, actions: list[tuple[str, dict[str, object]]]) -> Envelope:
        signer, nonce = self._actors[actor], self._nonces[actor]
        self._nonces[actor] += 1
        record = ActionEnvelope(
            world_id=self.world_id,
            actor_id=signer.identity,
            nonce=nonce,
            expires_at_height=self.height + EXPIRES_AT,
            timestamp_ms=self._timestamp_ms,
            atomic=False,
            actions=tuple(actions),
        )
        return seal(record, signer)


def last_of_each(envelopes: list[Envelope]) -> list[bytes]:
    """Hashes of every actor's last envelope: when these are taken, all are."""
    return list({envelope.record.actor_id: envelope.hash() for envelope in envelopes}.values())


def chunks(envelopes: list[Envelope], count: int) -> Iterator[list[Envelope]]:
    """Lists of at most `count`."""
    return (envelopes[start : start + count] for start in range(0, len(envelopes), count))

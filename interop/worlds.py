"""A world made by hand: keys, genesis, heads of any height, envelopes, and the same with a lie in it.

Pure. What a scenario puts into gossip and DHT without running a world; implements docs/protocol.md, "Head".
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from runtime import codec
from runtime import genesis as genesis_module
from runtime.keys import SigningKey
from runtime.records import (
    ActionEnvelope,
    BlockAttestation,
    Bounds,
    Commit,
    Envelope,
    Genesis,
    SignedAuthorities,
    WorldHeadAnnounce,
    seal,
)

CREATED_MS: Final = 1_700_000_000_000


def _key(number: int) -> SigningKey:
    return SigningKey(bytes([number]) * 32)


@dataclass(frozen=True, slots=True)
class HandMadeWorld:
    """One certifier, one executor, one actor; `name` makes it another world."""

    name: str
    certifier: SigningKey = field(default_factory=lambda: _key(201))
    executor: SigningKey = field(default_factory=lambda: _key(202))
    actor: SigningKey = field(default_factory=lambda: _key(203))

    @property
    def genesis(self) -> Genesis:
        return genesis_module.make_genesis(
            name=self.name,
            root_keys=[_key(200).identity],
            root_threshold=1,
            proposers=[self.executor.identity],
            executors=[self.executor.identity],
            certifier=self.certifier.identity,
            body=genesis_module.make_body(
                bounds=Bounds(0, 1_000_000, 0, 1_000_000, 0, 0),
                max_move_cm=1_000_000,
                resource_kinds=["fuel"],
                balances={(self.actor.identity, "fuel"): 1_000},
            ),
            created_ms=CREATED_MS,
        )

    @property
    def world_id(self) -> str:
        return self.genesis.header.world_id

    def head(self, height: int, *, as_of_ms: int = CREATED_MS, by: SigningKey | None = None) -> bytes:
        """A head; `by` another key than the certifier's: a forgery whose shape is right."""
        certifier = by or self.certifier
        block_hash = codec.content_id(f"block {height} of {self.name}".encode())
        commit = Commit(
            world_id=self.world_id,
            epoch=0,
            term=1,
            height=height,
            batch_hash=codec.content_id(f"batch {height}".encode()),
            certifier_id=self.certifier.identity,
            as_of_ms=as_of_ms,
        )
        attestation = BlockAttestation(
            world_id=self.world_id,
            epoch=0,
            height=height,
            block_hash=block_hash,
            executor_id=self.executor.identity,
        )
        sealed = seal(commit, self.certifier)
        if certifier is not self.certifier:
            sealed = replace(sealed, signature=certifier.sign(commit.hash()))
        return WorldHeadAnnounce(
            header=self.genesis.header,
            authorities=SignedAuthorities(self.genesis.authorities),
            commit=sealed,
            attestations=(seal(attestation, self.executor),),
            block_hash=block_hash,
        ).to_bytes()

    def envelope(self, nonce: int, *, by: SigningKey | None = None) -> bytes:
        """One signed action, as gossip carries it alone; `by` another key than the actor's: a forgery."""
        sealed = self._sealed(nonce)
        if by is not None:
            sealed = replace(sealed, signature=by.sign(sealed.record.hash()))
        return codec.encode([sealed.to_value()])

    def newer_envelope(self, nonce: int) -> bytes:
        """The same in a version of the protocol that nobody here knows."""
        sealed = self._sealed(nonce)
        return codec.encode([[sealed.record.to_value() | {"v": 2}, sealed.signature]])

    def _sealed(self, nonce: int) -> Envelope:
        record = ActionEnvelope(
            world_id=self.world_id,
            actor_id=self.actor.identity,
            nonce=nonce,
            expires_at_height=100,
            timestamp_ms=CREATED_MS,
            atomic=False,
            actions=(("say", {"text": f"message {nonce}"}),),
        )
        return seal(record, self.actor)

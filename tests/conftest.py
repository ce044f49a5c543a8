"""A small world that tests build on: real keys, a real genesis, batches and blocks as nodes make them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from runtime import chain, codec, world
from runtime.genesis import default_limits, make_body, make_genesis
from runtime.keys import SigningKey
from runtime.records import (
    ActionBatch,
    ActionEnvelope,
    BlockAttestation,
    Bounds,
    Commit,
    Envelope,
    Sealed,
    SignedAuthorities,
    WorldHeadAnnounce,
    encode_envelopes,
    seal,
)

CREATED_MS = 1_000_000


def key(number: int) -> SigningKey:
    """One of a row of fixed keys."""
    return SigningKey(bytes([number]) * 32)


class SmallWorld:
    """Three actors with 1,000 fuel and 500 gold each, a box of 1,000 cm, moves of up to 100 cm; its chain.

    `run(envelopes...)` appends a block; `nonces` counts what was signed by each actor.
    """

    def __init__(self, **limit_changes: int) -> None:
        self.root, self.proposer, self.executor, self.certifier = key(200), key(201), key(202), key(203)
        self.executors = (self.executor, key(204))
        self.actors = (key(1), key(2), key(3))
        self.genesis = make_genesis(
            name="small",
            root_keys=[self.root.identity, key(205).identity],
            root_threshold=1,
            proposers=[self.proposer.identity],
            executors=[one.identity for one in self.executors],
            certifier=self.certifier.identity,
            body=make_body(
                bounds=Bounds(0, 1_000, 0, 1_000, -1_000, 1_000),
                max_move_cm=100,
                resource_kinds=["fuel", "gold"],
                balances={
                    (actor.identity, kind): amount
                    for actor in self.actors
                    for kind, amount in (("fuel", 1_000), ("gold", 500))
                },
                world_limits=replace(default_limits(), **limit_changes),
            ),
            created_ms=CREATED_MS,
        )
        self.world_id = self.genesis.header.world_id
        self.tip = chain.genesis_tip(self.genesis)
        self.nonces = dict.fromkeys((actor.identity for actor in self.actors), 0)
        self.blocks: list[chain.Built] = []

    def envelope(
        self,
        actor: SigningKey,
        *actions: tuple[str, dict[str, Any]],
        atomic: bool = False,
        nonce: int | None = None,
        expires_at_height: int = 100,
        timestamp_ms: int = CREATED_MS,
    ) -> Envelope:
        if nonce is None:
            nonce = self.nonces.get(actor.identity, 0)
            self.nonces[actor.identity] = nonce + 1
        return seal(
            ActionEnvelope(
                world_id=self.world_id,
                actor_id=actor.identity,
                nonce=nonce,
                expires_at_height=expires_at_height,
                timestamp_ms=timestamp_ms,
                atomic=atomic,
                actions=actions,
            ),
            actor,
        )

    def batch(self, envelopes: Sequence[Envelope], **changes: Any) -> tuple[ActionBatch, bytes]:
        """The next batch over these envelopes, and its actions blob; `changes` overrides fields."""
        blob = encode_envelopes(list(envelopes))
        values: dict[str, Any] = {
            "world_id": self.world_id,
            "epoch": 0,
            "term": 1,
            "height": self.tip.height + 1,
            "prev_batch_hash": self.tip.batch_hash,
            "envelope_count": len(envelopes),
            "actions_root": codec.merkle_root([envelope.to_bytes() for envelope in envelopes]),
            "actions_ref": codec.content_id(blob),
            "proposer_id": self.proposer.identity,
            "timestamp_ms": self.tip.timestamp_ms + 200,
        }
        return ActionBatch(**(values | changes)), blob

    def form(self, batch: ActionBatch, blob: bytes) -> list[Envelope]:
        """The form check of a batch on the tip."""
        tip = self.tip
        return chain.check_batch_form(self.genesis, tip.height, tip.batch_hash, tip.timestamp_ms, batch, blob)

    def run(self, *envelopes: Envelope) -> chain.Built:
        """One more block."""
        batch, blob = self.batch(envelopes)
        read = self.form(batch, blob)
        built = chain.build_block(self.genesis, self.tip, batch, read, world.check_signatures(read))
        self.tip = built.tip
        self.blocks.append(built)
        return built

    def commit(self, height: int, batch_hash: bytes, **changes: Any) -> Sealed[Commit]:
        values: dict[str, Any] = {
            "world_id": self.world_id,
            "epoch": 0,
            "term": 1,
            "height": height,
            "batch_hash": batch_hash,
            "certifier_id": self.certifier.identity,
            "as_of_ms": CREATED_MS + height,
        }
        return seal(Commit(**(values | changes)), self.certifier)

    def head(
        self,
        height: int,
        batch_hash: bytes,
        block_hash: bytes,
        executor: SigningKey | None = None,
        **changes: Any,
    ) -> WorldHeadAnnounce:
        """A head as its writers would sign it; `changes` are fields of the commit."""
        executor = executor or self.executor
        attestation = BlockAttestation(
            world_id=self.world_id,
            epoch=0,
            height=height,
            block_hash=block_hash,
            executor_id=executor.identity,
        )
        return WorldHeadAnnounce(
            header=self.genesis.header,
            authorities=SignedAuthorities(self.genesis.authorities),
            commit=self.commit(height, batch_hash, **changes),
            attestations=(seal(attestation, executor),),
            block_hash=block_hash,
        )

    def head_of(self, built: chain.Built, **changes: Any) -> WorldHeadAnnounce:
        """The head of a block that was run."""
        return self.head(built.block.height, built.block.batch_hash, built.block.hash(), **changes)


@pytest.fixture(scope="session")
def small_world() -> Callable[..., SmallWorld]:
    """Makes a fresh SmallWorld; arguments are limits of its genesis."""
    return SmallWorld

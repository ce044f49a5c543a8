"""The small world that the vectors are about, and how values are shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from runtime import chain, codec, genesis, world
from runtime.keys import SigningKey
from runtime.records import (
    ActionBatch,
    ActionEnvelope,
    BlockAttestation,
    Bounds,
    Commit,
    Envelope,
    Resume,
    Sealed,
    SignedAuthorities,
    WorldHeadAnnounce,
    encode_envelopes,
    seal,
)

CREATED_MS = 1_700_000_000_000


def key(name: str) -> SigningKey:
    """A fixed key by name."""
    return SigningKey(codec.content_id(f"vector key {name}".encode()))


def shown(value: Any) -> Any:
    """A value as JSON has it."""
    match value:
        case bytes():
            return {"hex": value.hex()}
        case dict():
            return {name: shown(item) for name, item in value.items()}
        case list() | tuple():
            return [shown(item) for item in value]
    return value


class World:
    """A genesis, two envelopes, a batch of them, its commit, block, attestation and head."""

    def __init__(self) -> None:
        self.genesis = genesis.make_genesis(
            name="vectors",
            root_keys=[key("root").identity],
            root_threshold=1,
            proposers=[key("proposer").identity],
            executors=[key("executor").identity],
            certifier=key("certifier").identity,
            body=genesis.make_body(
                bounds=Bounds(-1_000, 1_000, -1_000, 1_000, 0, 0),
                max_move_cm=100,
                resource_kinds=["fuel"],
                balances={(key("alice").identity, "fuel"): 50},
            ),
            created_ms=CREATED_MS,
        )
        self.world_id = self.genesis.header.world_id
        self.signed = SignedAuthorities(self.genesis.authorities)
        self.envelopes = [self._register(), self._move()]
        self.actions = encode_envelopes(self.envelopes)
        self.tip = chain.genesis_tip(self.genesis)
        self.batch = self._batch()
        read = chain.check_batch_form(
            self.genesis, 0, self.tip.batch_hash, CREATED_MS, self.batch.record, self.actions
        )
        signatures = world.check_signatures(read)
        self.built = chain.build_block(self.genesis, self.tip, self.batch.record, read, signatures)
        self.commit = self._commit(self.batch.hash())
        self.attestation = self._attestation(self.built.block.hash())
        self.head = WorldHeadAnnounce(
            self.genesis.header, self.signed, self.commit, (self.attestation,), self.built.block.hash()
        )

    def envelope(
        self, actor: str, nonce: int, *actions: tuple[str, dict[str, Any]], **changes: Any
    ) -> Envelope:
        """A sealed envelope of a named actor."""
        values: dict[str, Any] = {
            "world_id": self.world_id,
            "actor_id": key(actor).identity,
            "nonce": nonce,
            "expires_at_height": 10,
            "timestamp_ms": CREATED_MS + nonce,
            "atomic": True,
            "actions": actions,
        }
        return seal(ActionEnvelope(**(values | changes)), key(actor))

    def _register(self) -> Envelope:
        place = {"agent_id": "bob", "x_cm": 1, "y_cm": -2, "z_cm": 0, "endow": {"fuel": 20}}
        return self.envelope("alice", 0, ("register_agent", place))

    def _move(self) -> Envelope:
        move = ("move_agent", {"agent_id": "bob", "x_cm": 11, "y_cm": -2, "z_cm": 0})
        give = {"kind": "fuel", "amount": 5, "from_agent": "bob", "to_actor": key("alice").identity}
        return self.envelope("alice", 1, move, ("transfer_resource", give))

    def _batch(self) -> Sealed[ActionBatch]:
        record = ActionBatch(
            world_id=self.world_id,
            epoch=0,
            term=1,
            height=1,
            prev_batch_hash=self.genesis.header.hash(),
            envelope_count=len(self.envelopes),
            actions_root=codec.merkle_root([envelope.to_bytes() for envelope in self.envelopes]),
            actions_ref=codec.content_id(self.actions),
            proposer_id=key("proposer").identity,
            timestamp_ms=CREATED_MS + 200,
        )
        return seal(record, key("proposer"))

    def _commit(self, batch_hash: bytes) -> Sealed[Commit]:
        record = Commit(self.world_id, 0, 1, 1, batch_hash, key("certifier").identity, CREATED_MS + 210)
        return seal(record, key("certifier"))

    def _attestation(self, block_hash: bytes) -> Sealed[BlockAttestation]:
        record = BlockAttestation(self.world_id, 0, 1, block_hash, key("executor").identity)
        return seal(record, key("executor"))


def head_of_epoch_1(small: World, signer: str = "root") -> WorldHeadAnnounce:
    """A head by a set that the root key signed, resuming from height 0."""
    later = replace(
        small.genesis.authorities,
        epoch=1,
        world_id=small.world_id,
        resume=Resume(0, small.genesis.header.hash()),
    )
    return WorldHeadAnnounce(
        small.genesis.header,
        SignedAuthorities(later, ((0, key(signer).sign(later.hash())),)),
        seal(replace(small.commit.record, epoch=1), key("certifier")),
        (seal(replace(small.attestation.record, epoch=1), key("executor")),),
        small.head.block_hash,
    )


def expect_refusal(
    decode: Callable[[bytes], object], data: bytes, error: type[Exception], reason: str
) -> None:
    """A vector that our own code does not refuse is a bug, here or there."""
    try:
        decode(data)
    except error:
        return
    raise SystemExit(f"error: not refused ({reason}): {data[:60].hex()}")

"""From world parameters to a world id, and who has authority in which epoch.

Hides: how the parts of a genesis are bound together. Guarantees: a `World id` names exactly one header, and by the
header's hashes one body and one first authority set; consensus-critical values live here and nowhere else.
Implements docs/protocol.md, sections "Genesis and world id" and "Authorities".
"""

from __future__ import annotations

from runtime import codec, keys, limits
from runtime.errors import BadSignature, Invalid
from runtime.records import (
    AuthoritySet,
    Bounds,
    Genesis,
    GenesisBody,
    GenesisHeader,
    SignedAuthorities,
    WorldLimits,
)

WORLD_DOMAIN = b"aw/world/1\x00"


def world_content_id(world_id: str) -> bytes:
    """The content id under which providers of a world are found: BLAKE3 of `"aw/world/1" 00 || world id`."""
    return codec.content_id(WORLD_DOMAIN + world_id.encode())


def default_limits() -> WorldLimits:
    """The limits of a world whose author sets none."""
    return WorldLimits(
        batch_envelopes_max=limits.BATCH_ENVELOPES_CEILING,
        batch_actions_max=limits.BATCH_ACTIONS_CEILING,
        batch_bytes_max=limits.BATCH_BYTES_CEILING,
        envelope_bytes_max=limits.ENVELOPE_BYTES_MAX,
        block_fuel_max=limits.BLOCK_FUEL_DEFAULT,
        agents_per_actor_max=limits.AGENTS_PER_ACTOR_DEFAULT,
        expiry_blocks_max=limits.EXPIRY_BLOCKS_DEFAULT,
        action_skew_ms=limits.ACTION_SKEW_MS_DEFAULT,
    )


def make_body(
    *,
    bounds: Bounds,
    max_move_cm: int,
    resource_kinds: list[str],
    balances: dict[tuple[bytes, str], int],
    world_limits: WorldLimits | None = None,
    checkpoint_interval: int = limits.CHECKPOINT_INTERVAL_DEFAULT,
    max_block_gap_ms: int = 0,
) -> GenesisBody:
    """A genesis body; `balances` maps (actor key id, resource kind) to an amount."""
    return GenesisBody(
        bounds=bounds,
        max_move_cm=max_move_cm,
        resource_kinds=tuple(sorted(resource_kinds)),
        balances=tuple((actor, kind, amount) for (actor, kind), amount in sorted(balances.items())),
        limits=world_limits or default_limits(),
        checkpoint_interval=checkpoint_interval,
        max_block_gap_ms=max_block_gap_ms,
        admission="open",
    )


def make_genesis(
    *,
    name: str,
    root_keys: list[bytes],
    root_threshold: int,
    proposers: list[bytes],
    executors: list[bytes],
    certifier: bytes,
    body: GenesisBody,
    created_ms: int,
) -> Genesis:
    """Bind body and first authority set into a header. Key ids are 38 bytes, in any order."""
    authorities = AuthoritySet(
        epoch=0,
        proposers=tuple(sorted(set(proposers))),
        executors=tuple(sorted(set(executors))),
        certifiers=(certifier,),
        commit_threshold=1,
    )
    header = GenesisHeader(
        name=name,
        root_keys=tuple(sorted(set(root_keys))),
        root_threshold=root_threshold,
        authorities_hash=authorities.hash(),
        body_hash=body.hash(),
        created_ms=created_ms,
    )
    return check_genesis(Genesis(header=header, body=body, authorities=authorities))


def check_genesis(genesis: Genesis, world_id: str | None = None) -> Genesis:
    """The same genesis, once its parts are bound to its header (and to `world_id`). Raises Invalid."""
    if genesis.header.body_hash != genesis.body.hash():
        raise Invalid("genesis.body", "is not the body that the header names")
    if genesis.authorities.epoch != 0:
        raise Invalid("genesis.authorities.epoch", "must be 0")
    if genesis.header.authorities_hash != genesis.authorities.hash():
        raise Invalid("genesis.authorities", "is not the set that the header names")
    if world_id is not None and genesis.header.world_id != world_id:
        raise Invalid("genesis.header", f"is world {genesis.header.world_id}, not {world_id}")
    return genesis


def decode_genesis(data: bytes, world_id: str | None = None) -> Genesis:
    """Read and bind a genesis file. Raises Invalid or UnknownVersion."""
    return check_genesis(Genesis.from_bytes(data), world_id)


def check_authorities(header: GenesisHeader, signed: SignedAuthorities) -> AuthoritySet:
    """The set, once it is bound to the header: by hash in epoch 0, by root signatures later. Raises Invalid."""
    authorities, signatures = signed.authorities, signed.signatures
    if authorities.epoch == 0:
        if signatures:
            raise Invalid("authorities.signatures", "epoch 0 has none")
        if authorities.hash() != header.authorities_hash:
            raise Invalid("authorities", "is not the set that the header names")
        return authorities
    if authorities.world_id != header.world_id:
        raise Invalid("authorities.world_id", f"is not {header.world_id}")
    if len(signatures) != header.root_threshold:
        raise Invalid("authorities.signatures", f"must be exactly {header.root_threshold}")
    for index, signature in signatures:
        if index >= len(header.root_keys):
            raise Invalid(
                "authorities.signatures", f"root index {index} is not below {len(header.root_keys)}"
            )
        if not keys.verify(header.root_keys[index], authorities.hash(), signature):
            raise BadSignature("authorities")
    return authorities

"""The form of a batch: what its bytes, its parent and the genesis decide, the same for everybody.

Hides: the order of the checks. Guarantees: `check_batch_form` judges no signature, nonce or expiry (those are the
kernel's) and nothing that a clock or a connection decides (that is the coordinator's), so that coordinator, executor,
observer and whoever is shown evidence come to one verdict. Implements docs/protocol.md, section "Batch".
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime import codec
from runtime.codec import content_id
from runtime.errors import Invalid, UnknownVersion
from runtime.records import ActionBatch, Envelope, Genesis, WorldLimits, decode_envelopes


def check_batch_form(
    genesis: Genesis,
    parent_height: int,
    parent_batch_hash: bytes,
    parent_timestamp_ms: int,
    batch: ActionBatch,
    actions_blob: bytes,
) -> list[Envelope]:
    """The envelopes of a batch that is well formed on its parent (at first: 0, header hash, created_ms).

    Judges no signature, nonce or expiry: those are the kernel's. Raises Invalid; a committed batch that fails
    here is evidence against its certifier.
    """
    world_id, bounds = genesis.header.world_id, genesis.body.limits
    # [REJECT] it is of this world, and follows the parent
    if batch.world_id != world_id:
        raise Invalid("batch.world_id", f"is not {world_id}")
    check_parent(batch, parent_height, parent_batch_hash, parent_timestamp_ms)
    # [REJECT] the blob is the one it names, within the world's size
    if len(actions_blob) > bounds.batch_bytes_max:
        raise Invalid(
            "batch.actions", f"{len(actions_blob)} bytes, at most {bounds.batch_bytes_max} (batch_bytes_max)"
        )
    if content_id(actions_blob) != batch.actions_ref:
        raise Invalid("batch.actions_ref", "is not the hash of the actions")
    # [REJECT] a canonical list of well-formed sealed envelopes
    try:
        envelopes = decode_envelopes(
            actions_blob, bounds.batch_bytes_max, bounds.batch_envelopes_max, "batch.actions"
        )
    except UnknownVersion as error:  # no peer may leave out of a block what another one executes
        raise Invalid("batch.actions", f"holds no envelope of this protocol: {error}") from None
    _check_envelopes(world_id, bounds, envelopes)
    # [REJECT] count and root are the list's
    if batch.envelope_count != len(envelopes):
        raise Invalid("batch.envelope_count", f"is {batch.envelope_count}, the list has {len(envelopes)}")
    if batch.actions_root != codec.merkle_root([envelope.to_bytes() for envelope in envelopes]):
        raise Invalid("batch.actions_root", "is not the root of the list")
    return envelopes


def check_parent(batch: ActionBatch, height: int, batch_hash: bytes, timestamp_ms: int) -> None:
    """Whether the batch follows on this parent. Raises Invalid."""
    if batch.height != height + 1:
        raise Invalid("batch.height", f"is {batch.height}, the parent's is {height}")
    if batch.prev_batch_hash != batch_hash:
        raise Invalid("batch.prev_batch_hash", "is not the parent's")
    if batch.timestamp_ms < timestamp_ms:
        raise Invalid("batch.timestamp_ms", f"is {batch.timestamp_ms}, before the parent's {timestamp_ms}")


def _check_envelopes(world_id: str, bounds: WorldLimits, envelopes: Sequence[Envelope]) -> None:
    seen: set[bytes] = set()
    actions = 0
    for index, envelope in enumerate(envelopes):
        # [REJECT] of this world, within the world's size, none twice
        field = f"batch.actions[{index}]"
        if envelope.record.world_id != world_id:
            raise Invalid(f"{field}.world_id", f"is not {world_id}")
        size = len(envelope.to_bytes())
        if size > bounds.envelope_bytes_max:
            raise Invalid(field, f"{size} bytes, at most {bounds.envelope_bytes_max} (envelope_bytes_max)")
        if envelope.hash() in seen:
            raise Invalid(field, "is in the list twice")
        seen.add(envelope.hash())
        actions += len(envelope.record.actions)
    if actions > bounds.batch_actions_max:
        raise Invalid(
            "batch.actions", f"{actions} actions, at most {bounds.batch_actions_max} (batch_actions_max)"
        )

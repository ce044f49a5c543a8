"""From a committed batch to a block, and from a block back to trust: built and verified by the same function.

Hides: how roots, references and history are made. Guarantees: `verify_block` re-executes; a block it returns
was given by this very code from the tip before it, and a block that differs in anything raises Diverged with
both sides. `check_batch_form` decides from bytes alone what a batch must look like, the same for coordinator,
executor, observer. Checks and order of commits and heads are in runtime/heads.py, proofs in
runtime/proofs.py; both are part of this module's surface. Implements docs/protocol.md, sections "Batch" and
"Block".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from runtime import codec, limits
from runtime.codec import MountainRange, content_id
from runtime.errors import Diverged, Invalid
from runtime.heads import (
    CommitFork,
    HeadFollower,
    Offer,
    check_attestation,
    check_commit,
    check_commit_fork,
    check_head,
    check_head_block,
    commit_fork,
    head_order,
    is_fork,
    select_head,
)
from runtime.proofs import (
    ItemProof,
    Verdict,
    prove_event,
    prove_receipt,
    verify_event_proof,
    verify_history_proof,
    verify_receipt_proof,
    verify_state_answer,
)
from runtime.records import (
    ActionBatch,
    Envelope,
    Event,
    Genesis,
    Receipt,
    WorldBlock,
    WorldLimits,
    decode_envelopes,
)
from runtime.schema import Record
from runtime.state import State
from runtime.world import Outcome, genesis_state, step


@dataclass(frozen=True, slots=True)
class Tip:
    """Where a chain stands: all that the next block is made from. `history` covers block hashes 1..height."""

    height: int
    block_hash: bytes
    batch_hash: bytes
    timestamp_ms: int
    state: State
    history: MountainRange


@dataclass(frozen=True, slots=True)
class Built:
    """A block with what it came from: the outcome, the tip after it, the blobs to store by content id."""

    block: WorldBlock
    outcome: Outcome
    tip: Tip
    blobs: dict[bytes, bytes]


def genesis_tip(genesis: Genesis) -> Tip:
    """The chain before height 1: the header stands for the block and the batch before the first."""
    header_hash = genesis.header.hash()
    return Tip(
        0, header_hash, header_hash, genesis.header.created_ms, genesis_state(genesis), MountainRange()
    )


# --- batches -----------------------------------------------------------------------------------------------


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
    _check_parent(batch, parent_height, parent_batch_hash, parent_timestamp_ms)
    # [REJECT] the blob is the one it names, within the world's size
    if len(actions_blob) > bounds.batch_bytes_max:
        raise Invalid(
            "batch.actions", f"{len(actions_blob)} bytes, at most {bounds.batch_bytes_max} (batch_bytes_max)"
        )
    if content_id(actions_blob) != batch.actions_ref:
        raise Invalid("batch.actions_ref", "is not the hash of the actions")
    # [REJECT] a canonical list of well-formed sealed envelopes
    envelopes = decode_envelopes(
        actions_blob, bounds.batch_bytes_max, bounds.batch_envelopes_max, "batch.actions"
    )
    _check_envelopes(world_id, bounds, envelopes)
    # [REJECT] count and root are the list's
    if batch.envelope_count != len(envelopes):
        raise Invalid("batch.envelope_count", f"is {batch.envelope_count}, the list has {len(envelopes)}")
    if batch.actions_root != codec.merkle_root([envelope.to_bytes() for envelope in envelopes]):
        raise Invalid("batch.actions_root", "is not the root of the list")
    return envelopes


def _check_parent(batch: ActionBatch, height: int, batch_hash: bytes, timestamp_ms: int) -> None:
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


# --- blocks ------------------------------------------------------------------------------------------------


def build_block(
    genesis: Genesis,
    tip: Tip,
    batch: ActionBatch,
    envelopes: Sequence[Envelope],
    signatures: Sequence[bool],
) -> Built:
    """Execute a batch on a tip. `envelopes`: of `check_batch_form`, `signatures`: `world.check_signatures`.

    Raises Invalid for a batch that does not follow the tip. `tip` is unchanged.
    """
    _check_parent(batch, tip.height, tip.batch_hash, tip.timestamp_ms)
    outcome = step(genesis, tip.state, batch, envelopes, signatures)
    events = [event.to_bytes() for event in outcome.events]
    receipts = [receipt.to_bytes() for receipt in outcome.receipts]
    journal_blob, receipts_blob = codec.array_of(events), codec.array_of(receipts)
    block = WorldBlock(
        world_id=batch.world_id,
        height=batch.height,
        prev_block_hash=tip.block_hash,
        batch_hash=batch.hash(),
        state_root=outcome.state.root(),
        event_root=codec.merkle_root(events),
        journal_ref=content_id(journal_blob),
        receipts_root=codec.merkle_root(receipts),
        receipts_ref=content_id(receipts_blob),
        history_root=tip.history.root(),
        term=batch.term,
        proposer_id=batch.proposer_id,
        timestamp_ms=batch.timestamp_ms,
        fuel_used=outcome.fuel_used,
    )
    history = tip.history.append(block.hash())
    after = Tip(block.height, block.hash(), block.batch_hash, block.timestamp_ms, outcome.state, history)
    blobs = {
        block.hash(): block.preimage(),
        block.journal_ref: journal_blob,
        block.receipts_ref: receipts_blob,
    }
    return Built(block, outcome, after, blobs)


def verify_block(
    genesis: Genesis,
    tip: Tip,
    batch: ActionBatch,
    envelopes: Sequence[Envelope],
    signatures: Sequence[bool],
    claimed: WorldBlock,
) -> Built:
    """Replay the batch and compare: the block when it is the claimed one to the bit, else Diverged.

    Diverged names the first field that differs, in the order of the record, with both values (bytes of a hash
    as they are, anything else as canonical CBOR, absent as no bytes).
    """
    built = build_block(genesis, tip, batch, envelopes, signatures)
    for item in fields(claimed):
        theirs, ours = getattr(claimed, item.name), getattr(built.block, item.name)
        if theirs != ours:
            raise Diverged(built.block.height, item.name, _as_bytes(theirs), _as_bytes(ours))
    return built


def _as_bytes(value: bytes | str | int | None) -> bytes:
    if value is None:
        return b""
    return value if isinstance(value, bytes) else codec.encode(value)


# --- lists -------------------------------------------------------------------------------------------------


def decode_receipts(data: bytes) -> tuple[Receipt, ...]:
    """The receipts in the blob that `receipts_ref` names. Raises Invalid."""
    return tuple(
        Receipt.from_value(item, f"receipts[{index}]")
        for index, item in enumerate(_decode_list(data, "receipts"))
    )


def decode_events(data: bytes) -> tuple[Event, ...]:
    """The events in the blob that `journal_ref` names. Raises Invalid."""
    return tuple(
        Event.from_value(item, f"events[{index}]") for index, item in enumerate(_decode_list(data, "events"))
    )


def check_lists(block: WorldBlock, receipts: Iterable[Record], events: Iterable[Record]) -> None:
    """Whether the lists are the block's, for whoever stores without executing. Raises Invalid."""
    if codec.merkle_root([receipt.to_bytes() for receipt in receipts]) != block.receipts_root:
        raise Invalid("block.receipts_root", "is not the root of the receipts")
    if codec.merkle_root([event.to_bytes() for event in events]) != block.event_root:
        raise Invalid("block.event_root", "is not the root of the events")


def _decode_list(data: bytes, field: str) -> list[codec.Value]:
    listed = codec.decode(data, limits.LIST_BYTES_MAX, field, items_max=len(data))
    if type(listed) is not list:
        raise Invalid(field, "must be a list")
    return listed


__all__ = [
    "Built",
    "CommitFork",
    "HeadFollower",
    "ItemProof",
    "Offer",
    "Tip",
    "Verdict",
    "build_block",
    "check_attestation",
    "check_batch_form",
    "check_commit",
    "check_commit_fork",
    "check_head",
    "check_head_block",
    "check_lists",
    "commit_fork",
    "decode_events",
    "decode_receipts",
    "genesis_tip",
    "head_order",
    "is_fork",
    "prove_event",
    "prove_receipt",
    "select_head",
    "verify_block",
    "verify_event_proof",
    "verify_history_proof",
    "verify_receipt_proof",
    "verify_state_answer",
]

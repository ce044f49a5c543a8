"""From a committed batch to a block, and from a block back to trust: built and verified by the same function.

Hides: how roots, references and history are made. Guarantees: `verify_block` re-executes; a block it returns
was given by this very code from the tip before it, and a block that differs in anything raises Diverged with
both sides. The form of batches is in runtime/batches.py, checks and order of commits and heads in runtime/heads.py,
following in runtime/following.py, proofs in runtime/proofs.py; all are part of this module's surface.
Implements docs/protocol.md, section "Block".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from runtime import codec, limits
from runtime.batches import check_batch_form, check_parent
from runtime.codec import MountainRange, content_id
from runtime.errors import Diverged, Invalid
from runtime.evidence import CommitFork, commit_fork, is_fork
from runtime.following import HeadFollower, Offer
from runtime.heads import (
    check_attestation,
    check_commit,
    check_head,
    check_head_block,
    head_order,
    select_head,
)
from runtime.proofs import (
    ItemProof,
    Verdict,
    prove_event,
    prove_receipt,
    verify_envelope_receipts,
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
    check_parent(batch, tip.height, tip.batch_hash, tip.timestamp_ms)
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
    "verify_envelope_receipts",
    "verify_event_proof",
    "verify_history_proof",
    "verify_receipt_proof",
    "verify_state_answer",
]

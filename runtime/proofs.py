"""Answers that carry their own proof: one receipt, one event, one old block, one cell of state.

Hides: which root a thing lies under. Guarantees: a verdict is given only for what follows from a checked
head, and it names its trust: `attested` means that certifier and executor vouch for the block; nothing was
replayed here. Implements docs/protocol.md, section "Proofs".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from runtime import codec
from runtime.errors import Invalid
from runtime.heads import check_head, check_head_block
from runtime.records import Event, Receipt, WorldBlock, WorldHeadAnnounce
from runtime.schema import Record
from runtime.state import StateProof, verify_state_proof

Trust: TypeAlias = Literal["attested", "replayed_from_checkpoint", "replayed_from_genesis"]
ATTESTED: Final[Trust] = "attested"


@dataclass(frozen=True, slots=True)
class ItemProof:
    """A leaf's place under a Merkle root: index, count of leaves, siblings from the leaf upwards."""

    index: int
    count: int
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a proof shows, and how far to believe it. `value`: bytes of the cell, None: proved absent."""

    value: bytes | None
    trust: Trust
    epoch: int
    height: int
    as_of_ms: int  # when the certifier last said that this height is the newest

    def age_ms(self, now_ms: int) -> int:
        """How long ago that was, by our clock; below zero where clocks differ."""
        return now_ms - self.as_of_ms


# --- receipts and events under their block -----------------------------------------------------------------


def prove_receipt(receipts: Sequence[Receipt], index: int) -> ItemProof:
    """Proof of one receipt out of a block's whole list."""
    return _prove(receipts, index)


def prove_event(events: Sequence[Event], index: int) -> ItemProof:
    """Proof of one event out of a block's whole list."""
    return _prove(events, index)


def verify_receipt_proof(block: WorldBlock, receipt: Receipt, proof: ItemProof) -> None:
    """Whether the block gave this receipt at this place. Raises Invalid."""
    _verify(block.receipts_root, receipt.to_bytes(), proof, "receipt")


def verify_event_proof(block: WorldBlock, event: Event, proof: ItemProof) -> None:
    """Whether the block gave this event at this place. Raises Invalid."""
    _verify(block.event_root, event.to_bytes(), proof, "event")


def verify_envelope_receipts(
    block: WorldBlock,
    envelope_hash: bytes,
    receipts: Sequence[tuple[Receipt, ItemProof]],
    after: tuple[Receipt, ItemProof] | None,
) -> None:
    """Whether these are all that the block gave for the envelope: `after` is the receipt behind the last, if any.

    Raises Invalid. A count that is a lie changes nothing: a path goes from the root by left and right, so that only
    the block's true last leaf is a last one, and only true neighbours are neighbours.
    """
    if not receipts:
        raise Invalid("receipts", "are none")
    _first, first = receipts[0]
    for number, (receipt, place) in enumerate(receipts):
        if receipt.envelope_hash != envelope_hash:
            raise Invalid("receipts", "are of another envelope")
        if (place.index, place.count) != (first.index + number, first.count):
            raise Invalid("receipts", "are no neighbours in one list")
        if receipt.index != number and (receipt.index is not None or len(receipts) > 1):
            raise Invalid("receipts", "must be one without index, or those of indexes 0..n-1")
        verify_receipt_proof(block, receipt, place)
    behind = first.index + len(receipts)
    if (after is None) != (behind == first.count):
        raise Invalid("receipts.after", "must be there where the last receipt is not the list's last")
    if after is not None:
        receipt, place = after
        if receipt.envelope_hash == envelope_hash or (place.index, place.count) != (behind, first.count):
            raise Invalid("receipts.after", "must be the receipt of another envelope, behind the last")
        verify_receipt_proof(block, receipt, place)


def _prove(items: Sequence[Record], index: int) -> ItemProof:
    path = codec.merkle_path([item.to_bytes() for item in items], index)
    return ItemProof(index, len(items), tuple(path))


def _verify(root: bytes, item: bytes, proof: ItemProof, field: str) -> None:
    if codec.merkle_root_from_path(item, proof.index, proof.count, proof.path) != root:
        raise Invalid(f"{field}.path", "does not lead to the block's root")


# --- old blocks under the newest ---------------------------------------------------------------------------


def verify_history_proof(newest: WorldBlock, block: WorldBlock, path: Sequence[bytes]) -> None:
    """Whether `block` is `newest` or lies below it in the same chain. Raises Invalid."""
    if block.world_id != newest.world_id:
        raise Invalid("block.world_id", f"is not {newest.world_id}")
    if block.height == newest.height:
        if block.hash() != newest.hash() or path:
            raise Invalid(
                "history.path", "another block of the newest height, or a path where none is needed"
            )
        return
    # History holds heights 1..newest-1 in order: leaf and count follow from the heights, and are not taken on
    # trust.
    root = codec.merkle_root_from_path(block.hash(), block.height - 1, newest.height - 1, path)
    if root != newest.history_root:
        raise Invalid("history.path", "does not lead to the newest block's history_root")


# --- one cell of state -------------------------------------------------------------------------------------


def verify_state_answer(
    world_id: str,
    head: WorldHeadAnnounce,
    block: WorldBlock,
    namespace: str,
    key: bytes,
    proof: StateProof,
) -> Verdict:
    """What one cell holds at the head's height, believed as far as the head is. Raises Invalid.

    The answer is complete: nothing else is fetched, and nothing but the world id is known before.
    """
    check_head(head, world_id)
    check_head_block(head, block)
    value = verify_state_proof(block.state_root, namespace, key, proof)
    commit = head.commit.record
    return Verdict(value, ATTESTED, commit.epoch, commit.height, commit.as_of_ms)

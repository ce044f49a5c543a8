"""Who may certify, attest and announce, and which head is the newest.

Hides: the order of the checks. Guarantees: what passes `check_head` was certified and attested by members of a set
that the world id itself binds. Implements docs/protocol.md, sections "Commit" and "Head".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from runtime.errors import Invalid
from runtime.genesis import check_authorities
from runtime.records import (
    ActionBatch,
    AuthoritySet,
    BlockAttestation,
    Commit,
    Sealed,
    WorldBlock,
    WorldHeadAnnounce,
)

HeadOrder: TypeAlias = tuple[int, int, int, bytes]


# --- labelled checks ---------------------------------------------------------------------------------------


def check_commit(
    authorities: AuthoritySet,
    sealed: Sealed[Commit],
    batch: ActionBatch | None = None,
    *,
    world_id: str | None = None,
) -> None:
    """Whether the set's certifier certified this height, and (where given) this batch. Raises Invalid.

    `authorities` is trusted already. A set of epoch 0 names no world, so give `world_id` or a batch of the
    world.
    """
    commit, resume = sealed.record, authorities.resume
    # [REJECT] it is of this world
    for expected in (world_id, authorities.world_id, batch and batch.world_id):
        if expected is not None and commit.world_id != expected:
            raise Invalid("commit.world_id", f"is not {expected}")
    # [REJECT] it is of the set's epoch, by the set's certifier
    if commit.epoch != authorities.epoch:
        raise Invalid("commit.epoch", f"is {commit.epoch}, the set's is {authorities.epoch}")
    if commit.certifier_id not in authorities.certifiers:
        raise Invalid("commit.certifier_id", "is no certifier of this epoch")
    # [REJECT] a later epoch keeps what its roots kept: nothing below `resume`, and that very batch there
    if resume is not None:
        if commit.height < resume.height:
            raise Invalid("commit.height", f"is below the resume height {resume.height}")
        if commit.height == resume.height and commit.batch_hash != resume.batch_hash:
            raise Invalid("commit.batch_hash", "is not the batch that the epoch resumes from")
    if batch is not None:
        _check_committed_batch(authorities, commit, batch)
    # [REJECT] the certifier signed it
    sealed.verify()


def _check_committed_batch(authorities: AuthoritySet, commit: Commit, batch: ActionBatch) -> None:
    # [REJECT] it names this batch
    if commit.batch_hash != batch.hash():
        raise Invalid("commit.batch_hash", "is another batch's")
    if commit.height != batch.height:
        raise Invalid("commit.height", f"is {commit.height}, the batch's is {batch.height}")
    if commit.term != batch.term:
        raise Invalid("commit.term", f"is {commit.term}, the batch's is {batch.term}")
    # Only the batch that an epoch resumes from may be of an older epoch, by a proposer that has left the set.
    resume = authorities.resume
    if resume is not None and commit.height == resume.height:
        return
    # [REJECT] its proposer may propose in this epoch
    if batch.epoch != commit.epoch:
        raise Invalid("batch.epoch", f"is {batch.epoch}, the commit's is {commit.epoch}")
    if batch.proposer_id not in authorities.proposers:
        raise Invalid("batch.proposer_id", "is no proposer of this epoch")


def check_attestation(
    authorities: AuthoritySet, sealed: Sealed[BlockAttestation], block: WorldBlock | None = None
) -> None:
    """Whether an executor of the set vouched for this block (where given). Raises Invalid."""
    attestation = sealed.record
    # [REJECT] it is of this world and epoch, by an executor of the set
    if authorities.world_id is not None and attestation.world_id != authorities.world_id:
        raise Invalid("attestation.world_id", f"is not {authorities.world_id}")
    if attestation.epoch != authorities.epoch:
        raise Invalid("attestation.epoch", f"is {attestation.epoch}, the set's is {authorities.epoch}")
    if attestation.executor_id not in authorities.executors:
        raise Invalid("attestation.executor_id", "is no executor of this epoch")
    if block is not None:
        # [REJECT] it names this block
        if attestation.world_id != block.world_id:
            raise Invalid("attestation.world_id", f"is not {block.world_id}")
        if attestation.height != block.height or attestation.block_hash != block.hash():
            raise Invalid("attestation.block_hash", "is another block's")
    # [REJECT] the executor signed it
    sealed.verify()


def check_head(head: WorldHeadAnnounce, world_id: str) -> AuthoritySet:
    """All that a head's bytes decide, signatures included; gives the authority set that it proves.

    Not decided here: age and skew (clock), whether a newer epoch is known (state), whether the block is
    right. Raises Invalid.
    """
    # [REJECT] the header is the world's
    if head.header.world_id != world_id:
        raise Invalid("head.header", f"is of world {head.header.world_id}, not {world_id}")
    # [REJECT] the set is bound to the header
    authorities = check_authorities(head.header, head.authorities)
    # [REJECT] the commit is the certifier's
    commit = head.commit.record
    check_commit(authorities, head.commit, world_id=world_id)
    # [REJECT] every attestation is an executor's, of this world, epoch, height and block
    for sealed in head.attestations:
        attestation = sealed.record
        if attestation.world_id != world_id:
            raise Invalid("head.attestations.world_id", f"is not {world_id}")
        if attestation.height != commit.height:
            raise Invalid(
                "head.attestations.height", f"is {attestation.height}, the commit's is {commit.height}"
            )
        if attestation.block_hash != head.block_hash:
            raise Invalid("head.attestations.block_hash", "is not the head's")
        check_attestation(authorities, sealed)
    return authorities


def check_head_block(head: WorldHeadAnnounce, block: WorldBlock) -> None:
    """Whether `block` is the one that the (checked) head announces. Raises Invalid."""
    commit = head.commit.record
    if block.hash() != head.block_hash:
        raise Invalid("block", "does not hash to the head's block_hash")
    for field in ("world_id", "height", "batch_hash", "term"):
        if getattr(block, field) != getattr(commit, field):
            raise Invalid(f"block.{field}", "is not the commit's")


# --- order -------------------------------------------------------------------------------------------------


def head_order(head: WorldHeadAnnounce) -> HeadOrder:
    """Greater is newer: epoch, height, as_of_ms, then the hash of the head's preimage."""
    commit = head.commit.record
    return (commit.epoch, commit.height, commit.as_of_ms, head.hash())


def select_head(heads: Sequence[WorldHeadAnnounce]) -> int:
    """Index of the newest head; the last one among equals. Raises Invalid for an empty list."""
    if not heads:
        raise Invalid("heads", "must not be empty")
    return max(range(len(heads)), key=lambda index: (head_order(heads[index]), index))

"""Who may certify, attest and announce, which head is the newest, and what proves a fork.

Hides: the order of the checks. Guarantees: what passes `check_head` was certified and attested by members of
a set that the world id itself binds; a HeadFollower never loses a good head to a bad one, holds a bounded
number of candidates, and halts on two commits of one epoch and height. Implements docs/protocol.md, sections
"Commit", "Head" and "Evidence".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, ClassVar, TypeAlias

from runtime import limits
from runtime.errors import Invalid
from runtime.genesis import check_authorities
from runtime.records import (
    SEAL_OVERHEAD_BYTES,
    ActionBatch,
    AuthoritySet,
    BlockAttestation,
    Commit,
    Sealed,
    WorldBlock,
    WorldHeadAnnounce,
    sealed_kind,
)
from runtime.schema import Record

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


# --- evidence ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CommitFork(Record):
    """Two commits of one certifier, epoch and height for different batches: that key signed a fork.

    Ascending by batch hash, so that everyone who holds the same two commits makes the same evidence.
    """

    NAME: ClassVar[str] = "commit_fork"
    BYTES_MAX: ClassVar[int] = 2 * (limits.COMMIT_BYTES_MAX + SEAL_OVERHEAD_BYTES) + 64

    first: Annotated[Sealed[Commit], sealed_kind(Commit)]
    second: Annotated[Sealed[Commit], sealed_kind(Commit)]

    def check(self) -> None:
        first, second = self.first.record, self.second.record
        for field in ("world_id", "epoch", "height", "certifier_id"):
            if getattr(first, field) != getattr(second, field):
                raise Invalid(f"commit_fork.{field}", "differs: that is no fork")
        if not first.batch_hash < second.batch_hash:
            raise Invalid("commit_fork.batch_hash", "must ascend: one batch twice is no fork")


def commit_fork(one: Sealed[Commit], other: Sealed[Commit]) -> CommitFork:
    """The evidence that two commits give. Raises Invalid where they are none."""
    first, second = sorted((one, other), key=lambda sealed: sealed.record.batch_hash)
    return CommitFork(first, second)


def is_fork(one: Sealed[Commit], other: Sealed[Commit]) -> bool:
    """Whether two commits of one set contradict each other."""
    a, b = one.record, other.record
    return (a.world_id, a.epoch, a.height) == (b.world_id, b.epoch, b.height) and a.batch_hash != b.batch_hash


def check_commit_fork(world_id: str, authorities: AuthoritySet, fork: CommitFork) -> None:
    """Whether the evidence holds against a certifier of this set. Raises Invalid."""
    check_commit(authorities, fork.first, world_id=world_id)
    check_commit(authorities, fork.second, world_id=world_id)


# --- following ---------------------------------------------------------------------------------------------


class Offer(Enum):
    """What became of an offered head."""

    CANDIDATE = "candidate"  # newer than the current one: worth a try
    REFRESH = "refresh"  # the current block, certified as the last at a later time
    DUPLICATE = "duplicate"
    STALE = "stale"
    REFUSED = "refused"  # its block was tried and found wrong
    FUTURE = "future"  # dated beyond HEAD_SKEW_MS ahead of our clock
    HALTED = "halted"  # this epoch has forked: only a later one goes on
    FORK = "fork"  # two commits of one epoch and height: see `HeadFollower.evidence`


_Place: TypeAlias = tuple[int, int, bytes]  # epoch, height, block hash: refreshes of one block share it


def _place(head: WorldHeadAnnounce) -> _Place:
    return (head.commit.record.epoch, head.commit.record.height, head.block_hash)


class HeadFollower:
    """Decides which announced head to go for next. One task owns it; it does no I/O.

    `offer` every head, by whatever way it comes in; go for `best()` (fetch, check, replay); then say
    `applied`, or `refuse` it when it is proved wrong, or `set_aside` when what it needs was not to be had:
    `best()` is then the next-best one. Bounds: CANDIDATE_HEADS_MAX candidates (the oldest goes first: heads
    are announced again), COMMITS_KEPT_MAX commits remembered to detect forks, and as many refused blocks.
    """

    def __init__(self, world_id: str, current: WorldHeadAnnounce | None = None) -> None:
        self.world_id = world_id
        self.current = current  # the newest head that was applied here
        self.evidence: CommitFork | None = None
        self._candidates: dict[_Place, WorldHeadAnnounce] = {}
        self._refused: dict[_Place, None] = {}
        self._commits: dict[tuple[int, int], Sealed[Commit]] = {}
        if current is not None:
            self._remember(current.commit)

    @property
    def is_halted(self) -> bool:
        """The newest epoch has provably forked: sign nothing, advance nothing, until a later one comes."""
        return self.evidence is not None

    def offer(self, head: WorldHeadAnnounce, now_ms: int) -> Offer:
        """Judge a head. Raises Invalid for one whose bytes prove nothing; then nothing has changed."""
        if self._is_held(head):
            return Offer.DUPLICATE
        authorities = check_head(head, self.world_id)
        # A commit is evidence whatever the clock says, so forks come before freshness.
        if self.saw_commit(authorities, head.commit):
            return Offer.FORK
        if self._is_halted_for(head.commit.record.epoch):
            return Offer.HALTED
        if head.commit.record.as_of_ms > now_ms + limits.HEAD_SKEW_MS:
            return Offer.FUTURE
        if _place(head) in self._refused:
            return Offer.REFUSED
        return self._file(head)

    def saw_commit(self, authorities: AuthoritySet, commit: Sealed[Commit]) -> bool:
        """Remember a commit, of gossip or of a head; True when it proves a fork with one seen before.

        Raises Invalid for a commit that the set's certifier did not sign.
        """
        check_commit(authorities, commit, world_id=self.world_id)
        epoch = commit.record.epoch
        known = self._commits.get((epoch, commit.record.height))
        if known is None or not is_fork(known, commit):
            self._remember(commit)
            return False
        # A fork of an epoch that is over halts nobody: the roots have already decided what is kept of it.
        if self.current is not None and epoch < self.current.commit.record.epoch:
            return False
        if not self._is_halted_for(epoch):
            self.evidence = commit_fork(known, commit)
            self._candidates = {place: head for place, head in self._candidates.items() if place[0] > epoch}
        return True

    def best(self) -> WorldHeadAnnounce | None:
        """The newest head that was not found wrong (maybe the current one); None before any."""
        held = [*self._candidates.values(), *([] if self.current is None else [self.current])]
        return max(held, key=head_order, default=None)

    def applied(self, head: WorldHeadAnnounce) -> None:
        """The head's block is verified and durable: it becomes `current`; what is not newer is dropped."""
        # A refresh may have come in while the block was being verified, and `current` never goes back.
        held = [
            head,
            self._candidates.pop(_place(head), head),
            *([] if self.current is None else [self.current]),
        ]
        self.current = max(held, key=head_order)
        self._remember(head.commit)
        order = _place(self.current)[:2]
        self._candidates = {place: other for place, other in self._candidates.items() if place[:2] > order}
        if self.evidence is not None and self.evidence.first.record.epoch < order[0]:
            self.evidence = None

    def refuse(self, head: WorldHeadAnnounce) -> None:
        """The head's block is proved wrong: it is never tried again, however often it is announced."""
        self.set_aside(head)
        self._refused[_place(head)] = None
        while len(self._refused) > limits.COMMITS_KEPT_MAX:
            del self._refused[next(iter(self._refused))]

    def set_aside(self, head: WorldHeadAnnounce) -> None:
        """What the head needs was not to be had: others come first, until it is offered again."""
        self._candidates.pop(_place(head), None)

    def _is_held(self, head: WorldHeadAnnounce) -> bool:
        held = self._candidates.get(_place(head))
        return any(other is not None and other.hash() == head.hash() for other in (self.current, held))

    def _is_halted_for(self, epoch: int) -> bool:
        return self.evidence is not None and epoch <= self.evidence.first.record.epoch

    def _file(self, head: WorldHeadAnnounce) -> Offer:
        place = _place(head)
        if self.current is not None:
            if place == _place(self.current):
                if head_order(head) <= head_order(self.current):
                    return Offer.DUPLICATE
                self.current = head
                return Offer.REFRESH
            # Another block at the current height is an executor's matter, no reason to leave a verified one.
            if place[:2] <= _place(self.current)[:2]:
                return Offer.STALE
        held = self._candidates.get(place)
        if held is not None and head_order(head) <= head_order(held):
            return Offer.DUPLICATE
        self._candidates[place] = head
        if len(self._candidates) > limits.CANDIDATE_HEADS_MAX:
            oldest = min(self._candidates, key=lambda other: head_order(self._candidates[other]))
            del self._candidates[oldest]
            if oldest == place:
                return Offer.STALE
        return Offer.CANDIDATE

    def _remember(self, commit: Sealed[Commit]) -> None:
        self._commits.setdefault((commit.record.epoch, commit.record.height), commit)
        while len(self._commits) > limits.COMMITS_KEPT_MAX:
            del self._commits[min(self._commits)]

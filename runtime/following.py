"""Which announced head to go for next. Decisions only: one task owns a follower, and it does no I/O.

Hides: candidates, refusals, and the memory of commits. Guarantees: a HeadFollower never loses a good head to a bad one,
holds a bounded number of candidates, and halts on two commits of one epoch and height, with both as evidence.
Implements docs/protocol.md, section "Head" (following).
"""

from __future__ import annotations

from enum import Enum
from heapq import heappop, heappush
from typing import TypeAlias

from runtime import limits
from runtime.evidence import CommitFork, commit_fork, is_fork
from runtime.heads import check_commit, check_head, head_order
from runtime.records import AuthoritySet, Commit, Sealed, WorldHeadAnnounce


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
        self._epoch = 0  # what is older is void
        self._candidates: dict[_Place, WorldHeadAnnounce] = {}
        self._refused: dict[_Place, None] = {}
        self._commits: dict[tuple[int, int], Sealed[Commit]] = {}
        self._places: list[tuple[int, int]] = []  # of `_commits`, a heap: the lowest goes first
        if current is not None:
            self._remember(current.commit)

    @property
    def is_halted(self) -> bool:
        """The newest epoch has provably forked: sign nothing, advance nothing, until a later one comes."""
        return self.evidence is not None

    def enter(self, epoch: int) -> None:
        """A later authority set is in force: heads of older epochs are void, and so is a halt of theirs."""
        if epoch <= self._epoch:
            return
        self._epoch = epoch
        if self.current is not None and self.current.commit.record.epoch < self._epoch:
            self.current = None
        self._candidates = {
            place: head for place, head in self._candidates.items() if place[0] >= self._epoch
        }
        if self.evidence is not None and self.evidence.epoch < self._epoch:
            self.evidence = None

    def offer(self, head: WorldHeadAnnounce, now_ms: int) -> Offer:
        """Judge a head. Raises Invalid for one whose bytes prove nothing; then nothing has changed."""
        if self._is_held(head):
            return Offer.DUPLICATE
        if head.commit.record.epoch < self._epoch:
            return Offer.STALE
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
        if epoch < self._epoch or (self.current is not None and epoch < self.current.commit.record.epoch):
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
        if head.commit.record.epoch < self._epoch:  # a set was taken up while the block was being verified
            return
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
        place = (commit.record.epoch, commit.record.height)
        if place not in self._commits:
            self._commits[place] = commit
            heappush(self._places, place)
            if len(self._places) > limits.COMMITS_KEPT_MAX:
                del self._commits[heappop(self._places)]

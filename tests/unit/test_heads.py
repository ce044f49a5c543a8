"""Commits, attestations and heads: who is believed, which head is newer, and what halts a follower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from runtime import chain, limits
from runtime.errors import BadSignature, Invalid
from runtime.evidence import check_evidence
from runtime.keys import SigningKey
from runtime.records import (
    AuthoritySet,
    BlockAttestation,
    Resume,
    SignedAuthorities,
    WorldHeadAnnounce,
    seal,
)

World = Any  # tests/conftest.py: SmallWorld
NOW_MS = 1_000_000
Offer = chain.Offer


@pytest.fixture
def small(small_world: Callable[..., World]) -> World:
    return small_world()


def block_hash(number: int) -> bytes:
    return bytes([number]) * 32


def head(
    small: World, height: int, block: int = 1, *, batch: int | None = None, **changes: Any
) -> WorldHeadAnnounce:
    """A head over made-up hashes: heads are judged before their blocks are seen."""
    made: WorldHeadAnnounce = small.head(
        height, block_hash(100 + height if batch is None else batch), block_hash(block), **changes
    )
    return made


def later_epoch(
    small: World, epoch: int, height: int, resume: Resume, *, signers: int = 1, batch: int = 50
) -> WorldHeadAnnounce:
    """A head of a later epoch with the same keys, its set signed by the root."""
    old = small.genesis.authorities
    authorities = AuthoritySet(
        epoch=epoch,
        proposers=old.proposers,
        executors=old.executors,
        certifiers=old.certifiers,
        commit_threshold=1,
        world_id=small.world_id,
        resume=resume,
    )
    index = small.genesis.header.root_keys.index(small.root.identity)
    attestation = BlockAttestation(
        world_id=small.world_id,
        epoch=epoch,
        height=height,
        block_hash=block_hash(9),
        executor_id=small.executor.identity,
    )
    return WorldHeadAnnounce(
        header=small.genesis.header,
        authorities=SignedAuthorities(authorities, ((index, small.root.sign(authorities.hash())),) * signers),
        commit=small.commit(height, block_hash(batch), epoch=epoch),
        attestations=(seal(attestation, small.executor),),
        block_hash=block_hash(9),
    )


# --- check_head --------------------------------------------------------------------------------------------


def test_a_head_proves_its_authorities_by_its_bytes_alone(small: World) -> None:
    read = WorldHeadAnnounce.from_bytes(head(small, 3).to_bytes())
    assert chain.check_head(read, small.world_id) == small.genesis.authorities


def forged_by_stranger(small: World, good: WorldHeadAnnounce) -> WorldHeadAnnounce:
    stranger = SigningKey(bytes([66]) * 32)
    commit = replace(good.commit.record, certifier_id=stranger.identity)
    return replace(good, commit=seal(commit, stranger))


def vouched_by_stranger(small: World, good: WorldHeadAnnounce) -> WorldHeadAnnounce:
    stranger = SigningKey(bytes([66]) * 32)
    attestation = replace(good.attestations[0].record, executor_id=stranger.identity)
    return replace(good, attestations=(seal(attestation, stranger),))


def attested(small: World, good: WorldHeadAnnounce, **changes: Any) -> WorldHeadAnnounce:
    record = replace(good.attestations[0].record, **changes)
    return replace(good, attestations=(seal(record, small.executor),))


def certified(small: World, good: WorldHeadAnnounce, **changes: Any) -> WorldHeadAnnounce:
    return replace(good, commit=seal(replace(good.commit.record, **changes), small.certifier))


def with_set(good: WorldHeadAnnounce, **changes: Any) -> WorldHeadAnnounce:
    changed = replace(good.authorities.authorities, **changes)
    return replace(good, authorities=SignedAuthorities(changed))


FORGERIES: dict[str, tuple[Callable[[World, WorldHeadAnnounce], WorldHeadAnnounce], str]] = {
    "another header": (lambda s, h: replace(h, header=replace(h.header, created_ms=7)), "head.header"),
    "another set": (lambda s, h: with_set(h, executors=(s.root.identity,)), "authorities"),
    "a commit by a stranger": (forged_by_stranger, "commit.certifier_id"),
    "a commit of another world": (lambda s, h: certified(s, h, world_id="a" * 32), "commit.world_id"),
    "a commit of another epoch": (lambda s, h: certified(s, h, epoch=1), "commit.epoch"),
    "a commit changed after signing": (
        lambda s, h: replace(h, commit=replace(h.commit, record=replace(h.commit.record, term=9))),
        "commit.signature",
    ),
    "an attestation by a stranger": (vouched_by_stranger, "attestation.executor_id"),
    "an attestation of another world": (
        lambda s, h: attested(s, h, world_id="a" * 32),
        "head.attestations.world_id",
    ),
    "an attestation of another epoch": (lambda s, h: attested(s, h, epoch=1), "attestation.epoch"),
    "an attestation of another height": (lambda s, h: attested(s, h, height=2), "head.attestations.height"),
    "an attestation of another block": (
        lambda s, h: attested(s, h, block_hash=block_hash(8)),
        "head.attestations.block_hash",
    ),
    "another block than attested": (
        lambda s, h: replace(h, block_hash=block_hash(8)),
        "head.attestations.block_hash",
    ),
    "an attestation without a signature": (
        lambda s, h: replace(h, attestations=(replace(h.attestations[0], signature=bytes(64)),)),
        "attestation.signature",
    ),
}


@pytest.mark.parametrize("case", FORGERIES)
def test_a_forged_head_is_rejected_by_the_field_that_is_false(small: World, case: str) -> None:
    forge, field = FORGERIES[case]
    with pytest.raises(Invalid) as caught:
        chain.check_head(forge(small, head(small, 3)), small.world_id)
    assert caught.value.field == field


def test_a_head_of_another_world_is_rejected(small: World) -> None:
    with pytest.raises(Invalid, match=r"head\.header"):
        chain.check_head(head(small, 3), "a" * 32)


def test_a_later_epoch_needs_its_roots_and_what_they_kept(small: World) -> None:
    kept = Resume(5, block_hash(50))
    assert chain.check_head(later_epoch(small, 1, 6, kept), small.world_id).epoch == 1
    assert chain.check_head(later_epoch(small, 1, 5, kept), small.world_id).epoch == 1
    with pytest.raises(Invalid, match=r"commit\.height"):
        chain.check_head(later_epoch(small, 1, 4, kept), small.world_id)
    with pytest.raises(Invalid, match=r"commit\.batch_hash"):
        chain.check_head(later_epoch(small, 1, 5, kept, batch=51), small.world_id)
    with pytest.raises(Invalid, match=r"authorities\.signatures"):
        chain.check_head(later_epoch(small, 1, 6, kept, signers=0), small.world_id)
    unsigned = later_epoch(small, 1, 6, kept)
    [(index, _)] = unsigned.authorities.signatures
    unsigned = replace(unsigned, authorities=replace(unsigned.authorities, signatures=((index, bytes(64)),)))
    with pytest.raises(BadSignature):
        chain.check_head(unsigned, small.world_id)


# --- commits and attestations ------------------------------------------------------------------------------


def test_a_commit_is_of_its_batch_by_a_proposer_of_the_set(small: World) -> None:
    authorities = small.genesis.authorities
    batch, _ = small.batch([])
    chain.check_commit(authorities, small.commit(1, batch.hash()), batch)
    stranger, _ = small.batch([], proposer_id=small.root.identity)
    older, _ = small.batch([], epoch=3)
    for field, commit, of in (
        ("commit.batch_hash", small.commit(1, bytes(32)), batch),
        ("commit.height", small.commit(2, batch.hash()), batch),
        ("commit.term", small.commit(1, batch.hash(), term=2), batch),
        ("batch.proposer_id", small.commit(1, stranger.hash()), stranger),
        ("batch.epoch", small.commit(1, older.hash()), older),
        ("commit.world_id", small.commit(1, batch.hash(), world_id="a" * 32), batch),
    ):
        with pytest.raises(Invalid) as caught:
            chain.check_commit(authorities, commit, of)
        assert caught.value.field == field


def test_only_the_batch_that_an_epoch_resumes_from_may_be_of_an_older_epoch(small: World) -> None:
    kept, _ = small.batch([], proposer_id=small.root.identity)  # a proposer that has left
    authorities = later_epoch(small, 1, 6, Resume(1, kept.hash())).authorities.authorities
    chain.check_commit(authorities, small.commit(1, kept.hash(), epoch=1), kept)
    other, _ = small.batch([], height=2)
    with pytest.raises(Invalid, match=r"batch\.epoch"):
        chain.check_commit(authorities, small.commit(2, other.hash(), epoch=1), other)


def test_an_attestation_is_of_its_block_by_an_executor_of_the_set(small: World) -> None:
    block, other = small.run().block, small.run().block
    [sealed] = small.head_of(small.blocks[0]).attestations
    authorities = small.genesis.authorities
    chain.check_attestation(authorities, sealed, block)
    with pytest.raises(Invalid, match=r"attestation\.block_hash"):
        chain.check_attestation(authorities, sealed, other)
    with pytest.raises(BadSignature):
        chain.check_attestation(authorities, replace(sealed, signature=bytes(64)), block)


# --- order -------------------------------------------------------------------------------------------------


def test_heads_are_ordered_by_epoch_height_time_and_hash(small: World) -> None:
    ties = sorted([head(small, 4, 1), head(small, 4, 2)], key=lambda one: one.hash())
    older, newer = head(small, 10, as_of_ms=0), head(small, 10, as_of_ms=5)
    rising = [
        head(small, 9, as_of_ms=1),
        older,
        newer,
        later_epoch(small, 1, 2, Resume(1, block_hash(1))),
    ]
    assert sorted([newer, older, rising[3], rising[0]], key=chain.head_order) == rising
    assert chain.select_head(rising) == 3
    assert chain.select_head(rising[::-1]) == 0
    assert chain.select_head(ties) == 1
    assert chain.select_head([rising[0], rising[0]]) == 1
    with pytest.raises(Invalid):
        chain.select_head([])


# --- evidence ----------------------------------------------------------------------------------------------


def test_two_commits_of_one_height_are_evidence_in_one_form(small: World) -> None:
    one, other = small.commit(4, block_hash(1)), small.commit(4, block_hash(2), as_of_ms=9)
    fork = chain.commit_fork(other, one)
    assert fork == chain.commit_fork(one, other) == chain.CommitFork.from_bytes(fork.to_bytes())
    check_evidence(small.genesis, small.genesis.authorities, fork)
    forged = replace(fork, second=replace(fork.second, signature=bytes(64)))
    with pytest.raises(BadSignature):
        check_evidence(small.genesis, small.genesis.authorities, forged)


@pytest.mark.parametrize(
    ("height", "changes"),
    [(4, {}), (4, {"as_of_ms": 77}), (5, {}), (4, {"epoch": 1}), (4, {"world_id": "a" * 32})],
)
def test_a_refresh_another_height_epoch_or_world_is_no_evidence(
    small: World, height: int, changes: dict[str, Any]
) -> None:
    batch = (
        block_hash(1)
        if height == 4 and "epoch" not in changes and "world_id" not in changes
        else block_hash(2)
    )
    with pytest.raises(Invalid, match="fork"):
        chain.commit_fork(small.commit(4, block_hash(1)), small.commit(height, batch, **changes))


# --- following ---------------------------------------------------------------------------------------------


def test_a_follower_goes_for_the_newest_and_ignores_duplicates_and_the_stale(small: World) -> None:
    follower = chain.HeadFollower(small.world_id)
    third, second, fifth = head(small, 3), head(small, 2), head(small, 5)
    assert follower.best() is None
    assert [follower.offer(one, NOW_MS) for one in (third, third, second, fifth)] == [
        Offer.CANDIDATE,
        Offer.DUPLICATE,
        Offer.CANDIDATE,
        Offer.CANDIDATE,
    ]
    assert follower.best() == fifth
    follower.applied(fifth)
    assert (follower.current, follower.best()) == (fifth, fifth)
    assert follower.offer(third, NOW_MS) is Offer.STALE
    assert follower.offer(fifth, NOW_MS) is Offer.DUPLICATE
    assert follower.offer(head(small, 6), NOW_MS) is Offer.CANDIDATE


def test_a_bad_head_costs_nothing_the_next_best_is_tried(small: World) -> None:
    follower = chain.HeadFollower(small.world_id)
    good, wrong, away = head(small, 5), head(small, 9), head(small, 7)
    for one in (good, wrong, away):
        follower.offer(one, NOW_MS)
    follower.refuse(wrong)
    assert follower.best() == away
    follower.set_aside(away)
    assert follower.best() == good
    refreshed = head(small, 9, as_of_ms=NOW_MS + 5)
    assert follower.offer(refreshed, NOW_MS) is Offer.REFUSED  # the same block, certified again
    assert follower.offer(away, NOW_MS) is Offer.CANDIDATE
    assert follower.best() == away


def test_a_head_that_proves_nothing_changes_nothing(small: World) -> None:
    follower = chain.HeadFollower(small.world_id)
    follower.offer(head(small, 5), NOW_MS)
    with pytest.raises(Invalid):
        follower.offer(forged_by_stranger(small, head(small, 99, batch=3)), NOW_MS)
    assert follower.best() == head(small, 5)
    assert follower.offer(head(small, 99), NOW_MS) is Offer.CANDIDATE


def test_a_refresh_of_the_current_block_is_taken_and_never_goes_back(small: World) -> None:
    current, fresh = head(small, 5, as_of_ms=NOW_MS), head(small, 5, as_of_ms=NOW_MS + 10)
    follower = chain.HeadFollower(small.world_id, current)
    assert follower.offer(fresh, NOW_MS) is Offer.REFRESH
    assert follower.offer(current, NOW_MS) is Offer.DUPLICATE
    assert follower.best() == follower.current == fresh


def test_a_refresh_that_comes_while_its_block_is_tried_is_kept(small: World) -> None:
    follower = chain.HeadFollower(small.world_id)
    tried, fresh = head(small, 5, as_of_ms=NOW_MS), head(small, 5, as_of_ms=NOW_MS + 10)
    follower.offer(tried, NOW_MS)
    assert follower.offer(fresh, NOW_MS) is Offer.CANDIDATE
    follower.applied(tried)
    assert follower.current == fresh


def test_a_head_of_our_own_making_is_applied_without_an_offer_and_never_back(small: World) -> None:
    follower = chain.HeadFollower(small.world_id)
    fresh = head(small, 6, as_of_ms=NOW_MS + 9)
    follower.applied(fresh)
    for older in (head(small, 5), head(small, 6, as_of_ms=NOW_MS)):
        follower.applied(older)
        assert follower.current == fresh
    assert follower.offer(head(small, 6, 2, batch=2), NOW_MS) is Offer.FORK


def test_a_head_from_beyond_the_skew_is_ignored_until_its_time(small: World) -> None:
    follower = chain.HeadFollower(small.world_id)
    early = head(small, 5, as_of_ms=NOW_MS + limits.HEAD_SKEW_MS + 1)
    assert follower.offer(early, NOW_MS) is Offer.FUTURE
    assert follower.best() is None
    assert follower.offer(early, NOW_MS + 1) is Offer.CANDIDATE


def test_another_block_at_the_current_height_does_not_move_a_follower(small: World) -> None:
    follower = chain.HeadFollower(small.world_id, head(small, 5, 1))
    assert follower.offer(head(small, 5, 2, as_of_ms=NOW_MS + 1), NOW_MS) is Offer.STALE
    assert not follower.is_halted


def test_rival_blocks_of_one_batch_are_both_tried(small: World) -> None:
    follower = chain.HeadFollower(small.world_id)
    rivals = [head(small, 5, 1), head(small, 5, 2)]
    assert [follower.offer(one, NOW_MS) for one in rivals] == [Offer.CANDIDATE] * 2
    first = follower.best()
    assert first is not None
    follower.refuse(first)
    assert [first, follower.best()] in (rivals, rivals[::-1])


def test_candidates_are_bounded_and_the_oldest_goes_first(small: World) -> None:
    follower = chain.HeadFollower(small.world_id)
    heads = [head(small, height) for height in range(1, limits.CANDIDATE_HEADS_MAX + 3)]
    for one in heads[2:]:
        assert follower.offer(one, NOW_MS) is Offer.CANDIDATE
    assert follower.offer(heads[0], NOW_MS) is Offer.STALE
    tried = 0
    while (best := follower.best()) is not None:
        follower.refuse(best)
        tried += 1
    assert tried == limits.CANDIDATE_HEADS_MAX


@pytest.mark.parametrize("applied", [False, True])
def test_two_commits_of_one_height_halt_a_follower_with_signed_evidence(small: World, applied: bool) -> None:
    follower = chain.HeadFollower(small.world_id)
    one, other = (
        head(small, 5, batch=1),
        head(small, 5, 2, batch=2, as_of_ms=NOW_MS + 10 * limits.HEAD_SKEW_MS),
    )
    follower.offer(one, NOW_MS)
    if applied:
        follower.applied(one)
    assert follower.offer(other, NOW_MS) is Offer.FORK  # whatever the date that it claims
    assert follower.is_halted
    assert follower.evidence == chain.commit_fork(one.commit, other.commit)
    assert follower.offer(head(small, 6), NOW_MS) is Offer.HALTED
    assert follower.best() == (one if applied else None)


def test_a_fork_is_seen_far_below_the_current_height_and_by_a_commit_alone(small: World) -> None:
    follower = chain.HeadFollower(small.world_id)
    for height in (3, 9):
        follower.offer(head(small, height), NOW_MS)
    follower.applied(head(small, 9))
    assert follower.saw_commit(small.genesis.authorities, small.commit(3, block_hash(7)))
    assert follower.is_halted


def test_only_a_later_epoch_ends_a_halt(small: World) -> None:
    follower = chain.HeadFollower(small.world_id)
    follower.offer(head(small, 5, batch=1), NOW_MS)
    follower.offer(head(small, 5, 2, batch=2), NOW_MS)
    resumed = later_epoch(small, 1, 3, Resume(2, block_hash(1)))
    assert follower.offer(resumed, NOW_MS) is Offer.CANDIDATE
    assert follower.best() == resumed
    follower.applied(resumed)
    assert not follower.is_halted
    assert follower.offer(head(small, 50), NOW_MS) is Offer.STALE
    # The old epoch may fork as it likes now.
    assert follower.offer(head(small, 50, 2, batch=2), NOW_MS) is Offer.STALE
    assert not follower.is_halted


def test_commits_are_remembered_up_to_a_bound_the_newest_longest(small: World) -> None:
    follower = chain.HeadFollower(small.world_id)
    authorities = small.genesis.authorities
    for height in range(1, limits.COMMITS_KEPT_MAX + 3):
        follower.saw_commit(authorities, small.commit(height, block_hash(1)))
    assert not follower.saw_commit(authorities, small.commit(1, block_hash(2)))
    assert follower.saw_commit(authorities, small.commit(4, block_hash(2)))

"""Evidence: what proves a fault to anybody, and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from runtime import limits
from runtime.errors import BadSignature, Invalid
from runtime.evidence import (
    EVIDENCE,
    AuthoritiesFork,
    Evidence,
    LeaseFork,
    MalformedBatch,
    Witness,
    WrongRootProof,
    attestation_fork,
    authorities_fork,
    check_evidence,
    commit_fork,
    compare_root,
    lease_fork,
    read_evidence,
)
from runtime.records import (
    AuthoritySet,
    BlockAttestation,
    LeaseGrant,
    Resume,
    Sealed,
    SignedAuthorities,
    encode_envelopes,
    seal,
)

World = Any  # tests/conftest.py: SmallWorld


@pytest.fixture
def small(small_world: Callable[..., World]) -> World:
    world = small_world()
    world.run(world.envelope(world.actors[0], ("dance", {})))
    world.run(world.envelope(world.actors[1], ("dance", {})))
    return world


def lease(small: World, holder: bytes, **changes: Any) -> Sealed[LeaseGrant]:
    grant = LeaseGrant(small.world_id, 0, 3, holder, 1_000, 5_000, small.certifier.identity)
    return seal(replace(grant, **changes), small.certifier)


def attestation(small: World, block_hash: bytes, **changes: Any) -> Sealed[BlockAttestation]:
    made = BlockAttestation(small.world_id, 0, 2, block_hash, small.executor.identity)
    return seal(replace(made, **changes), small.executor)


def signed_set(small: World, epoch: int = 1, **changes: Any) -> SignedAuthorities:
    made: AuthoritySet = replace(
        small.genesis.authorities,
        epoch=epoch,
        world_id=small.world_id,
        resume=Resume(0, small.genesis.header.hash()),
        **changes,
    )
    index = small.genesis.header.root_keys.index(small.root.identity)
    return SignedAuthorities(made, ((index, small.root.sign(made.hash())),))


def malformed(small: World, **changes: Any) -> MalformedBatch:
    """A batch on the tip whose count is wrong, certified all the same."""
    batch, blob = small.batch([], **({"envelope_count": 3} | changes))
    return MalformedBatch(small.commit(batch.height, batch.hash()), batch, blob)


def wrong_root(small: World) -> WrongRootProof:
    false = replace(small.blocks[-1].block, state_root=bytes(32))
    return WrongRootProof(attestation(small, false.hash()), false)


def one_of_each(small: World) -> list[Evidence]:
    return [
        commit_fork(small.commit(2, bytes(32)), small.commit(2, b"1" * 32)),
        lease_fork(lease(small, small.proposer.identity), lease(small, small.executor.identity)),
        attestation_fork(attestation(small, bytes(32)), attestation(small, b"1" * 32)),
        malformed(small),
        wrong_root(small),
    ]


def test_good_evidence_of_each_kind_holds_and_is_read_back_from_its_blob(small: World) -> None:
    made = one_of_each(small)
    for evidence in made:
        check_evidence(small.genesis, small.genesis.authorities, evidence)
        assert read_evidence(evidence.preimage()) == evidence
        assert evidence.epoch == 0
        assert evidence.world_id == small.world_id
    assert {evidence.NAME for evidence in made} == EVIDENCE.keys() - {AuthoritiesFork.NAME}
    assert [evidence.NAME for evidence in made if evidence.HALTS] == ["commit_fork", "malformed_batch"]
    certifier, executor = small.certifier.identity, small.executor.identity
    assert [evidence.accused for evidence in made] == [certifier, certifier, executor, certifier, executor]


def test_two_sets_of_one_epoch_are_evidence_against_the_roots(small: World) -> None:
    one, other = signed_set(small), signed_set(small, proposers=(small.executor.identity,))
    fork = authorities_fork(other, one)
    assert fork == authorities_fork(one, other)
    assert fork.accused is None
    assert fork.HALTS
    check_evidence(small.genesis, one.authorities, fork)
    unsigned = replace(other, signatures=())
    with pytest.raises(Invalid, match="signatures"):
        check_evidence(small.genesis, one.authorities, authorities_fork(one, unsigned))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            lambda w: commit_fork(w.commit(2, bytes(32)), w.commit(2, bytes(32), as_of_ms=9)), id="refresh"
        ),
        pytest.param(
            lambda w: commit_fork(w.commit(2, bytes(32)), w.commit(3, b"1" * 32)), id="another height"
        ),
        pytest.param(
            lambda w: commit_fork(w.commit(2, bytes(32)), w.commit(2, b"1" * 32, epoch=1)), id="another epoch"
        ),
        pytest.param(
            lambda w: commit_fork(w.commit(2, bytes(32)), w.commit(2, b"1" * 32, world_id="a" * 32)),
            id="another world",
        ),
        pytest.param(
            lambda w: lease_fork(
                lease(w, w.proposer.identity), lease(w, w.proposer.identity, granted_at_ms=2)
            ),
            id="renewed",
        ),
        pytest.param(
            lambda w: lease_fork(lease(w, w.proposer.identity), lease(w, w.executor.identity, term=4)),
            id="another term",
        ),
        pytest.param(
            lambda w: attestation_fork(attestation(w, bytes(32)), attestation(w, bytes(32))),
            id="the same twice",
        ),
        pytest.param(
            lambda w: attestation_fork(attestation(w, bytes(32)), attestation(w, b"1" * 32, epoch=1)),
            id="attested in another epoch",
        ),
        pytest.param(lambda w: authorities_fork(signed_set(w), signed_set(w)), id="the same set"),
        pytest.param(lambda w: authorities_fork(signed_set(w), signed_set(w, 2)), id="the next set"),
        pytest.param(lambda w: replace(malformed(w), actions=encode_envelopes([]) + b"x"), id="another blob"),
        pytest.param(lambda w: replace(malformed(w), parent=malformed(w).batch), id="another parent"),
        pytest.param(lambda w: replace(malformed(w), commit=w.commit(3, bytes(32))), id="another batch"),
        pytest.param(lambda w: replace(wrong_root(w), block=w.blocks[-1].block), id="another block"),
    ],
)
def test_what_is_no_contradiction_cannot_be_written_down(
    small: World, make: Callable[[World], Evidence]
) -> None:
    with pytest.raises(Invalid):
        make(small)


def test_forged_signatures_and_foreign_keys_are_refused(small: World) -> None:
    authorities = small.genesis.authorities
    for evidence in one_of_each(small):
        for field in ("first", "second", "commit", "attestation"):
            sealed = getattr(evidence, field, None)
            if sealed is None:
                continue
            forged = replace(evidence, **{field: replace(sealed, signature=bytes(64))})
            with pytest.raises(BadSignature):
                check_evidence(small.genesis, authorities, forged)
            stranger = replace(
                authorities, certifiers=(small.root.identity,), executors=(small.root.identity,)
            )
            with pytest.raises(Invalid, match="is no certifier|is no executor"):
                check_evidence(small.genesis, stranger, evidence)


def test_evidence_of_another_epoch_or_world_is_refused_with_the_reason(
    small: World, small_world: Any
) -> None:
    later = signed_set(small).authorities
    elsewhere = small_world(batch_actions_max=100)
    for evidence in one_of_each(small):
        with pytest.raises(Invalid, match="epoch: is 0, the set's is 1"):
            check_evidence(small.genesis, later, evidence)
        with pytest.raises(Invalid, match="world_id"):
            check_evidence(elsewhere.genesis, elsewhere.genesis.authorities, evidence)


# --- malformed batches -------------------------------------------------------------------------------------


def test_a_well_formed_batch_is_no_fault_of_its_certifier(small: World) -> None:
    batch, blob = small.batch([])
    fine = MalformedBatch(small.commit(batch.height, batch.hash()), batch, blob)
    with pytest.raises(Invalid, match="well formed"):
        check_evidence(small.genesis, small.genesis.authorities, fine)


@pytest.mark.parametrize("changes", [{"timestamp_ms": 1}, {"height": 9}])
def test_a_fault_against_the_parent_needs_the_parent(small: World, changes: dict[str, Any]) -> None:
    batch, blob = small.batch([], **changes)
    commit = small.commit(batch.height, batch.hash())
    with pytest.raises(Invalid, match="well formed"):
        check_evidence(small.genesis, small.genesis.authorities, MalformedBatch(commit, batch, blob))
    parent, _blob = small.batch([], height=2, timestamp_ms=small.tip.timestamp_ms)
    batch = replace(batch, prev_batch_hash=parent.hash())
    commit = small.commit(batch.height, batch.hash())
    proof = MalformedBatch(commit, batch, blob, parent)
    check_evidence(small.genesis, small.genesis.authorities, proof)


def test_the_first_batch_is_judged_against_the_header(small_world: Any) -> None:
    world = small_world()
    batch, blob = world.batch([], timestamp_ms=world.genesis.header.created_ms - 1)
    proof = MalformedBatch(world.commit(1, batch.hash()), batch, blob)
    check_evidence(world.genesis, world.genesis.authorities, proof)


def test_an_envelope_of_another_version_makes_a_batch_malformed_for_everybody(small: World) -> None:
    from runtime import codec

    newer = codec.encode(
        [[{**small.envelope(small.actors[0], ("dance", {})).record.to_value(), "v": 2}, bytes(64)]]
    )
    batch, _blob = small.batch([], actions_ref=codec.content_id(newer), envelope_count=1)
    proof = MalformedBatch(small.commit(batch.height, batch.hash()), batch, newer)
    check_evidence(small.genesis, small.genesis.authorities, proof)


# --- wrong roots -------------------------------------------------------------------------------------------


def test_a_replay_of_the_same_batch_proves_a_wrong_root(small: World) -> None:
    own = small.blocks[-1].block
    proof = wrong_root(small)
    assert compare_root(proof, own)
    honest = WrongRootProof(attestation(small, own.hash()), own)
    check_evidence(small.genesis, small.genesis.authorities, honest)  # genuine, but of no fault:
    with pytest.raises(Invalid, match="no fault"):
        compare_root(honest, own)


def test_another_batch_or_height_tells_nothing_of_a_root(small: World) -> None:
    assert not compare_root(wrong_root(small), replace(small.blocks[-1].block, batch_hash=bytes(32)))
    assert not compare_root(wrong_root(small), small.blocks[0].block)


# --- noticing ----------------------------------------------------------------------------------------------


def test_a_witness_sees_the_second_holder_of_a_term_and_the_second_block_of_a_height(small: World) -> None:
    witness = Witness()
    first, again = (
        lease(small, small.proposer.identity),
        lease(small, small.proposer.identity, granted_at_ms=9),
    )
    assert witness.saw_lease(first) is None
    assert witness.saw_lease(again) is None  # renewed
    fork = witness.saw_lease(lease(small, small.executor.identity))
    assert isinstance(fork, LeaseFork)
    check_evidence(small.genesis, small.genesis.authorities, fork)
    assert witness.saw_attestation(attestation(small, bytes(32))) is None
    assert witness.saw_attestation(attestation(small, bytes(32))) is None
    assert witness.saw_attestation(attestation(small, bytes(32), height=3)) is None
    assert witness.saw_attestation(attestation(small, b"1" * 32)) == attestation_fork(
        attestation(small, bytes(32)), attestation(small, b"1" * 32)
    )


def test_a_witness_remembers_up_to_a_bound(small: World) -> None:
    witness = Witness()
    for term in range(1, limits.COMMITS_KEPT_MAX + 3):
        witness.saw_lease(lease(small, small.proposer.identity, term=term))
    assert witness.saw_lease(lease(small, small.executor.identity, term=1)) is None
    assert witness.saw_lease(lease(small, small.executor.identity, term=9)) is not None


@pytest.mark.parametrize("blob", [b"", b"aw/commit/1\x00\xa0", b"aw/commit_fork/1\x00\xa0", b"\x00" * 100])
def test_a_blob_that_is_no_evidence_is_refused(blob: bytes) -> None:
    with pytest.raises(Invalid):
        read_evidence(blob)

"""Mempool, lease and the certifier's decision: every refusal, and what is promised in between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from runtime import limits, sequencing
from runtime.errors import Busy, Corrupt, Denied, Ignored, Invalid, Mismatch
from runtime.records import Commit, Envelope, LeaseGrant, seal, sealed_from_bytes
from runtime.sequencing import ActionMempool, Certified, LeaseManager, certify, check_memory, refreshed

PEER = b"peer"
NOW_MS = 1_000_500
MOVE = ("move_agent", {"agent_id": "a", "x_cm": 1, "y_cm": 1, "z_cm": 1})


@pytest.fixture
def world(small_world: Any) -> Any:
    return small_world()


class TestMempool:
    @pytest.fixture
    def pool(self) -> ActionMempool:
        return ActionMempool()

    def make(self, world: Any, actor: int, nonce: int, **changes: Any) -> Envelope:
        return world.envelope(world.actors[actor], MOVE, nonce=nonce, **changes)

    def cut(self, pool: ActionMempool, world: Any, height: int = 1, **bounds: int) -> list[Envelope]:
        return pool.cut_batch(height, NOW_MS, replace(world.genesis.body.limits, **bounds))

    def test_the_same_envelope_is_held_once(self, pool: ActionMempool, world: Any) -> None:
        envelope = self.make(world, 0, 0)
        assert pool.add(envelope, PEER, 0) == []
        with pytest.raises(Ignored, match="duplicate"):
            pool.add(envelope, PEER, 0)
        assert len(pool) == 1
        assert envelope.hash() in pool

    def test_a_taken_nonce_and_a_rival_are_ignored(self, pool: ActionMempool, world: Any) -> None:
        with pytest.raises(Ignored, match="nonce 0 is taken"):
            pool.add(self.make(world, 0, 0), PEER, 1)
        pool.add(self.make(world, 0, 1), PEER, 1)
        with pytest.raises(Ignored, match="another envelope waits"):
            pool.add(self.make(world, 0, 1, timestamp_ms=5), PEER, 1)

    def test_a_nonce_too_far_ahead_is_told(self, pool: ActionMempool, world: Any) -> None:
        pool.add(self.make(world, 0, limits.MEMPOOL_NONCES_AHEAD_MAX - 1), PEER, 0)
        with pytest.raises(Busy, match="mempool_nonces_ahead_max"):
            pool.add(self.make(world, 0, limits.MEMPOOL_NONCES_AHEAD_MAX), PEER, 0)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("MEMPOOL_ACTOR_BYTES_MAX", 1_000),
            ("MEMPOOL_PEER_ENVELOPES_MAX", 1),
            ("MEMPOOL_PEER_BYTES_MAX", 1_000),
            ("MEMPOOL_ENVELOPES_MAX", 1),
            ("MEMPOOL_BYTES_MAX", 1_000),
        ],
    )
    def test_a_limit_that_is_reached_is_named(
        self, pool: ActionMempool, world: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: int
    ) -> None:
        monkeypatch.setattr(limits, name, value)
        pool.add(self.make(world, 0, 0), PEER, 0)
        with pytest.raises(Busy, match=name.lower()) as caught:
            pool.add(self.make(world, 0, 1), PEER, 0)
        assert caught.value.retry_after_ms > 0
        assert len(pool) == 1

    def test_what_is_small_on_the_wire_and_large_in_memory_counts_as_large(
        self, pool: ActionMempool, world: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MEMPOOL_PEER_BYTES_MAX", 500_000)
        busy = [world.envelope(world.actors[0], ("say", {"x": [[]] * 4_000})) for _ in range(2)]
        assert all(len(envelope.to_bytes()) < 5_000 for envelope in busy)
        pool.add(busy[0], PEER, 0)
        assert pool.size_bytes > 250_000
        with pytest.raises(Busy, match="mempool_peer_bytes_max"):
            pool.add(busy[1], PEER, 0)
        pool.add(busy[1], b"another peer", 0)
        pool.settled(busy)
        assert (len(pool), pool.size_bytes, pool._per_peer) == (0, 0, {})

    def test_the_furthest_nonce_goes_first_and_is_told(
        self, pool: ActionMempool, world: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MEMPOOL_ENVELOPES_MAX", 3)
        monkeypatch.setattr(sequencing, "EVICTED_AT_ONCE", 1)
        monkeypatch.setattr(sequencing, "EVICTION_LOOKS_MAX", 9)
        far, near, own = self.make(world, 0, 9), self.make(world, 0, 2), self.make(world, 1, 0)
        for envelope in (far, near, own):
            pool.add(envelope, PEER, 0)
        assert pool.add(self.make(world, 2, 0), PEER, 0) == [far]
        assert pool.add(self.make(world, 2, 1), PEER, 0) == [near]
        with pytest.raises(Busy):
            pool.add(self.make(world, 1, 5), PEER, 0)
        assert len(pool) == 3

    def test_a_full_share_gives_the_places_of_those_who_wait_to_one_who_need_not(
        self, pool: ActionMempool, world: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A gateway passes on what strangers gossip: nonces whose predecessors never come must not shut it out."""
        monkeypatch.setattr(limits, "MEMPOOL_PEER_ENVELOPES_MAX", 3)
        monkeypatch.setattr(sequencing, "EVICTED_AT_ONCE", 1)
        monkeypatch.setattr(sequencing, "EVICTION_LOOKS_MAX", 9)
        furthest, far, others = self.make(world, 0, 200), self.make(world, 0, 150), self.make(world, 1, 9)
        pool.add(others, b"another peer", 0)
        for envelope in (furthest, far, self.make(world, 2, 0)):
            pool.add(envelope, PEER, 0)
        assert pool.add(self.make(world, 2, 1), PEER, 0) == [furthest]
        assert pool.add(self.make(world, 2, 2), PEER, 0) == [far]
        with pytest.raises(Busy, match="mempool_peer_envelopes_max"):
            pool.add(self.make(world, 2, 3), PEER, 0)
        assert others.hash() in pool
        assert len(pool) == 4

    @pytest.mark.parametrize("name", ["MEMPOOL_PEER_ENVELOPES_MAX", "MEMPOOL_ENVELOPES_MAX"])
    def test_refused_newcomers_do_not_each_look_through_all_that_waits(
        self, pool: ActionMempool, world: Any, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(limits, name, 2)
        for actor in (0, 1):
            pool.add(self.make(world, actor, 0), PEER, 0)
        looked = 0

        class Counted(dict[bytes, Any]):
            def items(self) -> Any:
                nonlocal looked
                looked += 1
                return super().items()

        pool._actors = Counted(pool._actors)
        for nonce in range(20):
            with pytest.raises(Busy, match=name.lower()):
                pool.add(self.make(world, 2, nonce), PEER, 0)
        assert looked == 1  # nothing waits for more than the first: the others are none the better
        pool.expire(1)
        with pytest.raises(Busy, match=name.lower()):
            pool.add(self.make(world, 2, 0), PEER, 0)
        assert looked == 3  # `expire` itself, and once more

    @pytest.mark.parametrize("name", ["MEMPOOL_PEER_ENVELOPES_MAX", "MEMPOOL_ENVELOPES_MAX"])
    def test_vain_looks_of_strangers_leave_one_for_whoever_is_next(
        self, pool: ActionMempool, world: Any, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(limits, name, 2)
        for actor in (0, 1):
            pool.add(self.make(world, actor, 1), PEER, 0)  # each waits for a nonce that never comes
        for nonce in (9, 8, 7, 3, 2, 1):
            with pytest.raises(Busy, match=name.lower()):
                pool.add(self.make(world, 2, nonce), PEER, 0)
        honest = self.make(world, 2, 0)
        assert pool.add(honest, PEER, 0)
        assert honest.hash() in pool

    @pytest.mark.parametrize("name", ["MEMPOOL_PEER_BYTES_MAX", "MEMPOOL_BYTES_MAX"])
    def test_a_share_that_makes_no_room_evicts_nothing(
        self, pool: ActionMempool, world: Any, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(limits, "MEMPOOL_PEER_ENVELOPES_MAX", 2)
        for envelope in (self.make(world, 0, 200), self.make(world, 1, 0)):
            pool.add(envelope, PEER, 0)
        monkeypatch.setattr(limits, name, 100)
        with pytest.raises(Busy):
            pool.add(self.make(world, 2, 0), PEER, 0)
        assert len(pool) == 2

    def test_a_batch_is_ordered_by_time_and_hash_with_nonces_in_order(
        self, pool: ActionMempool, world: Any
    ) -> None:
        late_first = [self.make(world, 0, nonce, timestamp_ms=900 - nonce) for nonce in range(3)]
        early = self.make(world, 1, 0, timestamp_ms=100)
        for envelope in [*reversed(late_first), early]:
            pool.add(envelope, PEER, 0)
        assert self.cut(pool, world) == [early, *late_first]
        assert len(pool) == 4, "cutting removes nothing"

    def test_nothing_is_cut_before_its_predecessor(self, pool: ActionMempool, world: Any) -> None:
        pool.add(self.make(world, 0, 1), PEER, 0)
        assert self.cut(pool, world) == []
        [gap] = pool.gaps()
        assert (gap.nonce, gap.count) == (0, 1)
        pool.add(self.make(world, 0, 0), PEER, 0)
        assert [envelope.record.nonce for envelope in self.cut(pool, world)] == [0, 1]
        assert pool.gaps() == []

    def test_what_the_kernel_would_refuse_is_not_cut(self, pool: ActionMempool, world: Any) -> None:
        pool.add(self.make(world, 0, 0, expires_at_height=4), PEER, 0)
        pool.add(self.make(world, 1, 0, timestamp_ms=NOW_MS + limits.ACTION_SKEW_MS_DEFAULT + 1), PEER, 0)
        assert [envelope.record.actor_id for envelope in self.cut(pool, world, 4)] == [
            world.actors[0].identity
        ]
        assert self.cut(pool, world, 5) == []
        assert [envelope.record.actor_id for envelope in pool.expire(5)] == [world.actors[0].identity]
        assert len(pool) == 1

    @pytest.mark.parametrize(
        ("bounds", "expected"),
        [({"batch_envelopes_max": 2}, 2), ({"batch_actions_max": 3}, 3), ({"batch_bytes_max": 600}, 2)],
    )
    def test_a_batch_keeps_the_limits_of_the_genesis(
        self, pool: ActionMempool, world: Any, bounds: dict[str, int], expected: int
    ) -> None:
        for nonce in range(5):
            pool.add(self.make(world, 0, nonce), PEER, 0)
        shrunk = world.genesis.body.limits
        for name, value in bounds.items():
            object.__setattr__(shrunk, name, value)  # smaller than a genesis may say, to keep the test small
        assert len(pool.cut_batch(1, NOW_MS, shrunk)) == expected

    def test_what_is_ordered_is_not_held_again_before_it_is_applied(
        self, pool: ActionMempool, world: Any
    ) -> None:
        envelope = self.make(world, 0, 0)
        pool.add(envelope, PEER, 0)
        pool.settled([envelope])
        assert len(pool) == 0
        with pytest.raises(Ignored, match="is taken"):
            pool.add(envelope, PEER, 0)  # the gateway sends it again, having seen no block yet
        pool.applied(envelope.record.actor_id, 1)
        with pytest.raises(Ignored, match="is taken"):
            pool.add(envelope, PEER, 1)
        pool.add(self.make(world, 0, 1), PEER, 1)

    def test_a_nonce_that_a_block_did_not_take_is_open_again(self, pool: ActionMempool, world: Any) -> None:
        first, second = self.make(world, 0, 0), self.make(world, 0, 1)
        pool.add(first, PEER, 0)
        pool.add(second, PEER, 0)
        pool.settled([first])
        pool.correct(first.record.actor_id, 0)
        assert self.cut(pool, world) == []
        pool.add(self.make(world, 0, 0, timestamp_ms=7), PEER, 0)
        assert [envelope.record.nonce for envelope in self.cut(pool, world)] == [0, 1]


class TestLease:
    @pytest.fixture
    def leases(self, world: Any) -> LeaseManager:
        authorities = replace(
            world.genesis.authorities,
            proposers=tuple(sorted((world.proposer.identity, world.executor.identity))),
        )
        return LeaseManager(world.world_id, authorities, started_at_ms=0)

    def test_terms_grow_with_every_grant(self, leases: LeaseManager, world: Any) -> None:
        me = world.proposer.identity
        first = leases.acquire(None, me, 1_000)
        assert (first.term, first.holder_id, first.ttl_ms) == (1, me, limits.LEASE_TTL_MS)
        again = leases.acquire(first, me, 1_001)
        assert again.term == 2
        assert leases.acquire(None, me, 1_000, term_min=9).term == 9

    def test_another_waits_until_the_lease_is_over(self, leases: LeaseManager, world: Any) -> None:
        first = leases.acquire(None, world.proposer.identity, 1_000)
        with pytest.raises(Busy) as caught:
            leases.acquire(first, world.executor.identity, 1_001)
        assert caught.value.retry_after_ms == limits.LEASE_TTL_MS - 1
        taken = leases.acquire(first, world.executor.identity, 1_000 + limits.LEASE_TTL_MS)
        assert (taken.term, taken.holder_id) == (2, world.executor.identity)

    def test_a_restarted_coordinator_makes_others_wait_a_whole_ttl(
        self, leases: LeaseManager, world: Any
    ) -> None:
        first = leases.acquire(None, world.proposer.identity, 1_000)
        restarted = replace(leases, started_at_ms=50_000)
        with pytest.raises(Busy):
            restarted.acquire(first, world.executor.identity, 50_000 + limits.LEASE_TTL_MS - 1)
        assert restarted.acquire(first, world.proposer.identity, 50_001).term == 2
        assert restarted.acquire(first, world.executor.identity, 50_000 + limits.LEASE_TTL_MS).term == 2

    def test_a_clock_that_went_back_does_not_make_a_lease_eternal(
        self, leases: LeaseManager, world: Any
    ) -> None:
        first = leases.acquire(None, world.proposer.identity, 10_000_000)
        assert leases.remaining_ms(first, 5) == limits.LEASE_TTL_MS

    def test_only_a_proposer_may_hold_it(self, leases: LeaseManager, world: Any) -> None:
        with pytest.raises(Denied, match="only a proposer"):
            leases.acquire(None, world.actors[0].identity, 0)

    def test_only_the_holder_renews_and_only_in_time(self, leases: LeaseManager, world: Any) -> None:
        me = world.proposer.identity
        first = leases.acquire(None, me, 1_000)
        assert leases.renew(first, me, 1, 2_000).granted_at_ms == 2_000
        for caller, term in ((world.executor.identity, 1), (me, 2)):
            with pytest.raises(Denied, match="not held"):
                leases.renew(first, caller, term, 2_000)
        with pytest.raises(Denied, match="over"):
            leases.renew(first, me, 1, 1_000 + limits.LEASE_TTL_MS)

    def test_a_released_lease_is_free_at_once(self, leases: LeaseManager, world: Any) -> None:
        first = leases.acquire(None, world.proposer.identity, 1_000)
        released = leases.release(first, world.proposer.identity, 1, 1_500)
        assert leases.acquire(released, world.executor.identity, 1_501).term == 2


class TestCertify:
    def lease(self, world: Any, **changes: Any) -> LeaseGrant:
        values = {
            "world_id": world.world_id,
            "epoch": 0,
            "term": 1,
            "holder_id": world.proposer.identity,
            "granted_at_ms": 0,
            "ttl_ms": 5_000,
            "certifier_id": world.certifier.identity,
        }
        return LeaseGrant(**(values | changes))

    def decide(
        self, world: Any, *, so_far: Certified | None = None, caller: bytes | None = None, **changes: Any
    ) -> Any:
        record, actions = world.batch([world.envelope(world.actors[0], MOVE)], **changes)
        signer = world.proposer if record.proposer_id == world.proposer.identity else world.executor
        so_far = so_far or Certified(None, None, self.lease(world), 0)
        caller = caller or world.proposer.identity
        return certify(
            world.genesis, world.genesis.authorities, so_far, caller, seal(record, signer), actions, NOW_MS
        )

    def test_a_good_batch_gets_the_commit_to_sign(self, world: Any) -> None:
        commit = self.decide(world)
        assert isinstance(commit, Commit)
        assert (commit.height, commit.term, commit.as_of_ms) == (1, 1, NOW_MS)
        assert commit.certifier_id == world.certifier.identity

    def test_the_same_batch_again_has_its_commit_already(self, world: Any) -> None:
        record, actions = world.batch([])
        sealed = seal(record, world.proposer)
        commit = world.commit(1, record.hash())
        so_far = Certified(record, commit, None, 0)  # even when the lease is over
        caller = world.proposer.identity
        assert (
            certify(world.genesis, world.genesis.authorities, so_far, caller, sealed, actions, NOW_MS) is None
        )

    def test_another_batch_at_a_certified_height_is_refused_with_the_commit(self, world: Any) -> None:
        record, _actions = world.batch([])
        commit = world.commit(1, record.hash())
        with pytest.raises(Mismatch, match="the next is 2") as caught:
            self.decide(world, so_far=Certified(record, commit, self.lease(world), 0))
        assert sealed_from_bytes(Commit, caught.value.detail) == commit

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"epoch": 1}, "batch.epoch"),
            ({"term": 2}, "batch.term"),
        ],
    )
    def test_a_wrong_epoch_or_term_is_denied(self, world: Any, changes: dict[str, Any], field: str) -> None:
        with pytest.raises(Denied, match=field):
            self.decide(world, **changes)

    def test_only_the_connections_own_proposer_is_heard(self, world: Any) -> None:
        with pytest.raises(Denied, match="proposer_id"):
            self.decide(world, caller=world.executor.identity)
        with pytest.raises(Denied, match="proposer_id"):
            self.decide(world, caller=world.executor.identity, proposer_id=world.executor.identity)

    @pytest.mark.parametrize("lease", [None, "other", "older"])
    def test_without_the_newest_lease_nothing_is_certified(self, world: Any, lease: str | None) -> None:
        held = None
        if lease == "other":
            held = self.lease(world, holder_id=world.executor.identity)
        if lease == "older":
            held = self.lease(world, term=7)
        with pytest.raises(Denied, match="batch.term"):
            self.decide(world, so_far=Certified(None, None, held, 0))

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"prev_batch_hash": b"x" * 32}, "prev_batch_hash"),
            ({"envelope_count": 2}, "envelope_count"),
            ({"actions_root": b"x" * 32}, "actions_root"),
            ({"actions_ref": b"x" * 32}, "actions_ref"),
            ({"timestamp_ms": NOW_MS + limits.BATCH_SKEW_MS + 1}, "batch_skew_ms"),
            ({"timestamp_ms": 1}, "timestamp_ms"),
        ],
    )
    def test_a_malformed_batch_is_invalid(self, world: Any, changes: dict[str, Any], field: str) -> None:
        with pytest.raises(Invalid, match=field):
            self.decide(world, **changes)

    def test_a_batch_that_another_key_signed_is_invalid(self, world: Any) -> None:
        record, actions = world.batch([])
        sealed = replace(seal(record, world.proposer), signature=bytes(64))
        so_far = Certified(None, None, self.lease(world), 0)
        caller = world.proposer.identity
        with pytest.raises(Invalid, match="signature"):
            certify(world.genesis, world.genesis.authorities, so_far, caller, sealed, actions, NOW_MS)

    def test_the_order_does_not_run_away_from_the_results(self, world: Any) -> None:
        record, _actions = world.batch([], height=limits.COMMIT_LEAD_MAX)
        commit = world.commit(limits.COMMIT_LEAD_MAX, record.hash())
        with pytest.raises(Busy, match="commit_lead_max"):
            self.decide(
                world,
                so_far=Certified(record, commit, self.lease(world), 0),
                height=limits.COMMIT_LEAD_MAX + 1,
            )

    def test_a_commit_of_the_own_key_above_the_store_means_lost_memory(self, world: Any) -> None:
        seen = world.commit(5, b"h" * 32)
        check_memory(world.genesis.authorities, world.world_id, 5, seen)
        check_memory(world.genesis.authorities, world.world_id, 0, None)
        with pytest.raises(Corrupt, match="stands at 5") as caught:
            check_memory(world.genesis.authorities, world.world_id, 4, seen)
        assert "restore" in caught.value.repair
        forged = seal(replace(seen.record, certifier_id=world.actors[0].identity), world.actors[0])
        with pytest.raises(Invalid):
            check_memory(world.genesis.authorities, world.world_id, 4, forged)

    def test_a_commit_is_refreshed_when_its_time_is_old(self, world: Any) -> None:
        commit = world.commit(1, b"h" * 32).record
        assert refreshed(commit, commit.as_of_ms + limits.COMMIT_REFRESH_MS - 1) is None
        fresh = refreshed(commit, commit.as_of_ms + limits.COMMIT_REFRESH_MS)
        assert fresh == replace(commit, as_of_ms=commit.as_of_ms + limits.COMMIT_REFRESH_MS)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"expires_at_height": 10 + 5_001}, "expires_at_height"),
        ({"timestamp_ms": 1_000 + 60_001}, "timestamp_ms"),
        ({"expires_at_height": 10 + 5_000, "timestamp_ms": 1_000 + 60_000}, ""),
    ],
)
def test_what_no_block_may_take_soon_is_refused(
    small_world: Any, changes: dict[str, int], field: str
) -> None:
    world = small_world(expiry_blocks_max=5_000, action_skew_ms=60_000)
    values = {"expires_at_height": 100, "timestamp_ms": 1_000} | changes
    record = world.envelope(world.actors[0], ("say", {"text": "x"}), **values).record
    if field:
        with pytest.raises(Denied, match=field):
            sequencing.check_timely(record, 10, 1_000, world.genesis.body.limits)
    else:
        sequencing.check_timely(record, 10, 1_000, world.genesis.body.limits)

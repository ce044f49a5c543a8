"""A check that was never seen failing is no check: each bug that is put in here on purpose must be found by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bootstrap.simulation import run
from bootstrap.simulation.run import Plan, Result, run_seed
from runtime import sequencing
from runtime.records import Commit
from runtime.services import coordinator, gateway, replica, sequencer
from runtime.world_tables import WorldTables

SEEDS = 12


def first_failure(plan: Plan | None = None) -> Result:
    """The first failing run of a few seeds."""
    for seed in range(SEEDS):
        result = run_seed(seed, plan)
        if result.failure is not None:
            return result
    raise AssertionError(f"none of {SEEDS} seeds found it")


def test_a_certifier_that_does_not_compare_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def certify(genesis: Any, authorities: Any, so_far: Any, caller: bytes, batch: Any, *rest: Any) -> Commit:
        *_, now_ms = rest
        record = batch.record
        return Commit(
            world_id=record.world_id,
            epoch=authorities.epoch,
            term=record.term,
            height=record.height,
            batch_hash=batch.hash(),
            certifier_id=authorities.certifier,
            as_of_ms=now_ms,
        )

    monkeypatch.setattr(coordinator, "certify", certify)
    monkeypatch.setattr(WorldTables, "expect_order", lambda *_args: [])

    # Both sequencers hold the lease, so that they propose different batches for one height.
    def grant_all(self: Any, stored: Any, caller: bytes, now_ms: int, term_min: int = 1) -> Any:
        return self._grant(
            caller, max(term_min, 1 if stored is None else stored.term + 1), now_ms, self.ttl_ms
        )

    monkeypatch.setattr(sequencing.LeaseManager, "acquire", grant_all)
    result = first_failure()
    assert result.failure is not None
    assert result.failure.startswith("one_commit: height ")
    assert result.again == f"make simulate SEEDS=1 FIRST={result.seed}"
    assert result.report().splitlines()[1] == f"again: {result.again}"


def test_an_acceptance_that_leaves_before_its_envelope_is_durable_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(WorldTables, "put_outbox", lambda *args: [])
    result = first_failure()
    assert result.failure is not None
    assert result.failure.startswith("durable_first: gateway accepts") or " accepts " in result.failure


def test_a_gateway_that_forgets_to_send_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*args: object) -> None: ...

    monkeypatch.setattr(gateway.Gateway, "_hand_over", nothing)
    monkeypatch.setattr(run, "END_S_MAX", 60.0)  # it would wait for ever, and a minute shows it
    result = first_failure()
    assert result.failure is not None
    assert result.failure.startswith("ends_verified: ")
    assert "accepted envelopes have not ended" in result.failure


def test_a_cursor_ahead_of_its_work_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = replica.Replica.apply

    async def without_blobs(self: replica.Replica, applied: replica.Applied) -> None:
        await apply(self, dataclasses.replace(applied, blobs=()))

    monkeypatch.setattr(replica.Replica, "apply", without_blobs)
    result = first_failure()
    assert result.failure is not None
    assert result.failure.startswith(("cursors: ", "no_crash: "))


def test_a_node_that_ends_by_an_exception_is_a_failure_of_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*args: object) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(sequencer.Sequencer, "_cut", explode)
    result = run_seed(0)
    assert result.failure is not None
    assert result.failure.startswith("no_crash: leader ended")
    assert "ZeroDivisionError: on purpose" in result.failure


def test_a_kernel_that_makes_money_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime import cells

    set_balance: Callable[..., None] = cells.Draft.set_balance

    def generous(self: cells.Draft, holder: cells.Holder, kind: str, amount: int) -> None:
        set_balance(self, holder, kind, amount + (1 if isinstance(holder, str) else 0))

    monkeypatch.setattr(cells.Draft, "set_balance", generous)
    result = first_failure()
    assert result.failure is not None
    assert result.failure.startswith("balances: height ")


def test_a_mempool_without_bound_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from bootstrap.simulation import checks

    monkeypatch.setitem(checks.LIMITS, "mempool_envelopes", 0)
    result = first_failure()
    assert result.failure is not None
    assert result.failure.startswith("bounds: ")


def test_nodes_that_disagree_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    applied_rows = WorldTables.applied_rows

    def forged(self: WorldTables, cursor: str, block: Any, *rest: Sequence[Any]) -> list[Any]:
        other = dataclasses.replace(block, fuel_used=block.fuel_used + 1) if cursor == "stored" else block
        return applied_rows(self, cursor, other, *rest)

    monkeypatch.setattr(WorldTables, "applied_rows", forged)
    result = first_failure()
    assert result.failure is not None
    assert result.failure.startswith("agreement: height ")

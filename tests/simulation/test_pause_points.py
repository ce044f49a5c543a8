"""A leader is killed, frozen past its lease or cut off at every step from cut to announce; another one leads on."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from bootstrap.simulation import pauses

SEED = 1
EARLY = 4
# What a leader does between a cut and the announcement of its block: all of it must be among the points.
STEPS = (
    "sequencer._leads: before lease_acquire",
    "sequencer._leads: after lease_acquire",
    "sequencer._certify: before offload",
    "sequencer._certify: after offload",
    "sequencer._certify: before commit_batch",
    "sequencer._certify: after commit_batch",
    "sequencer._hand_over: before publish batch",
    "sequencer._hand_over: before execute_batch",
    "sequencer._hand_over: after execute_batch",
    "executor._execute: before offload",
    "executor._execute: after offload",
    "executor._announce: before offload",
    "executor._announce: before publish block",
    "executor._announce: after publish block",
    "executor._announce: before publish head",
    "executor._publish: before get_commit",
    "executor._publish: before put_record",
    "executor._publish: after put_record",
)


def _pause(case: tuple[int, str]) -> str | None:
    """What went wrong in a case, or None."""
    point, action = case
    result = pauses.run_pause(SEED, point, action)
    if result.failure is not None:
        return f"{action} at point {point}: {result.report()}"
    # Killed before it was ever up, or at its very first steps, the leader may be back in time to lead after all.
    if point >= EARLY and "standby" not in result.proposers:
        return f"{action} at point {point}: nobody took over: {result.proposers}"
    return None


@pytest.mark.timeout(900)
def test_a_leader_may_stop_at_every_point() -> None:
    points = pauses.leader_points(SEED)
    assert set(STEPS) <= set(points)
    cases = [(point, action) for point in range(len(points)) for action in pauses.ACTIONS]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        failures = [failure for failure in pool.map(_pause, cases, chunksize=4) if failure is not None]
    assert not failures, "\n\n".join(failures)

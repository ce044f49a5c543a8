"""A leader is killed, frozen past its lease or cut off at every step from cut to announce; another one leads on."""

from __future__ import annotations

import os

import pytest

from bootstrap.simulation import pauses

SEED = 1
EARLY = 4
# What a leader does between a cut and the announcement of its block: all of it must be among the points.
STEPS = (
    "sequencer._call_certifier: before lease_acquire",
    "sequencer._call_certifier: after lease_acquire",
    "sequencer._certify: before offload",
    "sequencer._certify: after offload",
    "sequencer._certify: before commit_batch",
    "sequencer._certify: after commit_batch",
    "sequencer._tell: before publish batch",
    "sequencer._hand_over: before execute_batch",
    "sequencer._hand_over: after execute_batch",
    "executor._execute: before offload",
    "executor._execute: after offload",
    "executor._announce: before offload",
    "executor._announce: before publish block",
    "executor._announce: after publish block",
    "executor._announce: before publish head",
    "publish.keep_newest: before get_commit",
    "publish._put: before put_record",
    "publish._put: after put_record",
)


@pytest.mark.timeout(900)
def test_a_leader_may_stop_at_every_point() -> None:
    points = pauses.leader_points(SEED)
    assert set(STEPS) <= set(points)
    cases = [(point, action) for point in range(len(points)) for action in pauses.ACTIONS]
    for (point, action), result in zip(
        cases, pauses.run_pauses(SEED, cases, os.cpu_count() or 1), strict=True
    ):
        assert result.failure is None, f"{action} at point {point}: {result.report()}"
        # Killed before it was ever up, or at its very first steps, the leader may be back in time to lead after all.
        took_over = point < EARLY or "standby" in result.proposers
        assert took_over, f"{action} at point {point}: nobody took over: {result.report()}"

"""The whole network in memory, under seeds: loss, delay, duplicates, kills, partitions."""

from __future__ import annotations

import pytest

from bootstrap.simulation import run_seed
from p2p.memory import NO_FAULTS

SEEDS = range(20)


def test_a_quiet_network_ends_verified() -> None:
    result = run_seed(0, 40, NO_FAULTS)
    assert result.verified
    assert result.accepted == 40
    assert result.roots["leader"] == result.roots["observer"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_troubled_network_ends_verified_and_loses_nothing(seed: int) -> None:
    result = run_seed(seed)
    assert result.verified, "\n".join(result.trace)
    assert result.accepted == 200
    assert result.roots["leader"] == result.roots["observer"], "\n".join(result.trace)


def test_equal_seeds_give_equal_traces() -> None:
    assert run_seed(3).trace == run_seed(3).trace
    assert run_seed(3).trace != run_seed(4).trace

"""`aw status`: what is reckoned from a node's account, and how it is shown."""

from __future__ import annotations

import pytest

from bootstrap.cli.status import _print_tables, account_of, drops_of
from p2p import names
from runtime.messages import GaugeReading, StatusAnswer, WorldStatus

PEER = names.PEER_ID_PREFIX + bytes(32)
WORLD = "a" * 32


def answer() -> StatusAnswer:
    world = WorldStatus(
        world_id=WORLD,
        name="lab",
        epoch=0,
        head_height=12,
        committed=14,
        executed=12,
        stored=7,
        head_age_ms=2_500,
    )
    return StatusAnswer(
        peer_id=PEER,
        roles=("gateway", "storage"),
        worlds=(world,),
        peers=(PEER,),
        counters={"gossip.accepted": 5, "gossip.rejected": 2, "gateway.refused.Busy": 1, "rr.busy": 0},
        limits={"disk_bytes_max": 100},
        gauges=(
            GaugeReading("mempool_envelopes", 4_096, {"world": WORLD}, "mempool_envelopes_max", 16_384),
            GaugeReading("dht_table_peers", 3, {}),
        ),
        uptime_ms=93_784_000,
        versions={"libp2p": "0.8.1"},
    )


def test_lag_is_how_far_each_cursor_is_behind_the_head_and_never_less_than_nothing() -> None:
    (world,) = account_of(answer())["worlds"]
    assert world["lag"] == {"committed": 0, "executed": 0, "stored": 5}
    assert "verified" not in world


def test_drops_are_the_counters_that_tell_of_something_not_taken() -> None:
    assert account_of(answer())["drops"] == {"gossip.rejected": 2, "gateway.refused.Busy": 1}
    counted = {
        "gossip.dropped_channel_full": 1,
        "mempool.evicted": 1,
        "mempool.expired": 1,
        "rr.rate_limited": 1,
        "executor.foreign_commit": 1,
        "fetch.false_answer": 1,
    }
    taken = {"gateway.accepted": 1, "rr.answered": 1, "replica.applied": 1, "fetch.bytes": 1}
    assert drops_of(counted | taken) == counted


def test_the_tables_show_depths_beside_their_limits_lag_and_drops(capsys: pytest.CaptureFixture[str]) -> None:
    _print_tables(account_of(answer()), all_counters=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "mempool_envelopes " + WORLD + " 4,096 mempool_envelopes_max 16,384 25.0 %" in shown
    assert f"{WORLD} lab 0 12 2.5 s 14 7 (-5) 12 - goes on" in shown
    assert "gossip.rejected 2" in shown
    assert "gossip.accepted" not in shown
    assert "1 d 2 h" in shown
    assert "libp2p 0.8.1" in shown
    _print_tables(account_of(answer()), all_counters=True)
    assert "gossip.accepted" in capsys.readouterr().out


def test_an_account_without_the_newer_fields_is_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    old = StatusAnswer(PEER, (), (), (), {}, {})
    account = account_of(old)
    assert "gauges" not in account
    _print_tables(account, all_counters=False)
    assert "peer_id" in capsys.readouterr().out

"""What peers hold of a server: who may come, and who must go."""

from __future__ import annotations

import pytest

from p2p import names
from p2p.loads import LOOK_AGAIN_S, NAMED_AGAIN_S, UNREAD_S_MAX, Loads, RouterLimits, TokenBucket

KEPT, ONE, OTHER = b"kept", b"one", b"other"


def loads(**limits: int) -> Loads:
    return Loads(RouterLimits(**limits), lambda peer: peer == KEPT)


def test_strangers_leave_a_quarter_of_the_places_to_those_who_are_kept() -> None:
    held = loads(in_flight_total_max=8)
    one, kept = held.of(ONE, 0.0), held.of(KEPT, 0.0)
    held.hold(one, 6)
    assert "in_flight_total_max" in (held.why_busy(held.of(OTHER, 0.0)) or "")
    assert held.why_busy(kept) is None
    held.hold(kept, 2)
    assert "in_flight_total_max" in (held.why_busy(kept) or "")
    held.hold(one, -1)
    assert held.why_busy(kept) is None


def test_strangers_wait_while_too_much_is_not_read() -> None:
    held = loads(answers_waiting_bytes_max=100)
    held.waiting_bytes = 101
    assert "answers_waiting_bytes_max" in (held.why_busy(held.of(ONE, 0.0)) or "")
    assert held.why_busy(held.of(KEPT, 0.0)) is None
    held.waiting_bytes = 100
    assert held.why_busy(held.of(ONE, 0.0)) is None


def test_who_has_not_read_for_longest_is_named_once() -> None:
    held = loads()
    held.of(KEPT, 0.0).writes["a"] = 0.0
    held.of(OTHER, 0.0).writes.update({"a": 2.0, "b": 0.5})
    held.of(ONE, 0.0).writes["a"] = 1.0
    assert held.unread_longest(UNREAD_S_MAX + 0.5) is None  # not over it
    assert held.unread_longest(UNREAD_S_MAX + 1.5) == OTHER
    assert held.unread_longest(UNREAD_S_MAX + 1.5) is None  # nobody looks again so soon
    assert held.unread_longest(UNREAD_S_MAX + 1.5 + LOOK_AGAIN_S) == ONE
    assert held.unread_longest(UNREAD_S_MAX + 1.5 + 2 * LOOK_AGAIN_S) is None
    assert held.unread_longest(UNREAD_S_MAX + 1.7 + NAMED_AGAIN_S) == OTHER
    held.of(OTHER, 0.0).writes.clear()
    assert held.unread_longest(UNREAD_S_MAX + 9 + 2 * NAMED_AGAIN_S) == ONE


@pytest.mark.parametrize(("peer", "counted"), [(ONE, 1 + 4), (KEPT, 1)])
def test_a_strangers_large_request_counts_as_several(peer: bytes, counted: int) -> None:
    held = loads(requests_per_s_max=5)
    load = held.of(peer, 0.0)
    assert held.wait_ms(load, 1, 4 * names.REQUEST_BYTES_AS_ONE, 0.0) == 0
    assert held.wait_ms(load, 5 - counted, 0, 0.0) == 0
    assert held.wait_ms(load, 1, 0, 0.0) > 0


def test_an_idle_peer_is_forgotten_before_a_new_one_and_a_busy_one_never() -> None:
    held = loads(peers_remembered_max=2)
    busy, idle = held.of(ONE, 0.0), held.of(OTHER, 0.0)
    busy.streams = 1
    held.of(KEPT, 0.0)
    assert held.of(ONE, 0.0) is busy
    assert held.of(OTHER, 0.0) is not idle


def test_a_token_bucket_holds_one_second_and_says_when() -> None:
    bucket = TokenBucket(10, 0.0)
    for _ in range(10):
        assert bucket.wait_ms(1, 0.0) == 0
        bucket.take(1)
    assert bucket.wait_ms(1, 0.0) == 100
    assert bucket.wait_ms(5, 0.3) == 200
    assert bucket.wait_ms(5, 0.5) == 0
    bucket.take(5)
    assert bucket.wait_ms(1_000, 100.0) == 0  # more than a second's worth costs a full bucket, not for ever

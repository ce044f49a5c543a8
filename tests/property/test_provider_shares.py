"""Whose provider records go first, against a plain list of them all."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from p2p.provider_shares import ProviderShares

PEERS = {"a1": "a", "a2": "a", "a3": "a", "b1": "b", "c1": "c"}
RECORDS = st.tuples(st.integers(0, 9).map(lambda number: bytes([number])), st.sampled_from(sorted(PEERS)))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), RECORDS),
        st.tuples(st.just("forget"), RECORDS),
        st.tuples(st.just("surplus"), st.integers(0, 12)),
    ),
    max_size=60,
)


@given(STEPS)
def test_what_goes_is_of_the_network_and_the_peer_that_hold_most_and_the_oldest_of_it(steps) -> None:
    shares, told = ProviderShares(), []  # all records, the one told longest ago first
    for step, argument in steps:
        match step:
            case "add":
                key, peer = argument
                shares.add(key, peer, PEERS[peer])
                told = [*(each for each in told if each != argument), argument]
            case "forget":
                shares.forget(*argument)
                told = [each for each in told if each != argument]
            case "surplus":
                for gone in shares.surplus(argument):
                    assert len(told) > argument
                    networks = Counter(PEERS[peer] for _, peer in told)
                    peers = Counter(peer for _, peer in told)
                    of_its_network = [count for peer, count in peers.items() if PEERS[peer] == PEERS[gone[1]]]
                    assert networks[PEERS[gone[1]]] == max(networks.values())
                    assert peers[gone[1]] == max(of_its_network)
                    assert gone == next(each for each in told if each[1] == gone[1])
                    told.remove(gone)
                assert len(told) <= argument
        assert len(shares) == len(told)
        for peer in PEERS:
            assert shares.latest(peer) == next((key for key, who in reversed(told) if who == peer), None)


def test_one_record_outlasts_a_flood_from_one_network_under_many_names() -> None:
    shares = ProviderShares()
    shares.add(b"world", "honest", "192.0.2.1")
    gone = []
    for number in range(3_000):
        shares.add(number.to_bytes(2, "big"), f"name {number}", "203.0.113.9")
        gone += shares.surplus(100)
    assert len(gone) == 2_901
    assert (b"world", "honest") not in gone


def test_of_equal_ones_who_tells_again_stays() -> None:
    shares = ProviderShares()
    shares.add(b"world", "honest", "192.0.2.1")
    gone = []
    for number in range(300):
        shares.add(b"other", f"name {number}", f"203.0.113.{number}")
        shares.add(b"world", "honest", "192.0.2.1")
        gone += shares.surplus(100)
    assert (b"world", "honest") not in gone

"""Marks that fade, places that are held, and who goes first when all are taken."""

from __future__ import annotations

import pytest

from p2p import names
from p2p.standing import (
    FADE_PER_S,
    PEERS_MARKED_MAX,
    POINTS,
    POINTS_MAX,
    Held,
    Standing,
    is_loopback,
    least_worth,
    network_of,
)


def peer(number: int) -> bytes:
    return names.PEER_ID_PREFIX + number.to_bytes(32, "big")


def test_marks_add_up_to_a_refusal_that_ends() -> None:
    standing = Standing()
    needed = -(-POINTS_MAX // POINTS["wire"])
    assert [standing.mark(peer(1), "wire", 0) for _ in range(needed)] == [False] * (needed - 1) + [True]
    assert standing.is_refused(peer(1), 1)
    assert not standing.is_refused(peer(2), 1)
    assert not standing.is_refused(peer(1), names.PEER_REFUSED_MS / 1_000)
    assert not standing.mark(peer(1), "wire", 1_000)  # a new account


def test_marks_fade_so_that_one_now_and_then_costs_nothing() -> None:
    standing = Standing()
    pause_s = POINTS["false answer"] / FADE_PER_S
    assert not any(standing.mark(peer(1), "false answer", number * pause_s) for number in range(1_000))


def test_a_stream_that_ends_inside_a_frame_is_no_fault() -> None:
    standing = Standing()
    assert not any(standing.mark(peer(1), "unfinished", 0) for _ in range(1_000))


def test_who_is_kept_is_marked_and_never_refused() -> None:
    standing = Standing([peer(1)])
    standing.keep([peer(2)])
    for who in (peer(1), peer(2)):
        assert not any(standing.mark(who, "false answer", 0) for _ in range(100))
        assert standing.has_place(who)


def test_a_place_by_praise_is_lost_to_later_praise_and_to_a_refusal() -> None:
    standing = Standing()
    for number in range(names.CONNECTIONS_KEPT_MAX + 1):
        standing.praise(peer(number))
    assert not standing.has_place(peer(0))
    assert standing.has_place(peer(1))
    while not standing.mark(peer(1), "wire", 0):
        pass
    assert not standing.has_place(peer(1))


def test_every_table_is_bounded() -> None:
    standing = Standing()
    for number in range(3 * PEERS_MARKED_MAX):
        standing.active(peer(number), number)
        standing.mark(peer(number), "wire", number)
        while not standing.mark(peer(-number % (1 << 200)), "wire", 0):
            pass
    tables = [table for table in vars(standing).values() if isinstance(table, dict)]
    assert len(tables) == 4
    assert all(len(table) <= PEERS_MARKED_MAX for table in tables)


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::/56"),
        ("2001:0db8:1:00ff::1", "2001:db8:1::/56"),
        ("2001:db8:1:100::1", "2001:db8:1:100::/56"),
        ("2001:db8::1", "2001:db8::/56"),
        ("fe80::1%eth0", "fe80::/56"),
        ("::1", "::/56"),
        ("peer.example", "peer.example"),
        ("", ""),
    ],
)
def test_a_network_is_what_one_party_is_likely_to_hold(host: str, network: str) -> None:
    assert network_of(host) == network


def test_loopback_is_this_machine() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1"))
    assert not any(is_loopback(host) for host in ("192.0.2.7", "::2", "", "1.127.0.0"))


def test_the_network_that_holds_most_gives_up_what_has_been_of_no_use_longest() -> None:
    flood = [Held("a", 50), Held("a", 40), Held("a", 60)]
    assert least_worth([Held("b", 1), *flood, Held("c", 2)]) == 2
    assert least_worth([Held("b", 3), Held("c", 2)]) == 1
    assert least_worth([]) is None

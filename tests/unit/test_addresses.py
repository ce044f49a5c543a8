"""What strangers tell as their addresses, and which of it is kept."""

from __future__ import annotations

import pytest

from p2p import names
from p2p.addresses import ADDR_CHARS_MAX, dialable, dialable_ones, is_peer_id

PEER = names.PEER_ID_PREFIX + b"\x07" * 32
OWN, OTHER = names.peer_text(PEER), names.peer_text(names.PEER_ID_PREFIX + b"\x08" * 32)


class NoText:
    """A library's multiaddr around bytes that are none."""

    def __str__(self) -> str:
        raise ValueError("no protocol with code 0")


@pytest.mark.parametrize(
    "addr", ["/ip4/192.0.2.7/tcp/4101", "/ip6/::1/tcp/1", "/dns4/peer.example/tcp/65535", "/dns/x/tcp/80"]
)
def test_tcp_addresses_are_dialable_with_and_without_the_peers_own_id(addr: str) -> None:
    assert dialable(addr, PEER) == f"{addr}/p2p/{OWN}"
    assert dialable(f"{addr}/p2p/{OWN}", PEER) == f"{addr}/p2p/{OWN}"


@pytest.mark.parametrize(
    "addr",
    [
        NoText(),
        b"\xff\xff\xff",
        "",
        "/",
        "nonsense",
        "/ip4/192.0.2.7/udp/4001/quic-v1",
        "/ip4/192.0.2.7/tcp/4101/ws",
        "/ip4/192.0.2.7/tcp/0",
        "/ip4/192.0.2.7/tcp/65536",
        "/ip4/192.0.2.7/tcp/99999999999",
        "/ip4/192.0.2.7/tcp/-1",
        "/ip4/192.0.2.7/tcp/\u0661",
        "/ip4//tcp/4101",
        f"/ip4/192.0.2.7/tcp/4101/p2p/{OTHER}",
        f"/ip4/192.0.2.7/tcp/4101/p2p/{OTHER}/p2p-circuit/p2p/{OWN}",
        f"/ip4/192.0.2.7/tcp/4101/p2p/{OWN}/p2p-circuit",
        "/unix/tmp/tcp/4101",
        f"/dns4/{'x' * ADDR_CHARS_MAX}/tcp/4101",
    ],
)
def test_all_else_is_left_out_and_nothing_raises(addr: object) -> None:
    assert dialable(addr, PEER) is None


def test_a_peer_keeps_so_many_addresses_each_once() -> None:
    many = [f"/ip4/192.0.2.7/tcp/{port}" for port in range(1, 2_000)]
    assert dialable_ones(["/memory/1", many[0], many[0], *many], PEER) == tuple(
        f"{addr}/p2p/{OWN}" for addr in many[: names.ADDRS_PER_PEER_MAX]
    )
    assert not dialable_ones(
        ["/memory/1"] * 4 * names.ADDRS_PER_PEER_MAX + many, PEER
    )  # told too much to read


def test_only_ed25519_ids_are_peers() -> None:
    assert is_peer_id(PEER)
    assert not any(is_peer_id(other) for other in (b"", PEER[:-1], PEER + b"\0", b"\x12" + PEER[1:]))

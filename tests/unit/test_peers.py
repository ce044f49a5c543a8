"""Addresses of peers: what is one, and the bounded book that outlives a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bootstrap.peers import (
    AddressBook,
    load_address_book,
    parse_addr,
    parse_known_peers,
    parse_listen_addr,
    parse_peer_addr,
)
from p2p import names
from runtime.durable import replace_file
from runtime.keys import SigningKey


def peer(number: int) -> bytes:
    return SigningKey(bytes([number]) * 32).identity


def addr(number: int, port: int = 4101) -> str:
    return f"/ip4/192.0.2.{number}/tcp/{port}/p2p/{names.peer_text(peer(number))}"


def test_an_address_is_taken_apart() -> None:
    parsed = parse_addr(addr(7))
    assert (parsed.protocol, parsed.host, parsed.port, parsed.peer_id) == ("ip4", "192.0.2.7", 4101, peer(7))
    assert parse_addr("/dnsaddr/bootstrap.example.org").port is None
    assert parse_addr("/ip6/::1/tcp/0").host == "::1"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "1..512"),
        ("x" * 513, "1..512"),
        ("127.0.0.1:4101", "is not a multiaddr"),
        ("/ip4/300.0.0.1/tcp/1", "ip4 address is needed"),
        ("/ip4/1.2.3.4/udp/1/quic-v1", "tcp is the only transport"),
        ("/ip4/1.2.3.4/tcp", "tcp is the only transport"),
        ("/ip4/1.2.3.4/tcp/65536", "port 0..65535"),
        ("/ip4/1.2.3.4/tcp/-1", "port 0..65535"),
        ("/ip4/1.2.3.4/tcp/1/wss", "only /p2p/PEER ID may follow"),
        ("/ip4/1.2.3.4/tcp/1/ws/ws", "only /p2p/PEER ID may follow"),
        ("/dns4/-bad-/tcp/1", "host name is needed"),
        ("/unix/tmp/x", "known: /ip4"),
        ("/ip4/1.2.3.4/tcp/1/p2p/QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", "Ed25519 peer id"),
        ("/ip4/1.2.3.4/tcp/1/p2p/0OIl", "Ed25519 peer id"),
    ],
)
def test_what_is_no_address_says_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("/", ".")):
        parse_addr(text)


def test_an_address_to_listen_on_has_no_peer_id_and_one_to_dial_has_one() -> None:
    assert parse_listen_addr("/ip4/0.0.0.0/tcp/0").port == 0
    for text in (addr(1), "/dnsaddr/example.org"):
        with pytest.raises(ValueError, match="no peer id"):
            parse_listen_addr(text)
    assert parse_listen_addr("/ip4/0.0.0.0/tcp/0/ws").is_websocket
    with pytest.raises(ValueError, match="for browsers: give the one without"):
        parse_peer_addr(addr(1).replace("/p2p/", "/ws/p2p/"))
    with pytest.raises(ValueError, match="whom to expect"):
        parse_peer_addr("/ip4/1.2.3.4/tcp/1")
    with pytest.raises(ValueError, match="port 0"):
        parse_peer_addr(addr(1, 0))


def test_the_book_forgets_whom_it_saw_longest_ago_and_the_oldest_addresses() -> None:
    book = AddressBook(peers_max=2, addrs_max=2)
    book.saw(peer(1), [addr(1)], 10)
    book.saw(peer(2), [addr(2)], 20)
    for port in (1, 2, 3):
        book.saw(peer(1), [addr(1, port)], 30)
    book.saw(peer(3), [addr(3)], 40)
    assert [known.peer_id for known in book.newest_first()] == [peer(3), peer(1)]
    assert book.newest_first()[1].addrs == (addr(1, 3), addr(1, 2))


def test_an_address_of_another_peer_or_that_nobody_can_dial_is_not_remembered() -> None:
    book = AddressBook()
    quic = addr(1).replace("/tcp/", "/udp/") + "/quic-v1"
    book.saw(peer(1), [addr(2), quic, "", "\udcff"], 1)
    book.saw(peer(1), [], 1)
    assert len(book) == 0
    book.saw(peer(1), [addr(2), addr(1)], 1)
    assert book.newest_first()[0].addrs == (addr(1),)


def test_the_book_outlives_a_run(tmp_path: Path) -> None:
    book = AddressBook()
    for number in (1, 2, 3):
        book.saw(peer(number), [addr(number)], number)
    path = tmp_path / "peers.json"
    replace_file(path, book.to_bytes())
    read, wrong = load_address_book(path, peers_max=2, addrs_max=16)
    assert wrong == ""
    assert [known.peer_id for known in read.newest_first()] == [peer(3), peer(2)]


def test_no_file_is_an_empty_book(tmp_path: Path) -> None:
    book, wrong = load_address_book(tmp_path / "peers.json", peers_max=2, addrs_max=2)
    assert (len(book), wrong) == (0, "")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"v": 2, "peers": []}', "v = 1"),
        ('{"v": 1, "peers": [1]}', r"peers\[0\]"),
        ('{"v": 1, "peers": [{"peer_id": "x", "addrs": [], "last_seen_ms": -1}]}', "last_seen_ms"),
        ('{"v": 1, "peers": [{"peer_id": "x", "addrs": [], "last_seen_ms": 1}]}', "Ed25519 peer id"),
    ],
)
def test_a_damaged_file_is_set_aside_and_costs_only_the_addresses(
    tmp_path: Path, text: str, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        parse_known_peers(text.encode())
    path = tmp_path / "peers.json"
    path.write_text(text)
    book, wrong = load_address_book(path, peers_max=2, addrs_max=2)
    assert len(book) == 0
    assert "moved to peers.json.damaged" in wrong
    assert (tmp_path / "peers.json.damaged").read_text() == text
    assert not path.exists()


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "peers.json"
    replace_file(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError("disk on fire")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk on fire"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["peers.json"]

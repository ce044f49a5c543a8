"""Addresses of peers: how they are spelled, and the ones that a node remembers between runs (peers.json).

Hides: multiaddr syntax as far as this network uses it, and the file. Guarantees: parsing is pure and needs no network
library; the book is bounded in peers and in addresses a peer; the file is replaced atomically; a damaged file costs
the remembered addresses, never the start of a node. Documented in docs/operations.md, section "Data directory".
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2p import names

ADDR_CHARS_MAX: Final = 512
PEERS_FILE_BYTES_MAX: Final = 64 << 20
_HOST_NAME = re.compile(
    r"(?=.{1,253}$)[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,62})(\.[a-zA-Z0-9_][a-zA-Z0-9_-]{0,62})*\.?", re.ASCII
)
_DNS: Final = ("dns", "dns4", "dns6")


@dataclass(frozen=True, slots=True)
class PeerAddr:
    """A multiaddr taken apart. `port` is None for dnsaddr, `peer_id` (38 bytes) where it does not end in /p2p/ID."""

    text: str
    protocol: str
    host: str
    port: int | None
    peer_id: bytes | None
    is_websocket: bool = False


def parse_addr(text: str) -> PeerAddr:
    """`/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT[/ws][/p2p/ID]` or `/dnsaddr/HOST[/p2p/ID]`. Raises ValueError (why)."""
    if not 1 <= len(text) <= ADDR_CHARS_MAX:
        raise ValueError(f"is not a multiaddr of 1..{ADDR_CHARS_MAX} characters")
    parts = text.split("/")
    if parts[0] or len(parts) < 3:
        raise ValueError("is not a multiaddr such as /ip4/192.0.2.7/tcp/4101/p2p/12D3KooW...")
    protocol, host, rest = parts[1], parts[2], parts[3:]
    _check_host(protocol, host)
    port: int | None = None
    if protocol != "dnsaddr":
        if len(rest) < 2 or rest[0] != "tcp":
            raise ValueError("must go on with /tcp/PORT: tcp is the only transport")
        port, rest = _port(rest[1]), rest[2:]
    is_websocket = port is not None and rest[:1] == ["ws"]
    rest = rest[1:] if is_websocket else rest
    peer_id: bytes | None = None
    if rest[:1] == ["p2p"] and len(rest) == 2:
        peer_id, rest = peer_id_from_text(rest[1]), []
    if rest:
        raise ValueError(f"has /{'/'.join(rest)} where only /p2p/PEER ID may follow")
    return PeerAddr(text, protocol, host, port, peer_id, is_websocket)


def parse_listen_addr(text: str) -> PeerAddr:
    """An address to listen on or to announce: TCP, or WebSocket for browsers, without a peer id. Raises ValueError."""
    addr = parse_addr(text)
    if addr.port is None or addr.peer_id is not None:
        raise ValueError("must be HOST/tcp/PORT, with /ws or without, and no peer id")
    return addr


def parse_peer_addr(text: str) -> PeerAddr:
    """An address to dial: it must say which peer is expected there. Raises ValueError."""
    addr = parse_addr(text)
    if addr.peer_id is None:
        raise ValueError("must end in /p2p/PEER ID, which says whom to expect there")
    if addr.is_websocket:
        raise ValueError("is a WebSocket address, which is for browsers: give the one without /ws")
    if addr.port == 0:
        raise ValueError("has port 0, which nobody can dial")
    return addr


def peer_id_from_text(text: str) -> bytes:
    """The 38 bytes of an Ed25519 peer id `12D3KooW...`. Raises ValueError."""
    try:
        peer_id = names.peer_from_text(text)
    except ValueError as error:
        raise ValueError(f"has {text[:80]!r} where an Ed25519 peer id 12D3KooW... is needed") from error
    if len(peer_id) != 38 or peer_id[:6] != names.PEER_ID_PREFIX:
        raise ValueError(f"has {text[:80]!r} where an Ed25519 peer id 12D3KooW... is needed")
    return peer_id


def _check_host(protocol: str, host: str) -> None:
    if protocol in ("ip4", "ip6"):
        family = ipaddress.IPv4Address if protocol == "ip4" else ipaddress.IPv6Address
        try:
            family(host)
        except ValueError as error:
            raise ValueError(f"has {host[:80]!r} where an {protocol} address is needed") from error
    elif protocol in (*_DNS, "dnsaddr"):
        if _HOST_NAME.fullmatch(host) is None:
            raise ValueError(f"has {host[:80]!r} where a host name is needed")
    else:
        raise ValueError(f"begins with /{protocol[:20]}; known: /ip4, /ip6, /dns, /dns4, /dns6, /dnsaddr")


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65_535):
        raise ValueError(f"has {text[:20]!r} where a port 0..65535 is needed")
    return int(text)


# --- the peers that a node remembers -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KnownPeer:
    """A peer that was reached before: its addresses, newest first, each ending in /p2p/ID."""

    peer_id: bytes
    addrs: tuple[str, ...]
    last_seen_ms: int


class AddressBook:
    """Known peers, in memory. Over `peers_max` the one seen longest ago goes; a peer keeps its newest addresses."""

    def __init__(
        self,
        peers: Sequence[KnownPeer] = (),
        *,
        peers_max: int = names.KNOWN_PEERS_MAX,
        addrs_max: int = names.ADDRS_PER_PEER_MAX,
    ) -> None:
        self._peers_max = peers_max
        self._addrs_max = addrs_max
        self._peers: dict[bytes, KnownPeer] = {}
        for peer in sorted(peers, key=lambda known: known.last_seen_ms):
            self.saw(peer.peer_id, peer.addrs, peer.last_seen_ms)

    def __len__(self) -> int:
        return len(self._peers)

    def saw(self, peer_id: bytes, addrs: Sequence[str], now_ms: int) -> None:
        """The peer was reached by these addresses; one that this network cannot dial, or of another, is left out."""
        addrs = [addr for addr in addrs if _is_addr_of(peer_id, addr)]
        earlier = self._peers.pop(peer_id, None)
        merged = dict.fromkeys((*addrs, *(() if earlier is None else earlier.addrs)))
        if not merged:
            return  # nothing to dial it by
        last_seen_ms = now_ms if earlier is None else max(now_ms, earlier.last_seen_ms)
        self._peers[peer_id] = KnownPeer(peer_id, tuple(merged)[: self._addrs_max], last_seen_ms)
        while len(self._peers) > self._peers_max:
            del self._peers[min(self._peers.values(), key=lambda known: known.last_seen_ms).peer_id]

    def newest_first(self) -> list[KnownPeer]:
        """All known peers."""
        return sorted(self._peers.values(), key=lambda known: known.last_seen_ms, reverse=True)

    def to_bytes(self) -> bytes:
        """The text of peers.json."""
        peers = [
            {
                "peer_id": names.peer_text(peer.peer_id),
                "addrs": list(peer.addrs),
                "last_seen_ms": peer.last_seen_ms,
            }
            for peer in self.newest_first()
        ]
        return (json.dumps({"v": 1, "peers": peers}, indent=1) + "\n").encode()


def _is_addr_of(peer_id: bytes, addr: str) -> bool:
    try:
        return parse_peer_addr(addr).peer_id == peer_id
    except ValueError:
        return False


class PeersFileBad(ValueError):
    """A peers.json that is not one: which field, and why."""


def parse_known_peers(data: bytes) -> list[KnownPeer]:
    """What a peers.json holds. Raises ValueError (PeersFileBad, mostly) with the field that is wrong."""
    if len(data) > PEERS_FILE_BYTES_MAX:
        raise PeersFileBad(f"is over {PEERS_FILE_BYTES_MAX} bytes (peers_file_bytes_max)")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PeersFileBad(f"is not JSON: {error}") from error
    listed = document.get("peers") if isinstance(document, dict) and document.get("v") == 1 else None
    if not isinstance(listed, list):
        raise PeersFileBad("must be an object with v = 1 and a list `peers`")
    return [_known_peer(item, f"peers[{index}]") for index, item in enumerate(listed)]


def _known_peer(item: object, field: str) -> KnownPeer:
    if not isinstance(item, dict) or item.keys() != {"peer_id", "addrs", "last_seen_ms"}:
        raise PeersFileBad(f"{field}: must hold peer_id, addrs and last_seen_ms")
    text, addrs, last_seen_ms = item["peer_id"], item["addrs"], item["last_seen_ms"]
    if type(last_seen_ms) is not int or last_seen_ms < 0:
        raise PeersFileBad(f"{field}.last_seen_ms: must be an integer of at least 0")
    if not isinstance(text, str):
        raise PeersFileBad(f"{field}.peer_id: must be text")
    peer_id = peer_id_from_text(text)
    if not isinstance(addrs, list) or not all(isinstance(addr, str) for addr in addrs):
        raise PeersFileBad(f"{field}.addrs: must be a list of multiaddrs")
    for addr in addrs:
        if parse_peer_addr(addr).peer_id != peer_id:
            raise PeersFileBad(f"{field}.addrs: {addr[:80]!r} is not an address of this peer")
    return KnownPeer(peer_id, tuple(addrs), last_seen_ms)


def load_address_book(path: Path, *, peers_max: int, addrs_max: int) -> tuple[AddressBook, str]:
    """The book of a file (empty when there is none), and what was wrong with it ("" when nothing).

    A damaged file is moved to `<name>.damaged`: its addresses are hints, and the network will tell them again.
    """
    empty = AddressBook(peers_max=peers_max, addrs_max=addrs_max)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return empty, ""
    try:
        return AddressBook(parse_known_peers(data), peers_max=peers_max, addrs_max=addrs_max), ""
    except ValueError as error:
        aside = path.with_name(path.name + ".damaged")
        path.replace(aside)
        return empty, f"{path}: {error}; moved to {aside.name}"

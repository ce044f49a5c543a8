"""Which of the addresses that a peer tells can be dialled here.

Hides: the spelling of a multiaddr, as far as strangers' ones are concerned. Guarantees: pure; nothing that a peer may
put into an address raises. Implements docs/protocol.md, section "Connections".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from p2p import names
from p2p.network import PeerId

ADDR_CHARS_MAX: Final = 512
_HOSTS: Final = frozenset({"ip4", "ip6", "dns", "dns4", "dns6"})


def is_peer_id(peer: bytes) -> bool:
    """Whether these are the 38 bytes of an Ed25519 peer id: no other kind is a peer here."""
    return len(peer) == len(names.PEER_ID_PREFIX) + 32 and peer.startswith(names.PEER_ID_PREFIX)


def is_tcp_addr(addr: bytes) -> bool:
    """Whether a binary multiaddr is `/ip4|ip6|dns|dns4|dns6/HOST/tcp/...` of at most ADDR_BYTES_MAX bytes."""
    if not 2 <= len(addr) <= names.ADDR_BYTES_MAX:
        return False
    host_bytes = {0x04: 4, 0x29: 16}.get(addr[0])
    if host_bytes is None:
        if addr[0] not in {0x35, 0x36, 0x37}:
            return False
        host_bytes = 1 + addr[1]  # its length, which is below 128 here, comes first
    return addr[1 + host_bytes : 2 + host_bytes] == b"\x06"


def dialable(addr: object, peer: PeerId) -> str | None:
    """`/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT/p2p/PEER` of an address that a peer told of itself, or None.

    `addr` is text, or an object whose `str` is: a library's multiaddr may hold bytes that are none, and raises then.
    """
    try:
        text = str(addr)
    except Exception:  # noqa: BLE001  # whatever the bytes are, they are no address
        return None
    own = names.peer_text(peer)
    parts = text.split("/")
    if len(text) > ADDR_CHARS_MAX or len(parts) not in {5, 7} or parts[0]:
        return None
    host, name, transport, port = parts[1:5]
    is_tcp = transport == "tcp" and port.isascii() and port.isdecimal() and 0 < int(port[:6]) <= 65_535
    if host not in _HOSTS or not name or not is_tcp or parts[5:] not in ([], ["p2p", own]):
        return None
    return f"/{host}/{name}/tcp/{port}/p2p/{own}"


def dialable_ones(addrs: Iterable[object], peer: PeerId) -> tuple[str, ...]:
    """Those that can be dialled, each once, at most ADDRS_PER_PEER_MAX; of no more than four times as many told."""
    found: dict[str, None] = {}
    for _, addr in zip(range(4 * names.ADDRS_PER_PEER_MAX), addrs, strict=False):
        text = dialable(addr, peer)
        if text is not None:
            found[text] = None
    return tuple(found)[: names.ADDRS_PER_PEER_MAX]

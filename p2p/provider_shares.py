"""Whose provider records go when a DHT server holds too many: those of whoever holds most.

Hides: who holds how many, by network and by peer. Guarantees: pure; a record is added, told again, forgotten or named
as surplus in constant time. A flood so displaces itself, and who has told of little keeps its records: in one from one
network under many names, and in one from many networks as long as each holds more.
Implements docs/protocol.md, section "DHT".
"""

from __future__ import annotations

from collections.abc import Iterator


class _Tally:
    """Counts by name, and a name of the highest count: of equal ones that which was changed or renewed longest ago."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._names: dict[int, dict[str, None]] = {}  # by count
        self._highest = 0

    def change(self, name: str, by: int) -> None:
        """One more or one less: then the highest count can be found by steps of one."""
        before = self._counts.pop(name, 0)
        after = before + by
        if before:
            del self._names[before][name]
            if not self._names[before]:
                del self._names[before]
        if after:
            self._counts[name] = after
            self._names.setdefault(after, {})[name] = None
        if after > self._highest or self._highest not in self._names:
            self._highest = after

    def renew(self, name: str) -> None:
        """Behind all others of its count."""
        names = self._names[self._counts[name]]
        names[name] = names.pop(name)

    def most(self) -> str:
        return next(iter(self._names[self._highest]))

    def __bool__(self) -> bool:
        return bool(self._counts)


class ProviderShares:
    """The provider records of one server: DHT keys by peer, and the peers by network."""

    def __init__(self) -> None:
        self._keys: dict[str, dict[bytes, None]] = {}  # by peer, the one told longest ago first
        self._network: dict[str, str] = {}  # of each peer that has a record, as of its first
        self._networks = _Tally()
        self._peers: dict[str, _Tally] = {}  # by network
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, key: bytes, peer: str, network: str) -> None:
        """The peer, which is connected from this network, has told that it provides what the key stands for."""
        keys = self._keys.setdefault(peer, {})
        if key in keys:
            keys[key] = keys.pop(key)  # told again, so the youngest
            self._networks.renew(self._network[peer])
            self._peers[self._network[peer]].renew(peer)
            return
        keys[key] = None
        self._change(peer, self._network.setdefault(peer, network), 1)

    def network(self, peer: str) -> str:
        """From where the peer spoke when it told its first record; its name for one that has none here."""
        return self._network.get(peer, peer)

    def latest(self, peer: str) -> bytes | None:
        """The key that the peer told last, if it has told any that is kept."""
        return next(reversed(self._keys.get(peer, {})), None)

    def forget(self, key: bytes, peer: str) -> None:
        """The record is gone, if there was one."""
        keys = self._keys.get(peer, {})
        if key not in keys:
            return
        del keys[key]
        network = self._network[peer]
        if not keys:
            del self._keys[peer], self._network[peer]
        self._change(peer, network, -1)

    def surplus(self, records_max: int) -> Iterator[tuple[bytes, str]]:
        """What must go, each forgotten as it is named: of the network that has most, of its peer that has most, the
        key told longest ago."""
        while self._count > records_max:
            peer = self._peers[self._networks.most()].most()
            key = next(iter(self._keys[peer]))
            self.forget(key, peer)
            yield key, peer

    def _change(self, peer: str, network: str, by: int) -> None:
        self._count += by
        self._networks.change(network, by)
        peers = self._peers.setdefault(network, _Tally())
        peers.change(peer, by)
        if not peers:
            del self._peers[network]

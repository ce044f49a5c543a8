"""Cures of py-libp2p's Kad-DHT, one function each: what a server keeps for strangers, how long it listens to them.

Hides: the library's stores and its stream handler. Guarantees: who floods displaces himself; see cures.py for how cures
are applied and tested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import trio
from libp2p.custom_types import TProtocol
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KadMessage
from libp2p.peer.id import ID

from p2p import names
from p2p.curing import StreamHandler, dropped, few_of_a_peer
from p2p.provider_shares import ProviderShares
from p2p.standing import Held, least_worth, network_of


def widen_dht_limits(host: Any, dht: KadDHT) -> None:  # noqa: ARG001  # one shape for all
    """Twelve inbound streams, the rest reset; 10 ADD_PROVIDER in 10 s from a peer, the rest dropped unsaid.

    kad_dht.py:313-323. What is dropped past our limit is counted.
    Test: test_more_than_ten_provides_in_a_row_are_all_kept.
    """
    dht._inbound_limiter = trio.CapacityLimiter(names.DHT_STREAMS_MAX)  # noqa: SLF001
    dht._provider_rate_max = names.ADD_PROVIDER_PER_10_S_PER_PEER_MAX  # noqa: SLF001
    may = dht._check_provider_rate_limit  # noqa: SLF001

    def counted(peer: ID) -> bool:
        taken = bool(may(peer))
        dropped["dht.dropped_provider_rate"] += not taken
        return taken

    setattr(dht, "_check_provider_rate_limit", counted)  # noqa: B010  # mypy minds the assignment


def bound_dht_stores(host: Any, dht: KadDHT) -> None:
    """A server keeps every record and every provider record that strangers send it, for a day or two.

    value_store.py and provider_store.py limit no keys, and a key with twenty records takes no other for 48 h. Here the
    oldest records go, and the provider records of whoever holds most (p2p/provider_shares.py).
    Tests: test_what_strangers_store_is_bounded, test_who_provides_little_is_not_displaced,
    test_a_full_key_takes_a_newcomer.
    """
    values = dht.value_store

    def bounded(name: str) -> None:
        keep = getattr(values, name)

        def keep_and_drop(key: bytes, *args: Any, **kwargs: Any) -> Any:
            if key in values.store:
                values.store[key] = values.store.pop(key)  # put again, so the youngest
            kept = keep(key, *args, **kwargs)
            while len(values.store) > names.RECORDS_HELD_MAX:
                dropped["dht.dropped_store_full"] += 1
                del values.store[next(iter(values.store))]
            return kept

        setattr(values, name, keep_and_drop)

    bounded("put")
    bounded("put_record")
    store = dht.provider_store
    bounds = _BoundedProviders(host, store)
    for method in (
        bounds.add_provider,
        bounds.get_providers,
        bounds.cleanup_expired,
        bounds.records_of_others,
    ):
        setattr(store, method.__name__, method)


class _BoundedProviders:
    """Stands in for three methods of a provider store, and adds `records_of_others`.

    Others' records by their shares; the own ones, which nobody else can add, within a bound of their own.
    """

    def __init__(self, host: Any, store: Any) -> None:
        self._host = host
        self._keep, self._listed, self._held = store.add_provider, store.get_providers, store.providers
        self._own_name = str(host.get_id())
        self._own, self._others = ProviderShares(), ProviderShares()

    def add_provider(self, key: bytes, provider: Any) -> None:
        peer = str(provider.peer_id)
        shares, records_max = self._others, names.PROVIDER_RECORDS_HELD_MAX
        if peer == self._own_name:
            shares, records_max = self._own, names.PROVIDED_KEYS_MAX
        self._make_room(key, peer)
        latest = shares.latest(peer)
        if latest is not None:
            # The same addresses most of the time: held once, a record takes half of the memory.
            known = self._held.get(latest, {}).get(peer)
            if known is not None and known.provider_info.addrs == provider.addrs:
                provider = known.provider_info
        shares.add(key, peer, _network_of_peer(self._host, provider.peer_id))
        self._keep(key, provider)
        for drop_key, drop_peer in shares.surplus(records_max):
            self._drop(drop_key, drop_peer, "dht.dropped_store_full")

    def get_providers(self, key: bytes) -> Any:
        before = list(self._held.get(key, ()))
        found = self._listed(key)  # drops what is two days old
        for gone in set(before) - set(self._held.get(key, ())):
            (self._own if gone == self._own_name else self._others).forget(key, gone)
        return found

    def records_of_others(self) -> int:
        """How many are held for others, counted as they come: `status` asks often."""
        return len(self._others)

    def cleanup_expired(self) -> None:
        for key in list(self._held):
            self.get_providers(key)

    def _make_room(self, key: bytes, newcomer: str) -> None:
        """In a full key the oldest record goes of the network that has most there; never the own one."""
        records = self._held.get(key, {})
        while len(records) >= names.PROVIDERS_PER_KEY_MAX and newcomer not in records:
            peers = [peer for peer in records if peer != self._own_name]
            told = [Held(self._others.network(peer), records[peer].timestamp) for peer in peers]
            index = least_worth(told)
            assert index is not None, "a full key has others than this node"
            self._others.forget(key, peers[index])
            self._drop(key, peers[index], "dht.dropped_key_full")

    def _drop(self, key: bytes, peer: str, reason: str) -> None:
        dropped[reason] += 1
        records = self._held.get(key, {})
        records.pop(peer, None)
        if not records:
            self._held.pop(key, None)


def _network_of_peer(host: Any, peer: ID) -> str:
    """From where a connected peer speaks; without a connection its name stands for it."""
    for conn in host.get_network().get_connections(peer):
        remote = conn.muxed_conn.get_remote_address()
        if remote is not None:
            return network_of(str(remote[0]))
    return str(peer)


def silence_add_provider(host: Any, dht: KadDHT) -> None:  # noqa: ARG001  # one shape for all
    """ADD_PROVIDER is echoed, and py's own client does not read the echo; a go client that keeps the stream is then
    off by one answer.

    kad_dht.py:866-874. The stream given to the handler swallows that one reply. Test: test_add_provider_has_no_answer.
    """
    _wrap_dht_handler(host, lambda handle: lambda stream: handle(_NoEcho(stream)))


def end_idle_dht_streams(host: Any, dht: KadDHT) -> None:  # noqa: ARG001  # one shape for all
    """A handler waits for a next message for ever, and holds one of few places: one stranger's silent streams close the
    DHT to everybody.

    kad_dht.py:587. A peer has DHT_STREAMS_PER_PEER_MAX, and each says something every DHT_IDLE_MS.
    Tests: test_silent_dht_streams_keep_nobody_out, test_a_silent_dht_stream_is_reset.
    """

    def bounded(handle: StreamHandler) -> StreamHandler:
        return few_of_a_peer(
            lambda stream: handle(_Awake(stream)),
            lambda: names.DHT_STREAMS_PER_PEER_MAX,
            dropped,
            "dht.streams_over_limit",
        )

    _wrap_dht_handler(host, bounded)


def _wrap_dht_handler(host: Any, wrap: Callable[[StreamHandler], StreamHandler]) -> None:
    protocol = TProtocol(names.KAD_PROTOCOL)
    if protocol in host.get_mux().get_protocols():  # else a client, which serves nobody
        host.set_stream_handler(protocol, wrap(host.get_mux().handlers[protocol]))


class _Awake:
    """A stream on which no read takes longer than DHT_IDLE_MS; raises trio.TooSlowError then."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def read(self, count: int | None = None) -> bytes:
        with trio.fail_after(names.DHT_IDLE_MS / 1_000):
            return bytes(await self._stream.read(count))


class _NoEcho:
    """A stream whose writes of an ADD_PROVIDER answer (a length, then the message) go nowhere."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._length: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def write(self, data: bytes) -> None:
        if self._length is None:  # the library writes the length by itself, then the message
            self._length = data
            return
        length, self._length = self._length, None
        answer = KadMessage()
        answer.ParseFromString(data)
        if answer.type != KadMessage.MessageType.ADD_PROVIDER:
            await self._stream.write(length + data)


OF_THE_DHT: Final = (widen_dht_limits, bound_dht_stores, silence_add_provider, end_idle_dht_streams)

"""The Kad-DHT at /aw/kad/1.0.0: records under a stateless validator, providers by multihash.

Hides: py-libp2p's KadDHT. Guarantees: a read asks the network, the own copy being a floor; an older record is never
put over a newer one; providers are distinct and without this node. What this node has put and provided is told again
to servers that appear later. Implements docs/protocol.md, section "DHT".
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo as LibPeerInfo
from libp2p.records.validator import Validator

from p2p import cures, names
from p2p.addresses import dialable_ones, is_peer_id
from p2p.errors import NetworkError, RecordRefused, Unreachable
from p2p.network import Gauge, PeerId, PeerInfo, RecordRule

OWN_RECORDS_MAX = 1_024
PROVIDED_TOLD_MAX = 1_024  # to a server that appears; the republisher tells it the rest in its time
PROVIDERS_ASKED = 200  # entries repeat, and repeats count
_log = logging.getLogger(__name__)


class RuleValidator(Validator):
    """A RecordRule as the library's validator, whatever a record came from: a put, or an answer."""

    def __init__(self, rule: RecordRule, counters: Counter[str]) -> None:
        self._rule = rule
        self._counters = counters

    def validate(self, key: str, value: bytes) -> None:
        try:
            self._check(key, value)
        except Exception:
            self._counters["dht.records_refused"] += 1
            raise

    def _check(self, key: str, value: bytes) -> None:
        if len(key.encode()) > names.RECORD_KEY_BYTES_MAX:
            raise RecordRefused(key[:64], f"key over {names.RECORD_KEY_BYTES_MAX} bytes")
        if len(value) > names.RECORD_BYTES_MAX:
            raise RecordRefused(key, f"{len(value)} bytes, at most {names.RECORD_BYTES_MAX}")
        self._rule.validate(key, value)

    def select(self, key: str, values: list[bytes]) -> int:
        return self._rule.select(key, values)


class _Asking:
    """Which tasks ask the network for which key, and what the library's stores say and take meanwhile.

    The library would answer a question from its own stores, and fill them with what it finds. Only the task that asks
    and those below it are kept from them: others are served what is held, however long the question takes. What is
    found does not replace a better record, and providers that are found are not served as if they had told us.
    A context variable would not do: the tasks of a connection that is dialled meanwhile would keep it for ever.
    """

    def __init__(self, kad: KadDHT, rule: RuleValidator) -> None:
        self._keys: dict[trio.lowlevel.Task, bytes] = {}
        values, providers = kad.value_store, kad.provider_store
        held, keep, listed, add = (
            values.get,
            values.put_record,
            providers.get_providers,
            providers.add_provider,
        )

        def get(key: bytes) -> Any:
            return None if self._is_asked(key) else held(key)

        def put_record(key: bytes, record: Any) -> None:
            own = held(key) if self._is_asked(key) else None
            if own is None or rule.select(key.decode(), [bytes(own.value), bytes(record.value)]) == 1:
                keep(key, record)

        def get_providers(key: bytes) -> list[LibPeerInfo]:
            return [] if self._is_asked(key) else listed(key)

        def add_provider(key: bytes, provider: LibPeerInfo) -> None:
            if not self._is_asked(key):
                add(key, provider)

        for store, methods in ((values, (get, put_record)), (providers, (get_providers, add_provider))):
            for method in methods:
                setattr(store, method.__name__, method)

    @contextmanager
    def for_key(self, key: bytes) -> Iterator[None]:
        """The running task asks for this key until the block is left."""
        task = trio.lowlevel.current_task()
        self._keys[task] = key
        try:
            yield
        finally:
            del self._keys[task]

    def _is_asked(self, key: bytes) -> bool:
        """Whether the running task, or one that waits for it, asks for the key."""
        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        while task is not None:
            if self._keys.get(task) == key:
                return True
            task = None if task.parent_nursery is None else task.parent_nursery.parent_task
        return False


class KadDht:
    """A DistributedDht over the library's KadDHT."""

    def __init__(self, kad: KadDHT, rule: RecordRule, peer_id: PeerId, counters: Counter[str]) -> None:
        self._kad = kad
        self._rule = RuleValidator(rule, counters)
        self._peer_id = peer_id
        self._counters = counters
        self._asking = _Asking(kad, self._rule)
        self._put: dict[str, bytes] = {}
        self._provided: dict[
            bytes, float
        ] = {}  # and when, so that what is not provided any more is not told again
        self._grown = 0

    def counters(self) -> dict[str, int]:
        counted = self._counters + cures.dropped
        return {name: count for name, count in sorted(counted.items()) if name.startswith("dht.")}

    def gauges(self) -> list[Gauge]:
        """Peers in the routing table, and what is held for others and oneself."""
        kad = self._kad
        return [
            Gauge("dht_table_peers", len(kad.routing_table.get_peer_ids())),
            Gauge("dht_records_held", len(kad.value_store.store), "records_held_max", names.RECORDS_HELD_MAX),
            Gauge(
                "dht_provider_records_held",
                cures.provider_records_held(kad),
                "provider_records_held_max",
                names.PROVIDER_RECORDS_HELD_MAX,
            ),
        ]

    # --- records -------------------------------------------------------------------------------------------

    def holds(self, key: str) -> bool:
        """Whether this node keeps a record under the key, for itself or as a server."""
        return self._own(key) is not None

    def _own(self, key: str) -> bytes | None:
        record = self._kad.value_store.get(key.encode())
        return None if record is None else bytes(record.value)

    async def put_record(self, key: str, value: bytes) -> None:
        self._rule.validate(key, value)
        held = self._own(key)
        if held is not None and held != value and self._rule.select(key, [held, value]) == 0:
            self._counters["dht.refused"] += 1
            raise RecordRefused(key, "is older than the record that is held")
        self._put[key] = value
        while len(self._put) > OWN_RECORDS_MAX:
            del self._put[next(iter(self._put))]
        self._counters["dht.puts"] += 1
        await self._within_deadline("put", self._kad.put_value(key, value))

    async def get_record(self, key: str) -> bytes | None:
        self._counters["dht.lookups"] += 1
        with self._asking.for_key(key.encode()):
            await self._within_deadline("get", self._kad.get_value(key))
        return self._own(key)

    # --- providers -----------------------------------------------------------------------------------------

    async def provide(self, content_id: bytes) -> None:
        key = names.provider_key(content_id)
        self._provided.pop(key, None)
        self._provided[key] = trio.current_time()
        while len(self._provided) > names.PROVIDED_KEYS_MAX:
            del self._provided[next(iter(self._provided))]
        self._counters["dht.provides"] += 1
        try:
            told = await self._within_deadline("provide", self._kad.provider_store.provide(key))
        finally:
            self._kad.provider_store.providing_keys.discard(
                key
            )  # else the library provides it again for ever
        if not told:
            raise Unreachable("any DHT server", "the provider record reached nobody yet")

    async def find_providers(
        self, content_id: bytes, count_max: int = names.PROVIDERS_PER_KEY_MAX
    ) -> list[PeerInfo]:
        key = names.provider_key(content_id)
        self._counters["dht.lookups"] += 1
        with self._asking.for_key(key):
            found = await self._within_deadline(
                "find_providers", self._kad.provider_store.find_providers(key, PROVIDERS_ASKED)
            )
        distinct: dict[PeerId, PeerInfo] = {}
        for info in [*self._kad.provider_store.get_providers(key), *found]:
            peer_id = info.peer_id.to_bytes()
            if peer_id != self._peer_id and is_peer_id(peer_id):
                addrs = dialable_ones(info.addrs, peer_id)
                if addrs or peer_id not in distinct:
                    distinct[peer_id] = PeerInfo(peer_id, addrs)
        return list(distinct.values())[:count_max]

    # --- servers come and go -------------------------------------------------------------------------------

    def grown(self) -> int:
        """How often a server was added to the routing table."""
        return self._grown

    async def introduce(self, peer_id: PeerId, *, is_new: bool) -> None:
        """Take a connected DHT server into the routing table. `is_new`: it may be back with an empty store."""
        lib_id = ID(peer_id)
        is_held = lib_id in self._kad.routing_table.get_peer_ids()
        if not is_held:
            await self._kad.add_peer(lib_id)
        if is_new or not is_held:
            self._counters["dht.introduced"] += 1
            self._grown += 1

    def forget(self, peer_id: PeerId) -> None:
        """A peer that is gone is asked no more: each lookup would wait for it."""
        self._kad.routing_table.remove_peer(ID(peer_id))

    async def tell_new_servers(self) -> None:
        """Fill the table, and put and provide again what was put and provided here."""
        await self._quietly("refresh", self._kad.refresh_routing_table())
        for key, value in list(self._put.items()):
            if self._own(key) in {None, value}:
                await self._quietly("put", self._kad.put_value(key, value))
        since_s = trio.current_time() - 2 * names.PROVIDER_REPUBLISH_MS / 1_000
        self._provided = {key: at_s for key, at_s in self._provided.items() if at_s >= since_s}
        for provided in list(self._provided)[-PROVIDED_TOLD_MAX:]:
            await self._quietly("provide", self._kad.provider_store.provide(provided))
            self._kad.provider_store.providing_keys.discard(provided)

    async def _quietly(self, what: str, work: Any) -> None:
        try:
            await self._within_deadline(what, work)
        except NetworkError as error:
            self._counters["dht.retell_failed"] += 1
            _log.info("%s for new DHT servers: %s", what, error)

    async def _within_deadline(self, what: str, work: Any) -> Any:
        """The library's errors are many and say little: to the caller they all mean that the DHT did not answer."""
        try:
            with trio.fail_after(names.DHT_LOOKUP_MS / 1_000):
                return await work
        except trio.TooSlowError:
            self._counters["dht.too_slow"] += 1
            raise Unreachable("the DHT", f"{what} took over {names.DHT_LOOKUP_MS} ms") from None
        except NetworkError:
            raise
        except Exception as error:
            self._counters["dht.failed"] += 1
            raise Unreachable("the DHT", f"{what} failed ({type(error).__name__})") from error

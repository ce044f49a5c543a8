"""Who has what: the keys that this node provides and when they are due again, and what others were seen to
provide.

Hides: TTLs, jitter, due times, and the caches between a caller and the DHT.
Guarantees: ProviderCache is pure (time and chance are arguments); own keys are kept apart from seen
providers, so that they never hide anybody; a ttl of 0 means no cache. A head is always asked of the network,
the cache being a floor and never a ceiling. A key that is no longer held is never announced again.
Implements docs/protocol.md, section "DHT", as the publisher and the cached reader.
"""

from __future__ import annotations

import heapq
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from p2p import names
from p2p.errors import NetworkError
from p2p.network import DistributedDht, PeerId, PeerInfo, RecordRule

CACHED_KEYS_MAX: Final = 4_096  # keys whose providers are remembered; the one seen longest ago goes first
CACHED_HEADS_MAX: Final = 256
REPUBLISH_JITTER_PER_MILLE: Final = 100  # a key is due up to this much of the period early
RETRY_MS: Final = 10_000  # after a provide that failed
POLL_MS_MAX: Final = 5_000  # the loop looks this often for keys that were registered while it slept

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProvidedRow:
    """What outlives a restart of one provided key. `due_ms` is wall-clock time."""

    content_id: bytes
    due_ms: int


@dataclass(frozen=True, slots=True)
class _Seen:
    provider: PeerInfo
    seen_ms: int


class ProviderCache:
    """Two tables: own keys with their due times, and providers seen for keys, newest first.

    All times are wall-clock ms, since own keys outlive the process; a clock that goes back cannot postpone a
    key by more than one period.
    """

    def __init__(
        self,
        own_peer_id: PeerId,
        rng: random.Random,
        *,
        ttl_ms: int = names.PROVIDER_CACHE_TTL_MS,
        republish_ms: int = names.PROVIDER_REPUBLISH_MS,
        providers_per_key_max: int = names.PROVIDERS_CACHED_PER_KEY_MAX,
        provided_keys_max: int = names.PROVIDED_KEYS_MAX,
    ) -> None:
        if republish_ms < 1:
            raise ValueError(f"republish_ms: {republish_ms} is not at least 1")
        self._own_peer_id = own_peer_id
        self._rng = rng
        self._ttl_ms = ttl_ms
        self._republish_ms = republish_ms
        self._providers_per_key_max = providers_per_key_max
        self._provided_keys_max = provided_keys_max
        self._due_ms: dict[bytes, int] = {}
        self._queue: list[tuple[int, bytes]] = []  # heap; an entry that differs from _due_ms is stale
        self._changed: dict[bytes, None] = {}
        self._seen: dict[bytes, tuple[_Seen, ...]] = {}  # ascending by last change, so the first goes first

    # --- own keys

    def register(self, content_id: bytes, now_ms: int) -> bool:
        """Provide the key from now on, due at once; false when PROVIDED_KEYS_MAX are registered already."""
        if content_id in self._due_ms:
            return True
        if len(self._due_ms) >= self._provided_keys_max:
            return False
        self._set_due(content_id, now_ms)
        return True

    def unregister(self, content_id: bytes) -> None:
        """Provide the key no more; unknown keys are no mistake."""
        if self._due_ms.pop(content_id, None) is not None:
            self._changed[content_id] = None

    def is_registered(self, content_id: bytes) -> bool:
        return content_id in self._due_ms

    def due(self, now_ms: int) -> list[bytes]:
        """Registered keys to provide now, the longest due first.

        Says the same until `provided` or `postpone`.
        """
        due: list[bytes] = []
        entries: list[tuple[int, bytes]] = []
        while self._queue and self._queue[0][0] <= now_ms:
            entry = heapq.heappop(self._queue)
            if self._due_ms.get(entry[1]) == entry[0] and (not due or due[-1] != entry[1]):
                due.append(entry[1])
                entries.append(entry)
        for entry in entries:
            heapq.heappush(self._queue, entry)
        return due

    def next_due_ms(self) -> int | None:
        """When the next key is due (possibly past), or None without keys."""
        while self._queue and self._due_ms.get(self._queue[0][1]) != self._queue[0][0]:
            heapq.heappop(self._queue)
        return self._queue[0][0] if self._queue else None

    def provided(self, content_id: bytes, now_ms: int) -> None:
        """The key was announced: due again after a period, a little early so that keys spread out."""
        early_ms = self._republish_ms * self._rng.randrange(REPUBLISH_JITTER_PER_MILLE + 1) // 1000
        self._move(content_id, now_ms + self._republish_ms - early_ms)

    def postpone(self, content_id: bytes, now_ms: int) -> None:
        """Announcing the key failed: due again soon."""
        self._move(content_id, now_ms + min(RETRY_MS, self._republish_ms))

    def export_rows(self) -> list[ProvidedRow]:
        """All registered keys, ascending."""
        return [ProvidedRow(key, self._due_ms[key]) for key in sorted(self._due_ms)]

    def import_rows(self, rows: Iterable[ProvidedRow], now_ms: int) -> int:
        """Take the keys of an earlier run; returns how many fitted.

        None is due later than a period from now.
        """
        taken = 0
        for row in rows:
            if row.content_id not in self._due_ms and len(self._due_ms) >= self._provided_keys_max:
                continue
            self._set_due(row.content_id, min(row.due_ms, now_ms + self._republish_ms))
            taken += 1
        return taken

    def take_changes(self) -> tuple[list[ProvidedRow], list[bytes]]:
        """Rows to store and keys to delete since the last call, each ascending."""
        keys = sorted(self._changed)
        self._changed.clear()
        rows = [ProvidedRow(key, self._due_ms[key]) for key in keys if key in self._due_ms]
        return rows, [key for key in keys if key not in self._due_ms]

    def _move(self, content_id: bytes, due_ms: int) -> None:
        if content_id in self._due_ms:
            self._set_due(content_id, due_ms)

    def _set_due(self, content_id: bytes, due_ms: int) -> None:
        self._due_ms[content_id] = due_ms
        self._changed[content_id] = None
        heapq.heappush(self._queue, (due_ms, content_id))
        if len(self._queue) > 2 * len(self._due_ms) + 64:
            self._queue = [(due, key) for key, due in self._due_ms.items()]
            heapq.heapify(self._queue)

    # --- seen providers

    def remember(self, content_id: bytes, providers: Iterable[PeerInfo], now_ms: int) -> None:
        """These provide the key as of now; without this node, whose own record is no news to it."""
        if self._ttl_ms <= 0:
            return
        fresh = {info.peer_id: _Seen(info, now_ms) for info in providers if info.peer_id != self._own_peer_id}
        if not fresh:
            return
        kept = [seen for seen in self._live(content_id, now_ms) if seen.provider.peer_id not in fresh]
        newest_first = (*fresh.values(), *kept)[: self._providers_per_key_max]
        self._seen.pop(content_id, None)
        self._seen[content_id] = newest_first
        if len(self._seen) > CACHED_KEYS_MAX:
            del self._seen[next(iter(self._seen))]

    def cached(self, content_id: bytes, now_ms: int) -> list[PeerInfo]:
        """Providers seen within the TTL, newest first; never this node itself."""
        return [seen.provider for seen in self._live(content_id, now_ms)]

    def forget(self, content_id: bytes, peer_id: PeerId) -> None:
        """The peer did not have it after all."""
        kept = tuple(seen for seen in self._seen.get(content_id, ()) if seen.provider.peer_id != peer_id)
        if kept:
            self._seen[content_id] = kept
        else:
            self._seen.pop(content_id, None)

    def _live(self, content_id: bytes, now_ms: int) -> list[_Seen]:
        seen = self._seen.get(content_id, ())
        return [one for one in seen if 0 <= now_ms - one.seen_ms < self._ttl_ms]


class CachedDht:
    """A DistributedDht that remembers providers for a while, and the best head as a floor under the
    network's.
    """

    def __init__(
        self,
        inner: DistributedDht,
        cache: ProviderCache,
        rule: RecordRule,
        now_ms: Callable[[], int],
        *,
        head_ttl_ms: int = names.HEAD_CACHE_TTL_MS,
    ) -> None:
        self._inner = inner
        self._cache = cache
        self._rule = rule
        self._now_ms = now_ms
        self._head_ttl_ms = head_ttl_ms
        self._heads: dict[str, tuple[bytes, int]] = {}  # value and when it was last seen, ascending by that
        self._hits = 0
        self._misses = 0
        self._floors = 0

    async def put_record(self, key: str, value: bytes) -> None:
        """As the inner DHT's; what it took becomes the floor."""
        await self._inner.put_record(key, value)
        self._keep_head(key, value)

    async def get_record(self, key: str) -> bytes | None:
        """The better of what the network says now and what was seen within the TTL."""
        found = await self._inner.get_record(key)
        floor = self._head(key)
        if found is None:
            self._floors += floor is not None
            return floor
        if floor is not None and self._rule.select(key, [floor, found]) == 0:
            self._floors += 1
            return floor
        self._keep_head(key, found)
        return found

    async def provide(self, content_id: bytes) -> None:
        """Announce now, and from now on by `republish_loop`."""
        self._cache.register(content_id, self._now_ms())
        await self._inner.provide(content_id)
        self._cache.provided(content_id, self._now_ms())

    async def find_providers(
        self, content_id: bytes, count_max: int = names.PROVIDERS_PER_KEY_MAX
    ) -> list[PeerInfo]:
        """Seen providers when there are any within the TTL, else the network's."""
        cached = self._cache.cached(content_id, self._now_ms())
        if cached:
            self._hits += 1
            return cached[:count_max]
        self._misses += 1
        found = await self._inner.find_providers(content_id, count_max)
        self._cache.remember(content_id, found, self._now_ms())
        return found

    def counters(self) -> dict[str, int]:
        """The inner DHT's, and `dht.provider_cache_hits`, `dht.provider_cache_misses`, `dht.head_floors`."""
        return {
            **self._inner.counters(),
            "dht.provider_cache_hits": self._hits,
            "dht.provider_cache_misses": self._misses,
            "dht.head_floors": self._floors,
        }

    def _head(self, key: str) -> bytes | None:
        value, seen_ms = self._heads.get(key, (None, 0))
        return value if 0 <= self._now_ms() - seen_ms < self._head_ttl_ms else None

    def _keep_head(self, key: str, value: bytes) -> None:
        if self._head_ttl_ms <= 0:
            return
        floor = self._head(key)
        if floor is not None and self._rule.select(key, [floor, value]) == 0:
            return
        self._heads.pop(key, None)
        self._heads[key] = (value, self._now_ms())
        if len(self._heads) > CACHED_HEADS_MAX:
            del self._heads[next(iter(self._heads))]


async def republish_loop(
    cache: ProviderCache,
    dht: DistributedDht,
    now_ms: Callable[[], int],
    sleep_until_ms: Callable[[int], Awaitable[None]],
    still_held: Callable[[bytes], bool],
    changed: Callable[[list[ProvidedRow], list[bytes]], None] = lambda _rows, _gone: None,
) -> None:
    """Provide due keys, one at a time, until cancelled. `dht` is the inner DHT (a CachedDht works too).

    `still_held` is asked before each announcement; `changed(rows to store, keys to delete)` after each round,
    so that a restart goes on where this run was.
    """
    while True:
        for content_id in cache.due(now_ms()):
            if not still_held(content_id):
                cache.unregister(content_id)
                continue
            try:
                await dht.provide(content_id)
            except NetworkError as error:
                _log.info("provide of %s put off: %s", content_id.hex(), error)
                cache.postpone(content_id, now_ms())
            else:
                cache.provided(content_id, now_ms())
        rows, gone = cache.take_changes()
        if rows or gone:
            changed(rows, gone)
        poll_ms = now_ms() + POLL_MS_MAX
        due_ms = cache.next_due_ms()
        await sleep_until_ms(poll_ms if due_ms is None else min(due_ms, poll_ms))

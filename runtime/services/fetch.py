"""The fetching half: ask whoever has it, check what comes, go to the next.

Hides: which peers serve a world, in what order to try them, and who is resting after a failure.
Guarantees: nothing returned was not checked; a peer whose bytes were false is marked and tried last; every try has a
deadline and every answer a byte limit. When nobody helped, Missing says what was tried.
Implements docs/protocol.md, sections "Methods" (client side) and "DHT" (providers).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

import trio

from p2p import names
from p2p.errors import AnswerTooLarge, NetworkError, RequestFailed
from p2p.network import PeerId, PeerInfo
from runtime import codec, genesis, limits
from runtime.errors import Invalid, Missing, WorldError
from runtime.messages import BlobEnd, BlobRequest, Body
from runtime.services.context import Context

T = TypeVar("T")
B = TypeVar("B", bound=Body)

TRY_MS: Final = 10_000
FALSE_ANSWER_REST_MS: Final = 60_000
PROVIDERS_FRESH_MS: Final = 15_000
PROVIDERS_RETRY_MS: Final = 2_000  # a false head asks for what nobody has: that must not cost a look-up each
BLOB_BYTES_MAX: Final = 64 << 20
PEERS_REMEMBERED_MAX: Final = 1_024


@dataclass(slots=True)
class Sources:
    """Who serves one world, and who is resting. One per world and node; owned by that world's tasks."""

    context: Context
    world_id: str
    known: dict[PeerId, PeerInfo] = field(default_factory=dict)
    rests_until_ms: dict[PeerId, int] = field(default_factory=dict)
    asked_at_ms: int = -PROVIDERS_FRESH_MS
    fresh_ms: int = PROVIDERS_FRESH_MS  # for so long a look-up is good

    async def candidates(self) -> list[PeerId]:
        """Peers to ask, best first: rested before resting, providers before others, then by a seeded shuffle."""
        now_ms = self.context.now_ms()
        if not 0 <= now_ms - self.asked_at_ms < self.fresh_ms:
            await self._look_up()
        connected = self.context.network.peers()
        peers = sorted({*self.known, *connected} - {self.context.peer_id})
        self.context.rng.shuffle(peers)
        online = set(connected)
        peers.sort(
            key=lambda peer: (
                self.rests_until_ms.get(peer, 0) > now_ms,
                peer not in self.known,
                peer not in online,
            )
        )
        return peers[: limits.FETCH_PROVIDERS_MAX]

    async def _look_up(self) -> None:
        # Noted before the answer: tasks that come meanwhile go by what is known, one look-up serves them all.
        self.asked_at_ms, self.fresh_ms = self.context.now_ms(), PROVIDERS_RETRY_MS
        try:
            found = await self.context.dht.find_providers(genesis.world_content_id(self.world_id))
        except NetworkError:
            self.context.counters["fetch.provider_lookup_failed"] += 1
            return
        self.asked_at_ms = self.context.now_ms()
        self.fresh_ms = PROVIDERS_FRESH_MS
        self.known = {info.peer_id: info for info in found if info.peer_id != self.context.peer_id}

    def forget_lookup(self) -> None:
        """Nobody helped: ask the network again soon, past every cache; at once when it knew nobody."""
        self.fresh_ms = PROVIDERS_RETRY_MS if self.known else 0
        for peer in self.known:
            self.context.providers.forget(genesis.world_content_id(self.world_id), peer)

    async def reach(self, peer: PeerId) -> None:
        """Connect to a provider that only its record told us of. Raises Unreachable."""
        info = self.known.get(peer)
        if info is not None and info.addrs and peer not in self.context.network.peers():
            await self.context.network.connect(info.addrs)

    def rest(self, peer: PeerId, rest_ms: int) -> None:
        """Try this peer last for a while."""
        if len(self.rests_until_ms) >= PEERS_REMEMBERED_MAX:
            del self.rests_until_ms[min(self.rests_until_ms, key=lambda p: (self.rests_until_ms[p], p))]
        self.rests_until_ms[peer] = self.context.now_ms() + rest_ms


async def call(
    context: Context,
    peer: PeerId,
    method: str,
    request: Body,
    answer: type[B],
    *,
    deadline_ms: int = names.REQUEST_TOTAL_MS,
) -> B:
    """One typed request to one peer. Raises p2p errors, and Invalid for an answer that is malformed."""
    return answer.from_bytes(
        await context.network.request(peer, method, request.to_bytes(), deadline_ms=deadline_ms)
    )


async def ask_any(sources: Sources, what: str, key: str, ask: Callable[[PeerId], Awaitable[T]]) -> T:
    """First checked result of `await ask(peer)` over the candidates. Raises Missing when all failed.

    `ask` raises NetworkError or Missing when the peer did not help, and Invalid when what it said is false.
    """
    tried = []
    for peer in await sources.candidates():
        try:
            await sources.reach(peer)
            return await ask(peer)
        except RequestFailed as failure:
            tried.append(failure.code.name)
            if failure.retryable:
                sources.rest(peer, max(limits.FETCH_COOLDOWN_MS, failure.retry_after_ms))
        except NetworkError as error:
            tried.append(type(error).__name__)
            sources.rest(peer, limits.FETCH_COOLDOWN_MS)
        except Missing:  # it has something else, or less: no fault of its
            tried.append("not held")
        except WorldError as error:
            tried.append(f"false answer ({error})")
            sources.context.counters["fetch.false_answer"] += 1
            sources.rest(peer, FALSE_ANSWER_REST_MS)
    sources.forget_lookup()
    raise Missing(what, f"{key} ({len(tried)} peers tried: {', '.join(tried) or 'none known'})")


async def fetch_from(context: Context, peer: PeerId, content_id: bytes, bytes_max: int) -> bytes:
    """A whole blob from one peer, its hash checked. Raises p2p errors, or Invalid when the bytes are false."""
    data = bytearray()
    request = BlobRequest(content_hash=content_id)
    async with context.network.request_parts(
        peer, "fetch_blob", request.to_bytes(), deadline_ms=TRY_MS, bytes_max=bytes_max
    ) as answer:
        while (part := await answer.part()) is not None:
            data += part
            if len(data) > bytes_max:
                raise AnswerTooLarge(peer.hex(), "fetch_blob", bytes_max)
        end = BlobEnd.from_bytes(answer.last)
    if end.size != len(data) or codec.content_id(bytes(data)) != content_id:
        raise Invalid("fetch_blob", f"{len(data)} bytes that are not blob {content_id.hex()}")
    context.counters["fetch.blobs"] += 1
    context.counters["fetch.bytes"] += len(data)
    return bytes(data)


async def fetch_blob(sources: Sources, content_id: bytes, bytes_max: int = BLOB_BYTES_MAX) -> bytes:
    """A blob by content id: from the own store, else from any source. Raises Missing."""
    context = sources.context
    own = context.blobs.find(content_id)
    if own is not None:
        return own

    async def ask(peer: PeerId) -> bytes:
        return await fetch_from(context, peer, content_id, bytes_max)

    return await ask_any(sources, "blob", content_id.hex(), ask)


async def ask_first(
    sources: Sources, method: str, request: Body, answer: type[B], check: Callable[[B], None]
) -> B:
    """One typed request to any source; `check` raises Invalid for an answer that is false. Raises Missing."""

    async def ask(peer: PeerId) -> B:
        found = await call(sources.context, peer, method, request, answer, deadline_ms=TRY_MS)
        check(found)
        return found

    return await ask_any(sources, method, sources.world_id, ask)


async def sleep_ms(period_ms: int) -> None:
    """Wait by the monotonic clock."""
    await trio.sleep(period_ms / 1_000)

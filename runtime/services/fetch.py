"""The fetching half: ask whoever has it, check what comes, go to the next.

Hides: which peers serve a world, in what order to try them, and who is resting after a failure.
Guarantees: nothing returned was not checked; a peer whose bytes were false is marked and tried last; every try has a
deadline and every answer a byte limit; one that is silent is soon not waited for alone, so that a dead peer that has
helped before costs a second and not a whole try (hedged requests: Dean and Barroso, "The Tail at Scale").
Provider records are free for anybody to make: half of the places belong to peers that are connected or have helped
before, and who fails rests longer each time, so that however many strangers say that they provide a world, an honest
provider's turn comes. When nobody helped, Missing says what was tried.
Implements docs/protocol.md, sections "Methods" (client side) and "DHT" (providers).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import trio

from p2p import names
from p2p.errors import Code, NetworkError, RequestFailed, Unreachable
from p2p.network import PeerId, PeerInfo
from runtime import genesis, limits
from runtime.errors import HashMismatch, Missing, WorldError
from runtime.messages import Body
from runtime.services.context import Context

T = TypeVar("T")
B = TypeVar("B", bound=Body)

TRY_MS: Final = 10_000
REACH_MS: Final = 5_000  # to connect to a provider, all its addresses together
REST_MS_MAX: Final = 600_000
FALSE_ANSWER_REST_MS: Final = 60_000
HEDGE_MS: Final = 1_000  # who has said nothing for so long is not waited for alone
HEDGED_MAX: Final = 3  # sources asked for one thing at a time
PROVIDERS_FRESH_MS: Final = 15_000
PROVIDERS_RETRY_MS: Final = 2_000  # a false head asks for what nobody has: that must not cost a look-up each
PEERS_REMEMBERED_MAX: Final = 1_024
RATE_WAIT_MS_MAX: Final = 1_000  # in all, for one source: one that asks for more patience is left


@dataclass(slots=True)
class Sources:
    """Who serves one world, and who is resting. One per world and node; owned by that world's tasks."""

    context: Context
    world_id: str
    known: dict[PeerId, PeerInfo] = field(default_factory=dict)
    helped: dict[PeerId, None] = field(default_factory=dict)  # the last to help stands last
    rests_until_ms: dict[PeerId, int] = field(default_factory=dict)
    failures: dict[PeerId, int] = field(default_factory=dict)  # in a row
    asked_at_ms: int = -PROVIDERS_FRESH_MS
    fresh_ms: int = PROVIDERS_FRESH_MS  # for so long a look-up is good

    async def candidates(self) -> list[PeerId]:
        """Peers to ask, best first: rested before resting, near before far, then by a seeded shuffle.

        Near is who is connected or has helped; the far ones have a provider record and no more. Each kind has half
        of the places, and what the other leaves.
        """
        now_ms = self.context.now_ms()
        if not 0 <= now_ms - self.asked_at_ms < self.fresh_ms:
            await self._look_up()
        connected = set(self.context.network.peers())
        peers = sorted({*self.known, *connected} - {self.context.peer_id})
        self.context.rng.shuffle(peers)
        peers.sort(key=lambda peer: self._rank(peer, connected, now_ms))
        near = [peer for peer in peers if peer in connected or peer in self.helped]
        far = [peer for peer in peers if peer not in connected and peer not in self.helped]
        places = limits.FETCH_PROVIDERS_MAX
        of_far = min(len(far), max(places // 2, places - len(near)))
        chosen = [*near[: places - of_far], *far[:of_far]]
        return sorted(chosen, key=lambda peer: self.is_resting(peer, now_ms))

    def _rank(self, peer: PeerId, connected: set[PeerId], now_ms: int) -> tuple[bool, ...]:
        return (
            self.is_resting(peer, now_ms),
            peer not in self.helped,
            peer not in connected,
            peer not in self.known,
            peer not in self.context.network.kept(),
        )

    def is_resting(self, peer: PeerId, now_ms: int) -> bool:
        """Whether this peer has failed lately and is asked last."""
        return self.rests_until_ms.get(peer, 0) > now_ms

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
        if info is None or not info.addrs or peer in self.context.network.peers():
            return
        with trio.move_on_after(REACH_MS / 1_000):
            await self.context.network.connect(info.addrs)
            return
        raise Unreachable(names.peer_text(peer), f"no connection within {REACH_MS} ms")

    def rest(self, peer: PeerId, rest_ms: int) -> None:
        """Try this peer last for a while."""
        self.rests_until_ms.pop(peer, None)
        self.rests_until_ms[peer] = self.context.now_ms() + rest_ms
        _forget_first(self.rests_until_ms)

    def failed(self, peer: PeerId, took_ms: int) -> None:
        """It did not help: it rests longer than its try took, twice as long each time in a row."""
        self.failures[peer] = self.failures.pop(peer, 0) + 1
        _forget_first(self.failures)
        first_ms = max(limits.FETCH_COOLDOWN_MS, 2 * took_ms)
        self.rest(peer, min(first_ms << min(self.failures[peer] - 1, 16), REST_MS_MAX))

    def praise(self, peer: PeerId) -> None:
        """It helped: the next request may begin with it."""
        self.context.network.praise(peer)
        self.failures.pop(peer, None)
        self.helped.pop(peer, None)
        self.helped[peer] = None
        _forget_first(self.helped)


def _forget_first(remembered: dict[PeerId, Any]) -> None:
    """At most PEERS_REMEMBERED_MAX: strangers can have any number of names."""
    while len(remembered) > PEERS_REMEMBERED_MAX:
        del remembered[next(iter(remembered))]


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

    `ask` raises NetworkError or Missing when the peer did not help, and Invalid when what it said is false. The next
    candidate is asked when one has failed, or has been silent for HEDGE_MS: then it is one of HEDGED_MAX at a time.
    """
    tried: list[str] = []
    answers: list[T] = []
    places = trio.Semaphore(HEDGED_MAX)
    async with trio.open_nursery() as nursery:

        async def attempt(peer: PeerId, ended: trio.Event) -> None:
            began_s = trio.current_time()
            try:
                answers.extend(await _attempt(sources, peer, ask, tried))
            except trio.Cancelled:
                took_ms = int((trio.current_time() - began_s) * 1_000)
                # Another was quicker: begin with that one next time; but who had no time to answer has not failed.
                if answers and took_ms >= HEDGE_MS:
                    sources.failed(peer, took_ms)
                raise
            if answers:
                nursery.cancel_scope.cancel()
            ended.set()
            places.release()

        for number, peer in enumerate(await sources.candidates()):
            await places.acquire()
            sources.context.counters["fetch.hedged"] += number > len(tried)
            ended = trio.Event()
            nursery.start_soon(attempt, peer, ended)
            with trio.move_on_after(HEDGE_MS / 1_000):
                await ended.wait()
    if answers:
        return answers[0]
    sources.forget_lookup()
    raise Missing(what, f"{key} ({len(tried)} peers tried: {', '.join(tried) or 'none known'})")


async def _attempt(
    sources: Sources, peer: PeerId, ask: Callable[[PeerId], Awaitable[T]], tried: list[str]
) -> list[T]:
    """Ask one source: its answer, or nothing; then `tried` says why, and what it did is held against the source."""
    began_s = trio.current_time()
    try:
        await sources.reach(peer)
        found = await _ask_at_its_rate(ask, peer)
    except RequestFailed as failure:
        tried.append(failure.code.name)
        if failure.retryable:
            sources.rest(peer, max(limits.FETCH_COOLDOWN_MS, failure.retry_after_ms))
    except NetworkError as error:
        tried.append(type(error).__name__)
        sources.failed(peer, int((trio.current_time() - began_s) * 1_000))
    except Missing:  # it has something else, or less: no fault of its
        tried.append("not held")
    except WorldError as error:
        tried.append(f"false answer ({error})")
        sources.context.counters["fetch.false_answer"] += 1
        if isinstance(error, HashMismatch):  # else it may be the head, the epoch or the version that differs
            sources.context.network.mark(peer, "false answer")
        sources.rest(peer, FALSE_ANSWER_REST_MS)
    else:
        sources.praise(peer)
        return [found]
    return []


async def _ask_at_its_rate(ask: Callable[[PeerId], Awaitable[T]], peer: PeerId) -> T:
    """Ask; a source that says when to come again is no bad one: whoever is far behind asks faster than it lets."""
    waited_ms = wait_ms = 0
    while True:
        try:
            return await ask(peer)
        except RequestFailed as failure:
            # Others of this node wait for the same tokens: each time a little longer.
            wait_ms = max(1, failure.retry_after_ms) + wait_ms
            waited_ms += wait_ms
            if failure.code is not Code.ERR_RATE_LIMITED or waited_ms > RATE_WAIT_MS_MAX:
                raise
        await sleep_ms(wait_ms)


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

"""Gossip repair for nonces: a sequencer asks for the envelopes that it missed, and whoever holds them answers.

Hides: whom to ask, and how often. Guarantees: only checked envelopes of the asked actor and nonces are handed on; an
answer is bounded and comes from the own disk and memory: whoever is asked asks nobody, so nothing goes in a circle.
Implements docs/protocol.md, sections "Methods" (get_envelopes) and "Gossip" (repair).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import trio

from p2p import names
from p2p.errors import NetworkError, RequestFailed
from p2p.network import PeerId, SendPart
from runtime import codec, limits, rules
from runtime.errors import Invalid, WorldError
from runtime.gaps import GapLedger
from runtime.messages import Body, Empty, EnvelopesRequest
from runtime.records import ActionEnvelope, Envelope, sealed_from_value
from runtime.sequencing import Gap
from runtime.services.context import Context
from runtime.services.fetch import FALSE_ANSWER_REST_MS, Sources
from runtime.services.methods import Handlers
from runtime.services.trail import station

GAP_TRY_MS: Final = 2_000
NO_GATEWAY_REST_MS: Final = 30_000
LIST_HEAD_BYTES: Final = 5
_log = logging.getLogger(__name__)

Lookup = Callable[[bytes, int], Envelope | None]
"""The envelope held for (actor, nonce), or None."""


class EnvelopeDesk:
    """Answers get_envelopes from what the roles of this node hold: outbox, mempool."""

    def __init__(self, lookups: Sequence[Lookup]) -> None:
        self._lookups = tuple(lookups)

    def handlers(self) -> Handlers:
        return {"get_envelopes": self.get_envelopes}

    async def get_envelopes(self, caller: PeerId, request: EnvelopesRequest, send: SendPart) -> Body:
        """Parts of at most PART_BYTES_MAX, ascending by nonce."""
        del caller
        part: list[bytes] = []
        size = LIST_HEAD_BYTES
        for nonce in range(request.nonce, request.nonce + request.count):
            envelope = self._find(request.actor_id, nonce)
            if envelope is None:
                continue
            data = envelope.to_bytes()
            if part and size + len(data) > names.PART_BYTES_MAX:
                await send(codec.array_of(part))
                part, size = [], LIST_HEAD_BYTES
            part.append(data)
            size += len(data)
        if part:
            await send(codec.array_of(part))
        return Empty()

    def _find(self, actor_id: bytes, nonce: int) -> Envelope | None:
        found = (lookup(actor_id, nonce) for lookup in self._lookups)
        return next((envelope for envelope in found if envelope is not None), None)


class GapMender:
    """Asks for the gaps of one mempool. `hold` takes a checked envelope and says whether it was missing."""

    def __init__(
        self,
        context: Context,
        world_id: str,
        envelope_bytes_max: int,
        gaps: Callable[[], list[Gap]],
        hold: Callable[[Envelope, PeerId], bool],
    ) -> None:
        self._context = context
        self._world_id = world_id
        self._envelope_bytes_max = envelope_bytes_max
        self._gaps = gaps
        self._hold = hold
        self._ledger = GapLedger(lambda period_ms: int(context.jittered_s(period_ms) * 1_000))
        # Of its own: a peer that is no gateway rests here, and is as good as any for blobs.
        self._sources = Sources(context, world_id)

    async def run(self) -> NoReturn:
        """Look for gaps every GAP_ROUND_MS and ask for those that are due."""
        while True:
            await trio.sleep(self._context.jittered_s(limits.GAP_ROUND_MS))
            found = self._ledger.found
            due = self._ledger.due(self._gaps(), int(trio.current_time() * 1_000))
            self._context.counters["mempool.gaps_found"] += self._ledger.found - found
            for gap in due:
                await self._mend(gap)

    async def _mend(self, gap: Gap) -> None:
        """Ask until somebody had any of it, GAP_PEERS_MAX peers at most."""
        self._context.counters["mempool.gaps_asked"] += 1
        for peer in await self._candidates(gap):
            try:
                await self._sources.reach(peer)
                envelopes = await self._ask(peer, gap)
            except RequestFailed as failure:
                rest_ms = max(failure.retry_after_ms, limits.FETCH_COOLDOWN_MS)
                self._sources.rest(peer, rest_ms if failure.retryable else NO_GATEWAY_REST_MS)
                continue
            except NetworkError:
                self._sources.rest(peer, limits.FETCH_COOLDOWN_MS)
                continue
            except WorldError:
                self._context.counters["mempool.gap_false_answer"] += 1
                self._sources.rest(peer, FALSE_ANSWER_REST_MS)
                continue
            mended = [envelope for envelope in envelopes if self._hold(envelope, peer)]
            self._context.counters["mempool.gap_envelopes_repaired"] += len(mended)
            station(_log, "mended", self._world_id, mended)
            if envelopes:
                return
        self._context.counters["mempool.gaps_not_repaired"] += 1

    async def _candidates(self, gap: Gap) -> list[PeerId]:
        """Whoever handed in the envelope after the gap, then others; none that rests."""
        now_ms = self._context.now_ms()
        others = [peer for peer in await self._sources.candidates() if peer != gap.peer]
        first = [gap.peer] if gap.peer in self._context.network.peers() else []
        rests = self._sources.rests_until_ms
        return [peer for peer in (*first, *others) if rests.get(peer, 0) <= now_ms][: limits.GAP_PEERS_MAX]

    async def _ask(self, peer: PeerId, gap: Gap) -> list[Envelope]:
        """A peer's checked answer. Raises p2p errors, and Invalid when any of it is false."""
        count = min(gap.count, limits.ENVELOPES_PER_ANSWER_MAX)
        request = EnvelopesRequest(self._world_id, gap.actor_id, gap.nonce, count).to_bytes()
        bytes_max = count * (self._envelope_bytes_max + LIST_HEAD_BYTES)
        envelopes: list[Envelope] = []
        async with self._context.network.request_parts(
            peer, "get_envelopes", request, deadline_ms=GAP_TRY_MS, bytes_max=bytes_max
        ) as answer:
            while (part := await answer.part()) is not None:
                envelopes += self._listed(part, count - len(envelopes))
        await self._context.offload(lambda: self._check(envelopes, gap, count))
        return envelopes

    @staticmethod
    def _listed(part: bytes, count_max: int) -> list[Envelope]:
        listed = codec.decode(part, names.PART_BYTES_MAX, "get_envelopes")
        if type(listed) is not list or len(listed) > count_max:
            raise Invalid("get_envelopes", f"must be lists of at most {count_max} envelopes more")
        return [sealed_from_value(ActionEnvelope, item, "get_envelopes") for item in listed]

    def _check(self, envelopes: Sequence[Envelope], gap: Gap, count: int) -> None:
        nonces = [envelope.record.nonce for envelope in envelopes]
        if nonces != sorted(set(nonces)) or any(not 0 <= nonce - gap.nonce < count for nonce in nonces):
            raise Invalid("get_envelopes", "nonces that were not asked for, or not ascending")
        for envelope in envelopes:
            if envelope.record.actor_id != gap.actor_id:
                raise Invalid("get_envelopes.actor_id", "is another actor")
            rules.check_envelope(envelope, self._world_id, self._envelope_bytes_max)

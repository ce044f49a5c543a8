"""Which head a node believes to be the newest: heard by gossip, looked up in the DHT, asked of peers.

Hides: the three ways a head can arrive. Guarantees: every way goes through the same check; one bad head costs
nothing; the best head survives a restart; a head only ever says what to fetch, never what is true.
Implements docs/protocol.md, section "Head" (following) and "DHT".
"""

from __future__ import annotations

from typing import Final, NoReturn

import trio

from p2p import names
from p2p.errors import NetworkError
from p2p.network import Subscription
from runtime import chain, limits, messages, rules
from runtime.errors import StoreFull, WorldError
from runtime.records import BlockAnnounce, Genesis, WorldHeadAnnounce
from runtime.services.context import Context, Signal
from runtime.services.fetch import call
from runtime.world_tables import WorldTables

HEAD_POLL_MS: Final = 5_000
PEERS_ASKED_MAX: Final = 3


class HeadTracker:
    """One per world and node. `changed` wakes when `head` became better."""

    def __init__(self, context: Context, genesis: Genesis, tables: WorldTables) -> None:
        self._context = context
        self._genesis = genesis
        self._tables = tables
        self.world_id = genesis.header.world_id
        self.changed = Signal()
        self.follower = chain.HeadFollower(self.world_id)
        stored = tables.head()
        if stored is not None:
            self.offer(stored)

    @property
    def head(self) -> WorldHeadAnnounce | None:
        """The best head that was not found false."""
        return self.follower.best()

    @property
    def height(self) -> int:
        """Height of the best head; 0 before the first."""
        head = self.head
        return 0 if head is None else head.commit.record.height

    def offer(self, head: WorldHeadAnnounce) -> None:
        """Take a head that rules.check_head_message has accepted."""
        before = self.head
        try:
            verdict = self.follower.offer(head, self._context.now_ms())
        except WorldError:
            self._context.counters["head.false"] += 1
            return
        self._context.counters[f"head.{verdict.value}"] += 1
        if self.head is not before or verdict is chain.Offer.FORK:
            self.changed.wake()

    async def keep(self) -> None:
        """Write the best head to disk, where a restart finds it."""
        head = self.head
        if head is not None:
            rows = self._tables.put_head(head, self.follower.current)
            try:
                await self._context.offload(lambda: self._context.db.commit(rows))
            except StoreFull:  # it is found again after a restart, by asking
                self._context.counters["head.not_kept"] += 1

    async def listen(self, subscription: Subscription) -> NoReturn:
        """Heads as they are announced."""
        while True:
            message = await subscription.receive()
            self.offer(WorldHeadAnnounce.from_bytes(message.data))

    async def hear_blocks(self, blocks: Subscription) -> NoReturn:
        """A block above the best head says that its head was missed: whoever told of the block is asked for it."""
        while True:
            message = await blocks.receive()
            announce = BlockAnnounce.from_bytes(message.data)
            height = announce.block.height
            if height <= self.height or announce.attestation.record.executor_id not in self._executors():
                continue
            if await self._reaches(height, self._context.jittered_s(limits.GAP_FIRST_ASK_MS)):
                continue
            self._context.counters["head.gaps_found"] += 1
            for peer in dict.fromkeys((message.forwarder, message.author)):
                if self.height < height and peer in self._context.network.peers():
                    await self._ask(peer)
            self._context.counters["head.gaps_repaired"] += self.height >= height

    async def _reaches(self, height: int, seconds: float) -> bool:
        """Whether the best head comes to this height within so long: head and block are on their way together."""
        with trio.move_on_after(seconds):
            while self.height < height:
                await self.changed.wait()
        return self.height >= height

    def _executors(self) -> tuple[bytes, ...]:
        head = self.head
        return self._genesis.authorities.executors if head is None else head.authorities.authorities.executors

    async def poll(self) -> NoReturn:
        """When nothing was heard for a while: the DHT, then a few peers."""
        while True:
            before = self.head
            await self.look_up()
            if self.head is not before:
                await self.keep()
            while await self.changed.wait_at_most(self._context.jittered_s(HEAD_POLL_MS)):
                await self.keep()
                await trio.sleep(limits.BATCH_INTERVAL_MS / 1_000)

    async def look_up(self) -> None:
        """Ask the DHT and a few connected peers once."""
        try:
            record = await self._context.dht.get_record(names.head_key(self.world_id))
            if record is not None:
                self.offer(rules.check_head_message(record, self.world_id))
        except (NetworkError, WorldError):
            self._context.counters["head.lookup_failed"] += 1
        peers = self._context.network.peers()
        self._context.rng.shuffle(peers)
        for peer in peers[:PEERS_ASKED_MAX]:
            await self._ask(peer)

    async def freshest(self, head: WorldHeadAnnounce) -> WorldHeadAnnounce:
        """The same head with the newest as_of_ms that its certifier gives; the head as it is, when it gives none."""
        certifier = head.authorities.authorities.certifier
        request = messages.WorldRequest(world_id=self.world_id)
        try:
            answer = await call(
                self._context, certifier, "get_commit", request, messages.CommitAnswer, deadline_ms=5_000
            )
            commit = answer.commit
            if commit is None or commit.record.batch_hash != head.commit.record.batch_hash:
                return head
            chain.check_commit(head.authorities.authorities, commit, world_id=self.world_id)
        except (NetworkError, WorldError):
            self._context.counters["head.not_refreshed"] += 1
            return head
        if commit.record.as_of_ms <= head.commit.record.as_of_ms:
            return head
        fresh = WorldHeadAnnounce(head.header, head.authorities, commit, head.attestations, head.block_hash)
        self.offer(fresh)
        return fresh

    async def _ask(self, peer: bytes) -> None:
        request = messages.WorldRequest(world_id=self.world_id)
        try:
            answer = await call(
                self._context, peer, "get_world_head", request, messages.HeadAnswer, deadline_ms=2_000
            )
            if answer.head is not None:
                chain.check_head(answer.head, self.world_id)
                self.offer(answer.head)
        except NetworkError:
            return  # a peer without this world, or gone: the next poll asks others
        except WorldError:
            self._context.counters["head.false_answer"] += 1

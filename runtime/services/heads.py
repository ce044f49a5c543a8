"""Which head a node believes to be the newest: heard by gossip, looked up in the DHT, asked of peers.

Hides: the three ways a head can arrive. Guarantees: every way goes through the same check; one bad head costs
nothing; the best head survives a restart; a head only ever says what to fetch, never what is true.
Implements docs/protocol.md, section "Head" (following) and "DHT".
"""

from __future__ import annotations

from collections import deque
from typing import Final, NoReturn

import trio

from p2p import names
from p2p.errors import NetworkError
from p2p.network import Subscription
from runtime import chain, limits, messages, rules
from runtime.errors import StoreFull, WorldError
from runtime.records import BlockAnnounce, Commit, Genesis, Sealed, WorldHeadAnnounce
from runtime.services.authorities import Authorities
from runtime.services.context import Context, Signal
from runtime.services.evidence import EvidenceKeeper
from runtime.services.fetch import call
from runtime.world_tables import WorldTables

HEAD_POLL_MS: Final = 5_000
PEERS_ASKED_MAX: Final = 3
ROUNDS_A_LOOK_UP: Final = 4  # a look-up in the DHT costs a stream to each server, asking a peer one request
CLAIMS_WAITING_MAX: Final = 64


class HeadTracker:
    """One per world and node. `changed` wakes when `head` became better, and when the epoch ended or another began."""

    def __init__(
        self,
        context: Context,
        genesis: Genesis,
        tables: WorldTables,
        authorities: Authorities,
        evidence: EvidenceKeeper,
    ) -> None:
        self._context = context
        self._tables = tables
        self._authorities = authorities
        self._evidence = evidence
        self.world_id = genesis.header.world_id
        self.changed = Signal()
        self.claims: deque[BlockAnnounce] = deque(maxlen=CLAIMS_WAITING_MAX)  # for an executor to compare
        self.claimed = Signal()
        self.follower = chain.HeadFollower(self.world_id)
        for stored in (tables.head(), tables.applied_head()):
            if stored is not None:
                self.offer(stored)

    @property
    def head(self) -> WorldHeadAnnounce | None:
        """The best head of the epoch in force (or a later one) that was not found false."""
        self.follower.enter(self._authorities.epoch)
        return self.follower.best()

    @property
    def height(self) -> int:
        """Height of the best head; 0 before the first."""
        head = self.head
        return 0 if head is None else head.commit.record.height

    def offer(self, head: WorldHeadAnnounce) -> None:
        """Take a head that rules.check_head_message has accepted."""
        before, epoch = self.head, head.commit.record.epoch
        try:
            if epoch >= self._authorities.epoch:
                self._authorities.offer(head.authorities)
            if epoch == self._authorities.epoch and not self._is_ours(head):
                self._context.counters["head.not_believed"] += 1
                return
            verdict = self.follower.offer(head, self._context.now_ms())
        except WorldError:
            self._context.counters["head.false"] += 1
            return
        self._context.counters[f"head.{verdict.value}"] += 1
        if verdict is chain.Offer.FORK:
            self._tell_fork()
        if self.head is not before:
            self.changed.wake()

    def _is_ours(self, head: WorldHeadAnnounce) -> bool:
        """Whether the head is by the set in force and somebody vouches for it whom this node still believes."""
        if head.authorities.authorities.hash() != self._authorities.current.hash():
            return False
        believed = [
            item for item in head.attestations if not self._evidence.distrusts(item.record.executor_id)
        ]
        for attestation in believed:
            self._evidence.saw_attestation(attestation)
        return bool(believed)

    def saw_commit(self, commit: Sealed[Commit]) -> None:
        """A commit, by whatever way it came; two of one height are a fork. Raises Invalid when it is not the set's."""
        if self.follower.saw_commit(self._authorities.current, commit):
            self._tell_fork()

    def _tell_fork(self) -> None:
        fork = self.follower.evidence
        if fork is not None and fork.epoch == self._authorities.epoch:
            self._evidence.report(fork)

    async def watch_epoch(self) -> NoReturn:
        """Wake those who wait for a head when a set is taken up, or its epoch is halted."""
        while True:
            await self._authorities.changed.wait()
            self.follower.enter(self._authorities.epoch)
            self.changed.wake()

    async def keep(self, applied: WorldHeadAnnounce | None = None) -> None:
        """Write the best head to disk, where a restart finds it; and one whose block was applied before it was made."""
        head = self.head
        if head is not None:
            rows = self._tables.put_head(head)
            if applied is not None:
                rows += self._tables.put_applied_head(applied)
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
            self._evidence.saw_attestation(announce.attestation)
            if announce.attestation.record.executor_id not in self._authorities.current.executors:
                continue  # anybody can sign one: it is nothing to compare with, and takes no place of what is
            self.claims.append(announce)
            self.claimed.wake()
            height = announce.block.height
            if height <= self.height:
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

    async def poll(self) -> NoReturn:
        """When nothing was heard for a while: a few peers; and the DHT where they do not tell, and now and then."""
        rounds = 0
        while True:
            before = self.head
            is_told = await self._ask_some()
            if not is_told or rounds % ROUNDS_A_LOOK_UP == 0:
                await self._look_up()
            rounds += 1
            if self.head is not before:
                await self.keep()
            while await self.changed.wait_at_most(self._context.jittered_s(HEAD_POLL_MS)):
                await self.keep()
                await trio.sleep(limits.BATCH_INTERVAL_MS / 1_000)

    async def _ask_some(self) -> bool:
        """Ask a few connected peers; whether any of them gave a head of the last minute: an old one tells nothing."""
        peers = self._context.network.peers()
        self._context.rng.shuffle(peers)
        told = [await self._ask(peer) for peer in peers[:PEERS_ASKED_MAX]]
        return any(told)

    async def _look_up(self) -> None:
        """Ask the DHT."""
        try:
            record = await self._context.dht.get_record(names.head_key(self.world_id))
            if record is not None:
                self.offer(rules.check_head_message(record, self.world_id))
        except (NetworkError, WorldError):
            self._context.counters["head.lookup_failed"] += 1

    async def freshest(self, head: WorldHeadAnnounce) -> WorldHeadAnnounce:
        """The same head with the newest as_of_ms that its certifier gives; the head as it is, when it gives none."""
        certifier = head.authorities.authorities.certifier
        request = messages.WorldRequest(world_id=self.world_id)
        try:
            answer = await call(
                self._context, certifier, "get_commit", request, messages.CommitAnswer, deadline_ms=5_000
            )
            self._authorities.offer(answer.authorities)
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

    async def _ask(self, peer: bytes) -> bool:
        """What this peer holds to be the head; whether it gave one that is not older than HEAD_AGE_MS_MAX."""
        request = messages.WorldRequest(world_id=self.world_id)
        try:
            answer = await call(
                self._context, peer, "get_world_head", request, messages.HeadAnswer, deadline_ms=2_000
            )
            if answer.head is not None:
                chain.check_head(answer.head, self.world_id)
                self.offer(answer.head)
                age_ms = self._context.now_ms() - answer.head.commit.record.as_of_ms
                return age_ms <= limits.HEAD_AGE_MS_MAX
            # Before the first height of an epoch only this tells of it.
            known = await call(
                self._context, peer, "get_commit", request, messages.CommitAnswer, deadline_ms=2_000
            )
            self._authorities.offer(known.authorities)
        except NetworkError:  # a peer without this world, or gone: the next poll asks others
            return False
        except WorldError:
            self._context.counters["head.false_answer"] += 1
        return False

"""Order: which envelopes are cut next, who may propose, and what the certifier certifies. Decisions only.

Hides: the mempool's bookkeeping. Guarantees: an invalid call changes nothing; an envelope is never cut while a
predecessor of it is neither taken nor in the same batch; two different batches are never certified at one height of
one epoch; terms never start over. The lease gives liveness only: safety is the compare-and-set that stores a commit.
Implements docs/protocol.md, section "Order".
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from runtime import codec, limits
from runtime.batches import check_batch_form
from runtime.errors import Busy, Corrupt, Denied, Ignored, Invalid, Mismatch
from runtime.heads import check_commit
from runtime.records import (
    ActionBatch,
    ActionEnvelope,
    AuthoritySet,
    Commit,
    Envelope,
    Genesis,
    LeaseGrant,
    Sealed,
    WorldLimits,
)

# --- mempool -----------------------------------------------------------------------------------------------

LIST_HEAD_BYTES: Final = 5
ITEM_MEMORY_BYTES: Final = 64  # an empty list or map of CPython
EVICTED_AT_ONCE: Final = 64  # where there is no room for one more: the next newcomers need not look again
NOTHING_AHEAD: Final = limits.MEMPOOL_NONCES_AHEAD_MAX
EVICTION_LOOKS_MAX: Final = (
    2  # at all that waits, for one share and for the whole, until `expire` is called again
)


@dataclass(slots=True)
class _Actor:
    """One actor's waiting envelopes, by nonce. `next_nonce`: the first that no commit has taken, as far as known."""

    next_nonce: int
    waiting: dict[int, Envelope] = field(default_factory=dict)
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Gap:
    """Nonces that an actor's waiting envelopes wait for. `peer` handed in the envelope after them."""

    actor_id: bytes
    nonce: int
    count: int
    peer: bytes


@dataclass(frozen=True, slots=True)
class _Held:
    """Who handed in an envelope that is held, and what it takes."""

    peer: bytes
    size_bytes: int


@dataclass(slots=True)
class _Share:
    """What one submitting peer has in the mempool."""

    count: int = 0
    size_bytes: int = 0
    looks: int = 0  # for something to evict, since `expire`
    vain_ahead: int = NOTHING_AHEAD  # from here on a look would find nothing that waits for more


def footprint_bytes(envelope: Envelope) -> int:
    """About what an envelope takes in memory: an item of one byte on the wire is an object here."""
    items = sum(codec.count_items(payload) for _kind, payload in envelope.record.actions)
    return len(envelope.to_bytes()) + items * ITEM_MEMORY_BYTES


def check_timely(record: ActionEnvelope, height: int, now_ms: int, bounds: WorldLimits) -> None:
    """Raises Denied for what no block soon after `height` may take: it would hold a place as long as it likes."""
    if record.expires_at_height > height + bounds.expiry_blocks_max:
        raise Denied(
            "envelope.expires_at_height",
            f"more than {bounds.expiry_blocks_max} (expiry_blocks_max) above {height}",
        )
    ahead_ms = record.timestamp_ms - now_ms
    if ahead_ms > bounds.action_skew_ms:
        raise Denied(
            "envelope.timestamp_ms", f"{ahead_ms} ms ahead, at most {bounds.action_skew_ms} (action_skew_ms)"
        )


class ActionMempool:
    """Envelopes that wait for a batch. Their signatures are verified before they come here.

    Bounds: MEMPOOL_ENVELOPES_MAX and MEMPOOL_BYTES_MAX in all, MEMPOOL_NONCES_AHEAD_MAX nonces and
    MEMPOOL_ACTOR_BYTES_MAX per actor, MEMPOOL_PEER_ENVELOPES_MAX and MEMPOOL_PEER_BYTES_MAX per submitting peer.
    Bytes are those that an envelope takes in memory, `footprint_bytes`. When it, or the share of a peer, is full, the
    envelope with the highest nonce ahead of its actor's next goes first, and `add` returns what had to go. To find it
    all that waits is looked at, which strangers must not cause for each envelope: EVICTION_LOOKS_MAX.
    """

    def __init__(self) -> None:
        self._actors: dict[bytes, _Actor] = {}
        self._held: dict[bytes, _Held] = {}  # by envelope hash
        self._per_peer: dict[bytes, _Share] = {}
        # Nonces that commits have ordered and no applied block has taken yet; at most COMMIT_LEAD_MAX batches' worth.
        self._ordered: dict[bytes, int] = {}
        self.size_bytes = 0
        self._looks = 0  # as in a share
        self._vain_ahead = NOTHING_AHEAD

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, envelope_hash: bytes) -> bool:
        return envelope_hash in self._held

    def add(self, envelope: Envelope, peer: bytes, next_nonce: int) -> list[Envelope]:
        """Hold an envelope; gives those that were evicted for it. `next_nonce`: the actor's, by applied blocks.

        Raises Ignored (held already, or its nonce is taken or promised to another), Busy (a limit is reached).
        """
        digest, record, size = envelope.hash(), envelope.record, footprint_bytes(envelope)
        if digest in self._held:
            raise Ignored("duplicate")
        held = self._actors.get(record.actor_id)
        next_nonce = max(
            next_nonce, self._ordered.get(record.actor_id, 0), 0 if held is None else held.next_nonce
        )
        if record.nonce < next_nonce:
            raise Ignored(f"nonce {record.nonce} is taken, the next is {next_nonce}")
        if held is not None and record.nonce in held.waiting:
            raise Ignored(f"another envelope waits at nonce {record.nonce}")
        if record.nonce >= next_nonce + limits.MEMPOOL_NONCES_AHEAD_MAX:
            raise Busy("mempool_nonces_ahead_max", limits.BATCH_INTERVAL_MS)
        if held is not None and held.size_bytes + size > limits.MEMPOOL_ACTOR_BYTES_MAX:
            raise Busy("mempool_actor_bytes_max", limits.BATCH_INTERVAL_MS)
        ahead = record.nonce - next_nonce
        evicted = self._make_room_of(peer, size, ahead) + self._make_room(size, ahead)
        actor = self._actors.setdefault(record.actor_id, _Actor(next_nonce))
        actor.next_nonce = next_nonce
        actor.waiting[record.nonce] = envelope
        actor.size_bytes += size
        self.size_bytes += size
        self._held[digest] = _Held(peer, size)
        share = self._per_peer.setdefault(peer, _Share())
        share.count, share.size_bytes = share.count + 1, share.size_bytes + size
        return evicted

    def waiting(self) -> list[tuple[Envelope, bytes]]:
        """Everything that waits, with its submitting peer, each actor's envelopes in the order of their nonces."""
        return [
            (envelope, self._held[envelope.hash()].peer)
            for actor in self._actors.values()
            for _nonce, envelope in sorted(actor.waiting.items())
        ]

    def _make_room_of(self, peer: bytes, size: int, ahead: int) -> list[Envelope]:
        """Evict from a full share what waits for most others. Raises Busy, evicting nothing, when that makes no room.

        A gateway also passes on what strangers gossip: envelopes that wait for what never comes must not take the
        places of its own.
        """
        share = self._per_peer.get(peer, _Share())
        count_over = share.count + 1 - limits.MEMPOOL_PEER_ENVELOPES_MAX
        bytes_over = share.size_bytes + size - limits.MEMPOOL_PEER_BYTES_MAX
        if count_over <= 0 and bytes_over <= 0:
            return []
        name = "mempool_peer_envelopes_max" if count_over > 0 else "mempool_peer_bytes_max"
        if ahead >= share.vain_ahead or share.looks >= EVICTION_LOOKS_MAX:
            raise Busy(name, limits.BATCH_INTERVAL_MS)
        share.looks += 1
        bytes_over = max(bytes_over, self.size_bytes + size - limits.MEMPOOL_BYTES_MAX)
        of_peer = [
            (nonce - actor.next_nonce, actor_id, nonce)
            for actor_id, actor in self._actors.items()
            for nonce, envelope in actor.waiting.items()
            if self._held[envelope.hash()].peer == peer
        ]
        further = [waiting for waiting in of_peer if waiting[0] > ahead]
        plan: list[tuple[bytes, int]] = []
        for _ahead, actor_id, nonce in sorted(further, reverse=True):
            if len(plan) >= max(count_over, EVICTED_AT_ONCE) and bytes_over <= 0:
                break
            plan.append((actor_id, nonce))
            bytes_over -= self._held[self._actors[actor_id].waiting[nonce].hash()].size_bytes
        if len(plan) < count_over or bytes_over > 0:
            share.vain_ahead = ahead if further else max(of_peer, default=(0,))[0]
            raise Busy(name, limits.BATCH_INTERVAL_MS)
        return [self._remove(actor_id, nonce) for actor_id, nonce in plan]

    def _make_room(self, size: int, ahead: int) -> list[Envelope]:
        """Evict from the highest nonce ahead. Raises Busy, evicting nothing, when the newcomer is the one to go."""
        count_over = len(self) + 1 - limits.MEMPOOL_ENVELOPES_MAX
        bytes_over = self.size_bytes + size - limits.MEMPOOL_BYTES_MAX
        if count_over <= 0 and bytes_over <= 0:
            return []
        name = "mempool_envelopes_max" if count_over > 0 else "mempool_bytes_max"
        if ahead >= self._vain_ahead or self._looks >= EVICTION_LOOKS_MAX:
            raise Busy(name, limits.BATCH_INTERVAL_MS)
        self._looks += 1
        furthest = [
            (actor.next_nonce - max(actor.waiting), actor_id, sorted(actor.waiting))
            for actor_id, actor in self._actors.items()
        ]
        heapq.heapify(furthest)
        plan: list[tuple[bytes, int]] = []
        while count_over > 0 or bytes_over > 0 or len(plan) < EVICTED_AT_ONCE:
            if not furthest or -furthest[0][0] <= ahead:
                if count_over <= 0 and bytes_over <= 0:
                    break
                self._vain_ahead = ahead if plan or not furthest else -furthest[0][0]
                raise Busy(name, limits.BATCH_INTERVAL_MS)
            _ahead, actor_id, nonces = heapq.heappop(furthest)
            actor, nonce = self._actors[actor_id], nonces.pop()
            plan.append((actor_id, nonce))
            size_bytes = self._held[actor.waiting[nonce].hash()].size_bytes
            count_over, bytes_over = count_over - 1, bytes_over - size_bytes
            if nonces:
                heapq.heappush(furthest, (actor.next_nonce - nonces[-1], actor_id, nonces))
        return [self._remove(actor_id, nonce) for actor_id, nonce in plan]

    def _remove(self, actor_id: bytes, nonce: int) -> Envelope:
        actor = self._actors[actor_id]
        envelope = actor.waiting.pop(nonce)
        held = self._held.pop(envelope.hash())
        actor.size_bytes -= held.size_bytes
        self.size_bytes -= held.size_bytes
        share = self._per_peer[held.peer]
        share.count, share.size_bytes = share.count - 1, share.size_bytes - held.size_bytes
        if not share.count:
            del self._per_peer[held.peer]
        if not actor.waiting:
            del self._actors[actor_id]
        return envelope

    def cut_batch(self, height: int, now_ms: int, bounds: WorldLimits) -> list[Envelope]:
        """Envelopes for the batch at `height`, ordered by (timestamp_ms, hash), nonces of an actor in order.

        Cutting removes nothing: `settled` does, after the commit. What can no longer be taken is left to `expire`.
        """
        heads = {actor_id: actor.next_nonce for actor_id, actor in self._actors.items()}
        ready = [
            self._order(actor_id, nonce)
            for actor_id, nonce in heads.items()
            if self._ripe(actor_id, nonce, height, now_ms, bounds)
        ]
        heapq.heapify(ready)
        cut: list[Envelope] = []
        actions, size = 0, LIST_HEAD_BYTES
        while ready and len(cut) < bounds.batch_envelopes_max:
            _timestamp_ms, _digest, actor_id, nonce = heapq.heappop(ready)
            envelope = self._actors[actor_id].waiting[nonce]
            length, count = len(envelope.to_bytes()), len(envelope.record.actions)
            if size + length > bounds.batch_bytes_max or actions + count > bounds.batch_actions_max:
                break
            cut.append(envelope)
            actions, size = actions + count, size + length
            if self._ripe(actor_id, nonce + 1, height, now_ms, bounds):
                heapq.heappush(ready, self._order(actor_id, nonce + 1))
        return cut

    def _order(self, actor_id: bytes, nonce: int) -> tuple[int, bytes, bytes, int]:
        envelope = self._actors[actor_id].waiting[nonce]
        return (envelope.record.timestamp_ms, envelope.hash(), actor_id, nonce)

    def _ripe(self, actor_id: bytes, nonce: int, height: int, now_ms: int, bounds: WorldLimits) -> bool:
        """Whether the kernel would take it at this height and time, its predecessors being taken."""
        envelope = self._actors[actor_id].waiting.get(nonce)
        if envelope is None:
            return False
        record = envelope.record
        return (
            height <= record.expires_at_height <= height + bounds.expiry_blocks_max
            and record.timestamp_ms <= now_ms + bounds.action_skew_ms
        )

    def settled(self, envelopes: Sequence[Envelope]) -> None:
        """A commit has ordered these: forget them, and expect the nonces after them."""
        for envelope in envelopes:
            record = envelope.record
            self._ordered[record.actor_id] = max(self._ordered.get(record.actor_id, 0), record.nonce + 1)
            if envelope.hash() in self._held:
                actor = self._actors[record.actor_id]
                actor.next_nonce = max(actor.next_nonce, record.nonce + 1)
                self._remove(record.actor_id, record.nonce)
            self._drop_below(record.actor_id, record.nonce + 1)

    def applied(self, actor_id: bytes, next_nonce: int) -> None:
        """A block was applied after which the actor's next nonce is this: what was ordered up to it is settled."""
        if self._ordered.get(actor_id, 0) <= next_nonce:
            self._ordered.pop(actor_id, None)

    def correct(self, actor_id: bytes, next_nonce: int) -> None:
        """An applied block says what the actor's next nonce is; it may be lower than a commit let expect."""
        self._ordered.pop(actor_id, None)
        if actor_id in self._actors:
            self._actors[actor_id].next_nonce = next_nonce
            self._drop_below(actor_id, next_nonce)

    def _drop_below(self, actor_id: bytes, nonce: int) -> None:
        actor = self._actors.get(actor_id)
        if actor is None:
            return
        actor.next_nonce = max(actor.next_nonce, nonce)
        for old in [held for held in actor.waiting if held < nonce]:
            self._remove(actor_id, old)

    def expire(self, height: int) -> list[Envelope]:
        """Drop and give what can no longer be taken at `height` or later; then newcomers may evict again."""
        self._looks, self._vain_ahead = 0, NOTHING_AHEAD
        for share in self._per_peer.values():
            share.looks, share.vain_ahead = 0, NOTHING_AHEAD
        dead = [
            (actor_id, nonce)
            for actor_id, actor in self._actors.items()
            for nonce, envelope in actor.waiting.items()
            if envelope.record.expires_at_height < height
        ]
        return [self._remove(actor_id, nonce) for actor_id, nonce in sorted(dead)]

    def held(self, actor_id: bytes, nonce: int) -> Envelope | None:
        """The envelope that waits at an actor's nonce."""
        actor = self._actors.get(actor_id)
        return None if actor is None else actor.waiting.get(nonce)

    def gaps(self) -> list[Gap]:
        """What the held envelopes wait for, by (actor, nonce)."""
        found = []
        for actor_id, actor in sorted(self._actors.items()):
            expected = actor.next_nonce
            for nonce in sorted(actor.waiting):
                if nonce > expected:
                    peer = self._held[actor.waiting[nonce].hash()].peer
                    found.append(Gap(actor_id, expected, nonce - expected, peer))
                expected = nonce + 1
        return found


# --- lease -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeaseManager:
    """Decides who may propose. State is the newest stored grant; a lease that was released has ttl_ms 0.

    `started_at_ms`: when this coordinator came up: its clock and memory from before are not trusted, so others than
    the last holder wait a full TTL.
    """

    world_id: str
    authorities: AuthoritySet
    started_at_ms: int
    ttl_ms: int = limits.LEASE_TTL_MS

    def remaining_ms(self, stored: LeaseGrant | None, now_ms: int) -> int:
        """How long the stored lease still binds; 0 when it is over."""
        if stored is None or stored.ttl_ms == 0 or stored.epoch != self.authorities.epoch:
            return 0  # every lease ends with its epoch
        since = max(stored.granted_at_ms, self.started_at_ms)
        # A clock that went back must not make a lease eternal: it never binds longer than one TTL from now.
        return max(0, min(stored.ttl_ms, since + stored.ttl_ms - now_ms))

    def acquire(self, stored: LeaseGrant | None, caller: bytes, now_ms: int, term_min: int = 1) -> LeaseGrant:
        """A grant of the next term. Raises Denied (no proposer), Busy (another holds it)."""
        self._check_proposer(caller)
        if stored is not None and stored.holder_id != caller:
            remaining = self.remaining_ms(stored, now_ms)
            if remaining:
                raise Busy("lease", remaining)
        term = max(term_min, 1 if stored is None else stored.term + 1)
        return self._grant(caller, term, now_ms, self.ttl_ms)

    def renew(self, stored: LeaseGrant | None, caller: bytes, term: int, now_ms: int) -> LeaseGrant:
        """The same term for another TTL. Raises Denied when it is not the caller's, or over."""
        self._check_holder(stored, caller, term)
        assert stored is not None
        if not self.remaining_ms(stored, now_ms):
            raise Denied("lease", f"term {term} is over: acquire again")
        return self._grant(caller, term, now_ms, self.ttl_ms)

    def release(self, stored: LeaseGrant | None, caller: bytes, term: int, now_ms: int) -> LeaseGrant:
        """The same term with nothing left of it. Raises Denied when it is not the caller's."""
        self._check_holder(stored, caller, term)
        return self._grant(caller, term, now_ms, 0)

    def _check_proposer(self, caller: bytes) -> None:
        if caller not in self.authorities.proposers:
            raise Denied("lease", "only a proposer of the set may hold it")

    def _check_holder(self, stored: LeaseGrant | None, caller: bytes, term: int) -> None:
        self._check_proposer(caller)
        held = stored is not None and stored.holder_id == caller and stored.term == term
        if not held or stored is None or stored.epoch != self.authorities.epoch:
            raise Denied("lease", f"term {term} is not held by the caller")

    def _grant(self, holder: bytes, term: int, now_ms: int, ttl_ms: int) -> LeaseGrant:
        return LeaseGrant(
            world_id=self.world_id,
            epoch=self.authorities.epoch,
            term=term,
            holder_id=holder,
            granted_at_ms=now_ms,
            ttl_ms=ttl_ms,
            certifier_id=self.authorities.certifier,
        )


# --- certifying --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Certified:
    """What is certified so far: the last batch with its commit (None before height 1) and the newest lease."""

    batch: ActionBatch | None
    commit: Sealed[Commit] | None
    lease: LeaseGrant | None
    attested_height: int


def certify(
    genesis: Genesis,
    authorities: AuthoritySet,
    so_far: Certified,
    caller: bytes,
    batch: Sealed[ActionBatch],
    actions: bytes,
    now_ms: int,
) -> Commit | None:
    """The commit to sign once it is durable; None when this very batch has its commit already.

    Raises Denied (no right to propose), Mismatch (another batch stands at that height: `detail` is its sealed commit),
    Busy (too far ahead of the attestations), Invalid (the batch is malformed).
    """
    record = batch.record
    height = 0 if so_far.batch is None else so_far.batch.height
    if (
        so_far.commit is not None
        and record.height == height
        and batch.hash() == so_far.commit.record.batch_hash
    ):
        return None
    _check_proposal(authorities, so_far, caller, record)
    if record.height != height + 1:
        detail = b"" if so_far.commit is None else so_far.commit.to_bytes()
        raise Mismatch("batch.height", f"{record.height}, the next is {height + 1}", detail)
    if height - so_far.attested_height >= limits.COMMIT_LEAD_MAX:
        raise Busy("commit_lead_max", limits.BATCH_INTERVAL_MS)
    header_hash = genesis.header.hash()
    parent_hash = header_hash if so_far.batch is None else so_far.batch.hash()
    parent_ms = genesis.header.created_ms if so_far.batch is None else so_far.batch.timestamp_ms
    latest_ms = max(parent_ms, now_ms + limits.BATCH_SKEW_MS)
    if record.timestamp_ms > latest_ms:
        raise Invalid("batch.timestamp_ms", f"{record.timestamp_ms}, at most {latest_ms} (batch_skew_ms)")
    check_batch_form(genesis, height, parent_hash, parent_ms, record, actions)
    batch.verify()
    return Commit(
        world_id=record.world_id,
        epoch=authorities.epoch,
        term=record.term,
        height=record.height,
        batch_hash=batch.hash(),
        certifier_id=authorities.certifier,
        as_of_ms=now_ms,
    )


def _check_proposal(authorities: AuthoritySet, so_far: Certified, caller: bytes, record: ActionBatch) -> None:
    """Epoch current; proposer in the set = lease holder = the connection's peer; term the newest granted."""
    if record.epoch != authorities.epoch:
        raise Denied("batch.epoch", f"{record.epoch}, the current one is {authorities.epoch}")
    if caller != record.proposer_id or caller not in authorities.proposers:
        raise Denied("batch.proposer_id", "is not the connection's peer, or no proposer of the set")
    lease = so_far.lease
    if lease is None or lease.holder_id != caller or lease.term != record.term:
        raise Denied("batch.term", f"{record.term} is not the newest lease of the proposer")


def resumed_commit(authorities: AuthoritySet, batch: ActionBatch, now_ms: int) -> Commit:
    """What the certifier of a new epoch signs first: the batch that it resumes from, in that batch's own term."""
    resume = authorities.resume
    assert resume is not None
    assert (resume.height, resume.batch_hash) == (batch.height, batch.hash()), "not the batch that is kept"
    return Commit(
        world_id=batch.world_id,
        epoch=authorities.epoch,
        term=batch.term,
        height=batch.height,
        batch_hash=batch.hash(),
        certifier_id=authorities.certifier,
        as_of_ms=now_ms,
    )


def check_memory(
    authorities: AuthoritySet, world_id: str, own_height: int, seen: Sealed[Commit] | None
) -> None:
    """Raise Corrupt when a commit of the own key and epoch lies above the own store: memory was lost, sign no more.

    Raises Invalid when `seen` is no commit of this certifier.
    """
    if seen is None or seen.record.epoch != authorities.epoch:
        return
    check_commit(authorities, seen, world_id=world_id)
    if seen.record.height > own_height:
        raise Corrupt(
            f"certifier's store of world {world_id}",
            f"ends at height {own_height}, but a commit of this key stands at {seen.record.height}",
            "restore the coordinator's store (data directory, or etcd), or start a new epoch with a new certifier key",
        )


def refreshed(commit: Commit, now_ms: int) -> Commit | None:
    """The same commit with a newer time, when the last one is COMMIT_REFRESH_MS old; None when it is fresh."""
    if now_ms < commit.as_of_ms + limits.COMMIT_REFRESH_MS:
        return None
    return Commit(
        world_id=commit.world_id,
        epoch=commit.epoch,
        term=commit.term,
        height=commit.height,
        batch_hash=commit.batch_hash,
        certifier_id=commit.certifier_id,
        as_of_ms=now_ms,
    )

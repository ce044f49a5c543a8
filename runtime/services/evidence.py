"""What was proved against whom: noticed, checked, kept, told to everybody.

Hides: which contradictions are looked for where. Guarantees: evidence counts only after its check against the set in
force; what halts takes effect at once and outlives a restart; one piece is kept for each kind, accused and epoch, so
that a thousand forks of one key cost no more than one. A wrong root counts where this node has replayed the height.
Implements docs/protocol.md, section "Evidence".
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Final, NoReturn, TypeAlias

import trio

from p2p import names
from p2p.errors import NetworkError, RequestFailed
from p2p.network import PeerId, SendPart, Subscription
from runtime import codec, limits, rules
from runtime.epoch_tables import EpochTables, KeptEvidence
from runtime.errors import Invalid, Missing, StoreFull, WorldError
from runtime.evidence import (
    AttestationFork,
    Evidence,
    Witness,
    WrongRootProof,
    check_evidence,
    compare_root,
)
from runtime.heads import check_attestation
from runtime.messages import Body, Empty, EvidenceItem, EvidenceRequest
from runtime.records import BlockAttestation, Genesis, LeaseGrant, Sealed, WorldBlock
from runtime.services.authorities import Authorities
from runtime.services.client import DistributedClient
from runtime.services.context import Context, Signal
from runtime.services.fetch import FALSE_ANSWER_REST_MS, Sources, sleep_ms
from runtime.services.methods import Handlers
from runtime.services.replica import Replica

ASKED_WAITING_MAX: Final = 64
ASKED_AT_ONCE_MAX: Final = 4  # an announcement costs nothing to make, so it must not cost much here
ASKED_OF_PEER_MAX: Final = 8  # waiting and under way
VAIN_ASK_MS: Final = 1_000  # each of them waits so long after one who has not what was announced
ASK_MS: Final = 5_000  # one who announces and then is slow keeps others waiting no longer than this
UNPROVED_MAX: Final = 64
EVIDENCE_POLL_MS: Final = 5_000
ITEMS_PER_PART: Final = 256
_Case: TypeAlias = tuple[str, bytes | None, int]
_log = logging.getLogger(__name__)


def _case(evidence: Evidence) -> _Case:
    return (evidence.NAME, evidence.accused, evidence.epoch)


def item_of(evidence: Evidence) -> EvidenceItem:
    """How evidence is announced and listed."""
    return EvidenceItem(kind=evidence.NAME, height=evidence.height, content_hash=evidence.hash())


class EvidenceKeeper:
    """One per world and node; owned by the node's one event loop, its rows by `_write`."""

    def __init__(
        self,
        context: Context,
        genesis: Genesis,
        tables: EpochTables,
        authorities: Authorities,
        sources: Sources,
        replica: Replica | None,
    ) -> None:
        self._context = context
        self._replica = replica
        self._genesis = genesis
        self._tables = tables
        self._authorities = authorities
        self._sources = sources
        self._witness = Witness()
        self._held: dict[bytes, KeptEvidence] = {kept.evidence.hash(): kept for kept in tables.all_evidence()}
        self._unwritten: list[KeptEvidence] = []
        self._forgotten: list[bytes] = []
        self._arrived = Signal()
        self._asked_of: Counter[PeerId] = Counter()
        self._asked, self._to_ask = trio.open_memory_channel[tuple[PeerId, bytes]](ASKED_WAITING_MAX)
        for kept in self._held.values():
            if kept.evidence.HALTS:
                authorities.halt(kept.evidence)

    def handlers(self) -> Handlers:
        return {"get_evidence": self.get_evidence}

    def items(self) -> list[EvidenceItem]:
        """Everything that is held, the newest epoch first."""
        held = sorted(self._held.values(), key=lambda kept: (-kept.evidence.epoch, kept.evidence.hash()))
        return [item_of(kept.evidence) for kept in held]

    def distrusts(self, executor_id: bytes) -> bool:
        """Whether this executor's attestations of the epoch in force count no longer on this node."""
        return any(
            kept.proved
            and kept.evidence.accused == executor_id
            and kept.evidence.epoch == self._authorities.epoch
            for kept in self._held.values()
            if isinstance(kept.evidence, AttestationFork | WrongRootProof)
        )

    # --- noticing ------------------------------------------------------------------------------------------

    def saw_lease(self, lease: Sealed[LeaseGrant]) -> None:
        """A grant that some answer held; one that is not of the set in force is not looked at."""
        current = self._authorities.current
        if lease.record.epoch != current.epoch or lease.record.certifier_id != current.certifier:
            return
        try:
            lease.verify()
        except Invalid:
            self._context.counters["evidence.false_lease"] += 1
            return
        fork = self._witness.saw_lease(lease)
        if fork is not None:
            self.report(fork)

    def saw_attestation(self, attestation: Sealed[BlockAttestation]) -> None:
        """An attestation of a head or of an announced block."""
        try:
            check_attestation(self._authorities.current, attestation)
        except Invalid:
            self._context.counters["evidence.foreign_attestation"] += 1
            return  # of another epoch, or of nobody: heads are judged elsewhere
        fork = self._witness.saw_attestation(attestation)
        if fork is not None:
            self.report(fork)

    def report(self, evidence: Evidence, *, proved: bool = True) -> bool:
        """Check evidence and let it take effect; True when it is new here. Raises Invalid for what proves nothing.

        `proved` is for a wrong root only: whether this node's own replay says so.
        """
        check_evidence(self._genesis, self._authorities.current, evidence)
        if not self._is_news(evidence, proved):
            return False
        kept = KeptEvidence(evidence, proved)
        self._held[evidence.hash()] = kept
        self._unwritten.append(kept)
        self._context.counters[f"evidence.{evidence.NAME}"] += 1
        if proved:
            who = "the root keys" if evidence.accused is None else names.peer_text(evidence.accused)
            _log.error("%s against %s: aw evidence show %s", evidence.NAME, who, evidence.hash().hex())
        if evidence.HALTS:
            self._authorities.halt(evidence)
        self._arrived.wake()
        return True

    def _is_news(self, evidence: Evidence, proved: bool) -> bool:
        """One proved piece for each kind, accused and epoch; of what is not proved a bounded number."""
        same = [kept for kept in self._held.values() if _case(kept.evidence) == _case(evidence)]
        if any(kept.proved for kept in same):
            return False
        if proved:
            return True
        return evidence.hash() not in self._held and len(self._unproved()) < UNPROVED_MAX

    def _unproved(self) -> list[WrongRootProof]:
        held = [kept.evidence for kept in self._held.values() if not kept.proved]
        return [proof for proof in held if isinstance(proof, WrongRootProof)]

    def _own_block(self, height: int) -> WorldBlock | None:
        if self._replica is None or not 0 < height <= self._replica.height:
            return None
        try:
            return self._replica.block_at(height)
        except Missing:  # a damaged blob, which is fetched again
            return None

    async def _judge(self) -> None:
        """What was not proved when it came, against each block that this node's own replay gives."""
        if self._replica is None or not self._replica.executes:
            return
        while True:
            for proof in self._unproved():
                own = self._own_block(proof.height)
                if own is not None:
                    self._judge_one(proof, own)
            await self._replica.applied.wait()

    def _judge_one(self, proof: WrongRootProof, own: WorldBlock) -> None:
        try:
            is_wrong = compare_root(proof, own)
        except Invalid:  # an honest attestation that somebody called wrong
            self._context.counters["evidence.disproved"] += 1
            self._forget(proof.hash())
            return
        if is_wrong and proof.epoch == self._authorities.epoch:
            tell_roots(proof, own)
            del self._held[proof.hash()]
            self.report(proof)

    def _forget(self, content_hash: bytes) -> None:
        del self._held[content_hash]
        self._forgotten.append(content_hash)
        self._arrived.wake()

    # --- loops ---------------------------------------------------------------------------------------------

    async def run(
        self, subscription: Subscription, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Write and tell what is found here, hear what others tell, and ask now and then: gossip may be lost."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, subscription)
            nursery.start_soon(self._hear, subscription)
            for _ in range(ASKED_AT_ONCE_MAX):
                nursery.start_soon(self._ask_for_announced)
            nursery.start_soon(self._poll)
            nursery.start_soon(self._judge)
            task_status.started()

    async def _write(self, subscription: Subscription) -> NoReturn:
        """Durable first, then gossip: who hears of it asks for it."""
        while True:
            fork = self._authorities.fork
            if fork is not None and fork.epoch == self._authorities.epoch and fork.hash() not in self._held:
                self.report(fork)
            for content_hash in self._surplus():
                self._forget(content_hash)
            for kept in self._unwritten[:]:
                if not await self._store(kept):
                    break
                self._unwritten.remove(kept)
                await subscription.publish(item_of(kept.evidence).to_bytes())
            with trio.move_on_after(EVIDENCE_POLL_MS / 1_000):
                await self._arrived.wait()

    async def _store(self, kept: KeptEvidence) -> bool:
        rows, forgotten = self._tables.put_evidence(kept), self._forgotten[:]
        for old in forgotten:
            rows += self._tables.drop_evidence(old)
        try:
            await self._context.offload(lambda: self._context.db.commit(rows))
        except StoreFull:
            self._context.counters["evidence.store_full"] += 1
            return False
        self._forgotten = [item for item in self._forgotten if item not in forgotten]
        return True

    def _surplus(self) -> list[bytes]:
        """What has to go: guesses about epochs that are over, then the oldest epochs."""
        guesses = [proof.hash() for proof in self._unproved() if proof.epoch < self._authorities.epoch]
        over = len(self._held) - len(guesses) - limits.EVIDENCE_MAX
        kept = [digest for digest in self._held if digest not in guesses]
        kept.sort(key=lambda digest: (self._held[digest].evidence.epoch, digest))
        return guesses + kept[: max(0, over)]

    async def _hear(self, subscription: Subscription) -> NoReturn:
        while True:
            message = await subscription.receive()
            item = rules.check_evidence_message(message.data)
            self._want(message.forwarder, item)

    def _want(self, peer: PeerId, item: EvidenceItem) -> None:
        if item.content_hash in self._held:
            return
        try:
            if self._asked_of[peer] >= ASKED_OF_PEER_MAX:
                raise trio.WouldBlock
            self._asked.send_nowait((peer, item.content_hash))
            self._asked_of[peer] += 1
        except trio.WouldBlock:  # told again, or found by asking
            self._context.counters["evidence.announced_dropped"] += 1

    async def _ask_for_announced(self) -> NoReturn:
        while True:
            peer, content_hash = await self._to_ask.receive()
            is_silent = self._sources.is_resting(peer, self._context.now_ms())
            if content_hash not in self._held and not is_silent and not await self._fetch(peer, content_hash):
                await sleep_ms(VAIN_ASK_MS)
            self._asked_of[peer] -= 1
            if not self._asked_of[peer]:
                del self._asked_of[peer]

    async def _fetch(self, peer: PeerId, content_hash: bytes) -> bool:
        """Whether the peer gave it, and it proves something."""
        try:
            client = DistributedClient(self._context.network, peer)
            self.take(await client.evidence(self._sources.world_id, content_hash, deadline_ms=ASK_MS))
            return True
        except (RequestFailed, Missing):
            self._context.counters["evidence.not_had"] += 1
        except NetworkError:
            self._sources.failed(peer, ASK_MS)
            self._context.counters["evidence.not_had"] += 1
        except WorldError as error:
            self._context.counters["evidence.false"] += 1
            self._sources.rest(peer, FALSE_ANSWER_REST_MS)
            _log.info("false evidence from %s: %s", names.peer_text(peer), error)
        return False

    def take(self, evidence: Evidence) -> bool:
        """Evidence that somebody else has found. Raises Invalid when it proves nothing."""
        if evidence.epoch != self._authorities.epoch:
            return False  # over, or not yet known here: no fault of who tells it
        if not isinstance(evidence, WrongRootProof):
            return self.report(evidence)
        own = self._own_block(evidence.height)
        is_wrong = own is not None and compare_root(evidence, own)
        if own is not None and is_wrong and self._replica is not None and self._replica.executes:
            tell_roots(evidence, own)
            return self.report(evidence)
        return self.report(evidence, proved=False)

    async def _poll(self) -> NoReturn:
        """Ask a connected peer for its list."""
        while True:
            await trio.sleep(self._context.jittered_s(EVIDENCE_POLL_MS))
            peers = self._context.network.peers()
            if not peers:
                continue
            peer = self._context.rng.choice(sorted(peers))
            try:
                client = DistributedClient(self._context.network, peer)
                for item in await client.evidence_items(self._sources.world_id):
                    self._want(peer, item)
            except (NetworkError, WorldError):
                self._context.counters["evidence.poll_failed"] += 1

    # --- serving -------------------------------------------------------------------------------------------

    async def get_evidence(self, caller: PeerId, request: EvidenceRequest, send: SendPart) -> Body:
        """Without a hash: parts are arrays of items. With one: parts are the bytes of that evidence's preimage."""
        del caller
        if request.content_hash is None:
            items = [item.to_bytes() for item in self.items()]
            for low in range(0, len(items), ITEMS_PER_PART):
                await send(codec.array_of(items[low : low + ITEMS_PER_PART]))
            return Empty()
        kept = self._held.get(request.content_hash)
        if kept is None:
            raise Missing("evidence", request.content_hash.hex())
        for part in _parts(kept.evidence.preimage()):
            await send(part)
        return Empty()


def _parts(blob: bytes) -> Iterator[bytes]:
    for offset in range(0, len(blob), names.PART_BYTES_MAX):
        yield blob[offset : offset + names.PART_BYTES_MAX]


def tell_roots(proof: WrongRootProof, own: WorldBlock) -> None:
    """Both roots, for whoever has to decide which executor goes."""
    _log.error(
        "height %d: executor %s attested block %s, state root %s; the replay here gives block %s, state root %s",
        own.height,
        names.peer_text(proof.accused),
        proof.block.hash().hex(),
        proof.block.state_root.hex(),
        own.hash().hex(),
        own.state_root.hex(),
    )

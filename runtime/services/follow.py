"""From a head to applied blocks: fetch what is missing, check it, apply it, in order.

Hides: the way from a head's one hash down to the height that is held, and up again.
Guarantees: only blocks that hash-link to a checked head are applied; a replaying node applies only what its own
execution gave. Memory is bounded by SYNC_BLOCKS_AHEAD_MAX heights; a crash resumes at the cursor.
Implements docs/protocol.md, sections "Results" and "Head" (following).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from p2p.errors import Code, RequestFailed
from p2p.names import peer_text
from runtime import chain, codec, limits, world
from runtime.errors import Diverged, HashMismatch, Invalid, Missing, UnknownVersion, WorldError
from runtime.evidence import WrongRootProof, is_fork
from runtime.messages import BatchAnswer, BatchRequest, BlocksRequest, BundleAnswer, BundleRequest
from runtime.records import ActionBatch, Commit, Envelope, Resume, Sealed, WorldBlock, WorldHeadAnnounce
from runtime.services.authorities import Authorities
from runtime.services.blobs import fetch_blob, fetch_from
from runtime.services.evidence import EvidenceKeeper
from runtime.services.fetch import TRY_MS, Sources, ask_any, ask_first, call
from runtime.services.heads import HeadTracker
from runtime.services.replica import Applied, Progress, Replica
from runtime.services.resume import is_resumed, resume, shared_height

WINDOW: Final = limits.BLOCKS_PER_ANSWER_MAX
WINDOW_BYTES_MAX: Final = WINDOW * (limits.BLOCK_BYTES_MAX + 16)
FETCH_TASKS_MAX: Final = 8
_log = logging.getLogger(__name__)


class OffChain(Invalid):
    """A head whose chain does not go through the block that is held: one of the two was not certified alone."""


async def follow(
    replica: Replica,
    tracker: HeadTracker,
    sources: Sources,
    progress: Progress,
    authorities: Authorities,
    evidence: EvidenceKeeper,
) -> None:
    """Apply whatever the best head leads to, for ever. A head that proves false is dropped, the next best is tried.

    At once, without a pause: whoever announces a false head at every height, and first, would else keep this node
    from ever trying the honest one. Each try takes a candidate away, so that nothing is tried in a circle.
    """
    counters, known_height = sources.context.counters, replica.height
    while True:
        if not is_resumed(replica, authorities.current):
            await resume(replica, authorities, sources)
        head = tracker.head
        if head is None or authorities.is_halted or not _leads_on(replica, head):
            await tracker.changed.wait()
            continue
        start, target = replica.height, head.commit.record.height
        known_height = max(known_height, start)
        if target > known_height:
            counters["follow.gap_heights_found"] += target - known_height - 1
            known_height = target
        try:
            async with _unless_changed(authorities):
                await sync_to(replica, head, sources, progress)
                counters["follow.gap_heights_repaired"] += max(0, target - start - 1)
                tracker.follower.applied(head)
        except Missing:
            counters["follow.missing"] += 1
            tracker.follower.set_aside(head)
        except Diverged as diverged:
            counters["follow.diverged"] += 1
            tracker.follower.refuse(head)
            await _accuse(head, diverged, sources, evidence)
        except OffChain:
            sources.context.counters["follow.off_chain"] += 1
            await _leave_false_chain(replica, head, tracker, sources)
        except (Invalid, UnknownVersion):
            counters["follow.false_head"] += 1
            tracker.follower.refuse(head)


@asynccontextmanager
async def _unless_changed(authorities: Authorities) -> AsyncGenerator[None, None]:
    """What is inside ends early when the epoch is halted or another one begins."""
    failure = None
    async with trio.open_nursery() as nursery:

        async def end_early() -> None:
            await authorities.changed.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(end_early)
        try:
            yield
        except WorldError as error:  # carried out of the nursery as itself, not as a group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _leads_on(replica: Replica, head: WorldHeadAnnounce) -> bool:
    """Whether the head is of the replica's epoch (a later one is taken up first), and tells more than the last one."""
    commit, reached = head.commit.record, replica.head
    if commit.epoch != replica.epoch or commit.height < replica.height:
        return False
    return reached is None or commit.height > reached.commit.record.height


async def _leave_false_chain(
    replica: Replica, head: WorldHeadAnnounce, tracker: HeadTracker, sources: Sources
) -> None:
    """The certified batches decide which of two chains is false: the head's, or what is held here.

    An executor that lied below a true commit may have led this node astray: what no commit is known for is given up.
    Where a commit is known of what would be given up, the certifier has signed both: that is for evidence.
    """
    commit, own = head.commit.record, replica.head
    try:
        shared, _above = await shared_height(replica, Resume(commit.height, commit.batch_hash), sources)
    except Missing:
        tracker.follower.set_aside(head)
        return
    except Invalid:
        tracker.follower.refuse(head)
        return
    if shared == replica.height:  # what is held here is certified: it is the head's blocks that are false
        tracker.follower.refuse(head)
    elif own is not None and shared < own.commit.record.height:
        tracker.follower.refuse(head)
        await look_for_fork(own.commit, tracker, sources)
    else:
        sources.context.counters["follow.led_astray"] += 1
        await replica.take_back(shared, replica.epoch)


async def look_for_fork(own: Sealed[Commit], tracker: HeadTracker, sources: Sources) -> None:
    """Ask around for another commit at the height of the own one: two are the evidence that halts."""
    request = BatchRequest(world_id=sources.world_id, height=own.record.height)

    def check(answer: BatchAnswer) -> None:
        if not is_fork(own, answer.commit):
            raise Missing("another commit", f"at height {own.record.height}")
        tracker.saw_commit(own)
        tracker.saw_commit(answer.commit)

    try:
        await ask_first(sources, "get_batch", request, BatchAnswer, check)
    except Missing:
        sources.context.counters["follow.no_fork_found"] += 1


async def _accuse(
    head: WorldHeadAnnounce, diverged: Diverged, sources: Sources, evidence: EvidenceKeeper
) -> None:
    """Whoever attested the head vouched for a block that the own replay does not give."""
    try:
        block = WorldBlock.from_preimage(
            await fetch_blob(sources, head.block_hash, limits.BLOCK_BYTES_MAX + 64)
        )
        for attestation in head.attestations:
            evidence.report(WrongRootProof(attestation, block))
    except WorldError as error:
        sources.context.counters["follow.not_accused"] += 1
        _log.info("%s, but no evidence of it: %s", diverged, error)
        return
    _log.error(
        "%s; attested by %s", diverged, [peer_text(one.record.executor_id) for one in head.attestations]
    )


async def sync_to(replica: Replica, head: WorldHeadAnnounce, sources: Sources, progress: Progress) -> None:
    """Apply every height up to the head's. Raises Missing (try later), Invalid or Diverged (the head is false)."""
    target = head.commit.record.height
    hashes = await skeleton(replica, head, sources)
    first = replica.height + 1
    failure: WorldError | None = None
    async with trio.open_nursery() as nursery:
        try:
            async with aclosing(_pipeline(replica, sources, hashes, first, nursery)) as materials:
                async for material in materials:
                    judged = await sources.context.offload(partial(_judged, replica, material, head))
                    # With the last block the head: what is held can be served, whatever comes next.
                    rows = replica.tables.put_applied_head(head) if judged.block.height == target else ()
                    await replica.apply(judged, rows)
                    progress(replica.height, target)
        except WorldError as error:  # carried out of the nursery as itself, not as a group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not hashes:  # the block was here already, of an epoch before or of a head that was lost
        rows = replica.tables.put_applied_head(head)
        await sources.context.store(f"head of height {target}", rows, (), keep=True)
    replica.reached(head)


async def skeleton(replica: Replica, head: WorldHeadAnnounce, sources: Sources) -> dict[int, bytes]:
    """Block hash of every height above the replica's, up to the head's, all hash-linked to the head.

    Block records are stored as they come; 32 bytes a height stay in memory. The next height alone needs no
    skeleton: whoever keeps up asks one question a height.
    """
    if head.commit.record.height == replica.height + 1:
        return {replica.height + 1: head.block_hash}
    expected, height = head.block_hash, head.commit.record.height
    hashes: dict[int, bytes] = {}
    while height > replica.height:
        low = max(replica.height + 1, height - WINDOW + 1)
        blocks = await _window(replica, sources, low, height, expected)
        records = [block.preimage() for block in blocks]
        await sources.context.store(f"block records {low}..{height}", (), records, keep=False)
        for block in blocks:
            hashes[block.height] = block.hash()
        expected, height = blocks[0].prev_block_hash, low - 1
    if expected != replica.block_hash:
        raise OffChain("head", f"does not build on the block held at height {replica.height}")
    return hashes


async def _window(
    replica: Replica, sources: Sources, low: int, high: int, expected: bytes
) -> list[WorldBlock]:
    """Blocks low..high, the last hashing to `expected` and each linking to the one before it."""
    if low == high:
        block = WorldBlock.from_preimage(await fetch_blob(sources, expected, limits.BLOCK_BYTES_MAX + 64))
        if block.height != high or block.world_id != replica.world_id:
            raise Invalid("block", f"is not height {high} of world {replica.world_id}")
        return [block]
    request = BlocksRequest(world_id=replica.world_id, from_height=low, count=high - low + 1).to_bytes()

    async def ask(peer: bytes) -> list[WorldBlock]:
        blocks: list[WorldBlock] = []
        async with sources.context.network.request_parts(
            peer, "get_blocks", request, deadline_ms=TRY_MS
        ) as answer:
            while (part := await answer.part()) is not None:
                listed = codec.decode(part, 1 << 20, "get_blocks")
                if type(listed) is not list or len(blocks) + len(listed) > WINDOW:
                    raise Invalid("get_blocks", f"must be lists of at most {WINDOW} blocks")
                blocks += [WorldBlock.from_value(item) for item in listed]
        # Another chain, or a shorter one, is not a false answer: it may be the head that is false.
        if len(blocks) != high - low + 1 or blocks[-1].hash() != expected:
            raise Missing("blocks", f"{low}..{high} under this head")
        link = expected
        for height, block in zip(range(high, low - 1, -1), reversed(blocks), strict=True):
            if block.hash() != link or block.height != height:
                raise Invalid("get_blocks", f"height {height} does not link to the one above")
            link = block.prev_block_hash
        return blocks

    return await ask_any(sources, "blocks", f"{low}..{high}", ask)


@dataclass(frozen=True, slots=True)
class _Material:
    """All that one height is made of, each piece checked against its hash."""

    block: WorldBlock
    batch: ActionBatch
    actions: bytes
    receipts: bytes
    journal: bytes


async def _pipeline(
    replica: Replica, sources: Sources, hashes: dict[int, bytes], first: int, nursery: trio.Nursery
) -> AsyncGenerator[_Material, None]:
    """Materials in order of height, a bounded number fetched ahead."""
    last = first + len(hashes) - 1
    slots: dict[
        int,
        tuple[
            trio.MemorySendChannel[_Material | WorldError], trio.MemoryReceiveChannel[_Material | WorldError]
        ],
    ]
    slots = {}

    async def fetch(height: int) -> None:
        try:
            found: _Material | WorldError = await _material(replica, sources, hashes[height])
        except WorldError as error:
            found = error
        await slots[height][0].send(found)

    started = first
    for height in range(first, last + 1):
        while started <= min(last, height + FETCH_TASKS_MAX - 1):
            slots[started] = trio.open_memory_channel(1)
            nursery.start_soon(fetch, started)
            started += 1
        found = await slots[height][1].receive()
        del slots[height]
        if isinstance(found, WorldError):
            raise found
        yield found


async def _material(replica: Replica, sources: Sources, block_hash: bytes) -> _Material:
    bounds = replica.genesis.body.limits
    held = await _bundle(replica, sources, block_hash)

    async def piece(content_id: bytes, bytes_max: int) -> bytes:
        return held.get(content_id) or await fetch_blob(sources, content_id, bytes_max)

    block = WorldBlock.from_preimage(await piece(block_hash, limits.BLOCK_BYTES_MAX + 64))
    batch = ActionBatch.from_preimage(await piece(block.batch_hash, limits.BATCH_RECORD_BYTES_MAX + 64))
    actions = await piece(batch.actions_ref, bounds.batch_bytes_max)
    if replica.executes:
        return _Material(block, batch, actions, b"", b"")
    receipts = await piece(block.receipts_ref, limits.LIST_BYTES_MAX)
    journal = await piece(block.journal_ref, limits.LIST_BYTES_MAX)
    return _Material(block, batch, actions, receipts, journal)


async def _bundle(replica: Replica, sources: Sources, block_hash: bytes) -> dict[bytes, bytes]:
    """What one peer gives of a height in one frame, by content id, each blob checked. Raises Missing."""
    request = BundleRequest(world_id=replica.world_id, block_hash=block_hash, lists=not replica.executes)

    async def ask(peer: bytes) -> dict[bytes, bytes]:
        try:
            answer = await call(
                sources.context, peer, "get_bundle", request, BundleAnswer, deadline_ms=TRY_MS
            )
        except RequestFailed as failure:
            if failure.code is not Code.ERR_UNSUPPORTED:
                raise
            # It serves blobs and knows nothing of worlds: then blob by blob.
            bytes_max = limits.BLOCK_BYTES_MAX + 64
            return {block_hash: await fetch_from(sources.context, peer, block_hash, bytes_max)}
        held = _checked_bundle(block_hash, answer)
        sources.context.counters["fetch.blobs"] += len(held)
        sources.context.counters["fetch.bytes"] += sum(len(blob) for blob in held.values())
        return held

    return await ask_any(sources, "block", block_hash.hex(), ask)


def _checked_bundle(block_hash: bytes, answer: BundleAnswer) -> dict[bytes, bytes]:
    """The blobs by content id; each must be what the ones before it name. Raises Invalid."""
    expected, held = [block_hash], dict[bytes, bytes]()
    for index, blob in enumerate(answer.blobs):
        content_id = codec.content_id(blob)
        if content_id != expected[index]:
            raise HashMismatch(expected[index], content_id)
        held[content_id] = blob
        if index == 0:
            block = WorldBlock.from_preimage(blob)
            expected.append(block.batch_hash)
        elif index == 1:
            expected += [ActionBatch.from_preimage(blob).actions_ref, block.receipts_ref, block.journal_ref]
    return held


def _judged(replica: Replica, material: _Material, head: WorldHeadAnnounce) -> Applied:
    """What a height gives: by execution where this node executes, by the block's roots where it only stores.

    Runs off the event loop: a committed batch may hold a megabyte of a stranger's CBOR.
    """
    block = material.block
    if block.prev_block_hash != replica.block_hash or block.height != replica.height + 1:
        raise OffChain("head", f"does not build on the block held at height {replica.height}")
    if block.height == head.commit.record.height and block.batch_hash != head.commit.record.batch_hash:
        raise Invalid("head.commit", "is of another batch than the block")
    envelopes = chain.check_batch_form(
        replica.genesis,
        replica.height,
        replica.batch_hash,
        replica.timestamp_ms,
        material.batch,
        material.actions,
    )
    if replica.executes:
        return _replayed(replica, material, envelopes)
    return _stored(material, envelopes)


def _replayed(replica: Replica, material: _Material, envelopes: list[Envelope]) -> Applied:
    assert replica.tip is not None
    signatures = world.check_signatures(envelopes)
    built = chain.verify_block(
        replica.genesis, replica.tip, material.batch, envelopes, signatures, material.block
    )
    return Applied(
        block=built.block,
        batch=material.batch,
        envelopes=tuple(envelopes),
        receipts=built.outcome.receipts,
        blobs=(*built.blobs.values(), material.batch.preimage(), material.actions),
        tip=built.tip,
    )


def _stored(material: _Material, envelopes: list[Envelope]) -> Applied:
    block = material.block
    receipts = chain.decode_receipts(material.receipts)
    chain.check_lists(block, receipts, chain.decode_events(material.journal))
    return Applied(
        block=block,
        batch=material.batch,
        envelopes=tuple(envelopes),
        receipts=receipts,
        blobs=(
            block.preimage(),
            material.batch.preimage(),
            material.actions,
            material.receipts,
            material.journal,
        ),
        tip=None,
    )

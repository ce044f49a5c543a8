"""How a node comes onto the chain that a new epoch keeps, and how what that chain lost comes back.

Hides: the walk down the batches. Guarantees: only what the resumed chain does not share is given up, in one
transaction; the chain is decided by batches (what was ordered), never by blocks (what was computed); an envelope of a
voided batch is submitted again until a new block has it or it is provably dead, also after a restart.
Implements docs/protocol.md, sections "Authorities" (resume) and "Actions" (acceptance).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Final, NoReturn

from p2p.errors import NetworkError
from p2p.network import PeerId
from runtime import limits
from runtime.epoch_tables import EpochTables
from runtime.errors import Corrupt, Invalid, Missing, WorldError
from runtime.messages import SubmitAnswer, SubmitRequest
from runtime.records import ActionBatch, AuthoritySet, Envelope, Resume
from runtime.services.authorities import Authorities
from runtime.services.blobs import fetch_blob
from runtime.services.context import Context
from runtime.services.fetch import Sources, call
from runtime.services.replica import Replica

BATCH_BLOB_BYTES_MAX: Final = limits.BATCH_RECORD_BYTES_MAX + 64
RESUME_RETRY_MS: Final = 1_000
RESUBMIT_MS: Final = 2_000
VOIDED_BATCHES_A_ROUND: Final = 16
RESUBMIT_CHUNK: Final = 64
RESUBMIT_DEADLINE_MS: Final = 10_000
_log = logging.getLogger(__name__)


def is_resumed(replica: Replica, authorities: AuthoritySet) -> bool:
    """Whether the applied blocks are of the chain that the set in force goes on with."""
    return replica.epoch == authorities.epoch


async def resume(
    replica: Replica, authorities: Authorities, sources: Sources, *, whole: bool = False
) -> dict[int, bytes]:
    """Bring the replica onto the chain of the set in force; gives the batch hashes above it, up to the resume height.

    Called by the one task that applies blocks. Waits and asks again while a batch of that chain cannot be had. Without
    `whole` a replica that holds nothing asks for nothing: whoever follows heads has no use for those hashes.
    """
    while True:
        current = authorities.current
        if current.resume is None:
            return {}
        try:
            shared, above = 0, dict[int, bytes]()
            if whole or replica.height:
                shared, above = await shared_height(replica, current.resume, sources)
        except Missing as missing:
            sources.context.counters["resume.missing"] += 1
            _log.warning("epoch %d waits for a batch: %s", current.epoch, missing)
        except Invalid as error:  # only other roots' signatures mend this
            sources.context.counters["resume.impossible"] += 1
            _log.error("epoch %d names no chain of this world: %s", current.epoch, error)
        else:
            if authorities.current is current:
                if not is_resumed(replica, current):
                    await replica.take_back(shared, current.epoch)
                return above
        await authorities.changed.wait_at_most(sources.context.jittered_s(RESUME_RETRY_MS))


async def shared_height(replica: Replica, kept: Resume, sources: Sources) -> tuple[int, dict[int, bytes]]:
    """The newest height that the replica shares with the chain below `kept`, and that chain's batch hashes above it.

    Raises Missing (nobody has a batch of it now), Invalid (it is no chain from this genesis).
    """
    height, expected = kept.height, kept.batch_hash
    above: dict[int, bytes] = {}
    while height > 0:
        if height <= replica.height and replica.block_at(height).batch_hash == expected:
            return height, above
        batch = await fetch_batch(sources, height, expected)
        above[height] = expected
        height, expected = height - 1, batch.prev_batch_hash
    if expected != replica.genesis.header.hash():
        raise Invalid("batches", "do not lead down to this world's header")
    return 0, above


async def fetch_batch(sources: Sources, height: int, batch_hash: bytes) -> ActionBatch:
    """A batch by its hash, stored here. Raises Missing, or Invalid for one that is not of this world and height."""
    blob = await fetch_blob(sources, batch_hash, BATCH_BLOB_BYTES_MAX)
    batch = ActionBatch.from_preimage(blob)
    if batch.height != height or batch.world_id != sources.world_id:
        raise Invalid("batch", f"{batch_hash.hex()} is not of height {height} of this world")
    context = sources.context
    if not context.db.blobs.has(batch_hash):
        await context.offload(lambda: context.db.commit((), (blob,)))
    return batch


# --- what was voided comes back ----------------------------------------------------------------------------


async def resubmit_voided(
    context: Context, replica: Replica, tables: EpochTables, authorities: Authorities
) -> NoReturn:
    """Submit the envelopes of voided batches again, to whichever gateway is reached, until new blocks have them."""
    while True:
        await authorities.changed.wait_at_most(context.jittered_s(RESUBMIT_MS))
        if authorities.is_halted or not is_resumed(replica, authorities.current):
            continue
        for height, batch_hash in tables.voided(VOIDED_BATCHES_A_ROUND):
            waiting = await context.offload(partial(_untaken, context, replica, batch_hash))
            if waiting:
                await _submit(context, replica.world_id, waiting)
                continue
            await context.offload(partial(context.db.commit, tables.settle_voided(height, batch_hash)))


def _untaken(context: Context, replica: Replica, batch_hash: bytes) -> list[Envelope]:
    """Envelopes of a voided batch that no applied block has, and that may still be taken."""
    try:
        batch = ActionBatch.from_preimage(context.db.blobs.get(batch_hash))
        envelopes = replica.decode_actions(context.db.blobs.get(batch.actions_ref))
    except Missing as error:
        raise Corrupt(f"voided batch {batch_hash.hex()}", str(error)) from error
    return [
        envelope
        for envelope in envelopes
        if not replica.tables.is_taken(envelope.hash())
        and envelope.record.nonce >= replica.tables.nonce(envelope.record.actor_id)
        and envelope.record.expires_at_height > replica.height
    ]


async def _submit(context: Context, world_id: str, envelopes: Sequence[Envelope]) -> None:
    """To the own gateway, or to the first peer that is one; refusals are looked at again in the next round."""
    peers = context.network.peers()
    context.rng.shuffle(peers)
    for low in range(0, len(envelopes), RESUBMIT_CHUNK):
        chunk = tuple(envelopes[low : low + RESUBMIT_CHUNK])
        for peer in (context.peer_id, *peers):
            if await _is_accepted(context, peer, SubmitRequest(world_id=world_id, envelopes=chunk)):
                context.counters["resume.resubmitted"] += len(chunk)
                break


async def _is_accepted(context: Context, peer: PeerId, request: SubmitRequest) -> bool:
    try:
        answer = await call(
            context, peer, "submit_actions", request, SubmitAnswer, deadline_ms=RESUBMIT_DEADLINE_MS
        )
    except (NetworkError, WorldError):  # no gateway, or not now
        return False
    return all(result.outcome == "accepted" for result in answer.results)

"""One labelled check for every way a record can come in: gossip topic, DHT key, rr method.

Hides: the order of the checks. Guarantees: a [REJECT] depends on the message's bytes alone, so every honest peer
gives the same verdict; what depends on clock, height, state, authorities that are not in the message, or on an
unknown `v`, is [IGNORE]. Raises runtime errors only: Invalid = reject, Ignored and UnknownVersion = ignore.
Implements docs/protocol.md, sections "Gossip" and "DHT".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

from runtime import chain, codec, limits
from runtime.errors import Ignored, Invalid
from runtime.evidence import EVIDENCE
from runtime.messages import EvidenceItem
from runtime.records import (
    ActionBatch,
    ActionEnvelope,
    BlockAnnounce,
    Commit,
    Envelope,
    Sealed,
    WorldHeadAnnounce,
    sealed_from_value,
)

BatchMessage: TypeAlias = tuple[Sealed[ActionBatch], Sealed[Commit]]
# A message is met as gossip that is judged, as gossip that is read, as a record of the DHT: what was found good is kept
# for a while. It is found by its bytes alone, so nothing that happens meanwhile changes it.
CHECKED_HEADS_MAX = 256
CHECKED_BATCHES_MAX = 256
CHECKED_ACTION_MESSAGES_MAX = 32  # they are up to 60 KiB


def check_envelope(envelope: Envelope, world_id: str, envelope_bytes_max: int) -> None:
    """What every gateway, sequencer and relay asks of an envelope before it costs anything more."""
    # [REJECT] it is of this world
    if envelope.record.world_id != world_id:
        raise Invalid("envelope.world_id", f"is not {world_id}")
    # [REJECT] it is within the world's own size limit
    size = len(envelope.to_bytes())
    if size > envelope_bytes_max:
        raise Invalid("envelope", f"{size} bytes, at most {envelope_bytes_max} (envelope_bytes_max)")
    # [REJECT] its actor signed it
    envelope.verify()


@lru_cache(CHECKED_ACTION_MESSAGES_MAX)
def check_action_message(data: bytes, world_id: str, envelope_bytes_max: int) -> tuple[Envelope, ...]:
    """Gossip `.action`: a canonical list of 1..16 sealed envelopes, 60 KiB and 8,192 items in all."""
    # [REJECT] canonical, within size and counts
    value = codec.decode(
        data,
        limits.GOSSIP_ACTION_BYTES_MAX,
        "action_message",
        items_max=limits.GOSSIP_ACTION_ITEMS_MAX,
    )
    if type(value) is not list or not 1 <= len(value) <= limits.GOSSIP_ACTION_ENVELOPES_MAX:
        raise Invalid(
            "action_message", f"must be a list of 1..{limits.GOSSIP_ACTION_ENVELOPES_MAX} envelopes"
        )
    envelopes = tuple(
        sealed_from_value(ActionEnvelope, item, f"action_message[{i}]") for i, item in enumerate(value)
    )
    for envelope in envelopes:
        check_envelope(envelope, world_id, envelope_bytes_max)
    return envelopes


@lru_cache(CHECKED_BATCHES_MAX)
def check_batch_message(data: bytes, world_id: str) -> BatchMessage:
    """Gossip `.batch`: `[sealed batch, sealed commit]`, the commit being of that batch."""
    # [REJECT] canonical, a pair, both of this world
    value = codec.decode(data, limits.GOSSIP_PAIR_BYTES_MAX, "batch_message")
    if type(value) is not list or len(value) != 2:
        raise Invalid("batch_message", "must be [sealed batch, sealed commit]")
    batch, commit = sealed_from_value(ActionBatch, value[0]), sealed_from_value(Commit, value[1])
    if batch.record.world_id != world_id or commit.record.world_id != world_id:
        raise Invalid("batch_message.world_id", f"is not {world_id}")
    # [REJECT] the commit names the batch
    if commit.record.batch_hash != batch.hash() or commit.record.height != batch.record.height:
        raise Invalid("batch_message.commit", "is of another batch")
    # [REJECT] both are signed by whom they name (whether those have authority is state: [IGNORE], later)
    batch.verify()
    commit.verify()
    return batch, commit


def check_block_message(data: bytes, world_id: str) -> BlockAnnounce:
    """Gossip `.block`: `[block, sealed attestation]`, the attestation being of that block."""
    # [REJECT] canonical, of this world, about one block
    announce = BlockAnnounce.from_bytes(data)
    attestation = announce.attestation.record
    if announce.block.world_id != world_id or attestation.world_id != world_id:
        raise Invalid("block_announce.world_id", f"is not {world_id}")
    if attestation.block_hash != announce.block.hash() or attestation.height != announce.block.height:
        raise Invalid("block_announce.attestation", "is of another block")
    # [REJECT] the executor signed it
    announce.attestation.verify()
    return announce


@lru_cache(CHECKED_HEADS_MAX)
def check_head_message(data: bytes, world_id: str) -> WorldHeadAnnounce:
    """Gossip `.head` and the DHT record `/aw/world/<id>/head`: all of it is decided by its bytes."""
    # [REJECT] size first, then canonical, then header, authorities, commit and attestations
    head = WorldHeadAnnounce.from_bytes(data)
    chain.check_head(head, world_id)
    return head


def check_head_is_not_future(head: WorldHeadAnnounce, now_ms: int) -> None:
    """A head dated beyond the named skew is not for now."""
    # [IGNORE] clock
    ahead_ms = head.commit.record.as_of_ms - now_ms
    if ahead_ms > limits.HEAD_SKEW_MS:
        raise Ignored(f"head is dated {ahead_ms} ms ahead, at most {limits.HEAD_SKEW_MS} (head_skew_ms)")


def check_evidence_message(data: bytes) -> EvidenceItem:
    """Gossip `.evidence`: that there is evidence, and under which hash; the rest is asked for by rr."""
    # [REJECT] canonical, within its size
    item = EvidenceItem.from_bytes(data)
    # [IGNORE] a kind that a later version knows
    if item.kind not in EVIDENCE:
        raise Ignored(f"evidence of kind {item.kind} is not known here")
    return item


Rule: TypeAlias = Callable[[bytes], object]


def gossip_rules(world_id: str, envelope_bytes_max: int) -> dict[str, Rule]:
    """The check of every topic kind, closed over one world."""
    return {
        "action": lambda data: check_action_message(data, world_id, envelope_bytes_max),
        "batch": lambda data: check_batch_message(data, world_id),
        "block": lambda data: check_block_message(data, world_id),
        "head": lambda data: check_head_message(data, world_id),
        "evidence": check_evidence_message,
    }


@lru_cache(CHECKED_HEADS_MAX)
def head_record_world(key: str) -> str:
    """The world id inside a DHT key. Raises Invalid for any other key."""
    parts = key.split("/")
    if len(parts) != 5 or parts[:3] != ["", "aw", "world"] or parts[4] != "head":
        raise Invalid("key", "is not /aw/world/<world id>/head")
    if len(parts[3]) != limits.WORLD_ID_CHARS or len(codec.unbase32(parts[3], "key")) != 20:
        raise Invalid("key", "world id is not 32 base32 characters")
    return parts[3]

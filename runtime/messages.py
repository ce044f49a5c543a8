"""Bodies of the requests and answers of `/aw/rr/1`: canonical CBOR maps, open (unknown keys are ignored).

Hides: nothing; each class is one row of the method table. A body that exists is well formed and bounded.
Implements docs/protocol.md, section "Methods".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from runtime import codec, limits
from runtime.errors import Invalid
from runtime.records import (
    SIGNED_AUTHORITIES,
    Acceptance,
    ActionBatch,
    ActionEnvelope,
    Commit,
    Envelope,
    Genesis,
    LeaseGrant,
    Receipt,
    Sealed,
    SignedAuthorities,
    WorldBlock,
    WorldHeadAnnounce,
    sealed_kind,
)
from runtime.schema import (
    COUNT,
    FLAG,
    HASH,
    KEY_ID,
    WORLD_ID,
    Count,
    Flag,
    Hash,
    Height,
    KeyId,
    Kind,
    Name,
    Record,
    WorldId,
    bytes_between,
    int_between,
    list_of,
    nested,
    one_of,
    text_upto,
)

BODY_BYTES_MAX = 1 << 20
SMALL_BODY_BYTES_MAX = 64 * 1024
HAS_BLOBS_MAX = 1_024
PATH_HASHES_MAX = 64

_SEALED_COMMIT = sealed_kind(Commit)
_SEALED_BATCH = sealed_kind(ActionBatch)
_SEALED_LEASE = sealed_kind(LeaseGrant)
_SEALED_ACCEPTANCE = sealed_kind(Acceptance)
_SEALED_ENVELOPE = sealed_kind(ActionEnvelope)
_PATH = list_of(HASH, 0, PATH_HASHES_MAX)


def _check_counters(value: Any, field: str) -> None:
    if type(value) is not dict or len(value) > 1_024:
        raise Invalid(field, "must be a map of at most 1024 counters")
    for name, count in value.items():
        if type(name) is not str or type(count) is not int:
            raise Invalid(field, "must map text to integers")


def _check_words(value: Any, field: str) -> None:
    if type(value) is not dict or len(value) > 16:
        raise Invalid(field, "must be a map of at most 16 words")
    for name, word in value.items():
        if type(name) is not str or type(word) is not str or len(word) > 128:
            raise Invalid(field, "must map text to text of at most 128 characters")


class Body(Record):
    """Base of rr bodies: no `v`, no hash, unknown keys allowed."""

    __slots__ = ()
    VERSIONED: ClassVar[bool] = False
    CLOSED: ClassVar[bool] = False
    BYTES_MAX: ClassVar[int] = SMALL_BODY_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Empty(Body):
    """`a0`."""

    NAME: ClassVar[str] = "empty"


@dataclass(frozen=True, slots=True)
class HelloAnswer(Body):
    """What this peer speaks: rr versions, requests in flight per session, worlds held."""

    NAME: ClassVar[str] = "hello"

    versions: Annotated[tuple[int, ...], list_of(COUNT, 1, 16)]
    max_in_flight: Count
    worlds: Annotated[tuple[str, ...], list_of(WORLD_ID, 0, 64)]


@dataclass(frozen=True, slots=True)
class WorldRequest(Body):
    """get_genesis, get_world_head, get_commit, lease_get."""

    NAME: ClassVar[str] = "world_request"

    world_id: WorldId


@dataclass(frozen=True, slots=True)
class GenesisAnswer(Body):
    NAME: ClassVar[str] = "get_genesis"
    BYTES_MAX: ClassVar[int] = BODY_BYTES_MAX

    genesis: Annotated[Genesis, nested(Genesis)]


@dataclass(frozen=True, slots=True)
class HeadAnswer(Body):
    """`head` is absent before height 1."""

    NAME: ClassVar[str] = "get_world_head"

    head: Annotated[WorldHeadAnnounce, nested(WorldHeadAnnounce)] | None = None


@dataclass(frozen=True, slots=True)
class CommitAnswer(Body):
    """The authority set in force, and the newest commit with its freshest as_of_ms, if any."""

    NAME: ClassVar[str] = "get_commit"

    authorities: Annotated[SignedAuthorities, SIGNED_AUTHORITIES]
    commit: Annotated[Sealed[Commit], _SEALED_COMMIT] | None = None


@dataclass(frozen=True, slots=True)
class BlockRequest(Body):
    """By height, or by hash."""

    NAME: ClassVar[str] = "get_block"

    world_id: WorldId
    height: Height | None = None
    block_hash: Hash | None = None

    def check(self) -> None:
        if (self.height is None) == (self.block_hash is None):
            raise Invalid("get_block", "needs exactly one of height and block_hash")


@dataclass(frozen=True, slots=True)
class BlockAnswer(Body):
    NAME: ClassVar[str] = "get_block"

    block: Annotated[WorldBlock, nested(WorldBlock)]


@dataclass(frozen=True, slots=True)
class BlocksRequest(Body):
    """Parts: each a canonical list of consecutive blocks, from from_height upwards."""

    NAME: ClassVar[str] = "get_blocks"

    world_id: WorldId
    from_height: Height
    count: Annotated[int, int_between(1, limits.BLOCKS_PER_ANSWER_MAX)]


@dataclass(frozen=True, slots=True)
class BatchRequest(Body):
    NAME: ClassVar[str] = "get_batch"

    world_id: WorldId
    height: Height


@dataclass(frozen=True, slots=True)
class BatchAnswer(Body):
    """A committed batch; its envelopes are the blob `batch.actions_ref`."""

    NAME: ClassVar[str] = "get_batch"

    batch: Annotated[Sealed[ActionBatch], _SEALED_BATCH]
    commit: Annotated[Sealed[Commit], _SEALED_COMMIT]


BUNDLE_BLOBS_MAX = 5


@dataclass(frozen=True, slots=True)
class BundleRequest(Body):
    """A block by its hash, with what it is made of; `lists`: also what came of it."""

    NAME: ClassVar[str] = "get_bundle"

    world_id: WorldId
    block_hash: Hash
    lists: Flag


@dataclass(frozen=True, slots=True)
class BundleAnswer(Body):
    """Blobs in the order block, batch, actions, receipts, events; it ends before the first that has no room."""

    NAME: ClassVar[str] = "get_bundle"
    BYTES_MAX: ClassVar[int] = BODY_BYTES_MAX

    blobs: Annotated[
        tuple[bytes, ...], list_of(bytes_between(1, limits.BUNDLE_BYTES_MAX), 1, BUNDLE_BLOBS_MAX)
    ]

    def check(self) -> None:
        size = sum(len(blob) for blob in self.blobs)
        if size > limits.BUNDLE_BYTES_MAX:
            raise Invalid(
                "get_bundle.blobs",
                f"{size} bytes, at most {limits.BUNDLE_BYTES_MAX} (bundle_bytes_max)",
            )


@dataclass(frozen=True, slots=True)
class BlobRequest(Body):
    """fetch_blob: parts are raw bytes from offset on (absent: 0); `length` absent means to the end."""

    NAME: ClassVar[str] = "fetch_blob"

    content_hash: Hash
    offset: Count | None = None
    length: Count | None = None


@dataclass(frozen=True, slots=True)
class BlobEnd(Body):
    """The last frame of fetch_blob: the size of the whole blob."""

    NAME: ClassVar[str] = "fetch_blob"

    size: Count


@dataclass(frozen=True, slots=True)
class HasBlobsRequest(Body):
    NAME: ClassVar[str] = "has_blobs"

    hashes: Annotated[tuple[bytes, ...], list_of(HASH, 1, HAS_BLOBS_MAX)]


@dataclass(frozen=True, slots=True)
class HasBlobsAnswer(Body):
    NAME: ClassVar[str] = "has_blobs"

    has: Annotated[tuple[bool, ...], list_of(FLAG, 1, HAS_BLOBS_MAX)]


# --- submitting --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SubmitRequest(Body):
    NAME: ClassVar[str] = "submit_actions"
    BYTES_MAX: ClassVar[int] = BODY_BYTES_MAX

    world_id: WorldId
    envelopes: Annotated[tuple[Envelope, ...], list_of(_SEALED_ENVELOPE, 1, limits.SUBMIT_ENVELOPES_MAX)]


@dataclass(frozen=True, slots=True)
class SubmitResult(Body):
    """One envelope's fate: `accepted` (with the gateway's promise), `pooled` (a sequencer holds it in memory, no
    promise), or `refused` (with a reason word; retry_after_ms when trying later may help; next_nonce, by the gateway's
    own word, when the nonce was not free)."""

    NAME: ClassVar[str] = "submit_result"

    outcome: Annotated[str, one_of("accepted", "pooled", "refused")]
    acceptance: Annotated[Sealed[Acceptance], _SEALED_ACCEPTANCE] | None = None
    reason: Annotated[str, text_upto(64)] | None = None
    message: Annotated[str, text_upto(512)] | None = None
    retry_after_ms: Count | None = None
    next_nonce: Count | None = None


@dataclass(frozen=True, slots=True)
class SubmitAnswer(Body):
    """Results in the order of the request."""

    NAME: ClassVar[str] = "submit_actions"
    BYTES_MAX: ClassVar[int] = BODY_BYTES_MAX

    results: Annotated[
        tuple[SubmitResult, ...], list_of(nested(SubmitResult), 1, limits.SUBMIT_ENVELOPES_MAX)
    ]


@dataclass(frozen=True, slots=True)
class EnvelopesRequest(Body):
    """get_envelopes: an actor's envelopes at nonce..nonce+count-1 that are held but not known to be taken.

    Parts: each a canonical list of sealed envelopes, ascending by nonce; what is not held is left out.
    """

    NAME: ClassVar[str] = "get_envelopes"

    world_id: WorldId
    actor_id: KeyId
    nonce: Count
    count: Annotated[int, int_between(1, limits.ENVELOPES_PER_ANSWER_MAX)]


@dataclass(frozen=True, slots=True)
class ActionStatusRequest(Body):
    NAME: ClassVar[str] = "action_status"

    world_id: WorldId
    envelope_hash: Hash


@dataclass(frozen=True, slots=True)
class ActionStatusAnswer(Body):
    """`pending` (in the outbox), `taken` or `refused` by the kernel (at this place), `dead`, `unknown`."""

    NAME: ClassVar[str] = "action_status"

    stage: Annotated[str, one_of("pending", "taken", "refused", "dead", "unknown")]
    height: Height | None = None
    index: Count | None = None


# --- order -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeaseAcquireRequest(Body):
    """`commit`: the caller's newest sealed commit, if any, so that a certifier that lost its memory learns it."""

    NAME: ClassVar[str] = "lease_acquire"

    world_id: WorldId
    commit: Annotated[Sealed[Commit], _SEALED_COMMIT] | None = None


@dataclass(frozen=True, slots=True)
class LeaseTermRequest(Body):
    """lease_renew, lease_release."""

    NAME: ClassVar[str] = "lease_renew"

    world_id: WorldId
    term: Count


@dataclass(frozen=True, slots=True)
class LeaseAnswer(Body):
    """The lease in force (absent: none), and the last committed batch, which a new leader builds on."""

    NAME: ClassVar[str] = "lease_acquire"

    lease: Annotated[Sealed[LeaseGrant], _SEALED_LEASE] | None = None
    commit: Annotated[Sealed[Commit], _SEALED_COMMIT] | None = None
    batch: Annotated[Sealed[ActionBatch], _SEALED_BATCH] | None = None


@dataclass(frozen=True, slots=True)
class CommitBatchRequest(Body):
    """`actions` is the blob that batch.actions_ref names."""

    NAME: ClassVar[str] = "commit_batch"
    BYTES_MAX: ClassVar[int] = BODY_BYTES_MAX

    world_id: WorldId
    batch: Annotated[Sealed[ActionBatch], _SEALED_BATCH]
    actions: Annotated[bytes, bytes_between(1, limits.BATCH_BYTES_CEILING)]
    commit: Annotated[Sealed[Commit], _SEALED_COMMIT] | None = None


@dataclass(frozen=True, slots=True)
class CommitBatchAnswer(Body):
    NAME: ClassVar[str] = "commit_batch"

    commit: Annotated[Sealed[Commit], _SEALED_COMMIT]


@dataclass(frozen=True, slots=True)
class ExecuteBatchRequest(Body):
    """A committed batch with its envelopes, handed to an executor; idempotent by batch hash."""

    NAME: ClassVar[str] = "execute_batch"
    BYTES_MAX: ClassVar[int] = BODY_BYTES_MAX

    world_id: WorldId
    batch: Annotated[Sealed[ActionBatch], _SEALED_BATCH]
    commit: Annotated[Sealed[Commit], _SEALED_COMMIT]
    actions: Annotated[bytes, bytes_between(1, limits.BATCH_BYTES_CEILING)]


# --- evidence ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EvidenceItem(Body):
    """Gossip `.evidence`, and an item of a list: of what kind, about which height, under which hash to ask for it."""

    NAME: ClassVar[str] = "evidence_item"
    BYTES_MAX: ClassVar[int] = 512

    kind: Name
    height: Count
    content_hash: Hash


@dataclass(frozen=True, slots=True)
class EvidenceRequest(Body):
    """get_evidence: the evidence under this hash; without one, the list of all that is held."""

    NAME: ClassVar[str] = "get_evidence"

    world_id: WorldId
    content_hash: Hash | None = None


# --- proofs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReceiptRequest(Body):
    """Without `index`: every receipt of the envelope."""

    NAME: ClassVar[str] = "get_receipt"

    world_id: WorldId
    envelope_hash: Hash


@dataclass(frozen=True, slots=True)
class ProvedReceipt(Body):
    """A receipt and its place under a block's receipts_root."""

    NAME: ClassVar[str] = "proved_receipt"

    receipt: Annotated[Receipt, nested(Receipt)]
    index: Count
    count: Count
    path: Annotated[tuple[bytes, ...], _PATH]


@dataclass(frozen=True, slots=True)
class ReceiptAnswer(Body):
    """The block that took (or refused) the envelope, its receipts with paths, and what ties the block to a head:
    `head_block` (hashing to head.block_hash) and, when it is another one, the block's path under its history_root.
    `after`, the receipt behind the last in the block's list, shows that none is left out; absent at the list's end."""

    NAME: ClassVar[str] = "get_receipt"
    BYTES_MAX: ClassVar[int] = 512 * 1024

    head: Annotated[WorldHeadAnnounce, nested(WorldHeadAnnounce)]
    head_block: Annotated[WorldBlock, nested(WorldBlock)]
    block: Annotated[WorldBlock, nested(WorldBlock)]
    history_path: Annotated[tuple[bytes, ...], _PATH]
    receipts: Annotated[
        tuple[ProvedReceipt, ...], list_of(nested(ProvedReceipt), 1, limits.ACTIONS_PER_ENVELOPE_MAX)
    ]
    after: Annotated[ProvedReceipt, nested(ProvedReceipt)] | None = None


@dataclass(frozen=True, slots=True)
class StateProofRequest(Body):
    NAME: ClassVar[str] = "get_state_proof"

    world_id: WorldId
    namespace: Name
    key: Annotated[bytes, bytes_between(1, limits.KEY_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class StateProofAnswer(Body):
    """Head, its block, and the proof (canonical bytes of a StateProof) of one cell under block.state_root."""

    NAME: ClassVar[str] = "get_state_proof"
    BYTES_MAX: ClassVar[int] = 512 * 1024

    head: Annotated[WorldHeadAnnounce, nested(WorldHeadAnnounce)]
    block: Annotated[WorldBlock, nested(WorldBlock)]
    proof: Annotated[bytes, bytes_between(1, limits.PROOF_BYTES_MAX)]


# --- status ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorldStatus(Body):
    """One world as this node sees it. Heights are absent for roles that the node does not run."""

    NAME: ClassVar[str] = "world_status"

    world_id: WorldId
    name: Name
    epoch: Count
    head_height: Count
    committed: Count | None = None
    stored: Count | None = None
    executed: Count | None = None
    verified: Count | None = None
    state_root: Hash | None = None
    lease_holder: KeyId | None = None
    halted: Flag = False
    head_age_ms: Count | None = None
    halted_why: Annotated[str, text_upto(512)] | None = None
    evidence: Annotated[tuple[EvidenceItem, ...], list_of(nested(EvidenceItem), 0, 64)] | None = None


@dataclass(frozen=True, slots=True)
class GaugeReading(Body):
    """A quantity as it is now, its unit last in its name; `limit` names what bounds it, `limit_value` is that bound."""

    NAME: ClassVar[str] = "gauge"

    name: Annotated[str, text_upto(64)]
    value: Count
    labels: Annotated[dict[str, str], Kind(_check_words)]
    limit: Annotated[str, text_upto(64)] | None = None
    limit_value: Count | None = None


@dataclass(frozen=True, slots=True)
class StatusAnswer(Body):
    """A node's own account of itself; nobody has to believe it. The last three are absent where a node gives none."""

    NAME: ClassVar[str] = "status"
    BYTES_MAX: ClassVar[int] = 256 * 1024

    peer_id: KeyId
    roles: Annotated[tuple[str, ...], list_of(text_upto(32), 0, 16)]
    worlds: Annotated[tuple[WorldStatus, ...], list_of(nested(WorldStatus), 0, 64)]
    peers: Annotated[tuple[bytes, ...], list_of(KEY_ID, 0, 1_024)]
    counters: Annotated[dict[str, int], Kind(_check_counters)]
    limits: Annotated[dict[str, int], Kind(_check_counters)]
    gauges: Annotated[tuple[GaugeReading, ...], list_of(nested(GaugeReading), 0, 1_024)] | None = None
    uptime_ms: Count | None = None
    versions: Annotated[dict[str, str], Kind(_check_words)] | None = None


# --- gossip payloads ---------------------------------------------------------------------------------------


def encode_batch_message(batch: Sealed[ActionBatch], commit: Sealed[Commit]) -> bytes:
    """Gossip `.batch`: `[sealed batch, sealed commit]`."""
    return codec.array_of((batch.to_bytes(), commit.to_bytes()))


EMPTY = Empty().to_bytes()

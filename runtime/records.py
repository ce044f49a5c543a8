"""The records that cross the network: frozen, bounded, self-validating.

Hides: nothing; each class is one table of docs/protocol.md, section "Records", and docs/protocol.cddl.
Guarantees: a record that exists is well formed; a Sealed says who must have signed it and can check that.
Bytes: `record.to_bytes()`; hash and blob: `record.hash()`, `record.preimage()`; sealed: `[record, signature]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any, ClassVar, TypeAlias

from runtime import codec, limits
from runtime.errors import Invalid
from runtime.schema import (
    AMOUNT,
    KEY_ID,
    NAME,
    SIGNATURE,
    Coordinate,
    Count,
    Flag,
    Hash,
    Height,
    KeyId,
    Kind,
    Name,
    Record,
    WorldId,
    int_between,
    list_of,
    nested,
    one_of,
    tuple_of,
)
from runtime.seals import (
    SEAL_OVERHEAD_BYTES,
    Sealed,
    Signed,
    seal,
    sealed_from_bytes,
    sealed_from_value,
    sealed_kind,
)

# --- genesis and authorities -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resume(Record):
    """The last height kept by a new epoch, and its batch (height 0: the header hash)."""

    NAME: ClassVar[str] = "resume"
    BYTES_MAX: ClassVar[int] = 64
    VERSIONED: ClassVar[bool] = False

    height: Count
    batch_hash: Hash


@dataclass(frozen=True, slots=True)
class AuthoritySet(Record):
    """Who may propose, execute and certify in one epoch."""

    NAME: ClassVar[str] = "authorities"
    BYTES_MAX: ClassVar[int] = limits.AUTHORITIES_BYTES_MAX

    epoch: Count
    proposers: Annotated[tuple[bytes, ...], list_of(KEY_ID, 1, limits.PROPOSERS_MAX, ascending=True)]
    executors: Annotated[tuple[bytes, ...], list_of(KEY_ID, 1, limits.EXECUTORS_MAX, ascending=True)]
    certifiers: Annotated[tuple[bytes, ...], list_of(KEY_ID, 1, limits.CERTIFIERS_V1, ascending=True)]
    commit_threshold: Annotated[int, int_between(1, 1)]
    world_id: WorldId | None = None
    resume: Annotated[Resume, nested(Resume)] | None = None

    def check(self) -> None:
        later = self.epoch > 0
        if (self.world_id is not None) != later or (self.resume is not None) != later:
            raise Invalid(
                "authorities.epoch", "world_id and resume are present from epoch 1 on, and absent in epoch 0"
            )

    @property
    def certifier(self) -> bytes:
        """The one certifier of v1."""
        return self.certifiers[0]


@dataclass(frozen=True, slots=True)
class SignedAuthorities:
    """`[set, [[root index, signature], ...]]`: indexes ascending, exactly root_threshold of them; none in epoch 0."""

    authorities: AuthoritySet
    signatures: tuple[tuple[int, bytes], ...] = ()

    def to_value(self) -> list[codec.Value]:
        return [self.authorities.to_value(), [list(item) for item in self.signatures]]

    def to_bytes(self) -> bytes:
        """Canonical CBOR: what a file worlds/<world id>.authorities holds."""
        return codec.encode(self.to_value(), "authorities")

    @classmethod
    def from_bytes(cls, data: bytes) -> SignedAuthorities:
        """Read such a file. Raises Invalid or UnknownVersion."""
        return signed_authorities_from_value(codec.decode(data, SIGNED_AUTHORITIES_BYTES_MAX, "authorities"))


def signed_authorities_from_value(value: codec.Value, field: str = "authorities") -> SignedAuthorities:
    """Read `[set, signatures]`; count and signatures are judged against a header by genesis.check_authorities."""
    if type(value) is not list or len(value) != 2:
        raise Invalid(field, "must be [set, [[root index, signature], ...]]")
    signatures = _ROOT_SIGNATURES.unpack(value[1], f"{field}.signatures")
    _ROOT_SIGNATURES.check(signatures, f"{field}.signatures")
    if any(a[0] >= b[0] for a, b in pairwise(signatures)):
        raise Invalid(f"{field}.signatures", "root indexes must ascend")
    return SignedAuthorities(AuthoritySet.from_value(value[0], field), signatures)


SIGNED_AUTHORITIES_BYTES_MAX = limits.AUTHORITIES_BYTES_MAX + limits.ROOT_KEYS_MAX * 68 + 8
_ROOT_SIGNATURES = list_of(
    tuple_of(int_between(0, limits.ROOT_KEYS_MAX - 1), SIGNATURE), 0, limits.ROOT_KEYS_MAX
)


def _check_signed_authorities(value: Any, field: str) -> None:
    if type(value) is not SignedAuthorities:
        raise Invalid(field, "must be [set, [[root index, signature], ...]]")


SIGNED_AUTHORITIES = Kind(
    _check_signed_authorities, lambda value: value.to_value(), signed_authorities_from_value
)


@dataclass(frozen=True, slots=True)
class GenesisHeader(Record):
    """What the world id is made of."""

    NAME: ClassVar[str] = "genesis"
    BYTES_MAX: ClassVar[int] = 1_024

    name: Name
    root_keys: Annotated[tuple[bytes, ...], list_of(KEY_ID, 1, limits.ROOT_KEYS_MAX, ascending=True)]
    root_threshold: Annotated[int, int_between(1, limits.ROOT_KEYS_MAX)]
    authorities_hash: Hash
    body_hash: Hash
    created_ms: Count

    def check(self) -> None:
        if self.root_threshold > len(self.root_keys):
            raise Invalid(
                "genesis.root_threshold", f"must be at most the number of root keys, {len(self.root_keys)}"
            )

    @property
    def world_id(self) -> str:
        """First 160 bits of the header's hash as 32 lower-case base32 characters."""
        return codec.base32(self.hash()[:20])


@dataclass(frozen=True, slots=True)
class Bounds(Record):
    """The box that positions live in, both ends included, centimetres."""

    NAME: ClassVar[str] = "bounds"
    BYTES_MAX: ClassVar[int] = 256
    VERSIONED: ClassVar[bool] = False

    x_min_cm: Coordinate
    x_max_cm: Coordinate
    y_min_cm: Coordinate
    y_max_cm: Coordinate
    z_min_cm: Coordinate
    z_max_cm: Coordinate

    def check(self) -> None:
        for axis in "xyz":
            if getattr(self, f"{axis}_min_cm") > getattr(self, f"{axis}_max_cm"):
                raise Invalid(f"bounds.{axis}_min_cm", f"must be at most {axis}_max_cm")


@dataclass(frozen=True, slots=True)
class WorldLimits(Record):
    """Limits that every implementation must share; batch limits hold for ever."""

    NAME: ClassVar[str] = "limits"
    BYTES_MAX: ClassVar[int] = 512
    VERSIONED: ClassVar[bool] = False

    batch_envelopes_max: Annotated[int, int_between(1, limits.BATCH_ENVELOPES_CEILING)]
    batch_actions_max: Annotated[
        int, int_between(limits.ACTIONS_PER_ENVELOPE_MAX, limits.BATCH_ACTIONS_CEILING)
    ]
    batch_bytes_max: Annotated[int, int_between(limits.ENVELOPE_BYTES_MAX + 8, limits.BATCH_BYTES_CEILING)]
    envelope_bytes_max: Annotated[int, int_between(1_024, limits.ENVELOPE_BYTES_MAX)]
    block_fuel_max: Annotated[int, int_between(1, limits.BLOCK_FUEL_CEILING)]
    agents_per_actor_max: Annotated[int, int_between(1, limits.AGENTS_PER_ACTOR_CEILING)]
    expiry_blocks_max: Annotated[int, int_between(1, limits.EXPIRY_BLOCKS_CEILING)]
    action_skew_ms: Annotated[int, int_between(0, limits.ACTION_SKEW_MS_CEILING)]


# Kinds that mention the module `limits` stand outside of GenesisBody, whose field of that name would hide it.
_RESOURCE_KINDS = list_of(NAME, 0, limits.RESOURCE_KINDS_MAX, ascending=True)
_BALANCES = list_of(tuple_of(KEY_ID, NAME, AMOUNT), 0, limits.GENESIS_BALANCES_MAX)
_CHECKPOINT_INTERVAL = int_between(1, limits.CHECKPOINT_INTERVAL_CEILING)


@dataclass(frozen=True, slots=True)
class GenesisBody(Record):
    """Kernel parameters, initial balances, limits: everything that decides what a replay gives."""

    NAME: ClassVar[str] = "genesis_body"
    BYTES_MAX: ClassVar[int] = limits.GENESIS_BYTES_MAX
    VERSIONED: ClassVar[bool] = False

    bounds: Annotated[Bounds, nested(Bounds)]
    max_move_cm: Count
    resource_kinds: Annotated[tuple[str, ...], _RESOURCE_KINDS]
    balances: Annotated[tuple[tuple[bytes, str, int], ...], _BALANCES]
    limits: Annotated[WorldLimits, nested(WorldLimits)]
    checkpoint_interval: Annotated[int, _CHECKPOINT_INTERVAL]
    max_block_gap_ms: Count
    # `list` and the fields that come with it (admitted, manifest, governors, engine) are not in first light.
    admission: Annotated[str, one_of("open")]

    def check(self) -> None:
        pairs = [(actor, kind) for actor, kind, _amount in self.balances]
        if any(not a < b for a, b in pairwise(pairs)):
            raise Invalid("genesis_body.balances", "must ascend by (actor, kind) without equals")
        totals = dict.fromkeys(self.resource_kinds, 0)
        for index, (_actor, kind, amount) in enumerate(self.balances):
            if kind not in totals:
                raise Invalid(f"genesis_body.balances[{index}]", f"kind {kind} is not in resource_kinds")
            totals[kind] += amount
            if totals[kind] > limits.AMOUNT_MAX:
                raise Invalid(
                    f"genesis_body.balances[{index}]", f"the total of {kind} is over {limits.AMOUNT_MAX}"
                )


@dataclass(frozen=True, slots=True)
class Genesis(Record):
    """The file that a world begins with. Its parts are bound by the header: see genesis.check_genesis."""

    NAME: ClassVar[str] = "genesis_file"
    BYTES_MAX: ClassVar[int] = limits.GENESIS_BYTES_MAX

    header: Annotated[GenesisHeader, nested(GenesisHeader)]
    body: Annotated[GenesisBody, nested(GenesisBody)]
    authorities: Annotated[AuthoritySet, nested(AuthoritySet)]


# --- actions -----------------------------------------------------------------------------------------------


def _check_action(value: Any, field: str) -> None:
    if type(value) is not tuple or len(value) != 2:
        raise Invalid(field, "must be [kind, payload]")
    kind, payload = value
    if type(kind) is not str or not 1 <= len(kind.encode()) <= limits.NAME_CHARS_MAX:
        raise Invalid(f"{field}.kind", f"must be text of 1..{limits.NAME_CHARS_MAX} bytes")
    if type(payload) is not dict:
        raise Invalid(f"{field}.payload", "must be a map")


def _unpack_action(value: codec.Value, field: str) -> tuple[codec.Value, ...]:
    if type(value) is not list:
        raise Invalid(field, "must be [kind, payload]")
    return tuple(value)


_ACTION = Kind(_check_action, list, _unpack_action)


@dataclass(frozen=True, slots=True)
class ActionEnvelope(Signed):
    """One signature for 1..64 actions of one actor. `actions` is ((kind, payload map), ...)."""

    NAME: ClassVar[str] = "envelope"
    BYTES_MAX: ClassVar[int] = limits.ENVELOPE_BYTES_MAX - SEAL_OVERHEAD_BYTES
    SIGNER: ClassVar[str] = "actor_id"

    world_id: WorldId
    actor_id: KeyId
    nonce: Count
    expires_at_height: Height
    timestamp_ms: Count
    atomic: Flag
    actions: Annotated[
        tuple[tuple[str, dict[str, Any]], ...],
        list_of(_ACTION, 1, limits.ACTIONS_PER_ENVELOPE_MAX),
    ]

    def check(self) -> None:
        items = sum(codec.count_items(payload) for _kind, payload in self.actions)
        if items > limits.ENVELOPE_ITEMS_MAX:
            raise Invalid(
                "envelope.actions",
                f"{items} items in payloads, at most {limits.ENVELOPE_ITEMS_MAX} (envelope_items_max)",
            )


@dataclass(frozen=True, slots=True)
class Acceptance(Signed):
    """The gateway's promise: the envelope is on its disk and is sent until taken or provably dead."""

    NAME: ClassVar[str] = "acceptance"
    BYTES_MAX: ClassVar[int] = limits.ACCEPTANCE_BYTES_MAX
    SIGNER: ClassVar[str] = "gateway_id"

    world_id: WorldId
    envelope_hash: Hash
    gateway_id: KeyId
    accepted_at_ms: Count
    stage: Annotated[str, one_of("local", "replicated")]


# --- order -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ActionBatch(Signed):
    """The proposer's order for one height. `actions_ref` is the blob with the canonical list of sealed envelopes."""

    NAME: ClassVar[str] = "batch"
    BYTES_MAX: ClassVar[int] = limits.BATCH_RECORD_BYTES_MAX
    SIGNER: ClassVar[str] = "proposer_id"

    world_id: WorldId
    epoch: Count
    term: Count
    height: Height
    prev_batch_hash: Hash
    envelope_count: Count
    actions_root: Hash
    actions_ref: Hash
    proposer_id: KeyId
    timestamp_ms: Count


@dataclass(frozen=True, slots=True)
class LeaseGrant(Signed):
    """The right to propose, for ttl_ms from granted_at_ms by the certifier's clock."""

    NAME: ClassVar[str] = "lease"
    BYTES_MAX: ClassVar[int] = limits.LEASE_BYTES_MAX
    SIGNER: ClassVar[str] = "certifier_id"

    world_id: WorldId
    epoch: Count
    term: Count
    holder_id: KeyId
    granted_at_ms: Count
    ttl_ms: Count
    certifier_id: KeyId


@dataclass(frozen=True, slots=True)
class Commit(Signed):
    """This batch, and no other, is final at this height of this epoch."""

    NAME: ClassVar[str] = "commit"
    BYTES_MAX: ClassVar[int] = limits.COMMIT_BYTES_MAX
    SIGNER: ClassVar[str] = "certifier_id"

    world_id: WorldId
    epoch: Count
    term: Count
    height: Height
    batch_hash: Hash
    certifier_id: KeyId
    as_of_ms: Count


# --- results -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorldBlock(Record):
    """What a committed batch gave: a pure function of genesis and the committed batches, unsigned."""

    NAME: ClassVar[str] = "block"
    BYTES_MAX: ClassVar[int] = limits.BLOCK_BYTES_MAX

    world_id: WorldId
    height: Height
    prev_block_hash: Hash
    batch_hash: Hash
    state_root: Hash
    event_root: Hash
    journal_ref: Hash
    receipts_root: Hash
    receipts_ref: Hash
    history_root: Hash
    term: Count
    proposer_id: KeyId
    timestamp_ms: Count
    fuel_used: Count
    manifest_hash: Hash | None = None


@dataclass(frozen=True, slots=True)
class SnapshotRef(Record):
    """A snapshot manifest that an executor vouches for; outside consensus."""

    NAME: ClassVar[str] = "snapshot"
    BYTES_MAX: ClassVar[int] = 64
    VERSIONED: ClassVar[bool] = False

    height: Height
    ref: Hash


@dataclass(frozen=True, slots=True)
class BlockAttestation(Signed):
    """An executor vouches for a block."""

    NAME: ClassVar[str] = "attestation"
    BYTES_MAX: ClassVar[int] = limits.ATTESTATION_BYTES_MAX
    SIGNER: ClassVar[str] = "executor_id"

    world_id: WorldId
    epoch: Count
    height: Height
    block_hash: Hash
    executor_id: KeyId
    snapshot: Annotated[SnapshotRef, nested(SnapshotRef)] | None = None


_COMMIT = sealed_kind(Commit)
_ATTESTATIONS = list_of(sealed_kind(BlockAttestation), 1, limits.ATTESTATIONS_PER_HEAD_MAX)


@dataclass(frozen=True, slots=True)
class WorldHeadAnnounce(Record):
    """All that a stranger needs to judge the newest height, with no network and no prior knowledge.

    Judged by chain.check_head: this class only knows the shape.
    """

    NAME: ClassVar[str] = "head"
    BYTES_MAX: ClassVar[int] = limits.HEAD_BYTES_MAX

    header: Annotated[GenesisHeader, nested(GenesisHeader)]
    authorities: Annotated[SignedAuthorities, SIGNED_AUTHORITIES]
    commit: Annotated[Sealed[Commit], _COMMIT]
    attestations: Annotated[tuple[Sealed[BlockAttestation], ...], _ATTESTATIONS]
    block_hash: Hash

    def check(self) -> None:
        ids = [item.record.executor_id for item in self.attestations]
        if any(not a < b for a, b in pairwise(ids)):
            raise Invalid("head.attestations", "executors must ascend without equals")


def _check_code(value: Any, field: str) -> None:
    if type(value) is not str or not (
        value.isascii() and value.isalpha() and len(value) <= limits.NAME_CHARS_MAX
    ):
        raise Invalid(field, f"must be 1..{limits.NAME_CHARS_MAX} ASCII letters")


@dataclass(frozen=True, slots=True)
class Receipt(Record):
    """The kernel's outcome of one action, or (without `index`) of a refused envelope."""

    NAME: ClassVar[str] = "receipt"
    BYTES_MAX: ClassVar[int] = limits.RECEIPT_BYTES_MAX
    VERSIONED: ClassVar[bool] = False

    envelope_hash: Hash
    code: Annotated[str, Kind(_check_code, plain=True)]
    index: Annotated[int, int_between(0, limits.ACTIONS_PER_ENVELOPE_MAX - 1)] | None = None


def _check_map(value: Any, field: str) -> None:
    if type(value) is not dict:
        raise Invalid(field, "must be a map")


@dataclass(frozen=True, slots=True)
class Event(Record):
    """Something that happened, by which action, and what changed (`data`, its keys by kind)."""

    NAME: ClassVar[str] = "event"
    BYTES_MAX: ClassVar[int] = limits.EVENT_BYTES_MAX
    VERSIONED: ClassVar[bool] = False

    kind: Annotated[str, Kind(_check_code, plain=True)]
    envelope_hash: Hash
    index: Annotated[int, int_between(0, limits.ACTIONS_PER_ENVELOPE_MAX - 1)]
    data: Annotated[dict[str, Any], Kind(_check_map)]


ANNOUNCES_CACHED_MAX = 64


@dataclass(frozen=True, slots=True)
class BlockAnnounce:
    """Gossip `.block`: `[block, sealed attestation]`."""

    block: WorldBlock
    attestation: Sealed[BlockAttestation]

    def to_bytes(self) -> bytes:
        return codec.encode([self.block.to_value(), self.attestation.to_value()], "block_announce")

    @staticmethod
    @lru_cache(ANNOUNCES_CACHED_MAX)
    def from_bytes(data: bytes) -> BlockAnnounce:
        """Read it. The last few are kept: gossip's check and whoever reads the message see the same one."""
        value = codec.decode(data, limits.GOSSIP_PAIR_BYTES_MAX, "block_announce")
        if type(value) is not list or len(value) != 2:
            raise Invalid("block_announce", "must be [block, sealed attestation]")
        return BlockAnnounce(WorldBlock.from_value(value[0]), sealed_from_value(BlockAttestation, value[1]))


# --- lists of envelopes ------------------------------------------------------------------------------------

Envelope: TypeAlias = Sealed[ActionEnvelope]
LISTS_CACHED_MAX = 4  # of at most BATCH_BYTES_CEILING each


def encode_envelopes(envelopes: list[Envelope]) -> bytes:
    """The canonical list of sealed envelopes: the blob that `actions_ref` names. Its order is the order."""
    return codec.array_of(tuple(item.to_bytes() for item in envelopes))


def decode_envelopes(data: bytes, bytes_max: int, count_max: int, field: str = "envelopes") -> list[Envelope]:
    """Well-formed envelopes of a canonical list; signatures are not verified here. Raises Invalid.

    The last few lists are kept: a node that certifies, executes and serves meets each of its batches several times.
    """
    return list(_decoded_envelopes(data, bytes_max, count_max, field))


@lru_cache(LISTS_CACHED_MAX)
def _decoded_envelopes(data: bytes, bytes_max: int, count_max: int, field: str) -> tuple[Envelope, ...]:
    value = codec.decode(data, bytes_max, field, items_max=len(data))  # each envelope has a limit of its own
    if type(value) is not list or len(value) > count_max:
        raise Invalid(field, f"must be a list of at most {count_max} envelopes")
    return tuple(
        sealed_from_value(ActionEnvelope, item, f"{field}[{index}]") for index, item in enumerate(value)
    )


__all__ = [
    "SEAL_OVERHEAD_BYTES",
    "SIGNED_AUTHORITIES",
    "Acceptance",
    "ActionBatch",
    "ActionEnvelope",
    "AuthoritySet",
    "BlockAnnounce",
    "BlockAttestation",
    "Bounds",
    "Commit",
    "Envelope",
    "Event",
    "Genesis",
    "GenesisBody",
    "GenesisHeader",
    "LeaseGrant",
    "Receipt",
    "Resume",
    "Sealed",
    "Signed",
    "SignedAuthorities",
    "SnapshotRef",
    "WorldBlock",
    "WorldHeadAnnounce",
    "WorldLimits",
    "decode_envelopes",
    "encode_envelopes",
    "seal",
    "sealed_from_bytes",
    "sealed_from_value",
    "sealed_kind",
    "signed_authorities_from_value",
]

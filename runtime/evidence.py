"""What proves a fault to anybody: records that carry the signatures of who did it, and the check of each.

Hides: which fault needs which pieces. Guarantees: a record that exists says a contradiction (the same thing twice, a
refresh, another epoch or world can not be written down); `check_evidence` believes nothing but the genesis and a set
of authorities. What follows from it (who halts, whom one believes no more) is said by HALTS and by the services.
Implements docs/protocol.md, section "Evidence".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, TypeVar

from runtime import codec, limits
from runtime.batches import check_batch_form
from runtime.errors import Invalid
from runtime.genesis import check_authorities
from runtime.heads import check_attestation, check_commit
from runtime.records import (
    SEAL_OVERHEAD_BYTES,
    SIGNED_AUTHORITIES,
    SIGNED_AUTHORITIES_BYTES_MAX,
    ActionBatch,
    AuthoritySet,
    BlockAttestation,
    Commit,
    Genesis,
    LeaseGrant,
    Sealed,
    SignedAuthorities,
    WorldBlock,
    sealed_kind,
)
from runtime.schema import Record, bytes_between, nested

_MAP_BYTES: Final = 64  # keys and heads of the map around the pieces


class Evidence(Record):
    """Base of all evidence. HALTS: nodes whose epoch it is sign and advance nothing until the roots open another."""

    __slots__ = ()
    HALTS: ClassVar[bool] = False

    @property
    def world_id(self) -> str:
        """The world that it is about."""
        raise AssertionError("every kind of evidence names its world")

    @property
    def accused(self) -> bytes | None:
        """Key id of who did it; None where it was the root keys together."""
        raise AssertionError("every kind of evidence names whom it accuses")

    @property
    def epoch(self) -> int:
        """The epoch in which it was done."""
        raise AssertionError("every kind of evidence names its epoch")

    @property
    def height(self) -> int:
        """The height that it is about; 0 for none."""
        return 0


def _require_equal(name: str, one: Record, other: Record, fields: Sequence[str]) -> None:
    for field in fields:
        if getattr(one, field) != getattr(other, field):
            raise Invalid(f"{name}.{field}", "differs: that is no contradiction")


def _require_ascending(name: str, field: str, one: bytes, other: bytes) -> None:
    if not one < other:
        raise Invalid(f"{name}.{field}", "must ascend: the same thing twice is no contradiction")


@dataclass(frozen=True, slots=True)
class CommitFork(Evidence):
    """Two commits of one certifier, epoch and height for different batches: that key signed a fork.

    Ascending by batch hash, so that everyone who holds the same two commits makes the same evidence.
    """

    NAME: ClassVar[str] = "commit_fork"
    BYTES_MAX: ClassVar[int] = 2 * (limits.COMMIT_BYTES_MAX + SEAL_OVERHEAD_BYTES) + _MAP_BYTES
    HALTS: ClassVar[bool] = True

    first: Annotated[Sealed[Commit], sealed_kind(Commit)]
    second: Annotated[Sealed[Commit], sealed_kind(Commit)]

    def check(self) -> None:
        first, second = self.first.record, self.second.record
        _require_equal(self.NAME, first, second, ("world_id", "epoch", "height", "certifier_id"))
        _require_ascending(self.NAME, "batch_hash", first.batch_hash, second.batch_hash)

    @property
    def world_id(self) -> str:
        return self.first.record.world_id

    @property
    def accused(self) -> bytes:
        return self.first.record.certifier_id

    @property
    def epoch(self) -> int:
        return self.first.record.epoch

    @property
    def height(self) -> int:
        return self.first.record.height


@dataclass(frozen=True, slots=True)
class LeaseFork(Evidence):
    """Two grants of one certifier, epoch and term to different holders, ascending by holder.

    It halts nobody: the lease gives progress, never safety.
    """

    NAME: ClassVar[str] = "lease_fork"
    BYTES_MAX: ClassVar[int] = 2 * (limits.LEASE_BYTES_MAX + SEAL_OVERHEAD_BYTES) + _MAP_BYTES

    first: Annotated[Sealed[LeaseGrant], sealed_kind(LeaseGrant)]
    second: Annotated[Sealed[LeaseGrant], sealed_kind(LeaseGrant)]

    def check(self) -> None:
        first, second = self.first.record, self.second.record
        _require_equal(self.NAME, first, second, ("world_id", "epoch", "term", "certifier_id"))
        _require_ascending(self.NAME, "holder_id", first.holder_id, second.holder_id)

    @property
    def world_id(self) -> str:
        return self.first.record.world_id

    @property
    def accused(self) -> bytes:
        return self.first.record.certifier_id

    @property
    def epoch(self) -> int:
        return self.first.record.epoch


@dataclass(frozen=True, slots=True)
class AttestationFork(Evidence):
    """Two attestations of one executor, epoch and height for different blocks, ascending by block hash."""

    NAME: ClassVar[str] = "attestation_fork"
    BYTES_MAX: ClassVar[int] = 2 * (limits.ATTESTATION_BYTES_MAX + SEAL_OVERHEAD_BYTES) + _MAP_BYTES

    first: Annotated[Sealed[BlockAttestation], sealed_kind(BlockAttestation)]
    second: Annotated[Sealed[BlockAttestation], sealed_kind(BlockAttestation)]

    def check(self) -> None:
        first, second = self.first.record, self.second.record
        _require_equal(self.NAME, first, second, ("world_id", "epoch", "height", "executor_id"))
        _require_ascending(self.NAME, "block_hash", first.block_hash, second.block_hash)

    @property
    def world_id(self) -> str:
        return self.first.record.world_id

    @property
    def accused(self) -> bytes:
        return self.first.record.executor_id

    @property
    def epoch(self) -> int:
        return self.first.record.epoch

    @property
    def height(self) -> int:
        return self.first.record.height


@dataclass(frozen=True, slots=True)
class MalformedBatch(Evidence):
    """A commit, the batch that it names, and the blob that this batch names, which break the rules of form.

    `parent` is the batch before it, where the fault is against that one (height, time).
    """

    NAME: ClassVar[str] = "malformed_batch"
    BYTES_MAX: ClassVar[int] = (
        limits.COMMIT_BYTES_MAX
        + SEAL_OVERHEAD_BYTES
        + 2 * limits.BATCH_RECORD_BYTES_MAX
        + limits.BATCH_BYTES_CEILING
        + _MAP_BYTES
    )
    HALTS: ClassVar[bool] = True

    commit: Annotated[Sealed[Commit], sealed_kind(Commit)]
    batch: Annotated[ActionBatch, nested(ActionBatch)]
    actions: Annotated[bytes, bytes_between(0, limits.BATCH_BYTES_CEILING)]
    parent: Annotated[ActionBatch, nested(ActionBatch)] | None = None

    def check(self) -> None:
        if self.commit.record.batch_hash != self.batch.hash():
            raise Invalid("malformed_batch.commit", "is of another batch")
        if codec.content_id(self.actions) != self.batch.actions_ref:
            raise Invalid("malformed_batch.actions", "is not the blob that the batch names")
        if self.parent is not None and self.parent.hash() != self.batch.prev_batch_hash:
            raise Invalid("malformed_batch.parent", "is not the batch that this one follows")

    @property
    def world_id(self) -> str:
        return self.commit.record.world_id

    @property
    def accused(self) -> bytes:
        return self.commit.record.certifier_id

    @property
    def epoch(self) -> int:
        return self.commit.record.epoch

    @property
    def height(self) -> int:
        return self.commit.record.height


@dataclass(frozen=True, slots=True)
class WrongRootProof(Evidence):
    """An attestation and the block that it names. Whoever has replayed that height compares; others can not tell."""

    NAME: ClassVar[str] = "wrong_root_proof"
    BYTES_MAX: ClassVar[int] = (
        limits.ATTESTATION_BYTES_MAX + SEAL_OVERHEAD_BYTES + limits.BLOCK_BYTES_MAX + _MAP_BYTES
    )

    attestation: Annotated[Sealed[BlockAttestation], sealed_kind(BlockAttestation)]
    block: Annotated[WorldBlock, nested(WorldBlock)]

    def check(self) -> None:
        attestation = self.attestation.record
        _require_equal(self.NAME, attestation, self.block, ("world_id", "height"))
        if attestation.block_hash != self.block.hash():
            raise Invalid("wrong_root_proof.attestation", "is of another block")

    @property
    def world_id(self) -> str:
        return self.block.world_id

    @property
    def accused(self) -> bytes:
        return self.attestation.record.executor_id

    @property
    def epoch(self) -> int:
        return self.attestation.record.epoch

    @property
    def height(self) -> int:
        return self.block.height


@dataclass(frozen=True, slots=True)
class AuthoritiesFork(Evidence):
    """Two authority sets of one epoch, both signed by the roots, ascending by hash: the roots must open another."""

    NAME: ClassVar[str] = "authorities_fork"
    BYTES_MAX: ClassVar[int] = 2 * SIGNED_AUTHORITIES_BYTES_MAX + _MAP_BYTES
    HALTS: ClassVar[bool] = True

    first: Annotated[SignedAuthorities, SIGNED_AUTHORITIES]
    second: Annotated[SignedAuthorities, SIGNED_AUTHORITIES]

    def check(self) -> None:
        first, second = self.first.authorities, self.second.authorities
        _require_equal(self.NAME, first, second, ("world_id", "epoch"))
        if first.world_id is None:
            raise Invalid("authorities_fork.epoch", "the genesis has only one set")
        _require_ascending(self.NAME, "hash", first.hash(), second.hash())

    @property
    def world_id(self) -> str:
        assert self.first.authorities.world_id is not None  # check
        return self.first.authorities.world_id

    @property
    def accused(self) -> None:
        return None

    @property
    def epoch(self) -> int:
        return self.first.authorities.epoch


EVIDENCE: Final[dict[str, type[Evidence]]] = {
    kind.NAME: kind
    for kind in (CommitFork, LeaseFork, AttestationFork, MalformedBatch, WrongRootProof, AuthoritiesFork)
}
EVIDENCE_BLOB_BYTES_MAX: Final = max(kind.BYTES_MAX for kind in EVIDENCE.values()) + 64


# --- making ------------------------------------------------------------------------------------------------


def is_fork(one: Sealed[Commit], other: Sealed[Commit]) -> bool:
    """Whether two commits of one set contradict each other."""
    a, b = one.record, other.record
    return (a.world_id, a.epoch, a.height) == (b.world_id, b.epoch, b.height) and a.batch_hash != b.batch_hash


def commit_fork(one: Sealed[Commit], other: Sealed[Commit]) -> CommitFork:
    """The evidence that two commits give. Raises Invalid where they are none."""
    first, second = sorted((one, other), key=lambda sealed: sealed.record.batch_hash)
    return CommitFork(first, second)


def lease_fork(one: Sealed[LeaseGrant], other: Sealed[LeaseGrant]) -> LeaseFork:
    """The evidence that two grants give. Raises Invalid where they are none."""
    first, second = sorted((one, other), key=lambda sealed: sealed.record.holder_id)
    return LeaseFork(first, second)


def attestation_fork(one: Sealed[BlockAttestation], other: Sealed[BlockAttestation]) -> AttestationFork:
    """The evidence that two attestations give. Raises Invalid where they are none."""
    first, second = sorted((one, other), key=lambda sealed: sealed.record.block_hash)
    return AttestationFork(first, second)


def authorities_fork(one: SignedAuthorities, other: SignedAuthorities) -> AuthoritiesFork:
    """The evidence that two sets of one epoch give. Raises Invalid where they are none."""
    first, second = sorted((one, other), key=lambda signed: signed.authorities.hash())
    return AuthoritiesFork(first, second)


def read_evidence(blob: bytes) -> Evidence:
    """The evidence in a blob that is stored under its hash (a record's preimage). Raises Invalid, UnknownVersion."""
    domain = blob[:64].split(b"\x00", 1)[0]
    for name, kind in EVIDENCE.items():
        if domain == f"aw/{name}/1".encode():
            return kind.from_preimage(blob)
    raise Invalid("evidence", "is of no kind that is known here")


# --- judging -----------------------------------------------------------------------------------------------


def check_evidence(genesis: Genesis, authorities: AuthoritySet, evidence: Evidence) -> None:
    """Whether the evidence holds against a member of this set, or against the roots. Raises Invalid with the reason.

    A WrongRootProof that passes names a block that this executor vouched for: whether it is wrong, a replay says
    (`compare_root`).
    """
    world_id = genesis.header.world_id
    if evidence.world_id != world_id:
        raise Invalid(f"{evidence.NAME}.world_id", f"is not {world_id}")
    if evidence.epoch != authorities.epoch:
        raise Invalid(f"{evidence.NAME}.epoch", f"is {evidence.epoch}, the set's is {authorities.epoch}")
    match evidence:
        case CommitFork():
            check_commit(authorities, evidence.first, world_id=world_id)
            check_commit(authorities, evidence.second, world_id=world_id)
        case LeaseFork():
            _check_lease(authorities, evidence.first)
            _check_lease(authorities, evidence.second)
        case AttestationFork():
            check_attestation(authorities, evidence.first)
            check_attestation(authorities, evidence.second)
        case MalformedBatch():
            check_commit(authorities, evidence.commit, world_id=world_id)
            _check_is_malformed(genesis, evidence)
        case WrongRootProof():
            check_attestation(authorities, evidence.attestation, evidence.block)
        case AuthoritiesFork():
            check_authorities(genesis.header, evidence.first)
            check_authorities(genesis.header, evidence.second)
        case _:
            raise AssertionError(f"no check for {evidence.NAME}")


def _check_lease(authorities: AuthoritySet, sealed: Sealed[LeaseGrant]) -> None:
    if sealed.record.certifier_id not in authorities.certifiers:
        raise Invalid("lease.certifier_id", "is no certifier of this epoch")
    sealed.verify()


def _check_is_malformed(genesis: Genesis, evidence: MalformedBatch) -> None:
    batch, parent = evidence.batch, evidence.parent
    if batch.height == 1:
        place = (0, genesis.header.hash(), genesis.header.created_ms)
    elif parent is not None:
        place = (parent.height, parent.hash(), parent.timestamp_ms)
    else:  # nothing is held against the parent: only what the batch and its blob decide is judged
        place = (batch.height - 1, batch.prev_batch_hash, batch.timestamp_ms)
    try:
        check_batch_form(genesis, *place, batch, evidence.actions)
    except Invalid:
        return
    raise Invalid("malformed_batch.batch", "is well formed: that is no fault")


def compare_root(proof: WrongRootProof, own: WorldBlock) -> bool:
    """True when the attested block is proved wrong by the block of an own replay; False when that tells nothing.

    Raises Invalid when the attested block is the very one that the replay gives: no fault.
    """
    if proof.block == own:
        raise Invalid("wrong_root_proof.block", "is what a replay gives: that is no fault")
    return proof.block.height == own.height and proof.block.batch_hash == own.batch_hash


# --- noticing ----------------------------------------------------------------------------------------------

K = TypeVar("K")
V = TypeVar("V")


class Witness:
    """Remembers which leases and attestations were seen, and says when two contradict each other.

    What comes here was checked against the set in force. Bounds: COMMITS_KEPT_MAX of each, the oldest goes first.
    """

    def __init__(self) -> None:
        self._leases: dict[tuple[int, int], Sealed[LeaseGrant]] = {}
        self._attestations: dict[tuple[int, int, bytes], Sealed[BlockAttestation]] = {}

    def saw_lease(self, lease: Sealed[LeaseGrant]) -> LeaseFork | None:
        """A grant of the certifier in force."""
        known = _remember(self._leases, (lease.record.epoch, lease.record.term), lease)
        if known.record.holder_id == lease.record.holder_id:
            return None
        return lease_fork(known, lease)

    def saw_attestation(self, attestation: Sealed[BlockAttestation]) -> AttestationFork | None:
        """An attestation of an executor in force."""
        record = attestation.record
        known = _remember(self._attestations, (record.epoch, record.height, record.executor_id), attestation)
        if known.record.block_hash == record.block_hash:
            return None
        return attestation_fork(known, attestation)


def _remember(held: dict[K, V], key: K, value: V) -> V:
    """The first value that was seen under this key."""
    known = held.setdefault(key, value)
    while len(held) > limits.COMMITS_KEPT_MAX:
        del held[next(iter(held))]
    return known

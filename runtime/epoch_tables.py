"""The rows of one world that epochs and evidence need: sets, proofs, by whose commit was executed, what was voided.

Hides: row keys and encodings. Guarantees: as in world_tables.py: values are canonical; a row that does not read is
Corrupt with the command that repairs it; writers return rows. What going back to an older height changes in the other
tables is said beside what applying a block changes, in world_tables.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from runtime import codec, limits
from runtime.errors import Corrupt, WorldError
from runtime.evidence import EVIDENCE_BLOB_BYTES_MAX, Evidence, read_evidence
from runtime.records import (
    SEAL_OVERHEAD_BYTES,
    ActionBatch,
    Commit,
    Sealed,
    SignedAuthorities,
    sealed_from_value,
)
from runtime.world_db import Delete, Put, Row, Table, WorldDb

T = TypeVar("T")
_HEIGHT_BYTES: Final = 8
_ORDER_BYTES_MAX: Final = (
    limits.BATCH_RECORD_BYTES_MAX + limits.COMMIT_BYTES_MAX + 2 * SEAL_OVERHEAD_BYTES + 8
)
_REPAIR: Final = (
    "move db/ in the data directory away and start again: the node fetches what it needs from its peers"
)


@dataclass(frozen=True, slots=True)
class KeptEvidence:
    """Evidence as it is held here. `proved` is False for a wrong root that this node has not replayed (yet)."""

    evidence: Evidence
    proved: bool

    def to_bytes(self) -> bytes:
        return codec.encode([self.evidence.preimage(), self.proved])

    @classmethod
    def from_bytes(cls, data: bytes) -> KeptEvidence:
        blob, proved = codec.decode(data, EVIDENCE_BLOB_BYTES_MAX + 16, "evidence row")
        return cls(read_evidence(blob), proved is True)


class EpochTables:
    """Typed rows of one world in a WorldDb. Owned by nobody: the tasks of a world share it."""

    def __init__(self, db: WorldDb, world_id: str) -> None:
        self._db = db
        self._world = world_id.encode()

    def _key(self, rest: bytes) -> bytes:
        return self._world + rest

    def _end(self) -> bytes:
        return self._world + b"\xff" * 64

    def _parsed(self, table: Table, rest: bytes, value: bytes, read: Callable[[bytes], T]) -> T:
        try:
            return read(value)
        except (WorldError, TypeError, ValueError) as error:
            raise Corrupt(f"row {rest.hex()} of table {table}", str(error), _REPAIR) from error

    # --- authorities ---------------------------------------------------------------------------------------

    def authorities(self) -> SignedAuthorities | None:
        """The newest set that was taken up; None while it is the genesis' own."""
        value = self._db.get(Table.AUTHORITIES, self._key(b""))
        if value is None:
            return None
        return self._parsed(Table.AUTHORITIES, b"", value, SignedAuthorities.from_bytes)

    def put_authorities(self, signed: SignedAuthorities) -> list[Row]:
        return [Put(Table.AUTHORITIES, self._key(b""), signed.to_bytes())]

    # --- evidence ------------------------------------------------------------------------------------------

    def all_evidence(self) -> list[KeptEvidence]:
        """Everything that is held, at most EVIDENCE_MAX."""
        rows = self._db.scan(Table.EVIDENCE, self._key(b""), self._end(), limit=limits.EVIDENCE_MAX)
        return [
            self._parsed(Table.EVIDENCE, key[len(self._world) :], value, KeptEvidence.from_bytes)
            for key, value in rows
        ]

    def put_evidence(self, kept: KeptEvidence) -> list[Row]:
        return [Put(Table.EVIDENCE, self._key(kept.evidence.hash()), kept.to_bytes())]

    def drop_evidence(self, content_hash: bytes) -> list[Row]:
        return [Delete(Table.EVIDENCE, self._key(content_hash))]

    # --- what was executed here, by whose commit -----------------------------------------------------------

    def order(self, height: int) -> tuple[Sealed[ActionBatch], Sealed[Commit]] | None:
        """The sealed batch and commit by which this node executed a height, of the newest COMMITS_KEPT_MAX."""

        def read(value: bytes) -> tuple[Sealed[ActionBatch], Sealed[Commit]]:
            batch, commit = codec.decode(value, _ORDER_BYTES_MAX, "order row")
            return sealed_from_value(ActionBatch, batch), sealed_from_value(Commit, commit)

        rest = height.to_bytes(_HEIGHT_BYTES, "big")
        value = self._db.get(Table.ORDERS, self._key(rest))
        return None if value is None else self._parsed(Table.ORDERS, rest, value, read)

    def put_order(self, batch: Sealed[ActionBatch], commit: Sealed[Commit]) -> list[Row]:
        value = codec.array_of((batch.to_bytes(), commit.to_bytes()))
        height = batch.record.height
        rows: list[Row] = [Put(Table.ORDERS, self._key(height.to_bytes(_HEIGHT_BYTES, "big")), value)]
        if height > limits.COMMITS_KEPT_MAX:
            old = (height - limits.COMMITS_KEPT_MAX).to_bytes(_HEIGHT_BYTES, "big")
            rows.append(Delete(Table.ORDERS, self._key(old)))
        return rows

    # --- voided batches ------------------------------------------------------------------------------------

    def voided(self, limit: int) -> list[tuple[int, bytes]]:
        """(height, batch hash) of voided batches whose envelopes are still to be submitted again."""
        rows = self._db.scan(Table.VOIDED, self._key(b""), self._end())
        found = [
            (int.from_bytes(rest[:_HEIGHT_BYTES], "big"), rest[_HEIGHT_BYTES:])
            for key, value in rows
            if not value
            for rest in (key[len(self._world) :],)
        ]
        return found[:limit]

    def settle_voided(self, height: int, batch_hash: bytes) -> list[Row]:
        """The envelopes of a voided batch are in new blocks, or dead; the batch itself stays stored."""
        return [Put(Table.VOIDED, self._key(height.to_bytes(_HEIGHT_BYTES, "big") + batch_hash), b"\x01")]

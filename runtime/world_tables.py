"""The rows of one world, typed: what a key looks like and what its value means.

Hides: row keys and encodings. Guarantees: every value is canonical CBOR or a fixed-size integer; a row that does not
read is Corrupt, naming the table and the command that repairs it. Writers return rows, so that one transaction can
hold those of several; readers read at once. Owned by nobody: the tasks of a world share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from runtime import codec, limits
from runtime.errors import Corrupt, WorldError
from runtime.records import (
    ActionBatch,
    ActionEnvelope,
    Commit,
    Envelope,
    LeaseGrant,
    Receipt,
    Sealed,
    WorldBlock,
    WorldHeadAnnounce,
    sealed_from_bytes,
    sealed_from_value,
)
from runtime.world_db import Delete, Expect, Put, Row, Table, WorldDb

T = TypeVar("T")
_HEIGHT_BYTES = 8
_OUTBOX_ROW_BYTES_MAX = limits.ENVELOPE_BYTES_MAX + 64
_PLACE_BYTES_MAX = 64
_SCAN_ROWS = 256
_NEWEST, _STORE = b"", b"store"  # rests of keys in LEASES
OUTBOX_ACTORS_PER_ROUND_MAX = 4_096
_APPLIED = b"applied"
_ORDER_EPOCH = b"order_epoch"
EPOCH_CURSOR = b"epoch"  # the epoch whose chain the applied blocks are of
_CURSORS = (b"stored", b"executed", b"verified")
_REPAIR = "move db/ in the data directory away and start again: the node fetches what it needs from its peers"


@dataclass(frozen=True, slots=True)
class Place:
    """Where an envelope stands: the block's height, its index in the batch, and whether the kernel took it."""

    height: int
    index: int
    taken: bool


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """An envelope that this gateway has promised to send until its end is verified."""

    envelope: Envelope
    accepted_at_ms: int


def _number(value: int) -> bytes:
    return value.to_bytes(_HEIGHT_BYTES, "big")


class WorldTables:
    """Typed rows of one world in a WorldDb."""

    def __init__(self, db: WorldDb, world_id: str) -> None:
        self._db = db
        self.world_id = world_id
        self._world = world_id.encode()
        # Kept in memory, since every submit asks: counted once here, then moved by what was committed.
        self._outbox_count = len(
            self._db.scan(Table.OUTBOX, self._world, self._end(), limit=limits.OUTBOX_ENVELOPES_MAX)
        )

    def _key(self, rest: bytes) -> bytes:
        return self._world + rest

    def _end(self) -> bytes:
        # Above every key of this world: none has a rest of 64 bytes 0xff.
        return self._world + b"\xff" * 64

    def _read(self, table: Table, rest: bytes, read: Callable[[bytes], T]) -> T | None:
        value = self._db.get(table, self._key(rest))
        return None if value is None else self._parsed(table, rest, value, read)

    @staticmethod
    def _parsed(table: Table, rest: bytes, value: bytes, read: Callable[[bytes], T]) -> T:
        try:
            return read(value)
        except WorldError as error:
            raise Corrupt(f"row {rest.hex()} of table {table}", str(error), _REPAIR) from error

    # --- chain ---------------------------------------------------------------------------------------------

    def block_hash(self, height: int) -> bytes | None:
        """Hash of the applied block at a height."""
        return self._db.get(Table.BLOCKS, self._key(_number(height)))

    def block_hashes(self, first: int, last: int) -> list[bytes]:
        """Hashes of the applied blocks first..last. Raises Corrupt when one is missing."""
        found: list[bytes] = []
        while first <= last:
            rows = self._db.scan(Table.BLOCKS, self._key(_number(first)), self._key(_number(last + 1)))
            if not rows:
                raise Corrupt(f"row {first} of table {Table.BLOCKS}", "is missing below the cursor", _REPAIR)
            found += [value for _key, value in rows]
            first += len(rows)
        return found

    def epoch(self) -> int:
        """The epoch that the applied blocks were brought to; 0 before the first resume."""
        return self.cursor(EPOCH_CURSOR.decode())

    def cursor(self, name: str) -> int:
        """Height up to which `executed`, `verified` or `stored` work is on disk; 0 before the first."""
        value = self._db.get(Table.CURSORS, self._key(name.encode()))
        return 0 if value is None else int.from_bytes(value, "big")

    def nonce(self, actor_id: bytes) -> int:
        """Number of the actor's envelopes that applied blocks have taken: its next nonce."""
        value = self._db.get(Table.NONCES, self._key(actor_id))
        return 0 if value is None else int.from_bytes(value, "big")

    def place(self, envelope_hash: bytes) -> Place | None:
        """Where an applied block took or refused the envelope; the place that took it, when it was refused before."""

        def read(value: bytes) -> Place:
            height, index, taken = codec.decode(value, _PLACE_BYTES_MAX, "place")
            return Place(height, index, taken)

        return self._read(Table.PLACES, envelope_hash, read)

    def is_taken(self, envelope_hash: bytes) -> bool:
        """Whether a block has taken the envelope; one that refused it may be followed by one that takes it."""
        place = self.place(envelope_hash)
        return place is not None and place.taken

    def applied_rows(
        self, cursor: str, block: WorldBlock, envelopes: Sequence[Envelope], receipts: Sequence[Receipt]
    ) -> list[Row]:
        """All that a block changes: its hash by height, nonces, places, the cursor."""
        taken = {receipt.envelope_hash for receipt in receipts if receipt.index is not None}
        rows: list[Row] = [Put(Table.BLOCKS, self._key(_number(block.height)), block.hash())]
        nonces: dict[bytes, int] = {}
        for index, envelope in enumerate(envelopes):
            digest, actor = envelope.hash(), envelope.record.actor_id
            if digest in taken:
                nonces[actor] = nonces.get(actor, self.nonce(actor)) + 1
            elif self.place(digest) is not None:
                continue  # a copy of an envelope that stands already: the first place is what people ask for
            place = codec.encode([block.height, index, digest in taken])
            rows.append(Put(Table.PLACES, self._key(digest), place))
        rows += [Put(Table.NONCES, self._key(actor), _number(nonce)) for actor, nonce in nonces.items()]
        rows.append(Put(Table.CURSORS, self._key(cursor.encode()), _number(block.height)))
        return rows

    def taken_back_rows(
        self,
        height: int,
        epoch: int,
        voided: Sequence[tuple[WorldBlock, Sequence[Envelope], Sequence[Receipt]]],
    ) -> list[Row]:
        """All that going back to `height` for an epoch changes; `voided`: every applied block above it.

        What the blocks took is untaken, so that an outbox sends it again; the batches are noted as voided.
        """
        rows: list[Row] = [Put(Table.CURSORS, self._key(EPOCH_CURSOR), _number(epoch))]
        rows += [
            Put(Table.CURSORS, self._key(name), _number(height))
            for name in _CURSORS
            if self.cursor(name.decode()) > height
        ]
        nonces: dict[bytes, int] = {}
        for block, envelopes, receipts in voided:
            taken = {receipt.envelope_hash for receipt in receipts if receipt.index is not None}
            for envelope in envelopes:
                digest, actor = envelope.hash(), envelope.record.actor_id
                if digest in taken:
                    nonces[actor] = nonces.get(actor, self.nonce(actor)) - 1
                place = self.place(digest)
                if place is not None and place.height > height:
                    rows.append(Delete(Table.PLACES, self._key(digest)))
            number = _number(block.height)
            rows.append(Delete(Table.BLOCKS, self._key(number)))
            rows.append(Delete(Table.ORDERS, self._key(number)))
            rows.append(Put(Table.VOIDED, self._key(number + block.batch_hash), b""))
        for actor, nonce in nonces.items():
            key = self._key(actor)
            rows.append(Put(Table.NONCES, key, _number(nonce)) if nonce else Delete(Table.NONCES, key))
        head = self.head()
        if head is not None and head.commit.record.epoch < epoch:
            rows.append(Delete(Table.HEADS, self._key(b"")))
        rows.append(Delete(Table.HEADS, self._key(_APPLIED)))
        return rows

    def head(self) -> WorldHeadAnnounce | None:
        """The newest head that was kept."""
        return self._read(Table.HEADS, b"", WorldHeadAnnounce.from_bytes)

    def applied_head(self) -> WorldHeadAnnounce | None:
        """The newest head that was kept together with its block; newer ones may have been heard of."""
        return self._read(Table.HEADS, _APPLIED, WorldHeadAnnounce.from_bytes)

    def put_head(self, head: WorldHeadAnnounce) -> list[Row]:
        """Keep the best head that was heard of: where a restart goes on from."""
        return [Put(Table.HEADS, self._key(b""), head.to_bytes())]

    def put_applied_head(self, head: WorldHeadAnnounce) -> list[Row]:
        """Keep a head together with its block: what can be served after a restart, at once."""
        return [Put(Table.HEADS, self._key(_APPLIED), head.to_bytes())]

    # --- order (the coordinator's memory: services/lease_store.py) ------------------------------------------

    def batch(self, height: int) -> Sealed[ActionBatch] | None:
        return self._read(Table.BATCHES, _number(height), lambda value: sealed_from_bytes(ActionBatch, value))

    def commit(self, height: int) -> Commit | None:
        return self._read(Table.COMMITS, _number(height), Commit.from_bytes)

    def committed_height(self) -> int:
        """The last certified height; 0 before the first."""
        rows = self._db.scan(Table.COMMITS, self._key(b""), self._end(), reverse=True, limit=1)
        return int.from_bytes(rows[0][0][len(self._world) :], "big") if rows else 0

    def put_certified(self, batch: Sealed[ActionBatch], commit: Commit) -> list[Row]:
        """Rows of a certified batch; the commit is the record that is signed whenever it is answered."""
        key = self._key(_number(commit.height))
        return [
            Put(Table.BATCHES, key, batch.to_bytes()),
            Put(Table.COMMITS, key, commit.to_bytes()),
        ]

    def order_epoch(self) -> int:
        """The epoch whose order the certified batches are; 0 before the first that this coordinator resumed."""
        return self.cursor(_ORDER_EPOCH.decode())

    def put_resumed(
        self, epoch: int, height: int, last: tuple[Sealed[ActionBatch], Commit] | None
    ) -> list[Row]:
        """The order that an epoch begins with: its own commit at `height` (None at 0), and nothing above it."""
        rows: list[Row] = [Put(Table.CURSORS, self._key(_ORDER_EPOCH), _number(epoch))]
        for table in (Table.COMMITS, Table.BATCHES):
            voided = self._db.scan(table, self._key(_number(height + 1)), self._end())
            rows += [Delete(table, key) for key, _value in voided]
        return rows if last is None else [*rows, *self.put_certified(*last)]

    def lease(self) -> LeaseGrant | None:
        """The newest lease that was granted (maybe over)."""
        return self._read(Table.LEASES, _NEWEST, LeaseGrant.from_bytes)

    def put_lease(self, lease: LeaseGrant) -> list[Row]:
        return [Put(Table.LEASES, self._key(_NEWEST), lease.to_bytes())]

    def expect_order(self, epoch: int, lease: LeaseGrant | None, commit: Commit | None) -> list[Expect]:
        """That this is still the epoch, this the newest lease, this the last commit, and nothing stands above it."""
        height = 0 if commit is None else commit.height
        expected = [
            Expect(Table.CURSORS, self._key(_ORDER_EPOCH), _number(epoch) if epoch else None),
            Expect(Table.LEASES, self._key(_NEWEST), None if lease is None else lease.to_bytes()),
            Expect(Table.COMMITS, self._key(_number(height + 1)), None),
        ]
        if commit is not None:
            expected.append(Expect(Table.COMMITS, self._key(_number(height)), commit.to_bytes()))
        return expected

    def lease_store(self) -> str | None:
        """Name of the store that holds this world's order."""
        value = self._db.get(Table.LEASES, self._key(_STORE))
        return None if value is None else value.decode()

    def put_lease_store(self, name: str) -> list[Row]:
        return [Put(Table.LEASES, self._key(_STORE), name.encode())]

    # --- outbox (the gateway's) ----------------------------------------------------------------------------

    def outbox_count(self) -> int:
        """Promised envelopes on disk."""
        return self._outbox_count

    def outbox_changed(self, by: int) -> None:
        """The rows of so many envelopes are on disk now (or gone from it, when negative)."""
        self._outbox_count = max(0, self._outbox_count + by)

    def outbox_entry(self, envelope_hash: bytes) -> OutboxEntry | None:
        return self._read(Table.OUTBOX, envelope_hash, _outbox_entry)

    def outbox_by_nonce(self, actor_id: bytes, nonce: int) -> bytes | None:
        """Hash of the envelope that is promised for this nonce."""
        return self._db.get(Table.OUTBOX_ORDER, self._key(actor_id + _number(nonce)))

    def outbox_nonces(self, actor_id: bytes, nonce: int, limit: int) -> set[int]:
        """The nonces from this one on that are promised for an actor, `limit` at most: one read."""
        low, high = self._key(actor_id + _number(nonce)), self._key(_past_actor(actor_id))
        rows = self._db.scan(Table.OUTBOX_ORDER, low, high, limit=limit)
        return {int.from_bytes(key[-_HEIGHT_BYTES:], "big") for key, _digest in rows}

    def put_outbox(self, envelopes: Sequence[Envelope], accepted_at_ms: int) -> list[Row]:
        rows: list[Row] = []
        for envelope in envelopes:
            digest, record = envelope.hash(), envelope.record
            value = codec.array_of((envelope.to_bytes(), codec.encode(accepted_at_ms)))
            rows.append(Put(Table.OUTBOX, self._key(digest), value))
            rows.append(Put(Table.OUTBOX_ORDER, self._key(record.actor_id + _number(record.nonce)), digest))
            rows.append(Put(Table.OUTBOX_EXPIRY, self._key(_number(record.expires_at_height) + digest), b""))
        return rows

    def drop_outbox(self, envelopes: Sequence[Envelope]) -> list[Row]:
        rows: list[Row] = []
        for envelope in envelopes:
            digest, record = envelope.hash(), envelope.record
            rows.append(Delete(Table.OUTBOX, self._key(digest)))
            rows.append(Delete(Table.OUTBOX_ORDER, self._key(record.actor_id + _number(record.nonce))))
            rows.append(Delete(Table.OUTBOX_EXPIRY, self._key(_number(record.expires_at_height) + digest)))
        return rows

    def outbox_sendable(
        self, after: bytes, accepted_before_ms: int, envelopes_max: int, bytes_max: int
    ) -> tuple[list[Envelope], bytes]:
        """Promised envelopes that are worth sending: of each actor those that can be taken next, up to a gap.

        Beyond a gap only the first: whoever leads must know that something waits, so that it asks for the missing
        ones, and cuts batches until it expires. Actors come in turn, from the first after `after` (b"": from the
        first); the second part says after whom to go on, b"" when all were seen. Whoever promises himself a thousand
        dead envelopes does not stand before others.
        """
        found: list[Envelope] = []
        size = 0
        for _ in range(OUTBOX_ACTORS_PER_ROUND_MAX):
            rows = self._db.scan(Table.OUTBOX_ORDER, self._key(_past_actor(after)), self._end(), limit=1)
            if not rows:
                return found, b""
            after = rows[0][0][len(self._world) : -_HEIGHT_BYTES]
            for entry in self._outbox_of(after):
                if entry.accepted_at_ms > accepted_before_ms:
                    break
                found.append(entry.envelope)
                size += len(entry.envelope.to_bytes())
                if len(found) >= envelopes_max or size >= bytes_max:
                    return found, after
        return found, after

    def _outbox_of(self, actor_id: bytes) -> Iterator[OutboxEntry]:
        """One actor's promised envelopes from its next nonce on, up to the first that stands behind a gap."""
        nonce = self.nonce(actor_id)
        for _ in range(limits.MEMPOOL_NONCES_AHEAD_MAX):
            low, high = self._key(actor_id + _number(nonce)), self._key(_past_actor(actor_id))
            rows = self._db.scan(Table.OUTBOX_ORDER, low, high, limit=1)
            entry = self.outbox_entry(rows[0][1]) if rows else None
            if entry is None:
                return
            yield entry
            if entry.envelope.record.nonce != nonce:
                return
            nonce += 1

    def outbox_expiring(self, height: int, limit: int = 4_096) -> list[OutboxEntry]:
        """Promised envelopes whose expiry height is applied: taken or dead, their end is known."""
        rows = self._db.scan(Table.OUTBOX_EXPIRY, self._key(b""), self._key(_number(height + 1)), limit=limit)
        entries = [self.outbox_entry(key[-codec.HASH_BYTES :]) for key, _value in rows]
        return [entry for entry in entries if entry is not None]


def _past_actor(actor_id: bytes) -> bytes:
    """A key above all of an actor's rows and below the next actor's; b"" before the first."""
    return actor_id + b"\xff" * (_HEIGHT_BYTES + 1) if actor_id else b""


def _outbox_entry(value: bytes) -> OutboxEntry:
    envelope, accepted_at_ms = codec.decode(value, _OUTBOX_ROW_BYTES_MAX, "outbox")
    return OutboxEntry(sealed_from_value(ActionEnvelope, envelope), accepted_at_ms)

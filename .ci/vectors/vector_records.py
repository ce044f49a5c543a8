"""Vectors of records: good ones in all forms, and what must be refused in their place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from typing import Any

import cbor2
from vector_world import CREATED_MS, World, expect_refusal, head_of_epoch_1, key, shown

from runtime import codec, evidence, keys
from runtime.errors import Invalid, UnknownVersion
from runtime.records import (
    Acceptance,
    LeaseGrant,
    Receipt,
    Sealed,
    SignedAuthorities,
    SnapshotRef,
    seal,
    sealed_from_bytes,
)
from runtime.schema import Record

OVERSIZE_SHOWN_BYTES_MAX = 1024  # a larger refusal would say no more, and fill the file


def as_declared(record: Record) -> dict[str, Any]:
    """The record's map with its keys in the order of declaration, in which the vectors go through them."""
    value = record.to_value()
    names = ("v", *(item.name for item in fields(record)))  # type: ignore[arg-type]  # every Record is a dataclass
    return {name: value[name] for name in names if name in value}


def bad_bytes(record: Record) -> dict[str, Any]:
    """What must be refused in the place of a good record, and what must be ignored."""
    value, decode = as_declared(record), type(record).from_bytes
    good = codec.encode(value)
    candidates = [*broken_encodings(value), *broken_fields(record)]
    if record.BYTES_MAX <= OVERSIZE_SHOWN_BYTES_MAX:
        oversize = codec.encode({**value, "zzz": bytes(record.BYTES_MAX)})
        candidates.append(("larger than the record may be", oversize))
    refuse = [{"hex": data.hex(), "reason": reason} for reason, data in candidates if data != good]
    for item in refuse:
        expect_refusal(decode, bytes.fromhex(item["hex"]), Invalid, item["reason"])
    ignore = []
    if "v" in value:
        newer = codec.encode({**value, "v": 2})
        expect_refusal(decode, newer, UnknownVersion, "v")
        ignore = [{"hex": newer.hex(), "reason": "another version"}]
    return {"refuse": refuse, "ignore": ignore}


def broken_encodings(value: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """(reason, bytes): the right content in wrong bytes, and bytes that are no record of any kind."""
    good = codec.encode(value)
    first = next(name for name in value if name != "v")
    map_head = 0xA0 | len(value)
    assert len(value) < 23, "a map head of one byte"
    backwards = {
        name: value[name] for name in sorted(value, key=lambda name: (len(name), name), reverse=True)
    }
    yield "one byte missing", good[:-1]
    yield "one byte too many", good + b"\x00"
    yield "no CBOR at all", b"\xff"
    yield "an array", b"\x80"
    yield "a float", cbor2.dumps({**value, first: 1.5}, canonical=True)
    yield "undefined", cbor2.dumps({**value, first: cbor2.undefined}, canonical=True)
    yield "a tag", cbor2.dumps({**value, first: cbor2.CBORTag(4, [1, 2])}, canonical=True)
    yield "an integer of more than 64 bits", cbor2.dumps({**value, first: 1 << 63}, canonical=True)
    yield "indefinite length", b"\xbf" + good[1:] + b"\xff"
    yield "map length not shortest", b"\xb8" + bytes([len(value)]) + good[1:]
    twice = codec.encode(first) + codec.encode(value[first])
    yield "a key twice", bytes([map_head + 1]) + good[1:] + twice
    yield "keys in another order", cbor2.dumps(backwards)
    if "v" in value:
        yield "integer not shortest", good.replace(b"\x61v\x01", b"\x61v\x18\x01", 1)


def broken_fields(record: Record) -> Iterator[tuple[str, bytes]]:
    """(reason, bytes): canonical bytes of maps that break a rule of the record."""
    value = as_declared(record)
    optional = [item.name for item in fields(record) if item.default is None]  # type: ignore[arg-type]

    def change(name: str, item: Any) -> bytes:
        return codec.encode({**value, name: item})

    yield "unknown key", change("zzz", 1)
    if "v" in value:
        yield "v is text", change("v", "1")
    for name in [name for name in value if name != "v"]:
        if name not in optional:
            rest = {other: item for other, item in value.items() if other != name}
            yield f"missing key {name}", codec.encode(rest)
            yield f"null in the place of {name}", change(name, None)
        yield f"wrong type of {name}", change(name, [] if isinstance(value[name], dict) else {})
        for reason, item in broken_scalars(value[name]):
            yield f"{name} {reason}", change(name, item)
    for name in optional:
        yield f"null in the place of {name}, not absent", change(name, None)
    for reason, item in broken_world_ids(value.get("world_id")):
        yield f"bad world id: {reason}", change("world_id", item)


def broken_scalars(good: Any) -> list[tuple[str, Any]]:
    """(reason, value) near a good one."""
    match good:
        case bool():
            return [("is a number", int(good))]
        case int():
            return [("is below zero", -1), ("is above 2^53-1", 1 << 53)]
        case bytes() if len(good) == keys.KEY_ID_BYTES:
            of_rsa = bytes.fromhex("002508021221") + good[6:]
            return [("has one byte less", good[:-1]), ("is of another key type", of_rsa)]
        case bytes():
            return [("has one byte less", good[:-1])]
    return []


def broken_world_ids(good: str | None) -> list[tuple[str, str]]:
    """(reason, text) near a good world id."""
    if good is None:
        return []
    return [
        ("upper case", good.upper()),
        ("31 characters", good[:-1]),
        ("no base32", "1" + good[1:]),
        ("a line end after it", good + "\n"),
    ]


def record_vector(name: str, record: Record, sealed: Sealed[Any] | None = None) -> dict[str, Any]:
    """All forms of one record."""
    vector: dict[str, Any] = {
        "name": name,
        "record": record.NAME,
        "value": shown(record.to_value()),
        "body": record.to_bytes().hex(),
        "preimage": record.preimage().hex(),
        "hash": record.hash().hex(),
    }
    if sealed is not None:
        vector["signer"] = sealed.record.signer.hex()
        vector["signature"] = sealed.signature.hex()
        vector["sealed"] = sealed.to_bytes().hex()
        vector["refuse_sealed"] = bad_seals(sealed)
    return vector | bad_bytes(record)


def bad_seals(sealed: Sealed[Any]) -> list[dict[str, str]]:
    """What must be refused in the place of a sealed record, before any signature is checked."""
    value, signature = sealed.to_value()[0], sealed.signature
    refuse = []
    for reason, bad in (
        ("no signature", [value]),
        ("three items", [value, signature, 0]),
        ("signature of 63 bytes", [value, signature[:-1]]),
        ("signature of 65 bytes", [value, signature + b"\x00"]),
        ("signature is null", [value, None]),
        ("signature first", [signature, value]),
        ("a map", {"record": value, "signature": signature}),
    ):
        data = codec.encode(bad)
        expect_refusal(partial(sealed_from_bytes, type(sealed.record)), data, Invalid, reason)
        refuse.append({"hex": data.hex(), "reason": reason})
    return refuse


def all_evidence(small: World, lease: Sealed[LeaseGrant]) -> list[evidence.Evidence]:
    """One of each other kind."""
    two_holders = seal(replace(lease.record, holder_id=key("executor").identity), key("certifier"))
    two_blocks = seal(replace(small.attestation.record, block_hash=bytes(32)), key("executor"))
    empty = replace(small.batch.record, envelope_count=7)
    malformed = seal(replace(small.commit.record, batch_hash=empty.hash()), key("certifier"))
    second = replace(empty, height=2, prev_batch_hash=small.batch.hash(), timestamp_ms=0)
    early = seal(replace(small.commit.record, height=2, batch_hash=second.hash()), key("certifier"))
    wrong = replace(small.built.block, state_root=bytes(32))
    vouched = seal(replace(small.attestation.record, block_hash=wrong.hash()), key("executor"))
    signed = head_of_epoch_1(small).authorities
    rival = replace(signed.authorities, proposers=(key("executor").identity,))
    return [
        evidence.lease_fork(lease, two_holders),
        evidence.attestation_fork(small.attestation, two_blocks),
        evidence.MalformedBatch(malformed, empty, small.actions),
        evidence.MalformedBatch(early, second, small.actions, small.batch.record),
        evidence.WrongRootProof(vouched, wrong),
        evidence.authorities_fork(signed, SignedAuthorities(rival, ((0, key("root").sign(rival.hash())),))),
    ]


def all_records(small: World) -> list[tuple[str, Record, Sealed[Any] | None]]:
    """One of each record, and of both forms where a record has optional fields."""
    alice = key("alice").identity
    acceptance = Acceptance(small.world_id, small.envelopes[0].hash(), alice, CREATED_MS, "local")
    lease = LeaseGrant(
        small.world_id, 0, 1, key("proposer").identity, CREATED_MS, 5_000, key("certifier").identity
    )
    empty = small.envelope("alice", 2, ("dance", {}), atomic=False)
    other = seal(replace(small.commit.record, batch_hash=bytes(32)), key("certifier"))
    snapshot = replace(small.attestation.record, snapshot=SnapshotRef(1, codec.content_id(b"snapshot")))
    last = (1 << 53) - 1
    limit = replace(small.commit.record, epoch=last, term=last, height=last, as_of_ms=last)
    later = head_of_epoch_1(small)
    sealed_lease, sealed_acceptance = seal(lease, key("certifier")), seal(acceptance, key("alice"))
    return [
        ("genesis", small.genesis.header, None),
        ("genesis body", small.genesis.body, None),
        ("genesis file", small.genesis, None),
        ("authorities of epoch 0", small.genesis.authorities, None),
        ("authorities of epoch 1", later.authorities.authorities, None),
        ("envelope, atomic", small.envelopes[1].record, small.envelopes[1]),
        ("envelope, plain, unknown action", empty.record, empty),
        ("acceptance", acceptance, sealed_acceptance),
        ("batch", small.batch.record, small.batch),
        ("lease", lease, sealed_lease),
        ("commit", small.commit.record, small.commit),
        ("commit, largest numbers", limit, seal(limit, key("certifier"))),
        ("block", small.built.block, None),
        ("block with a manifest", replace(small.built.block, manifest_hash=bytes(32)), None),
        ("attestation", small.attestation.record, small.attestation),
        ("attestation with a snapshot", snapshot, seal(snapshot, key("executor"))),
        ("head", small.head, None),
        ("head of epoch 1", later, None),
        ("receipt of an action", small.built.outcome.receipts[0], None),
        ("receipt of a refused envelope", Receipt(small.envelopes[0].hash(), "NonceMismatch"), None),
        ("event", small.built.outcome.events[0], None),
        ("evidence of a fork", evidence.commit_fork(small.commit, other), None),
        *[(f"evidence: {made.NAME}", made, None) for made in all_evidence(small, sealed_lease)],
    ]

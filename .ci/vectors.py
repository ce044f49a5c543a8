"""Write interop/vectors/*.json: golden bytes of every record, frame, proof and verdict. `make vectors`.

Everything is made from fixed seeds and times, so that two runs give the same files; review the diff. Byte strings
are {"hex": "..."}. `refuse` lists bytes that must be refused, with the reason; `ignore` those of another version.
Usage: vectors.py [OUTPUT FOLDER]
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import cbor2
import nacl.bindings as sodium

from p2p import frames, names
from p2p.errors import Code, FrameError
from runtime import chain, codec, genesis, heads, keys, messages, rules, state, world
from runtime.errors import Ignored, Invalid, UnknownVersion
from runtime.keys import SigningKey
from runtime.records import (
    Acceptance,
    ActionBatch,
    ActionEnvelope,
    BlockAnnounce,
    BlockAttestation,
    Bounds,
    Commit,
    Envelope,
    Genesis,
    LeaseGrant,
    Receipt,
    Resume,
    Sealed,
    SignedAuthorities,
    SnapshotRef,
    WorldHeadAnnounce,
    encode_envelopes,
    seal,
    sealed_from_bytes,
)
from runtime.schema import Record

ROOT = Path(__file__).resolve().parent.parent
OVERSIZE_SHOWN_BYTES_MAX = 1024  # a larger refusal would say no more, and fill the file
CREATED_MS = 1_700_000_000_000
L = 2**252 + 27742317777372353535851937790883648493  # order of Ed25519's base point


def key(name: str) -> SigningKey:
    """A fixed key by name."""
    return SigningKey(codec.content_id(f"vector key {name}".encode()))


def shown(value: Any) -> Any:
    """A value as JSON has it."""
    match value:
        case bytes():
            return {"hex": value.hex()}
        case dict():
            return {name: shown(item) for name, item in value.items()}
        case list() | tuple():
            return [shown(item) for item in value]
    return value


# --- a small world -------------------------------------------------------------------------------------------


class World:
    """A genesis, two envelopes, a batch of them, its commit, block, attestation and head."""

    def __init__(self) -> None:
        self.genesis = genesis.make_genesis(
            name="vectors",
            root_keys=[key("root").identity],
            root_threshold=1,
            proposers=[key("proposer").identity],
            executors=[key("executor").identity],
            certifier=key("certifier").identity,
            body=genesis.make_body(
                bounds=Bounds(-1_000, 1_000, -1_000, 1_000, 0, 0),
                max_move_cm=100,
                resource_kinds=["fuel"],
                balances={(key("alice").identity, "fuel"): 50},
            ),
            created_ms=CREATED_MS,
        )
        self.world_id = self.genesis.header.world_id
        self.signed = SignedAuthorities(self.genesis.authorities)
        self.envelopes = [self._register(), self._move()]
        self.actions = encode_envelopes(self.envelopes)
        self.tip = chain.genesis_tip(self.genesis)
        self.batch = self._batch()
        read = chain.check_batch_form(
            self.genesis, 0, self.tip.batch_hash, CREATED_MS, self.batch.record, self.actions
        )
        signatures = world.check_signatures(read)
        self.built = chain.build_block(self.genesis, self.tip, self.batch.record, read, signatures)
        self.commit = self._commit(self.batch.hash())
        self.attestation = self._attestation(self.built.block.hash())
        self.head = WorldHeadAnnounce(
            self.genesis.header, self.signed, self.commit, (self.attestation,), self.built.block.hash()
        )

    def envelope(
        self, actor: str, nonce: int, *actions: tuple[str, dict[str, Any]], **changes: Any
    ) -> Envelope:
        """A sealed envelope of a named actor."""
        values: dict[str, Any] = {
            "world_id": self.world_id,
            "actor_id": key(actor).identity,
            "nonce": nonce,
            "expires_at_height": 10,
            "timestamp_ms": CREATED_MS + nonce,
            "atomic": True,
            "actions": actions,
        }
        return seal(ActionEnvelope(**(values | changes)), key(actor))

    def _register(self) -> Envelope:
        place = {"agent_id": "bob", "x_cm": 1, "y_cm": -2, "z_cm": 0, "endow": {"fuel": 20}}
        return self.envelope("alice", 0, ("register_agent", place))

    def _move(self) -> Envelope:
        move = ("move_agent", {"agent_id": "bob", "x_cm": 11, "y_cm": -2, "z_cm": 0})
        give = {"kind": "fuel", "amount": 5, "from_agent": "bob", "to_actor": key("alice").identity}
        return self.envelope("alice", 1, move, ("transfer_resource", give))

    def _batch(self) -> Sealed[ActionBatch]:
        record = ActionBatch(
            world_id=self.world_id,
            epoch=0,
            term=1,
            height=1,
            prev_batch_hash=self.genesis.header.hash(),
            envelope_count=len(self.envelopes),
            actions_root=codec.merkle_root([envelope.to_bytes() for envelope in self.envelopes]),
            actions_ref=codec.content_id(self.actions),
            proposer_id=key("proposer").identity,
            timestamp_ms=CREATED_MS + 200,
        )
        return seal(record, key("proposer"))

    def _commit(self, batch_hash: bytes) -> Sealed[Commit]:
        record = Commit(self.world_id, 0, 1, 1, batch_hash, key("certifier").identity, CREATED_MS + 210)
        return seal(record, key("certifier"))

    def _attestation(self, block_hash: bytes) -> Sealed[BlockAttestation]:
        record = BlockAttestation(self.world_id, 0, 1, block_hash, key("executor").identity)
        return seal(record, key("executor"))


def head_of_epoch_1(small: World, signer: str = "root") -> WorldHeadAnnounce:
    """A head by a set that the root key signed, resuming from height 0."""
    later = replace(
        small.genesis.authorities,
        epoch=1,
        world_id=small.world_id,
        resume=Resume(0, small.genesis.header.hash()),
    )
    return WorldHeadAnnounce(
        small.genesis.header,
        SignedAuthorities(later, ((0, key(signer).sign(later.hash())),)),
        seal(replace(small.commit.record, epoch=1), key("certifier")),
        (seal(replace(small.attestation.record, epoch=1), key("executor")),),
        small.head.block_hash,
    )


# --- records -------------------------------------------------------------------------------------------------


def bad_bytes(record: Record) -> dict[str, Any]:
    """What must be refused in the place of a good record, and what must be ignored."""
    value, decode = record.to_value(), type(record).from_bytes
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
    value = record.to_value()
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


def expect_refusal(
    decode: Callable[[bytes], object], data: bytes, error: type[Exception], reason: str
) -> None:
    """A vector that our own code does not refuse is a bug, here or there."""
    try:
        decode(data)
    except error:
        return
    raise SystemExit(f"error: not refused ({reason}): {data[:60].hex()}")


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
        ("evidence of a fork", heads.commit_fork(small.commit, other), None),
    ]


# --- the rest ------------------------------------------------------------------------------------------------


# Points of edwards25519 as (x, y), for signatures that no signer makes. Slow, plain, and only for these vectors.
P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)
NEUTRAL = (0, 1)
Point = tuple[int, int]


def add(one: Point, other: Point) -> Point:
    """The sum of two points."""
    (x1, y1), (x2, y2) = one, other
    t = D * x1 * x2 * y1 * y2 % P
    return (x1 * y2 + x2 * y1) * pow(1 + t, -1, P) % P, (y1 * y2 + x1 * x2) * pow(1 - t, -1, P) % P


def times(count: int, point: Point) -> Point:
    """count x point."""
    total = NEUTRAL
    while count:
        if count & 1:
            total = add(total, point)
        point, count = add(point, point), count >> 1
    return total


def packed(point: Point) -> bytes:
    """The 32 bytes of a point."""
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def unpacked(data: bytes) -> Point:
    """The point in 32 bytes that are known to hold one."""
    y = int.from_bytes(data, "little") & ((1 << 255) - 1)
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * ROOT_OF_MINUS_ONE % P
    return (x if x & 1 == data[31] >> 7 else P - x), y


BASE = unpacked((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
ORDER_EIGHT = unpacked(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"))
NEUTRAL_RESPELT = (P + 1).to_bytes(32, "little")  # not canonical
NEUTRAL_NEGATIVE = (1 | 1 << 255).to_bytes(32, "little")  # x = 0 with a sign


def crafted_signatures(message: bytes) -> Iterator[tuple[str, bytes, bytes, bool]]:
    """(name, A, signature, accept): the equation [S]B = R + [k]A decides where it is not said to hold."""
    secret = int.from_bytes(codec.content_id(b"vector scalar"), "little") % L
    own, mixed = times(secret, BASE), add(times(secret, BASE), ORDER_EIGHT)

    def case(name: str, a: bytes, r: bytes, nonce: int, signer: int) -> tuple[str, bytes, bytes, bool]:
        s = (nonce + challenge(r, a, message) * signer) % L
        return name, a, r + s.to_bytes(32, "little"), name.endswith(": accept")

    def search(a: Point, torsion_of_a: int, fits: Callable[[int, int], bool]) -> tuple[int, bytes]:
        # (nonce, R): R = nonce x B + j x the point of order 8; k comes from a hash, so it is tried.
        for nonce in range(1, 1_000):
            for j in range(8):
                r = packed(add(times(nonce, BASE), times(j, ORDER_EIGHT)))
                if fits(j, torsion_of_a * challenge(r, packed(a), message)):
                    return nonce, r
        raise SystemExit("error: no nonce found")

    nonce, r = search(mixed, 1, lambda j, k: j == 0 and k % 8 == 0)
    yield case("mixed-order A, its torsion vanishes in [k]A: accept", packed(mixed), r, nonce, secret)
    nonce, r = search(mixed, 1, lambda j, k: j == 0 and k % 8 != 0)
    yield case("mixed-order A, only the cofactored equation holds", packed(mixed), r, nonce, secret)
    nonce, r = search(mixed, 1, lambda j, k: j > 0 and (j + k) % 8 == 0)
    yield case("mixed-order A and R, torsions cancel: accept", packed(mixed), r, nonce, secret)
    nonce, r = search(own, 0, lambda j, _k: j == 1)
    yield case("mixed-order R, only the cofactored equation holds", packed(own), r, nonce, secret)
    nonce, r = search(ORDER_EIGHT, 1, lambda j, k: j > 0 and (j + k) % 8 == 0)
    yield case("small-order A (order 8), the equation holds", packed(ORDER_EIGHT), r, nonce, 0)
    for name, a in (
        ("small-order A (neutral)", packed(NEUTRAL)),
        ("A not canonical (neutral as p + 1)", NEUTRAL_RESPELT),
        ("A not canonical (neutral with a sign)", NEUTRAL_NEGATIVE),
    ):
        yield case(f"{name}, the equation holds", a, packed(times(7, BASE)), 7, 0)
    for name, r in (
        ("small-order R (neutral)", packed(NEUTRAL)),
        ("R not canonical (neutral as p + 1)", NEUTRAL_RESPELT),
        ("R not canonical (neutral with a sign)", NEUTRAL_NEGATIVE),
    ):
        yield case(f"{name}, the equation holds", packed(own), r, 0, secret)


def challenge(r: bytes, a: bytes, message: bytes) -> int:
    """Ed25519's k."""
    return int.from_bytes(hashlib.sha512(r + a + message).digest(), "little") % L


def signatures(small: World) -> list[dict[str, Any]]:
    """Signatures over the commit's hash, and whether they are to be accepted."""
    commit, signer = small.commit, key("certifier").identity
    record_hash, good = commit.hash(), commit.signature
    message = b"aw/sig/1\x00" + record_hash
    r, s = good[:32], int.from_bytes(good[32:], "little")
    raw = sodium.crypto_sign(
        record_hash, sodium.crypto_sign_seed_keypair(codec.content_id(b"vector key certifier"))[1]
    )
    neutral, eight = packed(NEUTRAL), packed(ORDER_EIGHT)
    cases = [
        ("good: accept", signer, good, True),
        ("of another record", signer, small.batch.signature, False),
        ("by another key", key("alice").identity, good, False),
        ("over the bare hash, without the domain", signer, raw[:64], False),
        ("one bit of R changed", signer, bytes([good[0] ^ 1]) + good[1:], False),
        ("one bit of S changed", signer, good[:32] + bytes([good[32] ^ 1]) + good[33:], False),
        ("S + L, the equation holds", signer, r + (s + L).to_bytes(32, "little"), False),
        ("S = L", signer, r + L.to_bytes(32, "little"), False),
        ("all zeros", signer, bytes(64), False),
        ("63 bytes", signer, good[:63], False),
        ("65 bytes", signer, good + b"\x00", False),
        (
            "small-order A and R (neutral), S 0, the equation holds",
            keys.key_id(neutral),
            neutral + bytes(32),
            False,
        ),
        ("small-order A and R (order 8), S 0", keys.key_id(eight), eight + bytes(32), False),
        ("A no point of the curve", keys.key_id(bytes([2]) + bytes(31)), good, False),
        ("key id of another kind", bytes(38), good, False),
    ]
    cases += [
        (name, keys.key_id(a), signature, accept)
        for name, a, signature, accept in crafted_signatures(message)
    ]
    found = []
    for name, identity, signature, accept in cases:
        if keys.verify(identity, record_hash, signature) is not accept:
            raise SystemExit(f"error: signature case {name!r}: accepted is {not accept}")
        found.append(
            {
                "name": name.removesuffix(": accept"),
                "key_id": identity.hex(),
                "record_hash": record_hash.hex(),
                "message": message.hex(),
                "signature": signature.hex(),
                "accept": accept,
            }
        )
    return found


def merkle() -> dict[str, Any]:
    """Roots, paths and mountain ranges over the items 00, 01, ..."""
    trees, mountain = [], codec.MountainRange()
    for count in range(10):
        items = [bytes([item]) for item in range(count)]
        if count:
            mountain = mountain.append(items[-1])
        paths = [[node.hex() for node in codec.merkle_path(items, index)] for index in range(count)]
        peaks = [peak.hex() for peak in mountain.peaks]
        trees.append({"count": count, "root": codec.merkle_root(items).hex(), "paths": paths, "peaks": peaks})
    return {"items": "item i is the one byte i", "trees": trees}


def ids(small: World) -> dict[str, Any]:
    """How things are spelled."""
    content = codec.content_id(b"hello")
    return {
        "world_id": {"header_hash": small.genesis.header.hash().hex(), "world_id": small.world_id},
        "content_id": {"blob": b"hello".hex(), "hex": content.hex(), "cid": codec.cid_text(content)},
        "provider_key": names.provider_key(content).hex(),
        "world_content_id": genesis.world_content_id(small.world_id).hex(),
        "head_key": names.head_key(small.world_id),
        "topics": [names.topic(small.world_id, kind) for kind in names.TOPIC_KINDS],
        "peer": {
            "seed": codec.content_id(b"vector key alice").hex(),
            "key_id": key("alice").identity.hex(),
            "text": names.peer_text(key("alice").identity),
        },
    }


def states() -> list[dict[str, Any]]:
    """Roots of small and larger tries, with proofs of presence and absence."""
    found = []
    for count in (0, 1, 16, 17, 300):
        cells = {("agents", f"agent-{number}".encode()): codec.encode(number) for number in range(count)}
        cells |= {("big", b"cell"): codec.encode(bytes(300))} if count == 17 else {}
        tree = state.State.empty().update(cells)
        proofs = []
        for namespace, name in (
            ("agents", b"agent-0"),
            ("agents", b"absent"),
            ("nowhere", b"x"),
            ("big", b"cell"),
        ):
            proof = tree.prove(namespace, name)
            value = state.verify_state_proof(tree.root(), namespace, name, proof)
            proofs.append(
                {
                    "namespace": namespace,
                    "key": name.hex(),
                    "value": None if value is None else value.hex(),
                    "proof": proof.to_bytes().hex(),
                    "refuse": bad_proofs(tree.root(), namespace, name, proof),
                }
            )
        found.append(
            {
                "cells": [[namespace, name.hex(), value.hex()] for (namespace, name), value in cells.items()],
                "root": tree.root().hex(),
                "proofs": proofs,
            }
        )
    return found


def bad_proofs(root: bytes, namespace: str, name: bytes, proof: state.StateProof) -> list[dict[str, str]]:
    """Changed proofs, none of which may prove anything of this cell under this root."""
    value = proof.to_value()
    bad: list[tuple[str, dict[str, Any]]] = []
    for part in ("top", "cells"):
        if part in value:
            bad += [(f"{part}: {why}", {**value, part: path}) for why, path in bad_paths(value[part])]
    if "cells" in value:
        bad.append(
            ("no path in the namespace", {name: item for name, item in value.items() if name != "cells"})
        )
    else:
        bad.append(("a path in an absent namespace", {**value, "cells": {"siblings": [], "bucket": []}}))
    if proof.value is None:
        bad.append(("a value beside that no entry names", {**value, "value": bytes(300)}))
    else:
        bad.append(("another value beside", {**value, "value": proof.value[:-1] + b"\x01"}))
        bad.append(("no value beside", {name: item for name, item in value.items() if name != "value"}))

    def check(data: bytes) -> object:
        return state.verify_state_proof(root, namespace, name, state.StateProof.from_bytes(data))

    for reason, changed in bad:
        expect_refusal(check, codec.encode(changed), Invalid, reason)
    return [{"proof": codec.encode(changed).hex(), "reason": reason} for reason, changed in bad]


def bad_paths(path: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(reason, path): near a good trie path."""
    siblings, bucket = path["siblings"], path["bucket"]
    yield "an entry more", {**path, "bucket": [*bucket, [b"stranger", 0, b"\x00"]]}
    yield "a level more", {**path, "siblings": [*siblings, bytes(480)]}
    if siblings:
        flipped = bytes([siblings[0][0] ^ 1]) + siblings[0][1:]
        yield "a bit of a sibling", {**path, "siblings": [flipped, *siblings[1:]]}
        yield "a level less", {**path, "siblings": siblings[1:]}
    if bucket:
        yield "no entries", {**path, "bucket": []}
        yield "one entry left out", {**path, "bucket": bucket[1:]}
        yield "another key", {**path, "bucket": [[b"stranger", *bucket[0][1:]], *bucket[1:]]}
        last = bytes([bucket[0][2][-1] ^ 1])
        yield (
            "another value",
            {**path, "bucket": [[*bucket[0][:2], bucket[0][2][:-1] + last, *bucket[0][3:]], *bucket[1:]]},
        )
    if len(bucket) > 1:
        yield "entries in another order", {**path, "bucket": bucket[::-1]}


def step(small: World) -> dict[str, Any]:
    """From a genesis and envelopes to a block, every blob on the way."""
    built = small.built
    return {
        "genesis": small.genesis.to_bytes().hex(),
        "world_id": small.world_id,
        "state_root_before": small.tip.state.root().hex(),
        "envelopes": [envelope.to_bytes().hex() for envelope in small.envelopes],
        "actions": small.actions.hex(),
        "batch": small.batch.to_bytes().hex(),
        "commit": small.commit.to_bytes().hex(),
        "receipts": [shown(receipt.to_value()) for receipt in built.outcome.receipts],
        "events": [shown(event.to_value()) for event in built.outcome.events],
        "blobs": {content.hex(): blob.hex() for content, blob in sorted(built.blobs.items())},
        "block": built.block.to_bytes().hex(),
        "block_hash": built.block.hash().hex(),
        "state_root": built.block.state_root.hex(),
        "head": small.head.to_bytes().hex(),
    }


def all_frames() -> dict[str, Any]:
    """Frames of /aw/rr/1."""
    good = [
        {"kind": "request", "id": 0, "method": "status", "body": "a0"},
        {"kind": "request", "id": 300, "method": "get_block", "body": "a0"},
        {"kind": "answer", "id": 1, "body": "a0"},
        {"kind": "part", "id": 0, "body": "00" * 200},
        {"kind": "error", "id": 7, "code": 7, "retry_after_ms": 200, "message": "busy", "detail": ""},
    ]
    for item in good:
        item["hex"] = frame_bytes(item).hex()
    bad = [
        ("length not shortest", "830000" + "0100"),
        ("length zero", "00"),
        ("length over 1 MiB", "818040" + "01"),
        ("length of four bytes", "80808001"),
        ("unknown type", "020400"),
        ("id not shortest", "03018000"),
        ("id over 2^32-1", "0701" + "ffffffff7f" + "a0"),
        ("method with a capital", "07000004" + b"Stat".hex()),
        ("method empty", "03000000"),
        ("error code 0", "06030000000000"[:14]),
        ("error code 11", "0603000b000000"),
        ("message no UTF-8", "0703000100" + "0001" + "ff"),
        ("the frame ends inside the id", "020080"),
        ("the frame ends inside the method", "0600000a" + b"get".hex()),
        ("the frame ends before the error code", "020300"),
        ("the frame ends inside the message", "07030001000005" + "61"),
        ("a message of 1,025 bytes", "870803000100" + "0401" + "61" * 1_025),
        ("an id of six bytes", "090180808080800001a0"),
    ]
    for reason, data in bad:
        expect_refusal(read_frame, bytes.fromhex(data), FrameError, reason)
    return {"frames": good, "refuse": [{"hex": data, "reason": reason} for reason, data in bad]}


def frame_bytes(item: dict[str, Any]) -> bytes:
    """A frame by our writer."""
    body = bytes.fromhex(item.get("body", ""))
    match item["kind"]:
        case "request":
            return frames.encode_request(item["id"], item["method"], body)
        case "answer":
            return frames.encode_answer(item["id"], body)
        case "part":
            return frames.encode_part(item["id"], body)
    detail = bytes.fromhex(item["detail"])
    code = Code(item["code"])
    return frames.encode_error(
        item["id"], code, item["message"], retry_after_ms=item["retry_after_ms"], detail=detail
    )


def read_frame(data: bytes) -> object:
    """The first frame in the bytes."""
    reader = frames.FrameReader()
    reader.feed(data)
    return reader.next_frame()


def gossip(small: World) -> list[dict[str, Any]]:
    """Messages, and what every relay says of them."""
    forged = replace(small.envelopes[0], signature=bytes(64))
    elsewhere = "a" * 32
    other_batch = seal(replace(small.batch.record, timestamp_ms=CREATED_MS + 1), key("proposer"))
    strange = seal(replace(small.commit.record, certifier_id=key("alice").identity), key("alice"))
    newer = codec.encode({**small.head.to_value(), "v": 2})
    newer_envelope = codec.encode([[{**small.envelopes[0].record.to_value(), "v": 2}, bytes(64)]])
    forged_batch = replace(small.batch, signature=bytes(64))
    forged_commit = replace(small.commit, signature=bytes(64))
    other_block = seal(replace(small.attestation.record, block_hash=bytes(32)), key("executor"))
    by_alice = seal(replace(small.attestation.record, executor_id=key("alice").identity), key("alice"))
    head, later = small.head, head_of_epoch_1(small)
    pair = messages.encode_batch_message
    cases: list[tuple[str, str, bytes, str]] = [
        ("action", "two envelopes", small.actions, small.world_id),
        ("action", "a forged signature", encode_envelopes([forged]), small.world_id),
        ("action", "of another world", small.actions, elsewhere),
        ("action", "an empty list", b"\x80", small.world_id),
        ("action", "17 envelopes", encode_envelopes([small.envelopes[0]] * 17), small.world_id),
        ("action", "indefinite length", b"\x9f" + small.actions[1:] + b"\xff", small.world_id),
        ("action", "of another version", newer_envelope, small.world_id),
        ("action", "32 arrays and maps deep", encode_envelopes([nested_envelope(small, 26)]), small.world_id),
        ("action", "33 arrays and maps deep", encode_envelopes([nested_envelope(small, 27)]), small.world_id),
        ("batch", "a batch and its commit", pair(small.batch, small.commit), small.world_id),
        ("batch", "the commit of another batch", pair(other_batch, small.commit), small.world_id),
        ("batch", "by a certifier without authority", pair(small.batch, strange), small.world_id),
        ("batch", "a forged batch", pair(forged_batch, small.commit), small.world_id),
        ("batch", "a forged commit", pair(small.batch, forged_commit), small.world_id),
        ("batch", "of another world", pair(small.batch, small.commit), elsewhere),
        ("block", "a block and its attestation", announce(small, small.attestation), small.world_id),
        ("block", "by an executor without authority", announce(small, by_alice), small.world_id),
        ("block", "the attestation of another block", announce(small, other_block), small.world_id),
        (
            "block",
            "a forged attestation",
            announce(small, replace(small.attestation, signature=bytes(64))),
            small.world_id,
        ),
        ("head", "a head", head.to_bytes(), small.world_id),
        ("head", "a head of epoch 1", later.to_bytes(), small.world_id),
        ("head", "a set that another key signed", head_of_epoch_1(small, "alice").to_bytes(), small.world_id),
        (
            "head",
            "a set that no root key signed",
            replace(later, authorities=SignedAuthorities(later.authorities.authorities)).to_bytes(),
            small.world_id,
        ),
        ("head", "of another world", head.to_bytes(), elsewhere),
        ("head", "a commit by a stranger", replace(head, commit=strange).to_bytes(), small.world_id),
        (
            "head",
            "an attestation by a stranger",
            replace(head, attestations=(by_alice,)).to_bytes(),
            small.world_id,
        ),
        (
            "head",
            "an attestation of another block",
            replace(head, attestations=(other_block,)).to_bytes(),
            small.world_id,
        ),
        ("head", "a forged commit", replace(head, commit=forged_commit).to_bytes(), small.world_id),
        ("head", "of another version", newer, small.world_id),
        ("head", "too large", head.to_bytes() + bytes(6_000), small.world_id),
    ]
    found = []
    for kind, name, data, world_id in cases:
        rule = rules.gossip_rules(world_id, small.genesis.body.limits.envelope_bytes_max)[kind]
        given, reason = verdict(rule, data)
        message = {"topic": names.topic(world_id, kind), "name": name, "data": data.hex(), "verdict": given}
        found.append(message if reason is None else {**message, "reason": reason})
    return found


def nested_envelope(small: World, arrays: int) -> Envelope:
    """An envelope with arrays in arrays in its payload, which is itself the sixth level of an action message."""
    inner: list[Any] = []
    for _ in range(arrays - 1):
        inner = [inner]
    return small.envelope("alice", 2, ("dance", {"steps": inner}))


def announce(small: World, attestation: Sealed[BlockAttestation]) -> bytes:
    """A `.block` message."""
    return BlockAnnounce(small.built.block, attestation).to_bytes()


def verdict(rule: rules.Rule, data: bytes) -> tuple[str, str | None]:
    """accept, reject or ignore; and our words for why."""
    try:
        rule(data)
    except Invalid as error:
        return "reject", str(error)
    except (Ignored, UnknownVersion) as error:
        return "ignore", str(error)
    return "accept", None


def files() -> Iterator[tuple[str, object]]:
    """Name and content of every vector file."""
    small = World()
    assert isinstance(small.genesis, Genesis)
    yield "records", [record_vector(*item) for item in all_records(small)]
    yield "signatures", signatures(small)
    yield "merkle", merkle()
    yield "ids", ids(small)
    yield "state", states()
    yield "step", step(small)
    yield "frames", all_frames()
    yield "gossip", gossip(small)


def main(folder: Path) -> None:
    """Write all files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "interop" / "vectors")

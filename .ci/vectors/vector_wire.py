"""Vectors of frames, gossip."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vector_world import CREATED_MS, World, expect_refusal, head_of_epoch_1, key

from p2p import frames, names
from p2p.errors import Code, FrameError
from runtime import codec, messages, rules
from runtime.errors import Ignored, Invalid, UnknownVersion
from runtime.records import (
    BlockAnnounce,
    BlockAttestation,
    Envelope,
    Sealed,
    SignedAuthorities,
    encode_envelopes,
    seal,
)


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
    item = messages.EvidenceItem("commit_fork", 1, bytes(32))
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
        ("action", "an envelope of 4,096 items", codec.encode([busy_envelope(small, 4_096)]), small.world_id),
        ("action", "an envelope of 4,097 items", codec.encode([busy_envelope(small, 4_097)]), small.world_id),
        ("action", "8,193 items in all", codec.encode([busy_envelope(small, 2_709)] * 3), small.world_id),
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
        *several_records(small),
        ("evidence", "a fork", item.to_bytes(), small.world_id),
        ("evidence", "of a later kind", replace(item, kind="later_kind").to_bytes(), small.world_id),
        (
            "evidence",
            "a hash of 31 bytes",
            codec.encode({**item.to_value(), "content_hash": bytes(31)}),
            small.world_id,
        ),
        ("evidence", "too large", codec.encode({**item.to_value(), "more": bytes(512)}), small.world_id),
    ]
    found = []
    for kind, name, data, world_id in cases:
        rule = rules.gossip_rules(world_id, small.genesis.body.limits.envelope_bytes_max)[kind]
        given, reason = verdict(rule, data)
        message = {"topic": names.topic(world_id, kind), "name": name, "data": data.hex(), "verdict": given}
        found.append(message if reason is None else {**message, "reason": reason})
    return found


def several_records(small: World) -> list[tuple[str, str, bytes, str]]:
    """Messages of several records, of which more than one is no good: the first that cannot be decoded decides."""
    elsewhere = "a" * 32
    envelope, batch, commit, attestation = (
        [each.record.to_value(), each.signature]
        for each in (small.envelopes[0], small.batch, small.commit, small.attestation)
    )
    block, head = small.built.block.to_value(), small.head.to_value()
    actions: list[tuple[str, Any]] = [
        ("a forged signature before another version", [forged(envelope), changed(envelope, v=2)]),
        (
            "of another world, before another version",
            [changed(envelope, world_id=elsewhere), changed(envelope, v=2)],
        ),
        ("another version before what is malformed", [changed(envelope, v=2), changed(envelope, nonce=-1)]),
        ("what is malformed before another version", [changed(envelope, nonce=-1), changed(envelope, v=2)]),
        ("another version with a signature of 63 bytes", [[changed(envelope, v=2)[0], bytes(63)]]),
        ("another version with fields of its own", [[{"v": 2, "more": "x"}, bytes(64)]]),
        ("another version, larger than an envelope", [changed(envelope, v=2, more=bytes(40_000))]),
        ("a version that is no integer", [changed(envelope, v="1")]),
    ]
    newer_batch, newer_commit, newer_attestation = (
        changed(each, v=2) for each in (batch, commit, attestation)
    )
    elsewhere_commit = changed(commit, v=2, world_id=elsewhere)
    newer_block = {**block, "v": 2, "world_id": elsewhere}
    newer = {**head, "commit": newer_commit}
    pairs: list[tuple[str, str, Any]] = [
        ("batch", "another version of a commit, behind a forged batch", [forged(batch), newer_commit]),
        ("batch", "another version of a batch, before a forged commit", [newer_batch, forged(commit)]),
        ("batch", "another version of a commit, malformed batch", [changed(batch, term=-1), newer_commit]),
        ("batch", "another version of a batch, malformed commit", [newer_batch, changed(commit, term=-1)]),
        ("batch", "another version of a commit, of another world", [batch, elsewhere_commit]),
        (
            "batch",
            "another version of a batch, larger than a batch",
            [changed(batch, v=2, x=bytes(9_000)), commit],
        ),
        (
            "block",
            "another version of a block, larger than a block",
            [{**newer_block, "x": bytes(9_000)}, attestation],
        ),
        ("block", "another version, of another block", [{**block, "height": 9}, newer_attestation]),
        ("block", "another version, behind a malformed block", [{**block, "height": 0}, newer_attestation]),
        ("block", "another version of a block, of another world", [newer_block, attestation]),
        ("head", "another version of a commit, before a malformed block_hash", {**newer, "block_hash": b""}),
        ("head", "another version of a commit, behind malformed authorities", {**newer, "authorities": []}),
        (
            "head",
            "another version of an attestation, a forged commit",
            {**head, "commit": forged(commit), "attestations": [newer_attestation]},
        ),
    ]
    listed = [("action", name, value) for name, value in actions] + pairs
    # A decoder of text may not take a byte order mark away: what is signed has it.
    marked = small.envelope("alice", 2, ("dance", {"\ufeffkey": "\ufeffvalue", "\ufeff": "\ufeff\ufeff"}))
    return [
        ("action", "text that begins with U+FEFF", encode_envelopes([marked]), small.world_id),
        *((kind, name, codec.encode(value), small.world_id) for kind, name, value in listed),
    ]


def changed(sealed: list[Any], **fields: Any) -> list[Any]:
    """A sealed record, as a value, with other fields under the same signature."""
    record, signature = sealed
    return [{**record, **fields}, signature]


def forged(sealed: list[Any]) -> list[Any]:
    """A sealed record, as a value, under a signature of zeros."""
    return [sealed[0], bytes(64)]


def nested_envelope(small: World, arrays: int) -> Envelope:
    """An envelope with arrays in arrays in its payload, which is itself the sixth level of an action message."""
    inner: list[Any] = []
    for _ in range(arrays - 1):
        inner = [inner]
    return small.envelope("alice", 2, ("dance", {"steps": inner}))


def busy_envelope(small: World, items: int) -> list[Any]:
    """A signed envelope with so many items in its one payload, as a value: some are not to be made as a record."""
    steps = [0] * (items - 2)  # besides the key and the list itself
    value = small.envelope("alice", 2, ("dance", {})).record.to_value()
    value["actions"] = [["dance", {"steps": steps}]]
    digest = codec.content_id(codec.preimage("envelope", codec.encode(value)))
    return [value, key("alice").sign(digest)]


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

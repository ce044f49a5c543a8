"""docs/protocol.cddl against every record's bytes, and against bytes that it must refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cbor2
import pycddl
import pytest

from runtime import codec, messages
from runtime.errors import Invalid
from runtime.records import Acceptance, LeaseGrant, seal
from runtime.schema import Record

ROOT = Path(__file__).parent.parent.parent
# RFC 8610 matches a regular expression with the whole text; this checker searches in it.
TEXT = re.sub(r'\.regexp "(.*?)"', r'.regexp "^\1$"', (ROOT / "docs" / "protocol.cddl").read_text())
VECTORS = ROOT / "interop" / "vectors"
RULES = re.findall(r"^([a-z-]+) =", TEXT, re.MULTILINE)
EMPTY: dict[str, Any] = {"bucket": []}
SEALED = {"envelope", "acceptance", "batch", "lease", "commit", "attestation"}


def schema(rule: str) -> pycddl.Schema:
    return pycddl.Schema(f"start = {rule}\n{TEXT}")


def load(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text())


def is_valid(rule: str, data: bytes) -> bool:
    try:
        schema(rule).validate_cbor(data)
    except pycddl.ValidationError:
        return False
    return True


RECORDS = load("records")


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_well_formed(rule: str) -> None:
    assert schema(rule)


@pytest.mark.parametrize("vector", RECORDS, ids=[vector["name"] for vector in RECORDS])
def test_every_record_fits_its_rule_and_changed_ones_do_not(vector: Any) -> None:
    rule = vector["record"].replace("_", "-")
    body = bytes.fromhex(vector["body"])
    assert is_valid(rule, body)
    value = cbor2.loads(body)
    first = next(name for name in value if name != "v")
    assert not is_valid(rule, cbor2.dumps({**value, "zzz": 1}))
    assert not is_valid(rule, cbor2.dumps({name: item for name, item in value.items() if name != first}))
    assert not is_valid(rule, cbor2.dumps({**value, first: 1.5}))
    if vector["record"] in SEALED and "sealed" in vector:
        sealed = bytes.fromhex(vector["sealed"])
        assert is_valid(f"sealed-{rule}", sealed)
        assert not is_valid(f"sealed-{rule}", b"\x82" + body + b"\x58\x3f" + bytes(63))


def test_gossip_messages_fit_their_rules() -> None:
    for message in load("gossip"):
        if message["verdict"] == "accept":
            kind = message["topic"].split(".")[2]
            assert is_valid(f"{kind}-message", bytes.fromhex(message["data"])), message["name"]


def test_state_proofs_fit_their_rule() -> None:
    checked = 0
    for case in load("state"):
        for proof in case["proofs"]:
            data = bytes.fromhex(proof["proof"])
            # This checker of CDDL takes the first of two array shapes for all items of an array, so that a bucket with
            # an entry that keeps its value beside the trie is beyond it.
            if all(
                len(entry) == 3
                for path in ("top", "cells")
                for entry in cbor2.loads(data).get(path, EMPTY)["bucket"]
            ):
                assert is_valid("state-proof", data)
                checked += 1
    assert checked > 10


def test_action_payloads_fit_their_rules() -> None:
    for sealed in load("step")["envelopes"]:
        for kind, payload in cbor2.loads(bytes.fromhex(sealed))[0]["actions"]:
            assert is_valid(kind.replace("_", "-"), cbor2.dumps(payload))
    both = {"kind": "fuel", "amount": 1, "to_agent": "a", "to_actor": bytes(38)}
    assert not is_valid("transfer-resource", cbor2.dumps(both))


def sample_bodies(world: Any) -> list[tuple[str, Record]]:
    """Each body with all that it may hold (alternatives once each), and the rule that it must fit."""
    envelope = world.envelope(world.actors[0], ("move_agent", {}))
    built = world.run(envelope)
    block, head, world_id = built.block, world.head_of(built), world.world_id
    batch, actions = world.batch([envelope])
    sealed_batch, commit, path = seal(batch, world.proposer), head.commit, (bytes(32), bytes(32))
    certifier, gateway = world.certifier.identity, world.executor
    lease = seal(LeaseGrant(world_id, 0, 1, world.proposer.identity, 1, 5_000, certifier), world.certifier)
    promise = seal(Acceptance(world_id, envelope.hash(), gateway.identity, 1, "local"), gateway)
    receipt = messages.ProvedReceipt(built.outcome.receipts[0], 0, 1, path)
    result = messages.SubmitResult("accepted", promise, "why", "in words", 1, 2)
    item = messages.EvidenceItem("commit_fork", 1, bytes(32))
    status = messages.WorldStatus(
        world_id, "small", 0, 1, 1, 1, 1, 1, bytes(32), certifier, True, 5, "why", (item,)
    )
    gauge = messages.GaugeReading("mempool_envelopes", 1, {"world": world_id}, "mempool_envelopes_max", 2)
    proof = built.tip.state.prove("actors", certifier).to_bytes()
    return [
        ("empty", messages.Empty()),
        ("hello-answer", messages.HelloAnswer((1,), 32, (world_id,))),
        ("world-request", messages.WorldRequest(world_id)),
        ("get-genesis-answer", messages.GenesisAnswer(world.genesis)),
        ("get-world-head-answer", messages.HeadAnswer(head)),
        ("get-commit-answer", messages.CommitAnswer(head.authorities, commit)),
        ("get-block-request", messages.BlockRequest(world_id, height=3)),
        ("get-block-request", messages.BlockRequest(world_id, block_hash=bytes(32))),
        ("get-block-answer", messages.BlockAnswer(block)),
        ("get-blocks-request", messages.BlocksRequest(world_id, 1, 256)),
        ("get-batch-request", messages.BatchRequest(world_id, 1)),
        ("get-batch-answer", messages.BatchAnswer(sealed_batch, commit)),
        ("get-bundle-request", messages.BundleRequest(world_id, bytes(32), True)),
        ("get-bundle-answer", messages.BundleAnswer((b"block", b"batch"))),
        ("fetch-blob-request", messages.BlobRequest(bytes(32), 1, 2)),
        ("fetch-blob-last", messages.BlobEnd(0)),
        ("has-blobs-request", messages.HasBlobsRequest((bytes(32),))),
        ("has-blobs-answer", messages.HasBlobsAnswer((True, False))),
        ("submit-request", messages.SubmitRequest(world_id, (envelope,))),
        ("submit-result", result),
        ("submit-answer", messages.SubmitAnswer((result, messages.SubmitResult("pooled")))),
        ("get-envelopes-request", messages.EnvelopesRequest(world_id, certifier, 0, 256)),
        ("action-status-request", messages.ActionStatusRequest(world_id, bytes(32))),
        ("action-status-answer", messages.ActionStatusAnswer("taken", 1, 0)),
        ("lease-acquire-request", messages.LeaseAcquireRequest(world_id, commit)),
        ("lease-term-request", messages.LeaseTermRequest(world_id, 1)),
        ("lease-answer", messages.LeaseAnswer(lease, commit, sealed_batch)),
        ("commit-batch-request", messages.CommitBatchRequest(world_id, sealed_batch, actions, commit)),
        ("commit-batch-answer", messages.CommitBatchAnswer(commit)),
        ("execute-batch-request", messages.ExecuteBatchRequest(world_id, sealed_batch, commit, actions)),
        ("evidence-item", item),
        ("get-evidence-request", messages.EvidenceRequest(world_id, bytes(32))),
        ("get-receipt-request", messages.ReceiptRequest(world_id, bytes(32))),
        ("proved-receipt", receipt),
        ("get-receipt-answer", messages.ReceiptAnswer(head, block, block, path, (receipt,), receipt)),
        ("get-state-proof-request", messages.StateProofRequest(world_id, "actors", certifier)),
        ("get-state-proof-answer", messages.StateProofAnswer(head, block, proof)),
        ("world-status", status),
        (
            "status-answer",
            messages.StatusAnswer(
                certifier,
                ("executor",),
                (status,),
                (certifier,),
                {"a": 1},
                {"b": 2},
                (gauge,),
                3,
                {"libp2p": "0.8.1"},
            ),
        ),
        ("gauge", gauge),
    ]


def changes_of(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The body itself, with a key more, and with each field missing, null, or of another type.

    Other types are maps, arrays and large integers: this checker of CDDL takes bytes for a range of integers,
    text for bytes with a range of sizes, and an array for a choice of words.
    """
    changed = [value, {**value, "later": [1, {"added": "key"}]}]
    for name, item in value.items():
        changed.append({other: kept for other, kept in value.items() if other != name})
        changed += [{**value, name: bad} for bad in (None, [] if isinstance(item, dict) else {}, 1 << 53)]
    return changed


def test_every_rr_body_is_tried(small_world: Any) -> None:
    tried = {type(body) for _rule, body in sample_bodies(small_world())}
    bodies = {
        item for item in vars(messages).values() if isinstance(item, type) and issubclass(item, messages.Body)
    }
    assert tried == bodies - {messages.Body}


def test_cddl_and_code_agree_about_rr_bodies_good_and_changed(small_world: Any) -> None:
    refused = 0
    for rule, body in sample_bodies(small_world()):
        assert is_valid(rule, body.to_bytes()), rule
        for value in changes_of(body.to_value()):
            data = codec.encode(value)
            try:
                type(body).from_bytes(data)
            except Invalid:
                assert not is_valid(rule, data), (rule, value)
                refused += 1
            else:
                assert is_valid(rule, data), (rule, value)
    assert refused > 200


SHAPE = (
    "unknown key",
    "missing key",
    "null in the place",
    "wrong type of",
    "bad world id",
    "v is text",
    "a float",
)


@pytest.mark.parametrize("vector", RECORDS, ids=[vector["name"] for vector in RECORDS])
def test_what_the_vectors_refuse_for_its_shape_does_not_fit(vector: Any) -> None:
    rule = vector["record"].replace("_", "-")
    shapes = [
        bad for bad in vector["refuse"] if bad["reason"].startswith(SHAPE) or " is below " in bad["reason"]
    ]
    assert len(shapes) > 5
    for bad in shapes:
        assert not is_valid(rule, bytes.fromhex(bad["hex"])), bad["reason"]

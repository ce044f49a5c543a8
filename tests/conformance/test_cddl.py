"""docs/protocol.cddl against every record's bytes, and against bytes that it must refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cbor2
import pycddl
import pytest

from runtime import messages
from runtime.schema import Record

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "protocol.cddl").read_text()
VECTORS = ROOT / "interop" / "vectors"
RULES = re.findall(r"^([a-z-]+) =", TEXT, re.MULTILINE)
EMPTY: dict[str, Any] = {"bucket": []}
RULE_OF = {"genesis_body": "genesis-body", "genesis_file": "genesis-file", "commit_fork": "commit-fork"}
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
    rule = RULE_OF.get(vector["record"], vector["record"])
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


def test_rr_bodies_fit_their_rules(small_world: Any) -> None:
    world = small_world()
    envelope = world.envelope(world.actors[0], ("move_agent", {}))
    batch, actions = world.batch([envelope])
    bodies: list[tuple[str, Record]] = [
        ("empty", messages.Empty()),
        ("hello-answer", messages.HelloAnswer(versions=(1,), max_in_flight=32, worlds=(world.world_id,))),
        ("world-request", messages.WorldRequest(world_id=world.world_id)),
        ("get-genesis-answer", messages.GenesisAnswer(genesis=world.genesis)),
        ("get-world-head-answer", messages.HeadAnswer()),
        ("get-block-request", messages.BlockRequest(world_id=world.world_id, height=3)),
        ("get-blocks-request", messages.BlocksRequest(world_id=world.world_id, from_height=1, count=256)),
        ("fetch-blob-request", messages.BlobRequest(content_hash=bytes(32))),
        ("fetch-blob-last", messages.BlobEnd(size=0)),
        ("has-blobs-request", messages.HasBlobsRequest(hashes=(bytes(32),))),
        ("has-blobs-answer", messages.HasBlobsAnswer(has=(True,))),
        ("submit-request", messages.SubmitRequest(world_id=world.world_id, envelopes=(envelope,))),
        ("submit-answer", messages.SubmitAnswer(results=(messages.SubmitResult(outcome="pooled"),))),
        ("action-status-answer", messages.ActionStatusAnswer(stage="pending")),
        ("lease-term-request", messages.LeaseTermRequest(world_id=world.world_id, term=1)),
        ("lease-answer", messages.LeaseAnswer()),
        ("get-batch-request", messages.BatchRequest(world_id=world.world_id, height=batch.height)),
    ]
    for rule, body in bodies:
        assert is_valid(rule, body.to_bytes()), rule
    assert actions
    assert not is_valid("get-block-request", cbor2.dumps({"world_id": world.world_id}))

"""Vectors of Merkle trees, identifiers, state tries with proofs, and the first block of a world."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vector_world import World, expect_refusal, key, shown

from p2p import names
from runtime import codec, genesis, state
from runtime.errors import Invalid


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

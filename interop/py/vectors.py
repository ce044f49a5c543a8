"""Every file of interop/vectors, each value read and made again, each refusal refused: the Python row of the matrix.

Pure but for reading the files. tests/conformance/test_vectors.py checks the same files a second time, without our code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeAlias

from p2p import frames, names
from p2p.errors import FrameError
from runtime import actions, chain, codec, evidence, genesis, keys, records, rules, schema, state
from runtime.batches import check_batch_form
from runtime.errors import Ignored, Invalid, UnknownVersion
from runtime.records import ActionBatch, Commit, WorldBlock, WorldHeadAnnounce, sealed_from_bytes
from runtime.world import check_signatures

SIGN_DOMAIN: Final = b"aw/sig/1\0"
Errors: TypeAlias = type[Exception] | tuple[type[Exception], ...]


class Differs(Invalid):
    """A vector that is not as its file says."""

    def __init__(self, which: str) -> None:
        super().__init__("vectors", f"{which} is not as the file says")


class Count:
    """What was checked and refused in one file."""

    def __init__(self, name: str) -> None:
        self.name, self.checked, self.refused = name, 0, 0

    def check(self, is_so: bool, which: str) -> None:
        if not is_so:
            raise Differs(f"{self.name}: {which}")
        self.checked += 1

    def refuse(self, which: str, errors: Errors, read: Callable[..., object], *arguments: object) -> None:
        """`read(*arguments)` must raise one of `errors`."""
        try:
            read(*arguments)
        except errors:
            self.refused += 1
            return
        raise Differs(f"{self.name}: {which}")


def check_vectors(folder: Path) -> dict[str, dict[str, int]]:
    """Counts by file. Raises Invalid for the first vector that differs, or a file that is not known."""
    counts = {}
    for path in sorted(folder.glob("*.json")):
        count = check_file(path.stem, json.loads(path.read_text()))
        counts[path.stem] = {"checked": count.checked, "refused": count.refused}
    return counts


def check_file(name: str, vectors: Any) -> Count:
    """What was checked and refused in one file. Raises Invalid as `check_vectors`."""
    if name not in _CHECKS:
        raise Invalid("vectors", f"{name} is not known")
    count = Count(name)
    _CHECKS[name](vectors, count)
    return count


def unshown(value: Any) -> Any:
    """JSON as a value of CBOR: `{"hex": ...}` is a byte string."""
    if isinstance(value, dict):
        if value.keys() == {"hex"}:
            return bytes.fromhex(value["hex"])
        return {name: unshown(item) for name, item in value.items()}
    return [unshown(item) for item in value] if isinstance(value, list) else value


def _record_classes() -> Iterator[type[schema.Record]]:
    for module in (records, evidence, actions, state):
        for item in vars(module).values():
            if isinstance(item, type) and issubclass(item, schema.Record) and hasattr(item, "NAME"):
                yield item


def _records(vectors: list[Any], count: Count) -> None:
    classes: dict[str, Any] = {one.NAME: one for one in _record_classes()}
    for vector in vectors:
        which, kind = vector["name"], classes[vector["record"]]
        read = kind.from_bytes(bytes.fromhex(vector["body"]))
        count.check(read.preimage().hex() == vector["preimage"], f"preimage of {which}")
        count.check(read.hash().hex() == vector["hash"], f"hash of {which}")
        count.check(read.to_value() == unshown(vector["value"]), f"value of {which}")
        for bad in vector["refuse"]:
            count.refuse(bad["reason"], Invalid, kind.from_bytes, bytes.fromhex(bad["hex"]))
        for newer in vector["ignore"]:
            data = bytes.fromhex(newer["hex"])
            count.refuse(newer["reason"], UnknownVersion, kind.from_bytes, data)
        if "sealed" in vector:
            sealed = sealed_from_bytes(kind, bytes.fromhex(vector["sealed"]))
            sealed.verify()
            count.check(sealed.record.signer.hex() == vector["signer"], f"signer of {which}")
        for bad in vector.get("refuse_sealed", ()):
            data = bytes.fromhex(bad["hex"])
            count.refuse(bad["reason"], Invalid, sealed_from_bytes, kind, data)


def _frames(vectors: dict[str, Any], count: Count) -> None:
    def first(data: bytes) -> object:
        reader = frames.FrameReader()
        reader.feed(data)
        return reader.next_frame()

    for vector in vectors["frames"]:
        which, fields = f"frame {vector['kind']}", {**vector, "request_id": vector["id"]}
        frame = first(bytes.fromhex(vector["hex"]))
        count.check(type(frame).__name__.lower().removesuffix("frame") == vector["kind"], which)
        for name, found in asdict(frame).items():  # type: ignore[call-overload]
            shown = found.hex() if isinstance(found, bytes) else found
            count.check(shown == fields[name], f"{name} of {which}")
    for bad in vectors["refuse"]:
        count.refuse(bad["reason"], FrameError, first, bytes.fromhex(bad["hex"]))


def _gossip(vectors: list[Any], count: Count) -> None:
    for vector in vectors:
        _aw, world_id, kind = vector["topic"].split(".")
        rule, data = rules.gossip_rules(world_id, 32 * 1024)[kind], bytes.fromhex(vector["data"])
        if vector["verdict"] == "accept":
            rule(data)
            count.check(True, vector["name"])
        else:
            errors: Errors = Invalid if vector["verdict"] == "reject" else (Ignored, UnknownVersion)
            count.refuse(vector["name"], errors, rule, data)


def _ids(vectors: dict[str, Any], count: Count) -> None:
    blob, peer = vectors["content_id"], vectors["peer"]
    content = codec.content_id(bytes.fromhex(blob["blob"]))
    key = keys.SigningKey(bytes.fromhex(peer["seed"])).identity
    world_id = vectors["world_id"]["world_id"]
    count.check(content.hex() == blob["hex"] and codec.cid_text(content) == blob["cid"], "content_id")
    count.check(names.provider_key(content).hex() == vectors["provider_key"], "provider_key")
    count.check(key.hex() == peer["key_id"] and names.peer_text(key) == peer["text"], "peer")
    header = bytes.fromhex(vectors["world_id"]["header_hash"])
    count.check(codec.base32(header[:20]) == world_id, "world_id")
    count.check(names.head_key(world_id) == vectors["head_key"], "head_key")
    count.check(genesis.world_content_id(world_id).hex() == vectors["world_content_id"], "world_content_id")
    topics = [names.topic(world_id, kind) for kind in names.TOPIC_KINDS]
    for topic in vectors["topics"]:
        count.check(topic in topics, topic)


def _merkle(vectors: dict[str, Any], count: Count) -> None:
    for tree in vectors["trees"]:
        items = [bytes([number]) for number in range(tree["count"])]
        count.check(codec.merkle_root(items).hex() == tree["root"], f"tree of {tree['count']}")
        for index, shown in enumerate(tree["paths"]):
            path = [bytes.fromhex(one) for one in shown]
            root = codec.merkle_root_from_path(items[index], index, len(items), path)
            count.check(root.hex() == tree["root"], f"path {index} of {tree['count']}")
            longer = [*path, bytes(32)]
            count.refuse(
                "a longer path", Invalid, codec.merkle_root_from_path, items[index], index, len(items), longer
            )


def _signatures(vectors: list[Any], count: Count) -> None:
    for vector in vectors:
        key, record_hash, signature = (
            bytes.fromhex(vector[name]) for name in ("key_id", "record_hash", "signature")
        )
        count.check((SIGN_DOMAIN + record_hash).hex() == vector["message"], f"message of {vector['name']}")
        count.check(keys.verify(key, record_hash, signature) is vector["accept"], vector["name"])
        count.refused += not vector["accept"]


def _state(vectors: list[Any], count: Count) -> None:
    for case in vectors:
        root = bytes.fromhex(case["root"])
        made = state.State().update(
            {(space, bytes.fromhex(key)): bytes.fromhex(value) for space, key, value in case["cells"]}
        )
        count.check(made.root() == root, f"root of {len(case['cells'])} cells")
        for shown in case["proofs"]:
            key = bytes.fromhex(shown["key"])

            def proved(
                data: str, root: bytes = root, space: str = shown["namespace"], key: bytes = key
            ) -> Any:
                return state.verify_state_proof(
                    root, space, key, state.StateProof.from_bytes(bytes.fromhex(data))
                )

            value = proved(shown["proof"])
            count.check((None if value is None else value.hex()) == shown["value"], "value")
            count.refuse("another root", Invalid, proved, shown["proof"], bytes(31) + b"\x01")
            for bad in shown["refuse"]:
                count.refuse(bad["reason"], Invalid, proved, bad["proof"])


def _step(step: dict[str, Any], count: Count) -> None:
    world = genesis.decode_genesis(bytes.fromhex(step["genesis"]))
    block = WorldBlock.from_bytes(bytes.fromhex(step["block"]))
    batch = sealed_from_bytes(ActionBatch, bytes.fromhex(step["batch"]))
    commit = sealed_from_bytes(Commit, bytes.fromhex(step["commit"]))
    head = WorldHeadAnnounce.from_bytes(bytes.fromhex(step["head"]))
    header = world.header
    count.check(header.world_id == step["world_id"], "world_id")
    acts = bytes.fromhex(step["actions"])
    envelopes = check_batch_form(world, 0, header.hash(), header.created_ms, batch.record, acts)
    tip = chain.genesis_tip(world)
    count.check(tip.state.root().hex() == step["state_root_before"], "state_root_before")
    built = chain.build_block(world, tip, batch.record, envelopes, check_signatures(envelopes))
    count.check(built.block == block and block.state_root.hex() == step["state_root"], "block and state_root")
    chain.check_commit(world.authorities, commit, batch.record, world_id=header.world_id)
    chain.check_head(head, header.world_id)
    chain.check_head_block(head, block)
    count.check(block.hash().hex() == step["block_hash"], "block_hash")
    blobs = {bytes.fromhex(content): bytes.fromhex(blob) for content, blob in step["blobs"].items()}
    for content, blob in blobs.items():
        count.check(codec.content_id(blob) == content, "blob")
    receipts, events = (
        chain.decode_receipts(blobs[block.receipts_ref]),
        chain.decode_events(blobs[block.journal_ref]),
    )
    chain.check_lists(block, receipts, events)
    count.check([one.to_value() for one in receipts] == unshown(step["receipts"]), "receipts")
    count.check([one.to_value() for one in events] == unshown(step["events"]), "events")


_CHECKS: dict[str, Callable[[Any, Count], None]] = {
    "records": _records,
    "frames": _frames,
    "gossip": _gossip,
    "ids": _ids,
    "merkle": _merkle,
    "signatures": _signatures,
    "state": _state,
    "step": _step,
}

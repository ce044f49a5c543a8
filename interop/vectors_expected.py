"""What a reader of interop/vectors must refuse: how many entries, and files in which one of them is wrong.

Pure. Guarantees: a peer that leaves out a list of refusals is found by the counts, and one that refuses whatever it is
told to refuse, without looking, by the wrong files.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

Vectors: TypeAlias = Any


def expected_refusals(name: str, vectors: Vectors) -> int:
    """Entries of a file that are there to be refused or ignored."""
    match name:
        case "records":
            lists = ("refuse", "ignore", "refuse_sealed")
            return sum(len(vector.get(key, ())) for vector in vectors for key in lists)
        case "frames":
            return len(vectors["refuse"])
        case "gossip":
            return sum(vector["verdict"] != "accept" for vector in vectors)
        case "signatures":
            return sum(not vector["accept"] for vector in vectors)
        case "state":
            return sum(len(proof["refuse"]) for case in vectors for proof in case["proofs"])
    return 0


def tampered(files: dict[str, Vectors]) -> Iterator[tuple[str, Vectors]]:
    """(file, its content with one entry wrong): a refusal that is sound, a hash or an outcome that is another."""

    def changed(name: str) -> Vectors:
        return copy.deepcopy(files[name])

    records = changed("records")
    entry = next(vector for vector in records if vector["refuse"])
    entry["refuse"][-1]["hex"] = entry["body"]
    yield "records", records
    records = changed("records")
    entry = next(vector for vector in records if vector.get("refuse_sealed"))
    entry["refuse_sealed"][-1]["hex"] = entry["sealed"]
    yield "records", records
    records = changed("records")
    records[-1]["hash"] = _flipped(records[-1]["hash"])
    yield "records", records
    frames = changed("frames")
    frames["refuse"][-1]["hex"] = frames["frames"][0]["hex"]
    yield "frames", frames
    for verdict, other in (("accept", "reject"), ("reject", "accept"), ("ignore", "reject")):
        gossip = changed("gossip")
        next(vector for vector in gossip if vector["verdict"] == verdict)["verdict"] = other
        yield "gossip", gossip
    for accept in (True, False):
        signatures = changed("signatures")
        next(vector for vector in signatures if vector["accept"] is accept)["accept"] = not accept
        yield "signatures", signatures
    state = changed("state")
    proof = next(proof for case in state for proof in case["proofs"] if proof["refuse"])
    proof["refuse"][-1]["proof"] = proof["proof"]
    yield "state", state
    merkle = changed("merkle")
    merkle["trees"][-1]["root"] = _flipped(merkle["trees"][-1]["root"])
    yield "merkle", merkle
    merkle = changed("merkle")
    merkle["trees"][-1]["paths"][-1][0] = _flipped(merkle["trees"][-1]["paths"][-1][0])
    yield "merkle", merkle
    for ids in _wrong_ids(files["ids"]):
        yield "ids", ids
    frames = changed("frames")
    frames["frames"][-1]["id"] += 1
    yield "frames", frames
    state = changed("state")
    state[-1]["root"] = _flipped(state[-1]["root"])
    yield "state", state
    step = changed("step")
    step["block_hash"] = _flipped(step["block_hash"])
    yield "step", step


def _wrong_ids(ids: Vectors) -> Iterator[Vectors]:
    def wrong(change: Callable[[Vectors], None]) -> Vectors:
        changed = copy.deepcopy(ids)
        change(changed)
        return changed

    other_world = ids["head_key"].replace("/aw/world/", "/aw/world/a")[: len(ids["head_key"])]
    yield wrong(lambda one: one["content_id"].update(hex=_flipped(ids["content_id"]["hex"])))
    yield wrong(lambda one: one["content_id"].update(cid=ids["content_id"]["cid"][:-1] + "a"))
    yield wrong(lambda one: one["peer"].update(key_id=ids["peer"]["key_id"][:-2] + "00"))
    yield wrong(lambda one: one["peer"].update(text=ids["peer"]["text"][:-1] + "z"))
    yield wrong(lambda one: one["world_id"].update(world_id="a" * 32))
    yield wrong(lambda one: one.update(head_key=other_world))
    yield wrong(lambda one: one.update(provider_key=ids["provider_key"][:-1] + "0"))
    yield wrong(lambda one: one.update(world_content_id=_flipped(ids["world_content_id"])))
    yield wrong(lambda one: one["topics"].append(ids["topics"][0] + "s"))


def _flipped(text: str) -> str:
    return ("1" if text[0] == "0" else "0") + text[1:]

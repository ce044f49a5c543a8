"""What a reader of interop/vectors must refuse: how many entries, and files in which one of them is wrong.

Pure. Guarantees: a peer that leaves out a list of refusals is found by the counts, and one that refuses whatever it is
told to refuse, without looking, by the wrong files.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
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
    step = changed("step")
    step["block_hash"] = _flipped(step["block_hash"])
    yield "step", step


def _flipped(text: str) -> str:
    return ("1" if text[0] == "0" else "0") + text[1:]

"""A block written by a second implementation, made from docs/protocol.md alone: none of our code is imported.

It knows what interop/vectors/step.json needs of the kernel: register_agent, move_agent and transfer_resource.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cbor2
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

VECTORS = Path(__file__).parent.parent.parent / "interop" / "vectors"
STEP = json.loads((VECTORS / "step.json").read_text())
IDS = json.loads((VECTORS / "ids.json").read_text())
FRAMES = json.loads((VECTORS / "frames.json").read_text())["frames"]
TREES = json.loads((VECTORS / "merkle.json").read_text())["trees"]
STATES = json.loads((VECTORS / "state.json").read_text())

Cells = dict[str, dict[bytes, bytes]]  # namespace -> key -> value


def h(data: bytes) -> bytes:
    return bytes(blake3(data).digest())


def cbor(value: Any) -> bytes:
    return bytes(cbor2.dumps(value, canonical=True))


def record_hash(name: str, value: Any) -> bytes:
    return h(b"aw/" + name.encode() + b"/1\x00" + cbor(value))


def is_signed(name: str, sealed: list[Any], signer: str) -> bool:
    record, signature = sealed
    key = Ed25519PublicKey.from_public_bytes(record[signer][6:])
    key.verify(signature, b"aw/sig/1\x00" + record_hash(name, record))
    return True


def base32(data: bytes) -> str:
    bits = "".join(f"{byte:08b}" for byte in data)
    return "".join(
        "abcdefghijklmnopqrstuvwxyz234567"[int(bits[at : at + 5], 2)] for at in range(0, len(bits), 5)
    )


def merkle(items: list[bytes]) -> bytes:
    domain = b"aw/merkle/1\x00"
    if len(items) < 2:
        return h(domain + (b"\x00" + items[0] if items else b"\x02"))
    split = 1 << (len(items) - 1).bit_length() - 1
    return h(domain + b"\x01" + merkle(items[:split]) + merkle(items[split:]))


# --- State ---------------------------------------------------------------------------------------------------


def trie(entries: list[list[Any]], depth: int = 0) -> bytes:
    """The root of entries, which ascend by H(key)."""
    if not entries:
        return bytes(32)
    if len(entries) <= 16:
        return h(b"aw/trie/1\x00\x00" + cbor(entries))
    children = [
        [entry for entry in entries if h(entry[0]).hex()[depth] == nibble] for nibble in "0123456789abcdef"
    ]
    return h(b"aw/trie/1\x00\x01" + b"".join(trie(child, depth + 1) for child in children))


def entries_of(cells: Iterable[tuple[bytes, bytes]]) -> list[list[Any]]:
    return [
        [key, 0, value] if len(value) <= 256 else [key, 1, h(value), len(value)]
        for key, value in sorted(cells, key=lambda cell: h(cell[0]))
    ]


def state_root(state: Cells) -> bytes:
    roots = [(name.encode(), trie(entries_of(cells.items()))) for name, cells in state.items() if cells]
    return trie(entries_of(roots))


def genesis_state(body: dict[str, Any]) -> Cells:
    limits = body["limits"]
    kernel = {name: body[name] for name in ("bounds", "max_move_cm", "resource_kinds", "checkpoint_interval")}
    kernel |= {name: body[name] for name in ("max_block_gap_ms", "admission")}
    kernel |= {name: limits[name] for name in ("block_fuel_max", "agents_per_actor_max")}
    kernel |= {name: limits[name] for name in ("expiry_blocks_max", "action_skew_ms")}
    return {
        "actors": {},
        "agents": {},
        "ledger": {
            cbor(["actor", actor, kind]): cbor(amount) for actor, kind, amount in body["balances"] if amount
        },
        "kernel": {name.encode(): cbor(value) for name, value in kernel.items()},
    }


# --- Step ----------------------------------------------------------------------------------------------------


def read(state: Cells, namespace: str, key: bytes, absent: Any) -> Any:
    value = state[namespace].get(key)
    return absent if value is None else cbor2.loads(value)


def give(state: Cells, holder: Any, kind: str, amount: int) -> None:
    key = cbor(["actor" if isinstance(holder, bytes) else "agent", holder, kind])
    now = read(state, "ledger", key, 0) + amount
    assert now >= 0
    state["ledger"][key] = cbor(now)
    if now == 0:
        del state["ledger"][key]


def register_agent(state: Cells, actor: bytes, payload: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    place = {name: payload[name] for name in ("x_cm", "y_cm", "z_cm")}
    state["agents"][payload["agent_id"].encode()] = cbor({"owner": actor, **place})
    standing = read(state, "actors", actor, None)
    state["actors"][actor] = cbor({**standing, "agents": standing["agents"] + 1})
    for kind, amount in payload.get("endow", {}).items():
        give(state, actor, kind, -amount)
        give(state, payload["agent_id"], kind, amount)
    return "AgentRegistered", {"owner": actor, **payload}


def move_agent(state: Cells, actor: bytes, payload: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    key, axes = payload["agent_id"].encode(), ("x_cm", "y_cm", "z_cm")
    before = read(state, "agents", key, None)
    state["agents"][key] = cbor({"owner": actor, **{axis: payload[axis] for axis in axes}})
    places = {"from_cm": [before[axis] for axis in axes], "to_cm": [payload[axis] for axis in axes]}
    return "AgentMoved", {"agent_id": payload["agent_id"], **places}


def transfer_resource(state: Cells, actor: bytes, payload: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    to = payload["to_agent"] if "to_agent" in payload else payload["to_actor"]
    give(state, payload.get("from_agent", actor), payload["kind"], -payload["amount"])
    give(state, to, payload["kind"], payload["amount"])
    return "ResourceTransferred", payload if "from_agent" in payload else {"from_actor": actor, **payload}


KERNEL = {
    "register_agent": (register_agent, 4_000),
    "move_agent": (move_agent, 2_000),
    "transfer_resource": (transfer_resource, 2_500),
}


def run(state: Cells, envelopes: list[Any]) -> tuple[list[Any], list[Any], int]:
    """Receipts, events and fuel of envelopes that all apply; `state` is changed."""
    receipts, events, fuel = [], [], 0
    for sealed in envelopes:
        assert is_signed("envelope", sealed, "actor_id")
        envelope = sealed[0]
        actor, envelope_hash = envelope["actor_id"], record_hash("envelope", envelope)
        standing = read(state, "actors", actor, {"nonce": 0, "agents": 0})
        assert envelope["nonce"] == standing["nonce"]
        state["actors"][actor] = cbor({**standing, "nonce": standing["nonce"] + 1})
        for index, (kind, payload) in enumerate(envelope["actions"]):
            apply, price = KERNEL[kind]
            happened, data = apply(state, actor, payload)
            fuel += price
            place = {"envelope_hash": envelope_hash, "index": index}
            receipts.append({**place, "code": "Applied"})
            events.append({**place, "kind": happened, "data": data})
    return receipts, events, fuel


def test_the_first_block_of_a_world_comes_out_byte_for_byte() -> None:
    genesis = cbor2.loads(bytes.fromhex(STEP["genesis"]))
    header_hash = record_hash("genesis", genesis["header"])
    assert record_hash("genesis_body", genesis["body"]) == genesis["header"]["body_hash"]
    assert record_hash("authorities", genesis["authorities"]) == genesis["header"]["authorities_hash"]
    world_id = base32(header_hash[:20])
    assert world_id == STEP["world_id"]
    state = genesis_state(genesis["body"])
    assert state_root(state).hex() == STEP["state_root_before"]

    sealed_batch, sealed_commit = (cbor2.loads(bytes.fromhex(STEP[name])) for name in ("batch", "commit"))
    batch, commit = sealed_batch[0], sealed_commit[0]
    assert is_signed("batch", sealed_batch, "proposer_id")
    assert is_signed("commit", sealed_commit, "certifier_id")
    assert commit["batch_hash"] == record_hash("batch", batch)
    envelopes = cbor2.loads(bytes.fromhex(STEP["actions"]))
    assert h(bytes.fromhex(STEP["actions"])) == batch["actions_ref"]
    assert merkle([cbor(sealed) for sealed in envelopes]) == batch["actions_root"]

    receipts, events, fuel = run(state, envelopes)
    block = {
        "v": 1,
        "world_id": world_id,
        "height": 1,
        "prev_block_hash": header_hash,
        "batch_hash": commit["batch_hash"],
        "state_root": state_root(state),
        "event_root": merkle([cbor(event) for event in events]),
        "journal_ref": h(cbor(events)),
        "receipts_root": merkle([cbor(receipt) for receipt in receipts]),
        "receipts_ref": h(cbor(receipts)),
        "history_root": merkle([]),
        "term": batch["term"],
        "proposer_id": batch["proposer_id"],
        "timestamp_ms": batch["timestamp_ms"],
        "fuel_used": fuel,
    }
    assert cbor(block).hex() == STEP["block"]
    assert record_hash("block", block).hex() == STEP["block_hash"]


@pytest.mark.parametrize("case", STATES, ids=lambda case: f"{len(case['cells'])} cells")
def test_state_roots_of_all_sizes_come_out(case: Any) -> None:
    state: Cells = {}
    for namespace, key, value in case["cells"]:
        state.setdefault(namespace, {})[bytes.fromhex(key)] = bytes.fromhex(value)
    assert state_root(state).hex() == case["root"]


@pytest.mark.parametrize("case", STATES, ids=lambda case: f"{len(case['cells'])} cells")
def test_state_proofs_lead_to_the_root(case: Any) -> None:
    for shown in case["proofs"]:
        proof, key = cbor2.loads(bytes.fromhex(shown["proof"])), bytes.fromhex(shown["key"])
        found = follow(bytes.fromhex(case["root"]), proof["top"], shown["namespace"].encode())
        if found is not None:
            found = follow(found[2], proof["cells"], key)
        if found is not None and found[1] == 1:
            assert (h(proof["value"]), len(proof["value"])) == (found[2], found[3])
            found = [key, 0, proof["value"]]
        assert (None if found is None else found[2].hex()) == shown["value"]


def follow(root: bytes, path: dict[str, Any], key: bytes) -> list[Any] | None:
    """The key's entry in the bucket that a trie path leads to, or None."""
    bucket, nibbles = path["bucket"], h(key).hex()
    digest = h(b"aw/trie/1\x00\x00" + cbor(bucket)) if bucket else bytes(32)
    for depth in reversed(range(len(path["siblings"]))):
        place, others = 32 * int(nibbles[depth], 16), path["siblings"][depth]
        digest = h(b"aw/trie/1\x00\x01" + others[:place] + digest + others[place:])
        assert all(h(entry[0]).hex()[depth] == nibbles[depth] for entry in bucket)
    assert digest == root
    return next((entry for entry in bucket if entry[0] == key), None)


# --- Merkle trees, Names, Request / response -------------------------------------------------------------------


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree['count']} leaves")
def test_merkle_roots_paths_and_peaks_come_out(tree: Any) -> None:
    count, items = tree["count"], [bytes([item]) for item in range(tree["count"])]
    assert merkle(items).hex() == tree["root"]
    for index, path in enumerate(tree["paths"]):
        assert [node.hex() for node in merkle_path(items, index)] == path
    peaks, at = [], 0
    for bit in reversed(range(count.bit_length())):
        if count >> bit & 1:
            peaks.append(merkle(items[at : at + (1 << bit)]).hex())
            at += 1 << bit
    assert peaks == tree["peaks"]


def merkle_path(items: list[bytes], index: int) -> list[bytes]:
    """RFC 6962's PATH."""
    if len(items) == 1:
        return []
    split = 1 << (len(items) - 1).bit_length() - 1
    if index < split:
        return [*merkle_path(items[:split], index), merkle(items[split:])]
    return [*merkle_path(items[split:], index - split), merkle(items[:split])]


def test_things_are_spelled_as_the_document_says() -> None:
    world_id, content = STEP["world_id"], h(bytes.fromhex(IDS["content_id"]["blob"]))
    assert (
        IDS["world_id"]["world_id"] == world_id == base32(bytes.fromhex(IDS["world_id"]["header_hash"])[:20])
    )
    assert IDS["content_id"]["hex"] == content.hex()
    cid = b"\x01\x55\x1e\x20" + content
    assert IDS["content_id"]["cid"] == "b" + base32(cid + bytes(4))[: (len(cid) * 8 + 4) // 5]
    assert IDS["provider_key"] == (b"\x1e\x20" + content).hex()
    assert IDS["world_content_id"] == h(b"aw/world/1\x00" + world_id.encode()).hex()
    assert IDS["head_key"] == f"/aw/world/{world_id}/head"
    assert len(IDS["head_key"]) == 47
    kinds = ("action", "batch", "block", "head", "event", "evidence")
    assert sorted(IDS["topics"]) == sorted(f"aw.{world_id}.{kind}" for kind in kinds)
    peer = IDS["peer"]
    public = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(peer["seed"])).public_key().public_bytes_raw()
    assert peer["key_id"] == "002408011220" + public.hex()
    assert peer["text"] == base58(bytes.fromhex(peer["key_id"]))


def base58(data: bytes) -> str:
    number, text = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"[digit] + text
    return "1" * (len(data) - len(data.lstrip(b"\x00"))) + text


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: f"{frame['kind']} {frame['id']}")
def test_frames_come_out(frame: Any) -> None:
    rest = bytes.fromhex(frame.get("body", ""))
    if frame["kind"] == "request":
        rest = bytes([len(frame["method"])]) + frame["method"].encode() + rest
    if frame["kind"] == "error":
        message = frame["message"].encode()
        rest = (
            bytes([frame["code"]])
            + varint(frame["retry_after_ms"])
            + len(message).to_bytes(2, "big")
            + message
        )
        rest += bytes.fromhex(frame["detail"])
    kinds = ["request", "answer", "part", "error"]
    inside = bytes([kinds.index(frame["kind"])]) + varint(frame["id"]) + rest
    assert (varint(len(inside)) + inside).hex() == frame["hex"]


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)

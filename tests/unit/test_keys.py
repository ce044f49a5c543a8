"""Keys sign record hashes and nothing else; bad bytes are an answer, not an exception."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from runtime import codec, keys
from runtime.errors import Invalid

KEY = keys.SigningKey(bytes([7]) * 32)
RECORD_HASH = codec.content_id(b"a record")
SIGNATURES = json.loads(
    (Path(__file__).parent.parent.parent / "interop" / "vectors" / "signatures.json").read_text()
)


def test_a_key_id_is_the_prefix_of_peer_ids_and_the_public_key() -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
    public = other.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert KEY.identity == bytes.fromhex("002408011220") + public
    assert keys.public_key(KEY.identity) == public
    assert keys.key_id(public) == KEY.identity


def test_a_signature_is_the_one_that_another_library_makes() -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
    assert KEY.sign(RECORD_HASH) == other.sign(b"aw/sig/1\x00" + RECORD_HASH)


def test_what_was_signed_verifies_for_the_signer_only() -> None:
    signature = KEY.sign(RECORD_HASH)
    assert keys.verify(KEY.identity, RECORD_HASH, signature)
    assert not keys.verify(keys.SigningKey(bytes([8]) * 32).identity, RECORD_HASH, signature)
    assert not keys.verify(KEY.identity, codec.content_id(b"another"), signature)


@pytest.mark.parametrize("case", SIGNATURES, ids=lambda case: case["name"])
def test_edge_cases_are_decided_as_the_rule_demands(case: Any) -> None:
    identity, record_hash = bytes.fromhex(case["key_id"]), bytes.fromhex(case["record_hash"])
    assert keys.verify(identity, record_hash, bytes.fromhex(case["signature"])) is case["accept"]


def test_every_changed_bit_of_a_signature_is_seen() -> None:
    signature = KEY.sign(RECORD_HASH)
    for bit in range(8 * len(signature)):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        assert not keys.verify(KEY.identity, RECORD_HASH, bytes(changed)), bit


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65), b"\xff" * 64])
def test_bytes_that_are_no_signature_do_not_verify(signature: bytes) -> None:
    assert not keys.verify(KEY.identity, RECORD_HASH, signature)


@pytest.mark.parametrize(
    "identity",
    [b"", KEY.identity[6:], KEY.identity[:-1], KEY.identity + b"\x00", b"\x00\x25" + KEY.identity[2:]],
)
def test_bytes_that_are_no_key_id_verify_nothing(identity: bytes) -> None:
    assert not keys.verify(identity, RECORD_HASH, KEY.sign(RECORD_HASH))
    with pytest.raises(Invalid, match="key_id"):
        keys.public_key(identity)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_seeds_and_public_keys_have_32_bytes(size: int) -> None:
    with pytest.raises(Invalid, match="seed"):
        keys.SigningKey(bytes(size))
    with pytest.raises(Invalid, match="public_key"):
        keys.key_id(bytes(size))

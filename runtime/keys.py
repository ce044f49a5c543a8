"""Ed25519 seals: who signed which record hash. The verifier is consensus, so the library is part of the rule.

Hides: libsodium. Guarantees: `verify` accepts exactly what docs/protocol.md section "Signatures" accepts: S < L,
A and R canonical, neither of small order, cofactorless [S]B = R + [k]A (libsodium's own checks).
"""

from __future__ import annotations

from functools import lru_cache

import nacl.bindings as sodium
from nacl.exceptions import BadSignatureError
from nacl.exceptions import ValueError as SodiumValueError

from runtime.errors import Invalid

KEY_ID_PREFIX = bytes.fromhex("002408011220")
KEY_ID_BYTES = 38
SIGNATURE_BYTES = 64
VERDICTS_CACHED_MAX = 16_384  # as many as a mempool holds; about 6 MB
_SIGN_DOMAIN = b"aw/sig/1\x00"


def key_id(public_key: bytes) -> bytes:
    """The 38-byte key id (= libp2p peer id) of a 32-byte Ed25519 public key."""
    if len(public_key) != 32:
        raise Invalid("public_key", f"{len(public_key)} bytes, not 32")
    return KEY_ID_PREFIX + public_key


def public_key(identity: bytes) -> bytes:
    """The 32-byte public key inside a key id. Raises Invalid for anything but an Ed25519 key id."""
    if len(identity) != KEY_ID_BYTES or identity[:6] != KEY_ID_PREFIX:
        raise Invalid("key_id", "not the 38 bytes of an Ed25519 peer id")
    return identity[6:]


class SigningKey:
    """A 32-byte Ed25519 seed in memory. `identity` is its key id."""

    __slots__ = ("_secret", "identity")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != 32:
            raise Invalid("seed", f"{len(seed)} bytes, not 32")
        public, self._secret = sodium.crypto_sign_seed_keypair(seed)
        self.identity = key_id(public)

    def sign(self, record_hash: bytes) -> bytes:
        """64-byte signature over `"aw/sig/1" 00 || record hash` (32 bytes)."""
        message = _SIGN_DOMAIN + record_hash
        return sodium.crypto_sign(message, self._secret)[:SIGNATURE_BYTES]


@lru_cache(VERDICTS_CACHED_MAX)
def verify(identity: bytes, record_hash: bytes, signature: bytes) -> bool:
    """True when `signature` is `identity`'s over that record hash. Never raises for bad bytes.

    A node meets an envelope several times: as gateway, in gossip, in a batch. The last verdicts are kept.
    """
    if len(signature) != SIGNATURE_BYTES or len(identity) != KEY_ID_BYTES or identity[:6] != KEY_ID_PREFIX:
        return False
    try:
        sodium.crypto_sign_open(signature + _SIGN_DOMAIN + record_hash, identity[6:])
    except (BadSignatureError, SodiumValueError):
        return False
    return True

"""Vectors of signatures, with such as no signer makes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import nacl.bindings as sodium
from vector_world import World, key

from runtime import codec, keys

L = 2**252 + 27742317777372353535851937790883648493  # order of Ed25519's base point

# Points of edwards25519 as (x, y), for signatures that no signer makes. Slow, plain, and only for these vectors.
P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)
NEUTRAL = (0, 1)
Point = tuple[int, int]


def add(one: Point, other: Point) -> Point:
    """The sum of two points."""
    (x1, y1), (x2, y2) = one, other
    t = D * x1 * x2 * y1 * y2 % P
    return (x1 * y2 + x2 * y1) * pow(1 + t, -1, P) % P, (y1 * y2 + x1 * x2) * pow(1 - t, -1, P) % P


def times(count: int, point: Point) -> Point:
    """count x point."""
    total = NEUTRAL
    while count:
        if count & 1:
            total = add(total, point)
        point, count = add(point, point), count >> 1
    return total


def packed(point: Point) -> bytes:
    """The 32 bytes of a point."""
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def unpacked(data: bytes) -> Point:
    """The point in 32 bytes that are known to hold one."""
    y = int.from_bytes(data, "little") & ((1 << 255) - 1)
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * ROOT_OF_MINUS_ONE % P
    return (x if x & 1 == data[31] >> 7 else P - x), y


BASE = unpacked((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
ORDER_EIGHT = unpacked(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"))
NEUTRAL_RESPELT = (P + 1).to_bytes(32, "little")  # not canonical
NEUTRAL_NEGATIVE = (1 | 1 << 255).to_bytes(32, "little")  # x = 0 with a sign


def crafted_signatures(message: bytes) -> Iterator[tuple[str, bytes, bytes, bool]]:
    """(name, A, signature, accept): the equation [S]B = R + [k]A decides where it is not said to hold."""
    secret = int.from_bytes(codec.content_id(b"vector scalar"), "little") % L
    own, mixed = times(secret, BASE), add(times(secret, BASE), ORDER_EIGHT)

    def case(name: str, a: bytes, r: bytes, nonce: int, signer: int) -> tuple[str, bytes, bytes, bool]:
        s = (nonce + challenge(r, a, message) * signer) % L
        return name, a, r + s.to_bytes(32, "little"), name.endswith(": accept")

    def search(a: Point, torsion_of_a: int, fits: Callable[[int, int], bool]) -> tuple[int, bytes]:
        # (nonce, R): R = nonce x B + j x the point of order 8; k comes from a hash, so it is tried.
        for nonce in range(1, 1_000):
            for j in range(8):
                r = packed(add(times(nonce, BASE), times(j, ORDER_EIGHT)))
                if fits(j, torsion_of_a * challenge(r, packed(a), message)):
                    return nonce, r
        raise SystemExit("error: no nonce found")

    nonce, r = search(mixed, 1, lambda j, k: j == 0 and k % 8 == 0)
    yield case("mixed-order A, its torsion vanishes in [k]A: accept", packed(mixed), r, nonce, secret)
    nonce, r = search(mixed, 1, lambda j, k: j == 0 and k % 8 != 0)
    yield case("mixed-order A, only the cofactored equation holds", packed(mixed), r, nonce, secret)
    nonce, r = search(mixed, 1, lambda j, k: j > 0 and (j + k) % 8 == 0)
    yield case("mixed-order A and R, torsions cancel: accept", packed(mixed), r, nonce, secret)
    nonce, r = search(own, 0, lambda j, _k: j == 1)
    yield case("mixed-order R, only the cofactored equation holds", packed(own), r, nonce, secret)
    nonce, r = search(ORDER_EIGHT, 1, lambda j, k: j > 0 and (j + k) % 8 == 0)
    yield case("small-order A (order 8), the equation holds", packed(ORDER_EIGHT), r, nonce, 0)
    for name, a in (
        ("small-order A (neutral)", packed(NEUTRAL)),
        ("A not canonical (neutral as p + 1)", NEUTRAL_RESPELT),
        ("A not canonical (neutral with a sign)", NEUTRAL_NEGATIVE),
    ):
        yield case(f"{name}, the equation holds", a, packed(times(7, BASE)), 7, 0)
    for name, r in (
        ("small-order R (neutral)", packed(NEUTRAL)),
        ("R not canonical (neutral as p + 1)", NEUTRAL_RESPELT),
        ("R not canonical (neutral with a sign)", NEUTRAL_NEGATIVE),
    ):
        yield case(f"{name}, the equation holds", packed(own), r, 0, secret)


def challenge(r: bytes, a: bytes, message: bytes) -> int:
    """Ed25519's k."""
    return int.from_bytes(hashlib.sha512(r + a + message).digest(), "little") % L


def signatures(small: World) -> list[dict[str, Any]]:
    """Signatures over the commit's hash, and whether they are to be accepted."""
    commit, signer = small.commit, key("certifier").identity
    record_hash, good = commit.hash(), commit.signature
    message = b"aw/sig/1\x00" + record_hash
    r, s = good[:32], int.from_bytes(good[32:], "little")
    raw = sodium.crypto_sign(
        record_hash, sodium.crypto_sign_seed_keypair(codec.content_id(b"vector key certifier"))[1]
    )
    neutral, eight = packed(NEUTRAL), packed(ORDER_EIGHT)
    cases = [
        ("good: accept", signer, good, True),
        ("of another record", signer, small.batch.signature, False),
        ("by another key", key("alice").identity, good, False),
        ("over the bare hash, without the domain", signer, raw[:64], False),
        ("one bit of R changed", signer, bytes([good[0] ^ 1]) + good[1:], False),
        ("one bit of S changed", signer, good[:32] + bytes([good[32] ^ 1]) + good[33:], False),
        ("S + L, the equation holds", signer, r + (s + L).to_bytes(32, "little"), False),
        ("S = L", signer, r + L.to_bytes(32, "little"), False),
        ("all zeros", signer, bytes(64), False),
        ("63 bytes", signer, good[:63], False),
        ("65 bytes", signer, good + b"\x00", False),
        (
            "small-order A and R (neutral), S 0, the equation holds",
            keys.key_id(neutral),
            neutral + bytes(32),
            False,
        ),
        ("small-order A and R (order 8), S 0", keys.key_id(eight), eight + bytes(32), False),
        ("A no point of the curve", keys.key_id(bytes([2]) + bytes(31)), good, False),
        ("key id of another kind", bytes(38), good, False),
    ]
    cases += [
        (name, keys.key_id(a), signature, accept)
        for name, a, signature, accept in crafted_signatures(message)
    ]
    found = []
    for name, identity, signature, accept in cases:
        if keys.verify(identity, record_hash, signature) is not accept:
            raise SystemExit(f"error: signature case {name!r}: accepted is {not accept}")
        found.append(
            {
                "name": name.removesuffix(": accept"),
                "key_id": identity.hex(),
                "record_hash": record_hash.hex(),
                "message": message.hex(),
                "signature": signature.hex(),
                "accept": accept,
            }
        )
    return found

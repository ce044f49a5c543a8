"""Canonical CBOR, spellings, and what each refusal says."""

from __future__ import annotations

import datetime as dt
from typing import Any

import cbor2
import pytest

from runtime import codec
from runtime.errors import Invalid
from runtime.limits import DEPTH_MAX


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (-1, "20"),
        (2**63 - 1, "1b7fffffffffffffff"),
        (-(2**63), "3b7fffffffffffffff"),
        (b"", "40"),
        ("é", "62c3a9"),
        (True, "f5"),
        (None, "f6"),
        ([], "80"),
        ({}, "a0"),
        ({"b": 1, "a": 2, "aa": 0}, "a3616102616201626161" + "00"),
    ],
)
def test_values_have_the_bytes_of_the_profile(value: Any, data: str) -> None:
    assert codec.encode(value).hex() == data
    assert codec.decode(bytes.fromhex(data), 100) == value


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        2**63,
        -(2**63) - 1,
        {1: 2},
        {b"k": 1},
        dt.datetime.now(dt.UTC),
        {1, 2},
        "\ud800",
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_in_the_profile_is_not_encoded(value: Any) -> None:
    with pytest.raises(Invalid, match=r"^field"):
        codec.encode(value, "field")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("1800", "integer not shortest"),
        ("1b0000000000000001", "integer not shortest"),
        ("1bffffffffffffffff", "2^64 - 1"),
        ("f93c00", "float 1.0"),
        ("f97e00", "NaN"),
        ("f7", "undefined"),
        ("e0", "simple value"),
        ("c100", "tag 1"),
        ("c249010000000000000000", "bignum"),
        ("d81c80", "shared reference"),
        ("9fff", "indefinite array"),
        ("bfff", "indefinite map"),
        ("5f4100ff", "indefinite bytes"),
        ("7f6161ff", "indefinite text"),
        ("a2616101616102", "key twice"),
        ("a2616201616102", "keys in another order"),
        ("a10102", "integer key"),
        ("61ff", "no UTF-8"),
        ("780161", "length not shortest"),
        ("", "nothing"),
        ("00ff", "more"),
        ("9bffffffffffffffff", "length bomb of an array"),
        ("bbffffffffffffffff", "length bomb of a map"),
        ("5bffffffffffffffff", "length bomb of bytes"),
        ("7b7fffffffffffffff", "length bomb of text"),
    ],
)
def test_other_bytes_are_refused(data: str, what: str) -> None:
    with pytest.raises(Invalid, match=r"^thing"):
        codec.decode(bytes.fromhex(data), 100, "thing")
    assert what


def test_depth_and_size_have_limits() -> None:
    assert codec.decode(codec.encode(nested(DEPTH_MAX)), 100) == nested(DEPTH_MAX)
    with pytest.raises(Invalid, match=f"deeper than {DEPTH_MAX}"):
        codec.encode(nested(DEPTH_MAX + 1))
    for depth in (DEPTH_MAX + 1, DEPTH_MAX + 2, 90_000):
        with pytest.raises(Invalid):
            codec.decode(b"\x81" * depth + b"\x00", 100_000)
    with pytest.raises(Invalid, match="3 bytes, at most 2"):
        codec.decode(codec.encode(b"ab"), 2)


def test_a_preimage_names_its_record() -> None:
    blob = codec.preimage("block", b"\xa0")
    assert blob == b"aw/block/1\x00\xa0"
    assert codec.unwrap_preimage("block", blob) == b"\xa0"
    with pytest.raises(Invalid):
        codec.unwrap_preimage("batch", blob)


@pytest.mark.parametrize("text", ["", "zz", "0" * 63, "g" * 64, "b" + "a" * 57, "B" + "a" * 58, "baaaa1"])
def test_other_spellings_of_a_content_id_are_refused(text: str) -> None:
    with pytest.raises(Invalid, match="content_id"):
        codec.parse_content_id(text)


def test_proofs_of_no_leaf_are_refused() -> None:
    for index, count in ((0, 0), (1, 1), (-1, 3)):
        with pytest.raises(Invalid, match=r"proof\.index"):
            codec.merkle_root_from_path(b"", index, count, [])
    with pytest.raises(Invalid, match="index"):
        codec.merkle_path([b"a"], 1)
    with pytest.raises(Invalid, match="peaks"):
        codec.MountainRange(3, (bytes(32),))


def _tagged(tag: int, content: Any) -> bytes:
    return cbor2.dumps(cbor2.CBORTag(tag, content))


@pytest.mark.parametrize(
    "data",
    [
        _tagged(4, [1, cbor2.CBORTag(2, b"\xff" * 900_000)]),
        _tagged(5, [1, cbor2.CBORTag(2, b"\xff" * 900_000)]),
        _tagged(30, [cbor2.CBORTag(2, b"\xff" * 400_000), cbor2.CBORTag(2, b"\xfe" * 400_000)]),
        _tagged(35, "a{1,9}" * 150_000),
        _tagged(36, "a: b\n" * 180_000),
    ],
    ids=["decimal fraction", "big float", "rational", "regular expression", "MIME message"],
)
@pytest.mark.timeout(5)
def test_a_tag_is_refused_before_anything_is_made_of_its_content(data: bytes) -> None:
    # The library's own decoding of the first takes a minute.
    with pytest.raises(Invalid, match="no canonical CBOR"):
        codec.decode(data, 1 << 20)


@pytest.mark.parametrize("tag", [*range(300), 1004, 43000, 55799, 65535, 65536, (1 << 64) - 1])
def test_no_tag_of_any_content_passes(tag: int) -> None:
    for content in (0, "x", b"x", [1, 0], [0, [1, 2], 0], {"a": 1}, 1e300, None):
        for value in (cbor2.CBORTag(tag, content), [cbor2.CBORTag(tag, content)]):
            with pytest.raises(Invalid):
                codec.decode(cbor2.dumps(value), 1_000)


def test_numbers_that_collide_as_keys_are_refused_at_the_first() -> None:
    with pytest.raises(Invalid, match="no canonical CBOR"):
        codec.decode(cbor2.dumps({1: 0, 2: 0}), 1_000)

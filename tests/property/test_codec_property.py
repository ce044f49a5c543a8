"""The codec on any value and any bytes: one encoding each, typed refusals only."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import codec
from runtime.errors import Invalid

SCALARS = (
    st.integers(codec.INT_MIN, codec.INT_MAX)
    | st.booleans()
    | st.none()
    | st.binary(max_size=40)
    | st.text(max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)
BYTES_MAX = 1 << 20


def is_equal(one: Any, other: Any) -> bool:
    """Equal, and of the same types: 1 is not True."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_equal(item, other[name]) for name, item in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(is_equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


@given(VALUES)
def test_a_value_comes_back_from_its_one_encoding(value: Any) -> None:
    data = codec.encode(value)
    assert is_equal(codec.decode(data, BYTES_MAX), value)
    assert codec.encode(codec.decode(data, BYTES_MAX)) == data
    assert is_equal(cbor2.loads(data), value), "another decoder reads the same"


@given(st.dictionaries(st.text(max_size=8), SCALARS, max_size=6), st.randoms())
def test_the_order_in_which_a_map_was_made_does_not_matter(value: dict[str, Any], rng: Any) -> None:
    shuffled = list(value.items())
    rng.shuffle(shuffled)
    assert codec.encode(dict(shuffled)) == codec.encode(value)


@given(VALUES, st.data())
def test_changed_bytes_are_refused_or_are_the_one_encoding_of_another_value(value: Any, data: Any) -> None:
    good = bytearray(codec.encode(value))
    place = data.draw(st.integers(0, len(good) - 1))
    good[place] ^= data.draw(st.integers(1, 255))
    try:
        read = codec.decode(bytes(good), BYTES_MAX)
    except Invalid:
        return
    assert codec.encode(read) == bytes(good)
    assert not is_equal(read, value)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_as_invalid_or_are_canonical(data: bytes) -> None:
    try:
        value = codec.decode(data, BYTES_MAX)
    except Invalid:
        return
    assert codec.encode(value) == data


@given(VALUES, st.binary(min_size=1, max_size=5))
def test_nothing_may_follow(value: Any, tail: bytes) -> None:
    with pytest.raises(Invalid):
        codec.decode(codec.encode(value) + tail, BYTES_MAX)


@given(st.lists(VALUES, max_size=30))
def test_an_array_of_encodings_is_the_encoding_of_the_array(values: list[Any]) -> None:
    assert codec.array_of([codec.encode(value) for value in values]) == codec.encode(values)


@given(st.lists(st.binary(max_size=8), max_size=40), st.data())
def test_every_leaf_is_proved_and_no_other_item_is(items: list[bytes], data: Any) -> None:
    mountain = codec.MountainRange()
    for item in items:
        mountain = mountain.append(item)
    root = codec.merkle_root(items)
    assert mountain.root() == root
    if not items:
        return
    index = data.draw(st.integers(0, len(items) - 1))
    path = codec.merkle_path(items, index)
    assert codec.merkle_root_from_path(items[index], index, len(items), path) == root
    assert codec.merkle_root_from_path(items[index] + b"x", index, len(items), path) != root
    with pytest.raises(Invalid):
        codec.merkle_root_from_path(items[index], index, len(items), [*path, bytes(32)])
    if path:
        with pytest.raises(Invalid):
            codec.merkle_root_from_path(items[index], index, len(items), path[:-1])


@given(st.binary(min_size=32, max_size=32))
def test_content_ids_are_spelled_both_ways(content: bytes) -> None:
    assert codec.parse_content_id(codec.cid_text(content)) == content
    assert codec.parse_content_id(content.hex()) == content
    assert codec.unbase32(codec.base32(content), "x") == content

"""Kinds of fields and the record around them: what is refused, and which field is named."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass
from typing import Annotated, Any, ClassVar

import pytest

from runtime import codec, schema
from runtime.errors import Invalid, UnknownVersion
from runtime.keys import SigningKey
from runtime.messages import BlobRequest

KEY_IDS = sorted(SigningKey(bytes([number]) * 32).identity for number in range(3))


@dataclass(frozen=True, slots=True)
class Inner(schema.Record):
    NAME: ClassVar[str] = "inner"
    BYTES_MAX: ClassVar[int] = 64
    VERSIONED: ClassVar[bool] = False

    count: schema.Count


@dataclass(frozen=True, slots=True)
class Outer(schema.Record):
    NAME: ClassVar[str] = "outer"
    BYTES_MAX: ClassVar[int] = 256

    name: schema.Name
    names: Annotated[tuple[str, ...], schema.list_of(schema.NAME, 1, 3, ascending=True)]
    inner: Annotated[Inner, schema.nested(Inner)] | None = None
    pair: Annotated[tuple[int, str], schema.tuple_of(schema.COUNT, schema.NAME)] | None = None

    def check(self) -> None:
        if self.name in self.names:
            raise Invalid("outer.name", "must not be among names")


@dataclass(frozen=True, slots=True)
class Open(schema.Record):
    NAME: ClassVar[str] = "open"
    BYTES_MAX: ClassVar[int] = 64
    VERSIONED: ClassVar[bool] = False
    CLOSED: ClassVar[bool] = False

    count: schema.Count | None = None


GOOD = Outer(name="a", names=("b", "c"), inner=Inner(count=3), pair=(1, "x"))
VALUE: dict[str, Any] = {"v": 1, "name": "a", "names": ["b", "c"], "inner": {"count": 3}, "pair": [1, "x"]}


def test_a_record_is_its_value_and_its_bytes() -> None:
    assert GOOD.to_value() == VALUE
    assert Outer.from_value(VALUE) == GOOD
    assert Outer.from_bytes(codec.encode(VALUE)) == GOOD
    assert GOOD.preimage() == b"aw/outer/1\x00" + codec.encode(VALUE)
    assert Outer.from_preimage(GOOD.preimage()).hash() == GOOD.hash() == codec.content_id(GOOD.preimage())


def test_an_absent_field_is_no_key() -> None:
    assert Outer(name="a", names=("b",)).to_value() == {"v": 1, "name": "a", "names": ["b"]}


def test_bytes_that_were_read_are_kept_and_are_the_same_as_those_made() -> None:
    data = codec.encode({**VALUE, "name": "never-read-before"})
    assert Outer.from_bytes(data).to_bytes() is data
    assert GOOD.to_bytes() == codec.encode(VALUE)


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        GOOD.name = "z"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "A"}, "outer.name"),
        ({"name": "b"}, "outer.name"),
        ({"name": "a\n"}, "outer.name"),
        ({"name": b"a"}, "outer.name"),
        ({"names": []}, "outer.names"),
        ({"names": ["b", "c", "d", "e"]}, "outer.names"),
        ({"names": ["b", "b"]}, "outer.names[1]"),
        ({"names": ["c", "b"]}, "outer.names[1]"),
        ({"names": ["b", 1]}, "outer.names[1]"),
        ({"names": "bc"}, "outer.names"),
        ({"inner": {"count": -1}}, "inner.count"),
        ({"inner": {}}, "outer.inner.count"),
        ({"inner": {"count": 1, "more": 1}}, "outer.inner.more"),
        ({"inner": []}, "outer.inner"),
        ({"inner": None}, "outer.inner"),
        ({"pair": None}, "outer.pair"),
        ({"pair": [1]}, "outer.pair"),
        ({"pair": [True, "x"]}, "outer.pair[0]"),
        ({"pair": [1, "x", 1]}, "outer.pair"),
        ({"v": True}, "outer.v"),
        ({"v": "1"}, "outer.v"),
        ({"zzz": 1}, "outer.zzz"),
    ],
)
def test_what_breaks_a_rule_names_its_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        Outer.from_value({**VALUE, **changes})
    assert caught.value.field == field


@pytest.mark.parametrize("missing", ["v", "name", "names"])
def test_a_missing_key_is_named(missing: str) -> None:
    with pytest.raises(Invalid, match=f"outer.{missing}"):
        Outer.from_value({name: item for name, item in VALUE.items() if name != missing})


@pytest.mark.parametrize("value", [None, [], 1, "outer"])
def test_what_is_no_map_is_no_record(value: Any) -> None:
    with pytest.raises(Invalid, match="must be a map"):
        Outer.from_value(value)


def test_construction_checks_as_reading_does() -> None:
    for wrong in ({"name": "A"}, {"names": ["b"]}, {"inner": {"count": 3}}, {"pair": (1,)}):
        with pytest.raises(Invalid):
            Outer(**{"name": "a", "names": ("b",), **wrong})  # type: ignore[arg-type]


def test_another_version_is_unknown_and_not_invalid_even_with_other_fields() -> None:
    with pytest.raises(UnknownVersion) as caught:
        Outer.from_value({"v": 2, "what": "ever"})
    assert (caught.value.record, caught.value.version) == ("outer", 2)


def test_a_strangers_long_key_does_not_make_a_long_message() -> None:
    for value in ({**VALUE, "z" * 10_000: 1}, {**VALUE, "pair": {"k" * 10_000: {"f": 0}}}):
        with pytest.raises(Invalid) as caught:
            Outer.from_value(value)
        assert len(str(caught.value)) < 200
    with pytest.raises(Invalid) as caught:
        codec.encode({"k" * 10_000: 1.5})
    assert len(str(caught.value)) < 200


def test_size_is_judged_before_anything_is_decoded() -> None:
    with pytest.raises(Invalid, match="257 bytes, at most 256"):
        Outer.from_bytes(b"\xff" * 257)


def test_a_record_that_would_be_too_large_has_no_bytes() -> None:
    long = tuple(letter + "x" * 63 for letter in "bcd")
    with pytest.raises(Invalid, match="at most 256"):
        Outer(name="a" * 64, names=long).to_bytes()


def test_a_blob_of_another_record_is_refused() -> None:
    with pytest.raises(Invalid, match="outer"):
        Outer.from_preimage(b"aw/inner/1\x00" + codec.encode(VALUE))


def test_open_bodies_keep_what_they_know_and_ignore_the_rest() -> None:
    data = codec.encode({"count": 5, "later": "added"})
    assert Open.from_bytes(data) == Open(count=5)
    assert Open.from_bytes(data).to_bytes() == codec.encode({"count": 5})
    assert Open.from_bytes(codec.encode({})) == Open()


def test_a_request_for_a_blob_needs_no_more_than_its_hash() -> None:
    read = BlobRequest.from_bytes(codec.encode({"content_hash": bytes(32)}))
    assert (read.offset, read.length) == (None, None)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (schema.bytes_of(2), [b"ab"], [b"a", b"abc", "ab", bytearray(b"ab"), None]),
        (schema.bytes_between(1, 2), [b"a", b"ab"], [b"", b"abc", "a"]),
        (schema.int_between(-1, 1), [-1, 0, 1], [-2, 2, True, 1.0, "1"]),
        (schema.text_upto(2), ["", "ab", "é"], ["abc", "éa", b"a"]),
        (schema.one_of("on", "off"), ["on"], ["", "ON", 1, ["on"]]),
        (schema.FLAG, [True, False], [0, 1, None]),
        (schema.HASH, [bytes(32)], [bytes(31), bytes(33), "x" * 32]),
        (schema.SIGNATURE, [bytes(64)], [bytes(63)]),
        (schema.KEY_ID, KEY_IDS, [bytes(38), KEY_IDS[0][:-1], KEY_IDS[0].hex()]),
        (schema.NAME, ["a", "0-._", "a" * 64], ["", "a" * 65, "-a", ".", "ä", "a b", "a\n", "٣"]),
        (schema.COUNT, [0, 2**53 - 1], [-1, 2**53]),
        (schema.AMOUNT, [0, 2**63 - 1], [-1, 2**63]),
    ],
)
def test_kinds_take_what_is_in_range_and_of_the_very_type(kind: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        kind.check(value, "field")
    for value in bad:
        with pytest.raises(Invalid, match="^field: "):
            kind.check(value, "field")


def test_a_small_record_that_comes_again_is_the_one_that_was_decoded() -> None:
    data = GOOD.to_bytes()
    assert Outer.from_bytes(bytes(bytearray(data))) is Outer.from_bytes(bytes(bytearray(data)))
    with pytest.raises(Invalid):  # the same bytes as another record are judged by its own rules
        Inner.from_bytes(data)


def test_a_large_record_is_not_kept() -> None:
    @dataclass(frozen=True, slots=True)
    class Large(schema.Record):
        NAME: ClassVar[str] = "large"
        BYTES_MAX: ClassVar[int] = 8_192

        blob: Annotated[bytes, schema.bytes_between(0, 8_000)]

    small, large = Large(bytes(10)).to_bytes(), Large(bytes(schema.RECORD_CACHED_BYTES_MAX)).to_bytes()
    assert Large.from_bytes(small) is Large.from_bytes(small)
    assert Large.from_bytes(large) is not Large.from_bytes(large)
    assert Large.from_bytes(large) == Large.from_bytes(large)


def test_a_refused_record_is_refused_again() -> None:
    for _ in range(2):
        with pytest.raises(Invalid, match="not canonical"):
            Inner.from_bytes(b"\xa1\x65count\x18\x01")

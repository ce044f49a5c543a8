"""Every decoder of records and bodies on bytes of any kind: a record, or a typed refusal, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import codec, evidence, messages, records, state
from runtime.errors import Invalid, UnknownVersion
from runtime.schema import Record

VECTORS = json.loads(
    (Path(__file__).parent.parent.parent / "interop" / "vectors" / "records.json").read_text()
)


def concrete(*modules: Any) -> list[type[Record]]:
    found = {
        item
        for module in modules
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Record) and "NAME" in vars(item)
    }
    return sorted(found, key=lambda record: record.__name__)


RECORDS = concrete(records, messages, evidence, state)
BY_NAME = {record.NAME: record for record in concrete(records, evidence)}


def read(record: type[Record], data: bytes) -> Record | None:
    try:
        found = record.from_bytes(data)
    except (Invalid, UnknownVersion):
        return None
    if record.CLOSED:
        assert found.to_bytes() == data
    again = record.from_bytes(found.to_bytes())
    assert again == found
    return found


def test_there_are_records_to_try() -> None:
    assert len(RECORDS) > 40


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
@given(st.binary(max_size=120))
def test_any_bytes(record: type[Record], data: bytes) -> None:
    read(record, data)


SCALARS = st.integers(-2, 2**53) | st.binary(max_size=70) | st.text(max_size=10) | st.none() | st.booleans()
INNER = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=3)
ANYTHING = SCALARS | st.lists(INNER, max_size=3) | st.dictionaries(st.text(max_size=5), INNER, max_size=3)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
@given(st.data())
def test_any_values_under_the_right_names(record: type[Record], data: Any) -> None:
    names = list(record.__dataclass_fields__)  # type: ignore[attr-defined]
    value = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(names, ANYTHING)))
    if record.VERSIONED:
        value["v"] = data.draw(st.sampled_from([1, 1, 1, 2, "1"]))
    read(record, codec.encode(value))


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
@given(st.data())
def test_changed_bytes_of_good_records(vector: Any, data: Any) -> None:
    body = bytearray.fromhex(vector["body"])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                body[place] ^= data.draw(st.integers(1, 255))
            case "cut":
                del body[place : place + data.draw(st.integers(1, 8))]
            case _:
                body[place:place] = data.draw(st.binary(min_size=1, max_size=8))
        if not body:
            break
    read(BY_NAME[vector["record"]], bytes(body))


@pytest.mark.parametrize(
    "vector", [vector for vector in VECTORS if "sealed" in vector], ids=lambda vector: vector["name"]
)
@given(st.data())
def test_a_changed_seal_is_refused_or_does_not_verify(vector: Any, data: Any) -> None:
    sealed = bytearray.fromhex(vector["sealed"])
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))
    record: Any = BY_NAME[vector["record"]]
    try:
        found = records.sealed_from_bytes(record, bytes(sealed))
        found.verify()
    except (Invalid, UnknownVersion):
        return
    raise AssertionError("a changed seal verifies")

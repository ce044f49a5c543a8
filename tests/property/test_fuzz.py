"""Every decoder of the wire takes or refuses whatever the bytes are; `make fuzz` throws a million at them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

PROGRAM = Path(__file__).parent.parent.parent / ".ci" / "fuzz.py"
INPUTS = 6_000


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("aw_fuzz", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fuzz = _load()
WAYS = fuzz.decoders("3zlvidxorvs3w6azk34mywfvxvllelsv")


def test_mutated_vectors_are_taken_or_refused() -> None:
    result = fuzz.run(INPUTS, seed=1)
    assert [str(fault)[:300] for fault in result.faults if "raised" in fault.what] == []
    assert result.taken
    assert result.refused["Invalid"] > INPUTS / 2


@settings(max_examples=500)
@given(name=st.sampled_from(sorted(WAYS)), data=st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(name: str, data: bytes) -> None:
    try:
        WAYS[name](data)
    except fuzz.REFUSALS:
        return


def test_a_decoder_that_raises_anything_else_is_told_with_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> None:
        raise KeyError(data[:1])

    monkeypatch.setattr(fuzz, "decoders", lambda _world: {"broken": broken})
    monkeypatch.setattr(fuzz, "_fitting", lambda _decode, _seeds: None)
    result = fuzz.run(1_000, seed=0)
    assert len(result.faults) == fuzz.FAULTS_MAX
    assert str(result.faults[0]).startswith("broken: raised KeyError")


def test_every_kind_of_way_in_is_there() -> None:
    kinds = {name.split()[0] for name in WAYS}
    assert kinds == {
        "record", "preimage", "sealed", "gossip", "dht", "frame", "websocket", "genesis", "receipts", "events", "state",
        "codec",
    }  # fmt: skip
    assert {"record SubmitRequest", "sealed Commit", "record WorldHeadAnnounce", "gossip head"} <= set(WAYS)

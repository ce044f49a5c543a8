"""One envelope is followed by its hash through every node; without debug nothing is said and nothing is hashed."""

from __future__ import annotations

import io
import json
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

from bootstrap.telemetry import configure_logging
from p2p.memory import InMemoryHub
from runtime.keys import SigningKey
from runtime.services import HeadRecords
from runtime.services.trail import station

STATIONS = {
    ("runtime.services.gateway", "accepted"),
    ("runtime.services.gateway", "gossiped"),
    ("runtime.services.sequencer", "pooled"),
    ("runtime.services.sequencer", "cut"),
    ("runtime.services.sequencer", "committed"),
    ("runtime.services.replica", "executed"),
    ("runtime.services.replica", "stored"),
    ("runtime.services.replica", "verified"),
}


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("bootstrap", "runtime", "p2p"):
        logging.getLogger(name).setLevel(logging.NOTSET)


async def test_an_envelope_is_found_at_every_station_by_its_hash(
    six_nodes: Callable[..., Any], autojump_clock: Any
) -> None:
    stream = io.StringIO()
    configure_logging("debug", "json", stream)
    six, hub = six_nodes(), InMemoryHub(random.Random(1))

    def opened(seed: bytes, routes: Any) -> Any:
        return hub.open_node(SigningKey(seed).identity, routes, HeadRecords())

    async with trio.open_nursery() as nursery:
        for name in six.keys:
            await nursery.start(six.run_node, name, opened)
        envelopes = six.envelopes(2)
        await six.hand_in(envelopes)
        with trio.fail_after(60):
            for name in ("gateway", "storage", "executor", "observer"):
                await six.all_taken(name, envelopes)
        nursery.cancel_scope.cancel()
    wanted = envelopes[0].hash().hex()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    trail = [line for line in lines if line.get("envelope") == wanted]
    assert {(line["logger"], line["event"]) for line in trail} >= STATIONS
    assert all(line["world"] == six.world_id and line["level"] == "debug" for line in trail)
    (height,) = {
        line["height"] for line in trail if line["event"] in {"cut", "committed", "executed", "verified"}
    }
    assert {line["outcome"] for line in trail if line["event"] in {"executed", "stored", "verified"}} == {
        "taken"
    }
    assert any(line.get("event") == "certified" and line["height"] == height for line in lines)


def test_without_debug_a_station_costs_no_hash() -> None:
    class Unhashable:
        def hash(self) -> bytes:
            raise AssertionError("hashed for nothing")

    configure_logging("info", "json", io.StringIO())
    station(logging.getLogger("runtime.services.gateway"), "accepted", "w", [Unhashable()])  # type: ignore[list-item]

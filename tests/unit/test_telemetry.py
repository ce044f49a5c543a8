"""Logs: one line a record on the given stream, ours at the asked level, the network library's chatter cut."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from bootstrap.telemetry import configure_logging


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, library = logging.getLogger(), logging.getLogger("libp2p")
    handlers, level, propagates = list(root.handlers), root.level, library.propagate
    library.propagate = True  # it cuts itself off when it is imported; p2p/cures.py undoes that in a node
    yield
    library.propagate = propagates
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("bootstrap", "runtime", "p2p", "libp2p", "libp2p.pubsub"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_a_json_record_is_one_line_with_its_fields() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    logging.getLogger("runtime.services.gateway").info("took\n%d", 3, extra={"peer": b"\x01", "height": 7})
    (line,) = stream.getvalue().splitlines()
    document = json.loads(line)
    assert document.pop("time").endswith("Z")
    assert document == {
        "level": "info",
        "logger": "runtime.services.gateway",
        "message": "took\n3",
        "peer": "01",
        "height": 7,
    }


def test_a_text_record_stays_one_line_whatever_is_in_it() -> None:
    stream = io.StringIO()
    configure_logging("info", "text", stream)
    try:
        raise ValueError("a\nb")
    except ValueError:
        logging.getLogger("p2p.host").exception("two\nlines", extra={"peer": "x"})
    (line,) = stream.getvalue().splitlines()
    assert "error p2p.host: two\\nlines peer=x | Traceback" in line
    assert line.endswith("ValueError: a\\nb")


def test_ours_is_heard_at_its_level_and_the_library_only_when_it_is_critical() -> None:
    stream = io.StringIO()
    configure_logging("info", "text", stream)
    logging.getLogger("p2p.gossip").debug("hidden")
    logging.getLogger("p2p.gossip").info("ours")
    logging.getLogger("libp2p.pubsub").warning("chatter")
    logging.getLogger("libp2p.pubsub").setLevel(logging.DEBUG)  # as the library does when it is imported
    logging.getLogger("libp2p.pubsub").error("chatter")
    logging.getLogger("libp2p.pubsub").critical("theirs")
    assert [line.rsplit(" ", 1)[1] for line in stream.getvalue().splitlines()] == ["ours", "theirs"]


def test_debugging_hears_the_library_too_and_setting_up_again_replaces() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging("error", "text", first)
    configure_logging("debug", "text", second)
    logging.getLogger("libp2p.pubsub").warning("chatter")
    assert first.getvalue() == ""
    assert "chatter" in second.getvalue()

"""Logs: lines of text or of JSON on stderr, and the network library's chatter cut down.

Hides: the logging library's set-up. Guarantees: stdout is never written to; each record is one line, whatever is in
it; calling `configure_logging` again replaces what stood before.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, TextIO

LINE_CHARS_MAX: Final = 16_384
_OWN: Final = ("bootstrap", "runtime", "p2p")
# Libraries whose warnings and errors are mostly about other people's packets: heard only when debugging.
_NOISY: Final = (
    "libp2p",
    "multiaddr",
    "aioquic",
    "zeroconf",
    "asyncio",
    "async_service",
    "async-service",
    "pymultihash",
)
_STANDARD: Final = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {
    "message",
    "asctime",
    "taskName",
}


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z warning runtime.services.gateway: what happened key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        extras = "".join(f" {key}={value}" for key, value in _extras(record).items())
        text = f"{_time(record)} {record.levelname.lower()} {record.name}: {record.getMessage()}{extras}"
        if record.exc_info:
            text += " | " + self.formatException(record.exc_info)
        return text[:LINE_CHARS_MAX].replace("\r", "\\r").replace("\n", "\\n")


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, error, and what the caller gave as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:LINE_CHARS_MAX],
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)[:LINE_CHARS_MAX]
        return json.dumps(line | _extras(record), default=_plain)


def configure_logging(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send logs of `level` (debug, info, warning, error) and above to stderr (or `stream`), as `text` or `json`."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    number = logging.getLevelNamesMapping()[level.upper()]
    if number > logging.DEBUG:
        # Not by the loggers' own levels: the library sets those anew whenever it is imported.
        handler.addFilter(_is_worth_hearing)
    root.setLevel(max(number, logging.WARNING))
    for name in _OWN:
        logging.getLogger(name).setLevel(number)


def _is_worth_hearing(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.CRITICAL or record.name.partition(".")[0] not in _NOISY


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(record.msecs):03d}Z"


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else str(value)

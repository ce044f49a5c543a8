"""Where the world meets the network. One file is one role and one loop.

This module is the one adapter between the two error worlds: a runtime error class becomes a gossip verdict or a wire
code here and nowhere else. Implements docs/protocol.md, sections "Error codes" and "Gossip".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from p2p.errors import Code, RecordRefused, RequestFailed
from p2p.network import Check, Message, Verdict
from runtime import chain, errors, rules
from runtime.records import WorldHeadAnnounce

HALTED_RETRY_MS: Final = 10_000  # people have to act first


def as_failure(error: errors.WorldError) -> RequestFailed:
    """The wire code that says what a runtime error class means to the caller."""
    match error:
        case errors.HashMismatch():
            return RequestFailed(Code.ERR_INVALID_HASH, str(error))
        case errors.BadSignature() | errors.Denied():
            return RequestFailed(Code.ERR_UNAUTHORIZED, str(error))
        case errors.Invalid() | errors.Ignored():
            return RequestFailed(Code.ERR_BAD_REQUEST, str(error))
        case errors.UnknownVersion():
            return RequestFailed(Code.ERR_UNSUPPORTED, str(error))
        case errors.Missing():
            return RequestFailed(Code.ERR_NOT_FOUND, str(error))
        case errors.Halted():
            return RequestFailed(Code.ERR_NOT_AVAILABLE, str(error), retry_after_ms=HALTED_RETRY_MS)
        case errors.Busy():
            return RequestFailed(Code.ERR_BUSY, str(error), retry_after_ms=error.retry_after_ms)
        case errors.Unavailable():
            return RequestFailed(Code.ERR_NOT_AVAILABLE, str(error), retry_after_ms=error.retry_after_ms)
        case errors.Mismatch() | errors.Diverged():
            detail = error.detail if isinstance(error, errors.Mismatch) else b""
            return RequestFailed(Code.ERR_STATE_MISMATCH, str(error), detail=detail)
        case _:  # Corrupt, StoreFull: ours, and maybe not for ever
            return RequestFailed(Code.ERR_NOT_AVAILABLE, str(error))


def as_check(rule: rules.Rule) -> Check:
    """A gossip check out of a rule: bytes that break it are rejected, what is not for now is ignored."""

    def check(message: Message) -> Verdict:
        try:
            rule(message.data)
        except errors.Invalid:
            return Verdict.REJECT
        except (errors.Ignored, errors.UnknownVersion):
            return Verdict.IGNORE
        return Verdict.ACCEPT

    return check


class HeadRecords:
    """The DHT's validator (a p2p RecordRule): a head record is judged by its bytes alone."""

    def validate(self, key: str, value: bytes) -> None:
        try:
            rules.check_head_message(value, rules.head_record_world(key))
        except errors.WorldError as error:
            raise RecordRefused(key, str(error)) from None

    def select(self, key: str, values: Sequence[bytes]) -> int:
        del key  # all values are of one key, and each names its world
        return chain.select_head([WorldHeadAnnounce.from_bytes(value) for value in values])

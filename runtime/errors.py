"""What can be wrong with data: the class says what the caller must do, the fields say what it was.

Invalid  reject it, never retry           Missing  fetch it, then retry        Corrupt  our own store is wrong
Ignored  duplicate or stale, no fault     Denied   not allowed to this caller
Implements docs/protocol.md, section "Error codes" (services map these classes to verdicts and wire codes).
"""

from __future__ import annotations


class WorldError(Exception):
    """Root of all errors of the world's core."""


class Invalid(WorldError):
    """The bytes or the record break a rule for ever. `field` is the path of what is wrong, `why` names the limit."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field
        self.why = why


class BadSignature(Invalid):
    """A seal whose signature does not verify for the signer that the record names."""

    def __init__(self, record: str) -> None:
        super().__init__(f"{record}.signature", "does not verify")


class HashMismatch(Invalid):
    """Bytes that are not what their content id says."""

    def __init__(self, expected: bytes, actual: bytes) -> None:
        super().__init__("content_id", f"expected {expected.hex()}, got {actual.hex()}")
        self.expected = expected
        self.actual = actual


class UnknownVersion(WorldError):
    """A record with a `v` that this code does not know: ignored, never punished."""

    def __init__(self, record: str, version: int) -> None:
        super().__init__(f"{record}.v: {version} is not known here")
        self.record = record
        self.version = version


class Ignored(WorldError):
    """Duplicate, stale, or not for now: drop it without a mark against the sender."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Missing(WorldError):
    """Something is not held here: fetch it and come back. `what` is the kind, `key` names it for people."""

    def __init__(self, what: str, key: str) -> None:
        super().__init__(f"{what} {key} is not held")
        self.what = what
        self.key = key


class MissingBlob(Missing):
    """A blob that is not held, by its content id."""

    def __init__(self, content: bytes) -> None:
        super().__init__("blob", content.hex())
        self.content = content


class Denied(WorldError):
    """The caller may not do this; nothing was changed."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what = what
        self.why = why


class NonceDenied(Denied):
    """An envelope whose nonce is taken or promised to another one; `next_nonce` is the first that is free."""

    def __init__(self, nonce: int, why: str, next_nonce: int) -> None:
        super().__init__("envelope.nonce", f"{nonce} is {why}, the next is {next_nonce}")
        self.next_nonce = next_nonce


class Busy(WorldError):
    """A named limit is reached for now; `retry_after_ms` is a hint."""

    def __init__(self, limit: str, retry_after_ms: int) -> None:
        super().__init__(f"{limit} is reached, try again in {retry_after_ms} ms")
        self.limit = limit
        self.retry_after_ms = retry_after_ms


class Unavailable(WorldError):
    """Something that this node needs does not answer for now: where it is and why; trying again may help."""

    def __init__(self, where: str, why: str, retry_after_ms: int) -> None:
        super().__init__(f"{where} is not available: {why}")
        self.where = where
        self.why = why
        self.retry_after_ms = retry_after_ms


class Halted(WorldError):
    """The epoch in force is over by evidence: this node signs nothing until the root keys open another one."""

    def __init__(self, why: str) -> None:
        super().__init__(f"halted: {why}")
        self.why = why


class Mismatch(WorldError):
    """Another answer already stands, e.g. another batch at that height; `detail` holds it as bytes."""

    def __init__(self, what: str, why: str, detail: bytes = b"") -> None:
        super().__init__(f"{what}: {why}")
        self.what = what
        self.why = why
        self.detail = detail


class Diverged(WorldError):
    """A replay gave another result than what was attested: both sides are named. Not retried."""

    def __init__(self, height: int, field: str, claimed: bytes, replayed: bytes) -> None:
        super().__init__(f"height {height}: {field} is {claimed.hex()}, the replay gives {replayed.hex()}")
        self.height = height
        self.field = field
        self.claimed = claimed
        self.replayed = replayed


class Corrupt(WorldError):
    """Our own data is damaged: where it is, what is wrong, and the command that repairs it."""

    def __init__(self, where: str, why: str, repair: str = "") -> None:
        super().__init__(f"{where}: {why}")
        self.where = where
        self.why = why
        self.repair = repair


class StoreFull(WorldError):
    """A write was refused for want of space; reads go on."""

    def __init__(self, where: str, limit: str) -> None:
        super().__init__(f"{where}: no space left ({limit})")
        self.where = where
        self.limit = limit

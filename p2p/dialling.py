"""Why a dial failed, in words that tell an operator what to do.

Hides: the chains of exceptions that py-libp2p wraps around a cause; decided by their classes, never by their texts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from libp2p.protocol_muxer.exceptions import MultiselectError
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.transport.exceptions import MuxerUpgradeFailure, OpenConnectionError, SecurityUpgradeFailure


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it came from, and so on; of a group the first of each."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        inner = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else None
        error = inner or error.__cause__ or error.__context__


def why_not(error: BaseException) -> str:
    """One clause: "connection refused", "another peer answered", and so on; the class's name when nothing fits."""
    causes = list(_causes(error))
    for cause in reversed(causes):  # the innermost tells most
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
            return os.strerror(cause.errno).lower()
    for kind, told in (
        (PeerIDMismatchesPubkey, "another peer answered"),
        (MultiselectError, "what answered speaks no libp2p, or nothing that is spoken here (noise, yamux)"),
        (SecurityUpgradeFailure, "the noise handshake failed"),
        (MuxerUpgradeFailure, "no multiplexer in common (yamux)"),
        (OpenConnectionError, "the address does not resolve, or leads nowhere"),
    ):
        if any(isinstance(cause, kind) for cause in causes):
            return told
    return type(error).__name__

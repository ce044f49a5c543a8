"""Blobs as services read them: sound bytes or Missing, never damaged ones.

Hides: which blobs were found damaged and wait to be fetched again. Guarantees: a damaged blob is forgotten at once,
counted, told in the log, and wanted back (runtime/services/custody.py fetches it). Called from any thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from threading import Lock

from runtime import limits
from runtime.blob_store import BlobStore
from runtime.errors import Corrupt, Missing, MissingBlob, StoreFull

_log = logging.getLogger(__name__)


class CheckedBlobs:
    """A store as services read it; whoever writes goes to the database itself."""

    def __init__(self, store: BlobStore, counters: Counter[str]) -> None:
        self._store = store
        self._counters = counters
        self._forgetting = Lock()
        self.lost: dict[bytes, None] = {}  # to be fetched again, oldest first; at most DAMAGED_BLOBS_MAX

    def get(self, content: bytes) -> bytes:
        """The blob. Raises Missing when it is not held, or was damaged."""
        try:
            return self._store.get(content)
        except Corrupt as error:
            raise self._forget(content, error) from error

    def find(self, content: bytes) -> bytes | None:
        """The blob, or None."""
        try:
            return self.get(content)
        except Missing:
            return None

    def get_range(self, content: bytes, offset: int, length: int) -> bytes:
        """A part of a sound blob. Raises Missing."""
        try:
            return self._store.get_range(content, offset, length)
        except Corrupt as error:
            raise self._forget(content, error) from error

    def verify(self, content: bytes) -> int:
        """Size of a blob after reading all of it. Raises Missing."""
        try:
            return self._store.verify(content)
        except Corrupt as error:
            raise self._forget(content, error) from error

    def want(self, content: bytes) -> None:
        """Have it fetched again; past DAMAGED_BLOBS_MAX the next round of the scrub finds it."""
        if len(self.lost) < limits.DAMAGED_BLOBS_MAX:
            self.lost[content] = None

    def _forget(self, content: bytes, error: Corrupt) -> Missing:
        """Once for each damage: who read it too, but comes second, finds it gone or fetched again already."""
        with self._forgetting:
            try:
                is_first = self._store.discard_damaged(content)
            except StoreFull:  # it stays where it is, and is never given out
                self._counters["store.damaged_not_discarded"] += 1
                is_first = True
        if is_first:
            self._counters["store.damaged"] += 1
            _log.error("damaged, will be fetched again: %s", error)
            self.want(content)
        return MissingBlob(content)

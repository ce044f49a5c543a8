"""Blobs as plain files, `<root>/blobs/aa/<hash>.blob`, and what people pinned, `<root>/pins.json`.

Hides: files, their order of writing, what a crash leaves. Guarantees: a file under its final name was complete when it
got it; a put that returned is durable; bytes that are returned were compared with the id, a large blob once for as
long as its file stays the same. One process at a time (the data dir's lock); any of its threads.
Implements docs/protocol.md, section "Hashes"; documented in docs/operations.md, section "Data directory".
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from runtime import durable, limits
from runtime.blob_store import BlobStat, check_id, damaged, verified
from runtime.codec import HASH_BYTES, content_id, content_id_of
from runtime.errors import Corrupt, Denied, Missing, MissingBlob, StoreFull

SUFFIX: Final = ".blob"
READ_BYTES: Final = 1 << 20
_PINS_FILE_BYTES_MAX: Final = limits.PINS_MAX * (2 * HASH_BYTES + 8) + 64
_Signature = tuple[int, int, int]


class PinFile:
    """Content ids that people pinned, as JSON that they can read. Kept in memory; every change is on disk first."""

    def __init__(self, path: Path) -> None:
        """Raises Corrupt for a file that is no pins.json: what must stay is then not known."""
        self._path = path
        self._lock = (
            threading.RLock()
        )  # worker threads pin; the file is read, changed and written as one step
        self._pins = self._read()

    def _read(self) -> frozenset[bytes]:
        try:
            with self._path.open("rb") as file:
                data = file.read(_PINS_FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return frozenset()
        repair = f"mv {self._path} {self._path}.damaged"
        if len(data) > _PINS_FILE_BYTES_MAX:
            raise Corrupt(str(self._path), f"is over {_PINS_FILE_BYTES_MAX} bytes (pins_max)", repair)
        try:
            document = json.loads(data)
            pins = [bytes.fromhex(text) for text in document["pins"]]
            if document["v"] != 1 or any(len(content) != HASH_BYTES for content in pins):
                raise ValueError("must have v = 1 and a list `pins` of 64 hex digits each")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            why = f"is not a list of pins ({error}); what must stay is to be pinned again"
            raise Corrupt(str(self._path), why, repair) from error
        return frozenset(pins)

    def __contains__(self, content: bytes) -> bool:
        return content in self._pins

    def __iter__(self) -> Iterator[bytes]:
        return iter(sorted(self._pins))

    def add(self, content: bytes) -> None:
        """Raises Denied (pins_max) and StoreFull."""
        with self._lock:
            if content not in self._pins:
                if len(self._pins) >= limits.PINS_MAX:
                    raise Denied("pin", f"{limits.PINS_MAX} blobs are pinned already (pins_max)")
                self._write(self._pins | {content})

    def remove(self, content: bytes) -> bool:
        """False when it was not pinned."""
        with self._lock:
            if content not in self._pins:
                return False
            self._write(self._pins - {content})
            return True

    def _write(self, pins: frozenset[bytes]) -> None:
        document = {"v": 1, "pins": [content.hex() for content in sorted(pins)]}
        try:
            durable.replace_file(self._path, (json.dumps(document, indent=0) + "\n").encode())
        except OSError as error:
            if durable.is_full(error):
                raise StoreFull(str(self._path), str(error)) from error
            raise
        self._pins = pins


class LocalCasStore:
    """A store of files. Complete by itself; LmdbBlobStore keeps its large blobs in one."""

    def __init__(self, root: Path, bytes_max: int | None = None) -> None:
        """Removes what a crash left half written. Raises Corrupt (a damaged pins.json, or no folder)."""
        self.bytes_max = bytes_max
        self._root = root / "blobs"
        self.pin_file = PinFile(root / "pins.json")
        self._lock = threading.RLock()  # worker threads put, pin and delete: guards the fields below
        self._sound: dict[bytes, _Signature] = {}  # files read through and found sound, as they were then
        self.bytes_held = 0
        try:
            durable.make_folder(self._root)
            durable.sweep([root, *self._folders()])
            for content in self.iterate():
                self.bytes_held += self.size(content) or 0
        except (NotADirectoryError, FileExistsError) as error:
            raise Corrupt(
                str(self._root),
                f"is not a folder of blobs ({error})",
                f"mv {self._root} {self._root}.damaged",
            ) from error

    def _folders(self) -> list[Path]:
        return sorted(path for path in self._root.iterdir() if len(path.name) == 2)

    def _path(self, content: bytes) -> Path:
        name = content.hex()
        return self._root / name[:2] / f"{name}{SUFFIX}"

    def size(self, content: bytes) -> int | None:
        """Size of the file; None when there is none."""
        try:
            return self._path(content).stat().st_size
        except FileNotFoundError:
            return None

    # --- writing -------------------------------------------------------------------------------------------

    def put(self, data: bytes) -> bytes:
        return self.put_many([data])[0]

    def put_many(self, blobs: Iterable[bytes]) -> list[bytes]:
        found = {content_id(data): data for data in blobs}
        fresh = {content: data for content, data in found.items() if not self._holds(content, data)}
        more = sum(len(data) - (self.size(content) or 0) for content, data in fresh.items())
        if self.bytes_max is not None and self.bytes_held + more > self.bytes_max:
            raise StoreFull(str(self._root), f"bytes_max {self.bytes_max}, {self.bytes_held} in use")
        try:
            self._write(fresh)
        except OSError as error:
            if durable.is_full(error):
                raise StoreFull(str(self._root), error.strerror or str(error)) from error
            raise
        return list(found)

    def _holds(self, content: bytes, data: bytes) -> bool:
        """Whether the very bytes are there: a damaged file is written again."""
        if self.size(content) != len(data):
            return False
        try:
            return self._path(content).read_bytes() == data
        except FileNotFoundError:  # deleted this moment
            return False

    def _write(self, fresh: dict[bytes, bytes]) -> None:
        """All files under temporary names first: a disk that fills up half way changes nothing."""
        staged: dict[bytes, Path] = {}
        folders = {self._path(content).parent for content in fresh}
        try:
            for folder in sorted(folders):
                durable.make_folder(folder)
            for content, data in fresh.items():
                staged[content] = durable.stage(self._path(content).parent, data)
            for content, temporary in staged.items():
                with self._lock:
                    before = self.size(content) or 0
                    temporary.replace(self._path(content))
                    self.bytes_held += len(fresh[content]) - before
                    self._sound.pop(content, None)
        except BaseException:
            for temporary in staged.values():
                temporary.unlink(missing_ok=True)
            raise
        for folder in sorted(folders):
            durable.sync_folder(folder)

    # --- reading -------------------------------------------------------------------------------------------

    @contextmanager
    def _opened(self, content: bytes) -> Iterator[io.FileIO]:
        check_id(content)
        try:
            file = io.FileIO(self._path(content))
        except FileNotFoundError:
            raise MissingBlob(content) from None
        with file:
            yield file

    def get(self, content: bytes) -> bytes:
        with self._opened(content) as file:
            return verified(content, file.readall(), str(self._path(content)))

    def get_range(self, content: bytes, offset: int, length: int) -> bytes:
        with self._opened(content) as file:
            if self._sound.get(content) != _signature(file):
                self._compare(content, file)
            file.seek(offset)
            return file.read(length)

    def verify(self, content: bytes) -> int:
        with self._opened(content) as file:
            return self._compare(content, file)

    def _compare(self, content: bytes, file: io.FileIO) -> int:
        """Read it through in bounded memory, and remember that it was sound; gives its size."""
        signature = _signature(file)
        if content_id_of(iter(lambda: file.read(READ_BYTES), b"")) != content:
            raise damaged(content, str(self._path(content)), f"{signature[0]} bytes that hash to another id")
        with self._lock:
            self._sound[content] = signature
            while len(self._sound) > limits.SOUND_FILES_REMEMBERED_MAX:
                del self._sound[next(iter(self._sound))]
        return signature[0]

    def has(self, content: bytes) -> bool:
        check_id(content)
        return self.size(content) is not None

    def stat(self, content: bytes) -> BlobStat:
        check_id(content)
        size = self.size(content)
        if size is None:
            raise MissingBlob(content)
        return BlobStat(size, content in self.pin_file)

    def iterate(self, after: bytes = b"") -> Iterator[bytes]:
        for folder in self._folders():
            if folder.name >= after.hex()[:2]:
                for path in sorted(folder.iterdir()):
                    content = _content_of(path.name)
                    if content is not None and content > after:
                        yield content

    def wanted(self, after: bytes = b"") -> Iterator[bytes]:
        yield from (content for content in self.pin_file if content > after and not self.has(content))

    # --- forgetting ----------------------------------------------------------------------------------------

    def delete(self, content: bytes) -> bool:
        check_id(content)
        with self._lock:
            return content not in self.pin_file and self._discard(content)

    def discard_damaged(self, content: bytes) -> bool:
        try:
            self.verify(content)
        except Missing:
            return False
        except Corrupt:
            with self._lock:
                return self._is_damaged(content) and self._discard(content)
        return False

    def _is_damaged(self, content: bytes) -> bool:
        """Once more, with the lock held: whoever had it before may have put the sound blob back."""
        try:
            self.verify(content)
        except Missing:
            return False
        except Corrupt:
            return True
        return False

    def discard(self, content: bytes) -> bool:
        """Forget a blob without asking for pins; False when it was not held."""
        with self._lock:
            return self._discard(content)

    def _discard(self, content: bytes) -> bool:
        size = self.size(content)
        if size is None:
            return False
        self._path(content).unlink(missing_ok=True)
        self._sound.pop(content, None)
        self.bytes_held -= size
        return True

    def pin(self, content: bytes) -> None:
        with self._lock:  # so that no delete comes between looking and pinning
            if not self.has(content):
                raise MissingBlob(content)
            self.pin_file.add(content)

    def unpin(self, content: bytes) -> bool:
        check_id(content)
        return self.pin_file.remove(content)

    def pins(self) -> list[bytes]:
        return list(self.pin_file)

    def prune_unpinned(self, bytes_max: int) -> int:
        before = self.bytes_held
        for content in self.iterate():
            if self.bytes_held <= bytes_max:
                break
            self.delete(content)
        return before - self.bytes_held


def _signature(file: io.FileIO) -> _Signature:
    """What changes when a file is written or replaced: size, time of the last write, inode."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ino


def _content_of(name: str) -> bytes | None:
    """The content id in a file's name; None for a file that is no blob."""
    text = name.removesuffix(SUFFIX)
    if text == name or len(text) != 2 * HASH_BYTES:
        return None
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None

"""Files that a crash leaves whole: written under a name of their own, synced, then renamed over the old ones.

Hides: the order of write, fsync, rename and fsync of the folder. Guarantees: after a crash a file is the old one or the
new one, both complete, and what is left over ends in `.tmp`, which `sweep` removes at the next start.
Used by the file store here and by the small files of a data dir (bootstrap).
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

TEMPORARY: Final = ".tmp"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_full(error: OSError) -> bool:
    """True when the error says that there is no space: of the disk, of a quota, or of a file."""
    return error.errno in _FULL


def stage(folder: Path, data: bytes, mode: int = 0o644) -> Path:
    """The data, synced, in a new file of the folder under a temporary name. Raises OSError, leaving nothing."""
    handle, name = tempfile.mkstemp(dir=folder, suffix=TEMPORARY)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def sync_folder(folder: Path) -> None:
    """Make names that were put into the folder, or taken out of it, durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Make the file hold the data, durably, whatever it held before. Raises OSError; the old one then stands."""
    temporary = stage(path.parent, data, mode)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """The folder, its name durable in the one above it; nothing when it is there."""
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sweep(folders: Iterable[Path]) -> int:
    """Remove what crashes left half written in these folders; gives the number of files."""
    found = [path for folder in folders for path in folder.glob(f"*{TEMPORARY}")]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)

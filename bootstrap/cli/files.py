"""Files that a command is handed: read whole and bounded, written only where nothing stands.

Guarantees: a file that cannot be read or written is one error line with its name (exit 2); `-` is stdin.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bootstrap.cli.failures import Exit, Failure

TEXT_BYTES_MAX = 1 << 20


def is_there(path: Path) -> bool:
    """Whether something of that name can be found; a name that no file can have is not there."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_bytes(path: Path, bytes_max: int, limit_name: str) -> bytes:
    """All bytes of a file, at most `bytes_max`. Raises Failure."""
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(bytes_max + 1)
        else:
            with path.open("rb") as file:
                data = file.read(bytes_max + 1)
    except OSError as error:
        raise Failure(Exit.WRONG_USE, str(path), error.strerror or "cannot be read") from error
    if len(data) > bytes_max:
        raise Failure(Exit.WRONG_USE, str(path), f"is over {bytes_max} bytes ({limit_name})")
    return data


def read_text(path: Path) -> str:
    """The UTF-8 text of a small file. Raises Failure."""
    data = read_bytes(path, TEXT_BYTES_MAX, "text_bytes_max")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Failure(Exit.WRONG_USE, str(path), f"is not UTF-8 at byte {error.start}") from error


def refuse_existing(path: Path) -> None:
    """Raise Failure when something stands there already."""
    if is_there(path):
        raise Failure(Exit.WRONG_USE, str(path), "is there already, and is not overwritten", "--out FILE")


def write_new(path: Path, data: bytes) -> None:
    """Write a file that is not there yet. Raises Failure."""
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        refuse_existing(path)
        raise
    except OSError as error:
        raise Failure(Exit.WRONG_USE, str(path), error.strerror or "cannot be written") from error

"""Key files and peer ids, as commands are given them.

Hides: where a key comes from. Guarantees: a key file is made once, with mode 0600, and never overwritten; a file that
is no key says why, and its bytes are never printed.
"""

from __future__ import annotations

from pathlib import Path

from bootstrap.cli.failures import Exit, Failure
from bootstrap.peers import peer_id_from_text
from p2p import identity
from runtime.keys import SigningKey


def create_key_file(path: Path) -> SigningKey:
    """Make a key and its file. Raises Failure (exit 2) when the file is there or cannot be made."""
    try:
        return SigningKey(identity.create_key_file(path))
    except FileExistsError as error:
        raise Failure(
            Exit.WRONG_USE, str(path), "is there already, and is not overwritten", "another FILE"
        ) from error
    except OSError as error:
        raise Failure(Exit.WRONG_USE, str(path), error.strerror or "cannot be made") from error


def load_signing_key(path: Path) -> SigningKey:
    """The key of a file. Raises Failure (exit 2)."""
    try:
        return _read_key(path)
    except ValueError as error:
        hint = "" if path.exists() else f"aw key new {path}"
        raise Failure(Exit.WRONG_USE, "key file", str(error), hint) from error


def identity_of(text: str, folder: Path) -> bytes:
    """The key id of a peer id `12D3KooW...`, or of a key file. Raises ValueError with the reason."""
    path = folder / text
    if text.startswith("12D3KooW") and not path.exists():
        return peer_id_from_text(text)
    if not path.exists():
        raise ValueError(f"{text!r} is neither a peer id 12D3KooW... nor a key file")
    return _read_key(path).identity


def _read_key(path: Path) -> SigningKey:
    try:
        return SigningKey(identity.read_key_file(path))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or 'cannot be read'}") from error

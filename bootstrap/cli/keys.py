"""Key files and peer ids, as commands are given them.

Hides: where a key comes from. Guarantees: a key file is made once, with mode 0600, and never overwritten; a file that
is no key says why, and its bytes are never printed.
"""

from __future__ import annotations

from pathlib import Path

from bootstrap.cli.failures import Exit, Failure
from bootstrap.cli.files import is_there
from bootstrap.peers import peer_id_from_text
from runtime.keys import SigningKey


def create_key_file(path: Path) -> SigningKey:
    """Make a key and its file. Raises Failure (exit 2) when the file is there or cannot be made."""
    from p2p.identity import IdentityFileBad, create_identity

    try:
        return SigningKey(create_identity(path).seed)
    except IdentityFileBad as bad:
        raise Failure(Exit.WRONG_USE, f"key file {path}", bad.why, bad.try_this) from bad


def load_signing_key(path: Path) -> SigningKey:
    """The key of a file. Raises Failure (exit 2)."""
    from p2p.identity import IdentityFileBad, load_identity

    try:
        return SigningKey(load_identity(path).seed)
    except IdentityFileBad as bad:
        hint = bad.try_this if is_there(path) else f"aw key new {path}"
        raise Failure(Exit.WRONG_USE, f"key file {path}", bad.why, hint) from bad


def identity_of(text: str, folder: Path) -> bytes:
    """The key id of a peer id `12D3KooW...`, or of a key file. Raises ValueError with the reason."""
    path = folder / text
    if text.startswith("12D3KooW") and not is_there(path):
        return peer_id_from_text(text)
    try:
        return load_signing_key(path).identity
    except Failure as bad:
        raise ValueError(f"{text!r} is neither a peer id 12D3KooW... nor a key file: {bad.why}") from bad

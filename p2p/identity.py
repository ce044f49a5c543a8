"""A node's identity: an Ed25519 seed in a file, and the peer id that it makes.

Hides: the file. Guarantees: a key file is made once, whole or not at all, readable by its owner only; it is never
overwritten. Loads no libp2p. Implements docs/protocol.md, section "Identity".
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import nacl.bindings as sodium

from p2p.errors import NetworkError
from p2p.names import PEER_ID_PREFIX
from p2p.network import PeerId

SEED_BYTES: Final = 32
_GROUP_AND_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class IdentityFileBad(NetworkError):
    """A key file that cannot be used: `path`, `why`, and the command that may mend it."""

    def __init__(self, path: Path, why: str, try_this: str = "") -> None:
        super().__init__(f"identity file {path}: {why}")
        self.path = path
        self.why = why
        self.try_this = try_this


@dataclass(frozen=True, slots=True)
class Identity:
    """A 32-byte seed and what follows from it. Not printed: `repr` shows the peer id's bytes only."""

    seed: bytes = field(repr=False)
    peer_id: PeerId = field(init=False)

    def __post_init__(self) -> None:
        if len(self.seed) != SEED_BYTES:
            raise ValueError(f"seed: {len(self.seed)} bytes, not {SEED_BYTES}")
        public, _secret = sodium.crypto_sign_seed_keypair(self.seed)
        object.__setattr__(self, "peer_id", PEER_ID_PREFIX + public)


def load_identity(path: Path) -> Identity:
    """The identity in a key file of 32 raw bytes, mode 0600. Raises IdentityFileBad."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            seed = file.read(SEED_BYTES + 1)
    except OSError as error:
        raise IdentityFileBad(path, error.strerror or str(error)) from error
    if mode & _GROUP_AND_OTHERS:
        raise IdentityFileBad(path, f"mode {mode:04o} lets others read it", f"chmod 600 {path}")
    if len(seed) != SEED_BYTES:
        why = f"is not the {SEED_BYTES} bytes of an Ed25519 seed; without a backup of it the node gets a new key"
        raise IdentityFileBad(path, why, f"mv {path} {path}.damaged")
    return Identity(seed)


def create_identity(path: Path, seed: bytes | None = None) -> Identity:
    """A new identity in a new file. Raises IdentityFileBad, also when the file is there already."""
    identity = Identity(secrets.token_bytes(SEED_BYTES) if seed is None else seed)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".identity-")  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(identity.seed)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)  # unlike a rename, refuses to replace
        finally:
            Path(temporary).unlink()
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileExistsError as error:
        raise IdentityFileBad(path, "is there already and is never overwritten", "another path") from error
    except OSError as error:
        raise IdentityFileBad(path, error.strerror or str(error)) from error
    return identity

"""The folder that is a node: what lies where, who may use it now, and which worlds it belongs to.

Hides: the lock, the layout, atomic replacement. Guarantees: one process per data dir (a lock of the kernel's, which a
crash gives back, and a pid for people); a genesis is kept under its own world id and checked whenever it is read; a
folder that belongs to other worlds is refused before anything is written into it.
Documented in docs/operations.md, section "Data directory".
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bootstrap.config import ConfigMistakes, Mistake, WorldSource, looks_like_world_id
from bootstrap.peers import parse_addr, parse_peer_addr
from runtime import durable, limits
from runtime import genesis as genesis_module
from runtime.errors import Corrupt, Invalid, UnknownVersion
from runtime.records import SIGNED_AUTHORITIES_BYTES_MAX, Genesis, SignedAuthorities

ADDRESS_BYTES_MAX = 64 * 1024


class DataDirUnusable(Exception):
    """The folder cannot be used as it is; `try_this` is a command or an option that helps ("" when there is none)."""

    def __init__(self, path: Path, why: str, try_this: str = "") -> None:
        super().__init__(f"data dir {path}: {why}")
        self.path = path
        self.why = why
        self.try_this = try_this


class DataDirInUse(DataDirUnusable):
    """Another process holds the lock; `pid` is 0 when it has not written it yet."""

    def __init__(self, path: Path, pid: int) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(path, f"is in use by {who}", "another --data-dir, or stop that process")
        self.pid = pid


class GenesisFileBad(Exception):
    """A genesis or authorities file that cannot be read, or is not what it must be: which field, which limit."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


@dataclass(frozen=True, slots=True)
class ChosenWorld:
    """A world to run: `genesis` is None when only its id is known and peers must be asked."""

    world_id: str
    genesis: Genesis | None


@dataclass(frozen=True, slots=True)
class DataDir:
    """Paths inside a data dir, and its small files. Reading works without the lock, writing needs it."""

    path: Path

    @property
    def identity_path(self) -> Path:
        return self.path / "identity.key"

    @property
    def lock_path(self) -> Path:
        return self.path / "node.lock"

    @property
    def address_path(self) -> Path:
        return self.path / "address.json"

    @property
    def peers_path(self) -> Path:
        return self.path / "peers.json"

    @property
    def db_path(self) -> Path:
        return self.path / "db"

    @property
    def blobs_path(self) -> Path:
        return self.path / "blobs"

    @property
    def worlds_path(self) -> Path:
        return self.path / "worlds"

    def genesis_path(self, world_id: str) -> Path:
        return self.worlds_path / f"{world_id}.genesis"

    def authorities_path(self, world_id: str) -> Path:
        """Where the operator puts the authority set of a later epoch; a running node notices it."""
        return self.worlds_path / f"{world_id}.authorities"

    # --- worlds

    def world_ids(self) -> list[str]:
        """Ids of the worlds whose genesis is kept here, ascending."""
        if not self.worlds_path.is_dir():
            return []
        names = (path.name.removesuffix(".genesis") for path in self.worlds_path.glob("*.genesis"))
        return sorted(name for name in names if looks_like_world_id(name))

    def genesis(self, world_id: str) -> Genesis | None:
        """The kept genesis of a world. Raises Corrupt when the file is not that world's genesis any more."""
        path = self.genesis_path(world_id)
        if not path.exists():
            return None
        try:
            genesis = read_genesis_file(path)
        except GenesisFileBad as bad:
            raise Corrupt(str(path), bad.why, f"mv {path} {path}.damaged") from bad
        if genesis.header.world_id != world_id:
            raise Corrupt(
                str(path), f"is the genesis of world {genesis.header.world_id}", f"mv {path} {path}.damaged"
            )
        return genesis

    def keep_genesis(self, genesis: Genesis) -> None:
        """Write worlds/<world_id>.genesis unless it is there."""
        if self.genesis(genesis.header.world_id) is None:
            durable.make_folder(self.worlds_path)
            durable.replace_file(self.genesis_path(genesis.header.world_id), genesis.to_bytes())

    # --- the address file of a running node

    def write_address(self, peer_id: str, addrs: Sequence[str]) -> None:
        """Tell clients on this machine where the node listens; what is for browsers is not for them."""
        dialled = [addr for addr in addrs if not parse_addr(addr).is_websocket]
        document = {"v": 1, "pid": os.getpid(), "peer_id": peer_id, "addrs": dialled}
        durable.replace_file(self.address_path, (json.dumps(document) + "\n").encode())

    def remove_address(self) -> None:
        """The node listens no more."""
        self.address_path.unlink(missing_ok=True)

    def running_addrs(self) -> list[str]:
        """Addresses of the node that runs in this data dir now; none when no node runs."""
        if not self.address_path.exists() or not self.is_locked():
            return []
        try:
            document = json.loads(self.address_path.read_bytes()[:ADDRESS_BYTES_MAX])
            addrs = [addr for addr in document["addrs"] if parse_peer_addr(addr)]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            where = str(self.address_path)
            raise Corrupt(where, "is not an address file", "restart the node of this data dir") from error
        return addrs

    def is_locked(self) -> bool:
        """True while a process holds this data dir."""
        try:
            descriptor = os.open(self.lock_path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


@contextmanager
def open_data_dir(path: Path) -> Iterator[DataDir]:
    """Hold the data dir, made when it is not there. Raises DataDirInUse, DataDirUnusable."""
    data_dir = DataDir(path)
    descriptor = _open_lock(data_dir)
    try:
        _take_lock(data_dir, descriptor)
        _write_pid(descriptor)
        durable.sweep([path, data_dir.worlds_path])
        yield data_dir
    finally:
        os.close(descriptor)


def _write_pid(descriptor: int) -> None:
    """For people to read. A full disk does not stop a node: it serves what it has."""
    os.ftruncate(descriptor, 0)
    try:
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        if not durable.is_full(error):
            raise


def _open_lock(data_dir: DataDir) -> int:
    try:
        data_dir.path.mkdir(parents=True, exist_ok=True, mode=0o755)
        return os.open(data_dir.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except (FileExistsError, NotADirectoryError) as error:
        raise DataDirUnusable(data_dir.path, "is a file, not a folder", "another --data-dir") from error
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DataDirUnusable(data_dir.path, "is not writable", f"ls -ld {data_dir.path}") from error
        raise DataDirUnusable(data_dir.path, error.strerror or str(error)) from error


def _take_lock(data_dir: DataDir, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        raise DataDirInUse(data_dir.path, int(text) if text.isdecimal() else 0) from error


# --- worlds of a configuration -----------------------------------------------------------------------------


def read_genesis_file(path: Path) -> Genesis:
    """The genesis in a file, its parts bound to its header. Raises GenesisFileBad."""
    try:
        with path.open("rb") as file:
            data = file.read(limits.GENESIS_BYTES_MAX + 1)
    except OSError as error:
        raise GenesisFileBad(path, error.strerror or str(error)) from error
    if len(data) > limits.GENESIS_BYTES_MAX:
        raise GenesisFileBad(path, f"is over {limits.GENESIS_BYTES_MAX} bytes (genesis_bytes_max)")
    try:
        return genesis_module.decode_genesis(data)
    except (Invalid, UnknownVersion) as error:
        raise GenesisFileBad(path, f"is no genesis: {error}") from error


def read_authorities_file(path: Path) -> SignedAuthorities:
    """The authority set in a file with the root signatures that it has so far, none of them checked.

    Raises GenesisFileBad.
    """
    try:
        with path.open("rb") as file:
            data = file.read(SIGNED_AUTHORITIES_BYTES_MAX + 1)
    except OSError as error:
        raise GenesisFileBad(path, error.strerror or str(error)) from error
    try:
        return SignedAuthorities.from_bytes(data)
    except (Invalid, UnknownVersion) as error:
        raise GenesisFileBad(path, f"is no authority set: {error}") from error


def choose_worlds(data_dir: DataDir, sources: Sequence[WorldSource]) -> list[ChosenWorld]:
    """The worlds of a configuration, each with its genesis where that is at hand; no world is there twice.

    Without any configured world, the ones that the data dir holds. Raises ConfigMistakes (all of them: unreadable
    files, a world named twice), DataDirUnusable for a folder that holds only other worlds, Corrupt.
    """
    held = data_dir.world_ids()
    if not sources:
        return [ChosenWorld(world_id, data_dir.genesis(world_id)) for world_id in held]
    chosen: dict[str, ChosenWorld] = {}
    mistakes: list[Mistake] = []
    for source in sources:
        try:
            world = _choose(data_dir, source)
        except GenesisFileBad as bad:
            mistakes.append(_bad_genesis(bad))
            continue
        if world.world_id in chosen:
            mistakes.append(Mistake(f"world {world.world_id}", "is named twice"))
        chosen[world.world_id] = world
    if mistakes:
        raise ConfigMistakes(mistakes)
    if held and not chosen.keys() & set(held):
        why = f"belongs to world {', '.join(held)}, not to {', '.join(chosen)}"
        raise DataDirUnusable(data_dir.path, why, "another --data-dir")
    return list(chosen.values())


def genesis_mistakes(sources: Sequence[WorldSource]) -> list[Mistake]:
    """What is wrong with the genesis files of a configuration that has other mistakes already."""
    mistakes: list[Mistake] = []
    for source in sources:
        try:
            if source.genesis is not None:
                read_genesis_file(source.genesis)
        except GenesisFileBad as bad:
            mistakes.append(_bad_genesis(bad))
    return mistakes


def _bad_genesis(bad: GenesisFileBad) -> Mistake:
    return Mistake(f"world genesis {bad.path}", bad.why)


def _choose(data_dir: DataDir, source: WorldSource) -> ChosenWorld:
    if source.genesis is not None:
        genesis = read_genesis_file(source.genesis)
        return ChosenWorld(genesis.header.world_id, genesis)
    assert source.id is not None  # WorldSource: exactly one of the two
    return ChosenWorld(source.id, data_dir.genesis(source.id))

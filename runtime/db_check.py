"""Whether a database holds together, asked in a process of its own: a damaged page can kill whoever maps it.

Hides: that a truncated file is a SIGBUS and a flipped pointer a SIGSEGV, or a walk that never ends. Guarantees: a
database that passed has every page of its trees and of its free list, and every row is what was written. Blobs are not
compared here: they have their own hashes, and the scrub reads them while the node serves.
`python -m runtime.db_check <data dir>/db` prints what is wrong; documented in docs/operations.md, "Data directory".
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import lmdb

from runtime.errors import Corrupt
from runtime.lmdb_blobs import damaged_database
from runtime.world_db import SCHEMA, Table, value_of_row

SOUND, DAMAGED = 0, 4
_TABLES_MAX: Final = len(Table) + 8
_DATA_FILE: Final = "data.mdb"
# Far above what a sound database takes (a second or so for each gigabyte): only a walk in a circle gets there.
_SECONDS_FIRST, _BYTES_PER_SECOND = 60, 10_000_000


def check_database(path: Path) -> None:
    """Return for a database that can be opened, or none at all. Raises Corrupt with the command that helps."""
    data = path / _DATA_FILE
    if not data.is_file() or not data.stat().st_size:  # killed while it was made: it is made again
        return
    seconds = _SECONDS_FIRST + data.stat().st_size // _BYTES_PER_SECOND
    command = [sys.executable, "-m", "runtime.db_check", str(path)]
    try:
        checked = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        why = f"reading it did not end within {seconds} s"
    else:
        if checked.returncode == SOUND:
            return
        if checked.returncode < 0:
            why = (
                f"reading it ends by {signal.Signals(-checked.returncode).name}: pages are missing or damaged"
            )
        else:
            why = (checked.stdout or checked.stderr).strip().rpartition("\n")[2] or "cannot be read"
    raise Corrupt(str(path), why, damaged_database(path))


def walk(path: Path) -> None:
    """Read every page that the trees and the free list name, then every row. Raises lmdb.Error and Corrupt."""
    with lmdb.open(str(path), readonly=True, lock=False, create=False, max_dbs=_TABLES_MAX) as env:
        with Path(os.devnull).open("wb") as nowhere:
            env.copyfd(nowhere.fileno(), compact=True)
        with env.begin() as txn:
            names = {bytes(name) for name in txn.cursor().iternext(values=False)}
        if b"meta" in names:
            meta = env.open_db(b"meta", create=False)
            with env.begin() as txn:
                if txn.get(b"schema", db=meta) != SCHEMA:
                    return  # LmdbWorldDb says which version it is of
        for table in Table:
            if table.value.encode() in names:  # not so in one that was killed while it was made
                handle = env.open_db(table.value.encode(), create=False)
                with env.begin() as txn:
                    for key, value in txn.cursor(handle).iternext():
                        value_of_row(table, bytes(key), bytes(value), path)


def main(path: Path) -> int:
    """Exit code SOUND, or DAMAGED after one line that says why."""
    try:
        walk(path)
    except Corrupt as error:
        sys.stdout.write(f"{error}\n")
        return DAMAGED
    except (lmdb.Error, OSError) as error:
        sys.stdout.write(f"{_DATA_FILE} cannot be read as a database ({error})\n")
        return DAMAGED
    return SOUND


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

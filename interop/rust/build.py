"""Builds the peer with exactly the packages of lock.txt: name, version, checksum, dependencies of each.

Cargo.lock would hold the address of the registry that it came from, and so is not kept: it is written here from lock.txt
and the registry that this machine's cargo uses. `./build` builds target/interop/peer, `./build release` target/release/peer,
which is optimised throughout; `./build --update` resolves anew, writes lock.txt and builds the first.
"""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LOCK, TABLE = HERE / "Cargo.lock", HERE / "lock.txt"


def cargo(*arguments: str) -> None:
    ended = subprocess.run(["cargo", *arguments], cwd=HERE, check=False)
    if ended.returncode:
        sys.exit(f"error: cargo {arguments[0]} failed with code {ended.returncode}")


def packages() -> list[dict[str, Any]]:
    return tomllib.loads(LOCK.read_text())["package"] if LOCK.exists() else []


def rows() -> str:
    """Cargo.lock as lock.txt has it."""
    lines = []
    for one in packages():
        needs = ",".join(need.replace(" ", "@") for need in one.get("dependencies", []))
        lines.append(f"{one['name']} {one['version']} {one.get('checksum', '-')} {needs}".rstrip() + "\n")
    return "".join(lines)


def write_lock() -> None:
    cargo("generate-lockfile", "--quiet")
    sources = {one["source"] for one in packages() if "source" in one}
    if len(sources) != 1:
        sys.exit(f"error: packages of {len(sources)} registries\ntry: one registry in the configuration of cargo")
    blocks = ["version = 4\n"]
    for line in TABLE.read_text().splitlines():
        name, version, checksum, needs = (line + " ").split(" ")[:4]
        block = f'[[package]]\nname = "{name}"\nversion = "{version}"\n'
        if checksum != "-":
            block += f'source = "{next(iter(sources))}"\nchecksum = "{checksum}"\n'
        if needs:
            quoted = "".join(f' "{need}",\n' for need in needs.replace("@", " ").split(","))
            block += f"dependencies = [\n{quoted}]\n"
        blocks.append(block)
    LOCK.write_text("\n".join(blocks))


def main() -> None:
    match sys.argv[1:]:
        case ["--update"]:
            LOCK.unlink(missing_ok=True)
            cargo("generate-lockfile")
            TABLE.write_text(rows())
        case [] | ["release"]:
            if rows() != TABLE.read_text():
                write_lock()
        case _:
            sys.exit("usage: ./build [release | --update]")
    profile = "release" if "release" in sys.argv else "interop"
    # Where CARGO_TARGET_DIR says otherwise nobody would find the peer.
    cargo("build", "--locked", "--profile", profile, "--target-dir", str(HERE / "target"))


main()

"""How each peer is built and started. Hides: toolchains. docs/interop.md has the same as a table."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent


class Missing(Exception):
    """A toolchain that is not there: what to install."""


class BuildFailed(Exception):
    """A toolchain is there, and what it was to build does not build."""


@dataclass(frozen=True, slots=True)
class Language:
    """`tool` must be on PATH; `build` runs in the peer's folder; `start` is the command line."""

    tool: str
    install: str
    build: Sequence[str]
    start: Sequence[str]


LANGUAGES: Final = {
    "py": Language(sys.executable, "Python", (), (sys.executable, "-m", "interop.py.peer")),
    "go": Language(
        "go",
        "Go 1.26.6 or newer (go.dev/doc/install)",
        ("go", "build", "-o", "peer", "."),
        (str(HERE / "go/peer"),),
    ),
    "rust": Language(
        "cargo",
        "Rust 1.88 or newer (rustup.rs)",
        ("./build",),
        (str(HERE / "rust/target/interop/peer"),),
    ),
    "js": Language(
        "npm", "Node.js 20.19 or newer with npm", ("npm", "ci"), ("node", str(HERE / "js/peer.js"))
    ),
}


OPTIMISED: Final = {
    "rust": replace(
        LANGUAGES["rust"], build=("./build", "release"), start=(str(HERE / "rust/target/release/peer"),)
    ),
}
"""Where a peer that is to be measured is built otherwise: it takes longer."""


def _how(language: str, *, optimised: bool) -> Language:
    return (OPTIMISED if optimised and language in OPTIMISED else LANGUAGES)[language]


def build(language: str, *, optimised: bool = False) -> None:
    """Build one peer. Raises Missing, BuildFailed."""
    how = _how(language, optimised=optimised)
    run_builds(language, "peer", [how.build] if how.build else [])


def run_builds(language: str, what: str, builds: Sequence[Sequence[str]]) -> None:
    """Run commands in a language's folder, with its toolchain. Raises Missing, BuildFailed."""
    how, folder = LANGUAGES[language], HERE / language
    if shutil.which(how.tool) is None:
        raise Missing(
            f"{language}: {how.tool} is not installed\ntry: install {how.install}, or leave it out with --languages"
        )
    for command in builds:
        print(f"building the {language} {what}", file=sys.stderr, flush=True)
        env = os.environ | {"CGO_ENABLED": "0", "PYTHON": sys.executable}
        ended = subprocess.run(command, cwd=folder, stdout=sys.stderr, env=env, check=False)
        if ended.returncode:
            raise BuildFailed(
                f"{language}: {' '.join(command)} in {folder} failed with code {ended.returncode}"
            )


def is_built(build_it: Callable[[], None], *, asked: bool) -> bool:
    """Build. Whose toolchain is missing is left out; where it was `asked` for by name, and in CI: raises Missing.

    Raises BuildFailed too.
    """
    try:
        build_it()
    except Missing as missing:
        if asked or os.environ.get("CI"):
            raise
        print(f"left out: {missing}", file=sys.stderr)
        return False
    return True


def command(language: str, *, optimised: bool = False) -> Sequence[str]:
    """The command line that starts a peer."""
    return _how(language, optimised=optimised).start

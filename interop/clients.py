"""The example client of each language against a real Python world: `python -m interop.clients`.

Hides: how each example is built and started, and the world. Guarantees: an example is green only when it registered
its agent and moved it, said so in one line of JSON that agrees with what this side has proved to it, and said nothing
but an error about a world that is not there. docs/clients.md has the contract of arguments and output.

stdout: the table, or with --json the cells as JSON. stderr: progress, and each failure. Exit 0 when every cell is
green, 1 otherwise, 2 on wrong use or where a toolchain is missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio

from bootstrap.cli import interrupt
from bootstrap.node import open_client
from interop.ctrl_c import exit_code
from interop.languages import HERE, LANGUAGES, BuildFailed, Missing, is_built, run_builds
from interop.run import Cell, judge, table
from interop.together import PythonWorld, open_world
from runtime import codec
from runtime.cells import AGENTS, Agent, agent_key
from runtime.keys import SigningKey
from runtime.services.client import DistributedClient

EXAMPLE_S: Final = 90.0
FIELDS: Final = {"agent", "envelope", "height", "code", "trust"}
ELSEWHERE: Final = "a" * 32
Place: TypeAlias = tuple[int, int, int]
REGISTERED: Final[Place] = (1_000, 2_000, 0)
MOVED: Final[Place] = (30_000, 40_000, 0)


@dataclass(frozen=True, slots=True)
class Example:
    """`builds` run in the language's folder; `start` is the command line."""

    builds: Sequence[Sequence[str]]
    start: Sequence[str]


EXAMPLES: Final = {
    "go": Example(
        (("go", "build", "-o", "submit", "./examples/submit"),),
        (str(HERE / "go/submit"),),
    ),
    "rust": Example(
        # The peer's own build first: it makes the lock that cargo then goes by.
        (
            LANGUAGES["rust"].build,
            (
                *("cargo", "build", "--locked", "--profile", "interop", "--example", "submit"),
                *("--target-dir", "target"),
            ),
        ),
        (str(HERE / "rust/target/interop/examples/submit"),),
    ),
    "js": Example((LANGUAGES["js"].build,), ("node", str(HERE / "js/examples/submit.js"))),
}


@dataclass(frozen=True, slots=True)
class Stage:
    """One language's example, its actor and agent, and the world that it acts in."""

    language: str
    running: PythonWorld
    client: DistributedClient

    @property
    def agent(self) -> str:
        return f"{self.language}-guest"

    @property
    def seed(self) -> bytes:
        return codec.content_id(self.agent.encode())

    async def start(self, world_id: str, to: Place) -> subprocess.CompletedProcess[bytes]:
        """Run the example to its end."""
        asked = {
            "--bootstrap": self.running.addr("world"),
            "--world": world_id,
            "--seed": self.seed.hex(),
            "--agent": self.agent,
            "--to": ",".join(map(str, to)),
        }
        argv = [*EXAMPLES[self.language].start, *(word for pair in asked.items() for word in pair)]
        with trio.fail_after(EXAMPLE_S):
            return await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False)


async def acts(stage: Stage, to: Place) -> None:
    """The example puts its agent there, and says what this side finds proved too. Raises AssertionError."""
    ended = await stage.start(stage.running.world_id, to)
    error = ended.stderr.decode(errors="replace").strip()
    assert ended.returncode == 0, f"ended with code {ended.returncode}: {error}"
    lines = ended.stdout.splitlines()
    assert len(lines) == 1, f"said {len(lines)} lines: {ended.stdout!r}"
    said: dict[str, Any] = json.loads(lines[0])
    assert set(said) == FIELDS, said
    found = said["agent"], said["code"], said["trust"]
    assert found == (stage.agent, "Applied", "attested"), said
    world_id = stage.running.world_id
    proved = await stage.client.receipt(world_id, bytes.fromhex(said["envelope"]))
    assert [receipt.code for receipt in proved.receipts] == ["Applied"], proved.receipts
    assert said["height"] == proved.block.height, f"{said}, and the block's height is {proved.block.height}"
    cell = await stage.client.state_value(world_id, AGENTS, agent_key(stage.agent))
    wanted = Agent(SigningKey(stage.seed).identity, *to)
    assert cell.value == wanted.to_value(), f"the agent is {cell.value}, not {wanted}"


async def refuses(stage: Stage) -> None:
    """Of a world that is not there the example says an error and nothing else. Raises AssertionError."""
    ended = await stage.start(ELSEWHERE, MOVED)
    assert ended.returncode == 1, f"ended with code {ended.returncode}"
    assert not ended.stdout, f"said {ended.stdout!r}"
    assert ended.stderr.strip(), "said no error"


async def run_all(languages: list[str], directory: Path) -> list[Cell]:
    """Every example, one after the other, in one world."""
    cells: list[Cell] = []
    async with (
        open_world(directory, "for-clients") as running,
        open_client([running.addr("world")]) as client,
    ):
        for language in languages:
            stage = Stage(language, running, client)
            for step, does in (
                ("registers an agent", partial(acts, stage, REGISTERED)),
                ("moves it", partial(acts, stage, MOVED)),
                ("refuses an unknown world", partial(refuses, stage)),
            ):
                cells.append(await judge(step, language, does))
    return cells


def main() -> int:
    """Parse, build, run, print."""
    parser = argparse.ArgumentParser(prog="python -m interop.clients", description=__doc__)
    parser.add_argument("--languages", type=lambda text: text.split(","), help="such as go,js")
    parser.add_argument("--json", action="store_true", help="the cells as JSON")
    parser.add_argument("--no-build", action="store_true", help="the examples are built")
    options = parser.parse_args()
    unknown = set(options.languages or ()) - set(EXAMPLES)
    if unknown:
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    try:
        languages = [
            one
            for one in options.languages or EXAMPLES
            if options.no_build
            or is_built(
                partial(run_builds, one, "example", EXAMPLES[one].builds), asked=bool(options.languages)
            )
        ]
    except (Missing, BuildFailed) as failed:
        print(f"error: {failed}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="aw-clients-") as temporary:
        cells = interrupt.run(partial(run_all, languages, Path(temporary)))
    print(
        json.dumps([asdict(cell) for cell in cells], indent=1) if options.json else table(cells), flush=True
    )
    if not cells:
        print("error: no language is left: its toolchain is missing", file=sys.stderr)
        return 2
    return 1 if any(cell.failure for cell in cells) else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))

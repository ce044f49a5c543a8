"""The page of interop/js/browser in a headless Chromium, against a Python node that listens on tcp and ws at once.

A world of real nodes is made and an agent moved in it; then the page must show its position proved, and another agent
proved absent; it must refuse a wrong world id, what it cannot reach, and every lie of interop/lies.py about heads and
state.
stdout: the cases as JSON. stderr: a line for each, and one at the end. Exit 0 when all held, 1 otherwise, 2 on wrong
use or where a tool is missing, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio

from bootstrap.cli import interrupt
from bootstrap.demo.processes import NodeFailed, end_process, free_ports
from bootstrap.node import now_ms, open_client
from interop.ctrl_c import exit_code
from interop.languages import Missing
from interop.liar import open_liar
from interop.lies import AGENT, HEAD_LIES, STATE_LIES
from interop.run import reasons
from interop.together import PythonWorld, open_world
from p2p import names
from p2p.errors import Code, NetworkError, RequestFailed
from p2p.identity import Identity
from runtime.keys import SigningKey
from runtime.records import ActionEnvelope, Envelope, seal
from runtime.services.client import DistributedClient

FOLDER: Final = Path(__file__).parent / "js/browser"
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")
RUN_S: Final = 240.0
BLOCK_S: Final = 60.0
START_S: Final = 60.0
ANSWER_S: Final = 60.0
STOP_S: Final = 10.0
POSITION: Final = {"x_cm": 30_000, "y_cm": 40_000, "z_cm": 0}
SHOWN: Final = "x 30000 cm, y 40000 cm, z 0 cm"
NOBODY: Final = "nobody"
Json: TypeAlias = dict[str, Any]


# --- the tools ---------------------------------------------------------------------------------------------


def find_browser() -> str:
    """Chromium on PATH. Raises Missing."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise Missing("no Chromium on PATH\ntry: apt-get install chromium")
    return found


def build() -> str:
    """Install what the bundle is made of, and make it; gives its size in words. Raises Missing."""
    if shutil.which("npm") is None:
        raise Missing("npm is not installed\ntry: install Node.js 20 or newer with npm")
    last_line = ""
    for command in (("npm", "ci"), ("npm", "run", "build")):
        ended = subprocess.run(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True, check=False)
        if ended.returncode:
            raise Missing(f"{' '.join(command)} in {FOLDER} failed with code {ended.returncode}")
        last_line = ended.stdout.strip().rpartition("\n")[2]
    return last_line


def as_built() -> str:
    """The bundle that is there, in words. Raises Missing."""
    bundle = FOLDER / "dist/light.js"
    if not bundle.exists():
        raise Missing(f"{bundle} is not there\ntry: without --no-build")
    return f"dist/light.js: {bundle.stat().st_size} bytes, as it was"


# --- the page ----------------------------------------------------------------------------------------------


class Page:
    """The page in a browser: what a person puts in, and what it then shows."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._left = b""
        self.browser = ""

    async def ask(self, world_id: str, address: str, agent: str) -> Json:
        """Fill in, press the button, read. Raises AssertionError where the page's script says nothing, or fails."""
        assert self._process.stdin is not None
        question = {"world": world_id, "address": address, "agent": agent}
        await self._process.stdin.send_all(json.dumps(question).encode() + b"\n")
        return await self.said(ANSWER_S)

    async def said(self, within_s: float) -> Json:
        """The next line."""
        assert self._process.stdout is not None
        with trio.move_on_after(within_s):
            while b"\n" not in self._left:
                chunk = await self._process.stdout.receive_some()
                assert chunk, "the browser's script ended"
                self._left += chunk
            line, _, self._left = self._left.partition(b"\n")
            return dict(json.loads(line))
        raise AssertionError(f"the browser said nothing within {within_s:.0f} s")


@asynccontextmanager
async def open_page(browser: str) -> AsyncIterator[Page]:
    """The page, loaded. The browser has ended afterwards."""
    process = await trio.lowlevel.open_process(
        ["node", str(FOLDER / "drive.js"), browser],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is this program's: the browser is ended in order
    )
    try:
        page = Page(process)
        page.browser = (await page.said(START_S))["browser"]
        yield page
    finally:
        with trio.CancelScope(shield=True):
            assert process.stdin is not None
            await process.stdin.aclose()
            with trio.move_on_after(STOP_S):
                await process.wait()
            await end_process(process)


# --- the world ---------------------------------------------------------------------------------------------


async def act(client: DistributedClient, running: PythonWorld) -> int:
    """Register the agent, then move it; gives the height at which it is there. Raises AssertionError."""
    register: tuple[str, Json] = (
        "register_agent",
        {"agent_id": AGENT, "x_cm": 1, "y_cm": 2, "z_cm": 0, "endow": {"fuel": 10}},
    )
    move: tuple[str, Json] = ("move_agent", {"agent_id": AGENT, **POSITION})
    height = 0
    for nonce, action in enumerate((register, move)):
        envelope = signed(running, nonce, action)
        [result] = await client.submit(running.world_id, [envelope])
        assert result.outcome == "accepted", result
        height = await applied(client, running.world_id, envelope)
    return height


def signed(running: PythonWorld, nonce: int, action: tuple[str, Json]) -> Envelope:
    """One action of the world's actor."""
    actor = SigningKey(running.actor_seed)
    record = ActionEnvelope(
        world_id=running.world_id,
        actor_id=actor.identity,
        nonce=nonce,
        expires_at_height=1_000,
        timestamp_ms=now_ms(),
        atomic=True,
        actions=(action,),
    )
    return seal(record, actor)


async def applied(client: DistributedClient, world_id: str, envelope: Envelope) -> int:
    """The height of the block that applied it. Raises AssertionError."""
    with trio.move_on_after(BLOCK_S):
        while True:
            try:
                outcome = await client.receipt(world_id, envelope.record.hash())
            except RequestFailed as failure:
                if failure.code is not Code.ERR_NOT_FOUND:
                    raise
                await trio.sleep(0.1)
                continue
            codes = [receipt.code for receipt in outcome.receipts]
            assert codes == ["Applied"], codes
            return outcome.block.height
    raise AssertionError(f"no block within {BLOCK_S:.0f} s")


# --- the cases ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """What is put into the page, and what it must then show, at least. `lie`: told by the liar."""

    name: str
    world_id: str
    addr: str
    agent: str
    shown: Json
    lie: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`failure` is empty where the page showed what it must."""

    name: str
    seconds: float
    shown: Json
    failure: str


def cases(running: PythonWorld, liar: str, silent: str) -> Iterator[Case]:
    """All of them; the honest ones first and last, so that no refusal spoils the page."""
    world_id, addr = running.world_id, running.browser_addr
    other = names.peer_text(Identity(bytes([9]) * 32).peer_id)
    unnamed = addr.rpartition("/p2p/")[0]
    here = {
        "state": "proved",
        "name": running.genesis.header.name,
        "trust": "attested",
        "position": SHOWN,
        "owner": names.peer_text(SigningKey(running.actor_seed).identity),
    }
    refused = {"state": "failed", "kind": "refused", "position": ""}
    yield Case("an agent, proved", world_id, addr, AGENT, here)
    yield Case(
        "no such agent, proved",
        world_id,
        addr,
        NOBODY,
        {**here, "position": "proved absent: there is no such agent", "owner": ""},
    )
    wrong = "a" * 32
    yield Case(
        "a world id that the node does not know", wrong, addr, AGENT, {"state": "failed", "kind": "rr"}
    )
    yield Case("a node by its address alone", world_id, unnamed, AGENT, here)
    for name, where, kind in (
        ("another node than the one named", f"{unnamed}/p2p/{other}", "stream"),
        ("an address where nobody listens", silent, "stream"),
        ("an address that is not for browsers", running.addr("world"), "usage"),
    ):
        yield Case(name, world_id, where, AGENT, {"state": "failed", "kind": kind})
    for lie in (*HEAD_LIES, *STATE_LIES):
        yield Case(lie, world_id, liar, AGENT, refused, lie)
    yield Case("a liar that tells the truth", world_id, liar, AGENT, here)


async def judge(page: Page, case: Case, least_height: int) -> Outcome:
    """Ask the page, and compare."""
    began, shown = time.monotonic(), {}
    try:
        shown = await page.ask(case.world_id, case.addr, case.agent)
        differs = {key: shown.get(key) for key, value in case.shown.items() if shown.get(key) != value}
        assert not differs, f"shown was {shown}, which differs from what must be in {differs}"
        assert not shown["errors"], f"the page failed: {shown['errors']}"
        if shown["state"] == "proved":
            heights = int(shown["height"]), int(shown["proved-height"])
            assert min(heights) >= least_height, f"heights {heights}, with a block at {least_height}"
            ages_s = [int(shown[key].removesuffix(" s")) for key in ("age", "proved-age")]
            assert 0 <= min(ages_s) <= max(ages_s) <= RUN_S, f"heads of {ages_s} s"
        failure = ""
    except Exception as error:  # noqa: BLE001  # every fault is a red case
        failure = " | ".join(reasons(error))
    outcome = Outcome(case.name, round(time.monotonic() - began, 1), shown, failure)
    mark = "FAIL" if failure else "ok  "
    said = failure or shown.get("failure") or shown.get("position")
    print(f"{mark} {case.name} ({outcome.seconds} s): {said}", file=sys.stderr, flush=True)
    return outcome


async def run(browser: str, directory: Path) -> tuple[str, list[Outcome]]:
    """The browser's version, and what became of each case."""
    with trio.fail_after(RUN_S):
        async with (
            open_world(directory, "for-browsers", for_browsers=True) as running,
            open_client([running.addr("world")]) as client,
            open_liar(client) as liar,
            open_page(browser) as page,
        ):
            height = await act(client, running)
            silent = f"/ip4/127.0.0.1/tcp/{free_ports(1)[0]}/ws"
            outcomes = []
            for case in cases(running, liar.browser_addr, silent):
                liar.lie = case.lie
                outcomes.append(await judge(page, case, height))
            return page.browser, outcomes


def main() -> int:
    """Parse, build, run, print."""
    parser = argparse.ArgumentParser(prog="python -m interop.browser", description=__doc__)
    parser.add_argument("--no-build", action="store_true", help="dist/light.js is built")
    options = parser.parse_args()
    try:
        browser = find_browser()
        bundle = as_built() if options.no_build else build()
    except Missing as missing:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    print(bundle, file=sys.stderr, flush=True)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="aw-browser-") as temporary:
            version, outcomes = interrupt.run(partial(run, browser, Path(temporary)))
    except* (AssertionError, NetworkError, NodeFailed, OSError, trio.TooSlowError) as error:
        print(f"FAIL: {' | '.join(reasons(error))}", file=sys.stderr)
        version, outcomes = "", []
    green = sum(not outcome.failure for outcome in outcomes)
    held = bool(outcomes) and green == len(outcomes)
    seconds = round(time.monotonic() - began, 1)
    report = {
        "held": held,
        "browser": version,
        "bundle": bundle,
        "seconds": seconds,
        "cases": [asdict(outcome) for outcome in outcomes],
    }
    print(json.dumps(report, indent=1))
    print(f"{version}: {green} of {len(outcomes)} cases held, {seconds} s", file=sys.stderr)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(exit_code(main))

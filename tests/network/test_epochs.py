"""New epochs with node processes and the command `aw`: a certifier's key lost, one leaked, an executor that lied.

The steps are those of the runbooks in docs/operations.md; the root keys sign one after the other, each by its own file.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from bootstrap.demo.processes import Network, NodeProcess, environment_of_nodes
from bootstrap.node import now_ms, open_caller
from p2p import names
from p2p.errors import NetworkError
from p2p.host import Libp2pNetwork
from p2p.identity import create_identity, load_identity
from runtime import genesis as genesis_module
from runtime.keys import SigningKey
from runtime.messages import WorldStatus
from runtime.records import ActionEnvelope, Bounds, Envelope, Genesis, seal
from runtime.services.client import DistributedClient, ProvedOutcome

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]

T = TypeVar("T")
PATIENCE_S = 120.0
ACTORS = (SigningKey(b"a" * 32), SigningKey(b"b" * 32))
# A node that attests false roots.
LIAR = """
import sys
from dataclasses import replace
from runtime.services.executor import Executor
step = Executor._step
def lie(self, committed):
    applied = step(self, committed)
    false = replace(applied.block, state_root=bytes(32))
    tip = replace(applied.tip, block_hash=false.hash())
    return replace(applied, block=false, blobs=(false.preimage(), *applied.blobs), tip=tip)
Executor._step = lie
from bootstrap.cli import main
sys.exit(main(["node", *sys.argv[1:]]))
"""


class Cluster(Network):
    """Nodes of any layout; who knows whose address is said when they are configured."""

    def __init__(self, directory: Path, layout: Mapping[str, Sequence[str]]) -> None:
        roles = {name: tuple(held) for name, held in layout.items()}
        super().__init__(directory, layout=roles)

    def share_key(self, name: str, other: str) -> None:
        """The second node gets the key of the first: it was copied."""
        source = self.nodes[name].directory / "identity.key"
        target = self.nodes[other].directory / "identity.key"
        shutil.copy(source, target)
        self.nodes[other].identity = load_identity(target)

    def configure_node(self, name: str, genesis_file: Path, known: Sequence[str]) -> None:
        node = self.nodes[name]
        document = {
            "data_dir": ".",
            "roles": list(node.roles),
            "listen": [f"/ip4/127.0.0.1/tcp/{node.port}"],
            "bootstrap": [self.nodes[other].addr for other in known if other != name],
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in document.items()]
        lines += ["", "[[world]]", f"genesis = {json.dumps(str(genesis_file.resolve()))}", ""]
        (node.directory / "node.toml").write_text("\n".join(lines))


@dataclass(slots=True)
class Lab:
    """The processes, a caller that is no node, and the root keys in files of their own."""

    cluster: Cluster
    genesis: Genesis
    folder: Path
    nursery: trio.Nursery
    caller: Libp2pNetwork
    nonces: dict[bytes, int] = field(default_factory=dict)

    @property
    def world_id(self) -> str:
        return self.genesis.header.world_id

    def node(self, name: str) -> NodeProcess:
        return self.cluster.nodes[name]

    def peer(self, name: str) -> str:
        return names.peer_text(self.node(name).identity.peer_id)

    async def start(self, name: str) -> None:
        self.nursery.start_soon(self.cluster._keep, self.node(name))
        await self.cluster._until_ready(self.node(name))

    async def kill(self, name: str, *, for_good: bool = False) -> None:
        """kill -9; a node that is lost for good stays down, another one comes back."""
        node, process = self.node(name), self.node(name).process
        assert process is not None
        if for_good:
            node.may_start = trio.Event()
        process.send_signal(signal.SIGKILL)
        with trio.fail_after(PATIENCE_S):
            await process.wait()
            while not for_good and node.process is process:
                await trio.sleep(0.02)

    async def client(self, name: str) -> DistributedClient:
        return DistributedClient(self.caller, await self.caller.connect([self.node(name).addr]))

    async def status(self, name: str) -> WorldStatus:
        async def ask() -> WorldStatus:
            worlds = (await (await self.client(name)).status()).worlds
            if not worlds:
                raise NetworkError("the world is not up yet")
            return worlds[0]

        return await patiently(ask)

    async def until(self, name: str, condition: Callable[[WorldStatus], object], what: str) -> WorldStatus:
        with trio.move_on_after(PATIENCE_S):
            while not condition(status := await self.status(name)):
                await trio.sleep(0.2)
            return status
        raise AssertionError(
            f"{name} did not come to it within {PATIENCE_S:.0f} s: {what}; log {self.node(name).log}"
        )

    # --- the command

    async def aw(self, *arguments: str, code: int = 0) -> Any:
        """One `aw` command; gives what it printed as JSON."""
        done = await trio.run_process(
            [sys.executable, "-m", "bootstrap.cli", *arguments, "--json"],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment_of_nodes(_environment()),
        )
        told = done.stderr.decode()
        assert done.returncode == code, f"aw {' '.join(arguments)}: {done.returncode}\n{told}"
        return [json.loads(line) for line in done.stdout.decode().splitlines()]

    async def new_epoch(self, ask: str, install: str, *arguments: str) -> None:
        """Made by asking one node, signed by two of the root keys in turn, put down at another node."""
        file, genesis = self.folder / "next.authorities", str(self.folder / "world.genesis")
        file.unlink(missing_ok=True)
        node = ["--node", self.node(ask).addr]
        await self.aw("world", "epoch", "new", genesis, *node, "--out", str(file), *arguments)
        for number, code in ((0, 1), (1, 0)):
            key = str(self.folder / f"root{number}.key")
            await self.aw("world", "epoch", "sign", str(file), "--key", key, "--world", genesis)
            await self.aw("world", "epoch", "show", str(file), "--world", genesis, code=code)
        shutil.copy(file, self.node(install).directory / "worlds" / f"{self.world_id}.authorities")

    # --- actors

    def envelope(self, actor: SigningKey) -> Envelope:
        nonce = self.nonces.get(actor.identity, 0)
        self.nonces[actor.identity] = nonce + 1
        agent = names.peer_text(actor.identity).lower()
        record = ActionEnvelope(
            world_id=self.world_id,
            actor_id=actor.identity,
            nonce=nonce,
            expires_at_height=1_000,
            timestamp_ms=now_ms(),
            atomic=True,
            actions=(
                (
                    "move_agent" if nonce else "register_agent",
                    {"agent_id": agent, "x_cm": nonce, "y_cm": 0, "z_cm": 0},
                ),
            ),
        )
        return seal(record, actor)

    async def submit(self, gate: str, actor: SigningKey = ACTORS[0]) -> Envelope:
        """One envelope that the gateway has promised to send."""
        envelope = self.envelope(actor)

        async def hand_in() -> Any:
            return (await (await self.client(gate)).submit(self.world_id, [envelope]))[0]

        result = await patiently(hand_in)
        assert result.outcome == "accepted", result.message
        return envelope

    async def proved(self, name: str, envelope: Envelope, epoch: int) -> ProvedOutcome:
        """A node proves that a block has the envelope, against a head of this epoch."""

        async def ask() -> ProvedOutcome:
            outcome = await (await self.client(name)).receipt(self.world_id, envelope.hash())
            if outcome.head.commit.record.epoch != epoch:
                raise NetworkError("not in this epoch yet")
            return outcome

        outcome = await patiently(ask)
        assert {receipt.code for receipt in outcome.receipts} == {"Applied"}
        return outcome

    async def work(
        self, count: int, gate: str, watch: str, epoch: int, actor: SigningKey = ACTORS[0]
    ) -> list[Envelope]:
        """So many envelopes, each proved before the next one."""
        done = []
        for _ in range(count):
            done.append(await self.submit(gate, actor))
            await self.proved(watch, done[-1], epoch)
        return done


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ)


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until there is an answer: a node may be away just now."""
    failure: NetworkError | None = None
    with trio.move_on_after(PATIENCE_S):
        while True:
            try:
                return await ask()
            except NetworkError as error:
                failure = error
                await trio.sleep(0.1)
    raise AssertionError(f"no answer within {PATIENCE_S:.0f} s: {failure}")


def make_world(cluster: Cluster, roots: Sequence[bytes], leads: Sequence[str], certifier: str) -> Genesis:
    peers = [cluster.nodes[name].identity.peer_id for name in leads]
    return genesis_module.make_genesis(
        name="epochs",
        root_keys=list(roots),
        root_threshold=2,
        proposers=peers,
        executors=peers,
        certifier=cluster.nodes[certifier].identity.peer_id,
        body=genesis_module.make_body(
            bounds=Bounds(0, 1_000_000, 0, 1_000_000, 0, 0),
            max_move_cm=1_000_000,
            resource_kinds=["fuel"],
            balances={(actor.identity, "fuel"): 100 for actor in ACTORS},
        ),
        created_ms=now_ms(),
    )


@asynccontextmanager
async def open_lab(
    folder: Path,
    cluster: Cluster,
    leads: Sequence[str],
    certifier: str,
    knows: Mapping[str, Sequence[str]],
    start: Sequence[str],
) -> AsyncIterator[Lab]:
    """All of `start` up and ready. `knows`: whose addresses each node is told."""
    roots = [create_identity(folder / f"root{number}.key").peer_id for number in range(3)]
    genesis = make_world(cluster, roots, leads, certifier)
    (folder / "world.genesis").write_bytes(genesis.to_bytes())
    for name in cluster.nodes:
        cluster.configure_node(name, folder / "world.genesis", knows[name])
    async with open_caller(()) as caller, trio.open_nursery() as nursery:
        lab = Lab(cluster, genesis, folder, nursery, caller)
        try:
            async with trio.open_nursery() as starting:
                for name in start:
                    starting.start_soon(lab.start, name)
            yield lab
        finally:
            nursery.cancel_scope.cancel()


ALL_BUT_LEAD = {"order": ("index", "coordinator"), "gate": ("gateway",), "watch": ("storage", "observer")}


async def test_a_lost_coordinator_costs_an_epoch_and_the_world_goes_on(tmp_path: Path) -> None:
    layout = {**ALL_BUT_LEAD, "lead": ("sequencer", "executor"), "order-2": ("index", "coordinator")}
    cluster = Cluster(tmp_path, layout)
    knows = dict.fromkeys(layout, tuple(layout))
    start = ["order", "gate", "watch", "lead"]
    async with open_lab(tmp_path, cluster, ["lead"], "order", knows, start) as lab:
        kept = await lab.work(3, "gate", "watch", 0)
        await lab.kill("order", for_good=True)
        shutil.rmtree(cluster.nodes["order"].directory / "db")  # key and memory are gone
        waiting = await lab.submit("gate")
        await lab.start("order-2")
        await lab.new_epoch("watch", "gate", "--certifier", lab.peer("order-2"))
        await lab.proved("watch", waiting, 1)
        await lab.work(2, "gate", "watch", 1)
        for envelope in kept:
            await lab.proved("watch", envelope, 1)
        status = await lab.status("order-2")
        assert (status.epoch, status.halted) == (1, False)
        assert (status.committed or 0) >= 6


async def test_a_leaked_certifier_key_halts_both_sides_and_the_roots_choose_one(tmp_path: Path) -> None:
    lead = ("gateway", "sequencer", "executor")
    order = ("index", "coordinator")
    layout = {
        "order": order, "lead": lead, "leaked": order, "lead-2": lead,
        "bridge": ("storage", "observer"), "order-2": order,
    }  # fmt: skip
    cluster = Cluster(tmp_path, layout)
    cluster.share_key("order", "leaked")
    one, other = ("order", "lead"), ("leaked", "lead-2")
    knows = {**dict.fromkeys(one, one), **dict.fromkeys(other, other)}
    knows |= dict.fromkeys(("bridge", "order-2"), ("lead", "lead-2", "bridge"))
    async with open_lab(tmp_path, cluster, ["lead", "lead-2"], "order", knows, [*one, *other]) as lab:
        ours = await lab.work(3, "lead", "lead", 0, ACTORS[0])
        theirs = await lab.work(5, "lead-2", "lead-2", 0, ACTORS[1])
        await lab.start("bridge")  # the two sides meet
        for name in ("lead", "lead-2", "bridge"):
            status = await lab.until(name, lambda status: status.halted, "is halted")
            assert "commit_fork" in (status.halted_why or "")
            assert [item.kind for item in status.evidence or ()] == ["commit_fork"]
        # Each shows what it was halted by: the fork has two commits of each height, and any pair of them proves it.
        [item] = await lab.aw("evidence", "list", "epochs", "--node", lab.node("lead").addr)
        asked = ["epochs", item["content_hash"], "--node", lab.node("lead").addr]
        [shown] = await lab.aw("evidence", "show", *asked)
        assert shown["accused"] == lab.peer("order")
        assert shown["first"]["record"]["batch_hash"] != shown["second"]["record"]["batch_hash"]
        [verdict] = await lab.aw("evidence", "verify", *asked)
        assert verdict["holds"]
        assert verdict["halts"]
        for name in ("order", "leaked"):
            await lab.kill(name, for_good=True)
        await lab.start("order-2")
        await lab.new_epoch("lead", "bridge", "--certifier", lab.peer("order-2"))
        for envelope in [*ours, *theirs]:  # what the losing side took comes again
            await lab.proved("lead", envelope, 1)
            await lab.proved("lead-2", envelope, 1)
            await lab.proved("bridge", envelope, 1)
        await lab.work(1, "lead-2", "bridge", 1, ACTORS[1])
        height = (await lab.status("bridge")).verified or 0
        blocks = {name: await blocks_of(lab, name, height) for name in ("lead", "lead-2", "bridge")}
        assert blocks["lead"] == blocks["lead-2"] == blocks["bridge"]


async def blocks_of(lab: Lab, name: str, height: int) -> list[bytes]:
    """Hashes of the blocks 1..height, by the node's word."""
    from runtime.messages import BlockAnswer, BlockRequest

    hashes = []
    for at in range(1, height + 1):

        async def ask(at: int = at) -> BlockAnswer:
            client = await lab.client(name)
            return await client.call("get_block", BlockRequest(world_id=lab.world_id, height=at), BlockAnswer)

        hashes.append((await patiently(ask)).block.hash())
    return hashes


async def test_an_executor_that_lied_is_found_by_an_observer_and_replaced(tmp_path: Path) -> None:
    lead = ("sequencer", "executor")
    layout = {**ALL_BUT_LEAD, "lead": lead, "lead-2": lead}
    cluster = Cluster(tmp_path, layout)
    knows = dict.fromkeys(layout, tuple(layout))
    start = ["order", "gate", "watch", "lead"]
    async with open_lab(tmp_path, cluster, ["lead"], "order", knows, start) as lab:
        kept = await lab.work(3, "gate", "watch", 0)
        height = (await lab.status("watch")).verified or 0
        cluster.nodes["lead"].program = (sys.executable, "-c", LIAR)
        await lab.kill("lead")
        waiting = await lab.submit("gate")
        status = await lab.until("watch", lambda status: status.evidence, "has found it")
        assert [item.kind for item in status.evidence or ()] == ["wrong_root_proof"]
        assert not status.halted
        [item] = await lab.aw("evidence", "list", "epochs", "--node", lab.node("watch").addr)
        asked = ["epochs", item["content_hash"], "--node", lab.node("watch").addr]
        [shown] = await lab.aw("evidence", "show", *asked)
        assert shown["accused"] == lab.peer("lead")
        assert shown["block"]["state_root"] == bytes(32).hex()
        await lab.kill("lead", for_good=True)
        await lab.start("lead-2")
        roles = ["--proposer", lab.peer("lead-2"), "--executor", lab.peer("lead-2")]
        await lab.new_epoch("watch", "watch", *roles, "--resume-height", str(height))
        await lab.proved("watch", waiting, 1)
        for envelope in kept:
            await lab.proved("watch", envelope, 1)
        await lab.work(1, "gate", "watch", 1)

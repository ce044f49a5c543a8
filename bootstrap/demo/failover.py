"""A network with two sequencers whose leader is killed, paused or cut off under load: how long until the next commit?

Hides: who leads, and how each fault is made and mended. Guarantees: nodes are processes of their own; the time runs
from the fault to the first commit of another term; in the end every accepted envelope is proved, all who execute hold
one state, and each height has the one batch that the coordinator certified. Used by benchmarks/failover.py and tests.
"""

from __future__ import annotations

import random
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import trio

from bootstrap.demo.etcd_process import EtcdProcess, open_etcd
from bootstrap.demo.namespaces import Namespaces, open_namespaces
from bootstrap.demo.processes import Network, NodeProcess, Seat
from bootstrap.node import now_ms, open_caller
from p2p.errors import NetworkError
from p2p.host import Libp2pNetwork
from runtime import chain, limits
from runtime import genesis as genesis_module
from runtime.errors import Missing
from runtime.keys import SigningKey
from runtime.messages import (
    BatchAnswer,
    BatchRequest,
    BlockAnswer,
    BlockRequest,
    CommitAnswer,
    WorldRequest,
    WorldStatus,
)
from runtime.records import ActionEnvelope, Bounds, Commit, Envelope, Genesis, seal
from runtime.services.client import DistributedClient

T = TypeVar("T")
STORES: Final = ("embedded", "etcd")
FAULTS: Final = ("kill", "pause", "partition")
SEQUENCERS: Final = ("first", "second")
LAYOUT: Final = {
    "coordinator": ("index", "coordinator"),
    "gateway": ("gateway",),
    "first": ("sequencer", "executor"),
    "second": ("sequencer", "executor"),
    "storage": ("storage",),
    "observer": ("observer",),
}
BOUND_MS: Final = limits.LEASE_TTL_MS * 3 // 2 + limits.BATCH_INTERVAL_MS
ACTORS: Final = 4
LOAD_S: Final = 0.1  # between envelopes
POLL_S: Final = 0.05
PATIENCE_S: Final = 120.0
PROOFS_AT_ONCE: Final = 16


class NotHeld(Exception):
    """A promise of the network that did not hold: what was found."""


@dataclass(slots=True)
class Cluster:
    """A running network, and what a run needs of it."""

    network: Network
    genesis: Genesis
    actors: tuple[SigningKey, ...]
    caller: Libp2pNetwork
    etcd: EtcdProcess | None
    spaces: Namespaces | None
    accepted: list[Envelope] = field(default_factory=list)
    certified: dict[int, bytes] = field(default_factory=dict)  # height -> batch hash, as answers gave it

    @property
    def world_id(self) -> str:
        return self.genesis.header.world_id

    def node_of(self, peer_id: bytes) -> NodeProcess:
        return next(node for node in self.network.nodes.values() if node.identity.peer_id == peer_id)

    async def client(self, node: NodeProcess) -> DistributedClient:
        """A connection to a node, made again when it was lost. Raises p2p errors."""
        return DistributedClient(self.caller, await self.caller.connect([node.addr]))

    async def status(self, node: NodeProcess) -> WorldStatus:
        """A node's own account of the world. Raises p2p errors."""
        worlds = (await (await self.client(node)).status()).worlds
        if not worlds:
            raise NetworkError("the world is not up yet")
        return worlds[0]

    async def newest_commit(self) -> Commit:
        """The newest commit, as the coordinator gives it; contradicting itself is NotHeld."""
        client = await self.client(self.network.nodes["coordinator"])
        answer = await client.call(
            "get_commit", WorldRequest(world_id=self.world_id), CommitAnswer, deadline_ms=2_000
        )
        if answer.commit is None:
            raise NetworkError("there is no commit yet")
        chain.check_commit(self.genesis.authorities, answer.commit, world_id=self.world_id)
        commit = answer.commit.record
        if self.certified.setdefault(commit.height, commit.batch_hash) != commit.batch_hash:
            raise NotHeld(f"two commits at height {commit.height}")
        return commit


async def patiently(ask: Callable[[], Awaitable[T]], what: str) -> T:
    """Ask until there is an answer. Raises NotHeld after PATIENCE_S."""
    with trio.move_on_after(PATIENCE_S):
        while True:
            try:
                return await ask()
            except (NetworkError, Missing):
                await trio.sleep(POLL_S)
    raise NotHeld(f"{what}: no answer within {PATIENCE_S:.0f} s")


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait for a condition, through nodes that are away. Raises NotHeld after PATIENCE_S."""
    with trio.move_on_after(PATIENCE_S):
        while True:
            if await patiently(holds, what):
                return
            await trio.sleep(POLL_S)
    raise NotHeld(f"{what}: not within {PATIENCE_S:.0f} s")


# --- the network -------------------------------------------------------------------------------------------


def _genesis(network: Network, actors: tuple[SigningKey, ...]) -> Genesis:
    keys = {name: node.identity.peer_id for name, node in network.nodes.items()}
    return genesis_module.make_genesis(
        name="failover",
        root_keys=[SigningKey(secrets.token_bytes(32)).identity],
        root_threshold=1,
        proposers=[keys[name] for name in SEQUENCERS],
        executors=[keys[name] for name in SEQUENCERS],
        certifier=keys["coordinator"],
        body=genesis_module.make_body(
            bounds=Bounds(0, 1_000_000, 0, 1_000_000, 0, 1_000_000),
            max_move_cm=1_000_000,
            resource_kinds=["fuel"],
            balances={(actor.identity, "fuel"): 1_000 for actor in actors},
        ),
        created_ms=now_ms(),
    )


@asynccontextmanager
async def open_cluster(directory: Path, store: str, *, in_namespaces: bool) -> AsyncIterator[Cluster]:
    """Six processes, under load from here on. Raises NodeFailed, EtcdFailed, NotHeld (maybe in a group)."""
    async with AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(open_etcd(directory / "server")) if store == "etcd" else None
        spaces, seats = None, dict[str, Seat]()
        if in_namespaces:
            spaces = await stack.enter_async_context(open_namespaces(len(SEQUENCERS)))
            seats = dict.fromkeys(LAYOUT, spaces.outside) | dict(zip(SEQUENCERS, spaces.inside, strict=True))
        network = Network(directory, layout=LAYOUT, seats=seats)
        actors = tuple(SigningKey(secrets.token_bytes(32)) for _ in range(ACTORS))
        genesis = _genesis(network, actors)
        genesis_file = trio.Path(directory / "failover.genesis")
        await genesis_file.write_bytes(genesis.to_bytes())
        tables = (
            [] if etcd is None else ["[coordinator]", 'store = "etcd"', f'etcd = ["{etcd.endpoint}"]', ""]
        )
        network.configure(Path(genesis_file), tables)
        await stack.enter_async_context(network.running())
        caller = await stack.enter_async_context(open_caller([node.addr for node in network.nodes.values()]))
        yield Cluster(network, genesis, actors, caller, etcd, spaces)


async def load(cluster: Cluster) -> None:
    """One envelope after the other through the gateway, each actor's in order, until cancelled."""
    gateway = cluster.network.nodes["gateway"]
    for nonce in range(1 << 30):
        for number, actor in enumerate(cluster.actors):
            envelope = _envelope(cluster, actor, f"agent-{number}", nonce)
            await until(lambda one=envelope: _hand_in(cluster, gateway, one), "acceptance")  # type: ignore[misc]
            cluster.accepted.append(envelope)
            await trio.sleep(LOAD_S)


def _envelope(cluster: Cluster, actor: SigningKey, agent: str, nonce: int) -> Envelope:
    place = {"agent_id": agent, "x_cm": nonce % 1_000_000, "y_cm": 0, "z_cm": 0}
    record = ActionEnvelope(
        world_id=cluster.world_id,
        actor_id=actor.identity,
        nonce=nonce,
        expires_at_height=max(cluster.certified, default=0)
        + cluster.genesis.body.limits.expiry_blocks_max // 2,
        timestamp_ms=now_ms(),
        atomic=False,
        actions=(("move_agent" if nonce else "register_agent", place),),
    )
    return seal(record, actor)


async def _hand_in(cluster: Cluster, gateway: NodeProcess, envelope: Envelope) -> bool:
    [result] = await (await cluster.client(gateway)).submit(cluster.world_id, [envelope])
    if result.outcome == "accepted":
        return True
    if result.retry_after_ms is None:
        raise NotHeld(f"an honest envelope was refused: {result.message}")
    return False


# --- the fault ---------------------------------------------------------------------------------------------


async def leader_of(cluster: Cluster) -> NodeProcess:
    """The node that holds the lease and has had a batch certified under it."""

    async def ask() -> NodeProcess:
        status = await cluster.status(cluster.network.nodes["coordinator"])
        if status.lease_holder is None:
            raise NetworkError("nobody leads yet")
        await cluster.newest_commit()
        return cluster.node_of(status.lease_holder)

    return await patiently(ask, "leader")


async def strike(cluster: Cluster, fault: str, rng: random.Random) -> float:
    """Make the fault at some moment of a quiet, led network; seconds until a commit of another term; mend it."""
    await in_step(cluster)
    await trio.sleep(rng.random() * limits.LEASE_RENEW_MS / 1_000)
    leader = await leader_of(cluster)
    commit = await patiently(cluster.newest_commit, "commit")
    began = trio.current_time()
    await _break(cluster, leader, fault)
    took = await _until_term_above(cluster, commit.term) - began
    await _mend(cluster, leader, fault)
    return took


async def _until_term_above(cluster: Cluster, term: int) -> float:
    with trio.move_on_after(PATIENCE_S):
        while True:
            if (await patiently(cluster.newest_commit, "commit")).term > term:
                return trio.current_time()
            await trio.sleep(POLL_S)
    raise NotHeld(f"no commit above term {term} within {PATIENCE_S:.0f} s")


async def _break(cluster: Cluster, leader: NodeProcess, fault: str) -> None:
    assert leader.process is not None
    if fault == "partition":
        assert cluster.spaces is not None
        await cluster.spaces.cut(SEQUENCERS.index(leader.name))
        return
    if fault == "kill":  # a service manager that starts it at once would let it lead on
        leader.may_start = trio.Event()
    leader.process.send_signal(signal.SIGKILL if fault == "kill" else signal.SIGSTOP)


async def _mend(cluster: Cluster, leader: NodeProcess, fault: str) -> None:
    assert leader.process is not None
    if fault == "partition":
        assert cluster.spaces is not None
        await cluster.spaces.heal(SEQUENCERS.index(leader.name))
    elif fault == "kill":
        await leader.process.wait()
        leader.may_start.set()
    else:
        leader.process.send_signal(signal.SIGCONT)


async def in_step(cluster: Cluster) -> None:
    """Wait until both executors have executed what is certified by then, not only what was when the wait began."""

    async def are_there() -> bool:
        height = (await patiently(cluster.newest_commit, "commit")).height
        nodes = [cluster.network.nodes[name] for name in SEQUENCERS]
        return all([((await cluster.status(node)).executed or 0) >= height for node in nodes])

    await until(are_there, "both executors at the newest height")


# --- the end -----------------------------------------------------------------------------------------------


async def check_end(cluster: Cluster) -> int:
    """After the load has ended: nothing accepted is lost, one batch per height, one state. Gives the height."""
    observer = cluster.network.nodes["observer"]
    send, receive = trio.open_memory_channel[Envelope](len(cluster.accepted))
    for envelope in cluster.accepted:
        send.send_nowait(envelope)
    send.close()
    async with trio.open_nursery() as nursery:
        for _ in range(PROOFS_AT_ONCE):
            nursery.start_soon(_prove_all, cluster, observer, receive.clone())
    receive.close()
    height = (await patiently(cluster.newest_commit, "commit")).height
    roots = set()
    for name in (*SEQUENCERS, "observer"):
        node = cluster.network.nodes[name]

        async def is_there(node: NodeProcess = node) -> bool:
            status = await cluster.status(node)
            return (status.executed or status.verified) == height

        await until(is_there, f"{name} at height {height}")
        roots.add((await patiently(lambda node=node: cluster.status(node), name)).state_root)  # type: ignore[misc]
    if len(roots) != 1:
        raise NotHeld(f"{len(roots)} states at height {height}")
    for at in range(1, height + 1):
        await _check_height(cluster, at)
    return height


async def _prove_all(
    cluster: Cluster, observer: NodeProcess, envelopes: trio.MemoryReceiveChannel[Envelope]
) -> None:
    async for envelope in envelopes:

        async def ask(envelope: Envelope = envelope) -> set[str]:
            client = await cluster.client(observer)
            proved = await client.receipt(cluster.world_id, envelope.hash())
            return {receipt.code for receipt in proved.receipts}

        codes = await patiently(ask, f"receipt of {envelope.hash().hex()}")
        if codes != {"Applied"}:
            raise NotHeld(f"envelope {envelope.hash().hex()}: {codes}")


async def _check_height(cluster: Cluster, height: int) -> None:
    nodes = cluster.network.nodes
    coordinator, observer = (
        await cluster.client(nodes["coordinator"]),
        await cluster.client(nodes["observer"]),
    )
    batch = await coordinator.call(
        "get_batch", BatchRequest(world_id=cluster.world_id, height=height), BatchAnswer
    )
    block = await observer.call(
        "get_block", BlockRequest(world_id=cluster.world_id, height=height), BlockAnswer
    )
    found = {batch.batch.hash(), batch.commit.record.batch_hash, block.block.batch_hash}
    found.add(cluster.certified.get(height, batch.batch.hash()))
    if len(found) != 1:
        raise NotHeld(f"{len(found)} batches at height {height}")

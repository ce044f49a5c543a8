"""A small world that tests build on: real keys, a real genesis, batches and blocks as nodes make them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, settings

from bootstrap.garbage import collect_seldom
from bootstrap.world_node import WorldNode, run_world
from p2p.errors import NetworkError
from p2p.network import Check, Message, Verdict
from p2p.providers import CachedDht, ProviderCache
from runtime import chain, codec, world
from runtime.genesis import default_limits, make_body, make_genesis
from runtime.keys import SigningKey
from runtime.messages import SubmitAnswer, SubmitRequest
from runtime.records import (
    ActionBatch,
    ActionEnvelope,
    BlockAttestation,
    Bounds,
    Commit,
    Envelope,
    Sealed,
    SignedAuthorities,
    WorldHeadAnnounce,
    encode_envelopes,
    seal,
)
from runtime.services import HeadRecords
from runtime.services.context import Context
from runtime.services.fetch import call
from runtime.services.methods import MethodTable
from runtime.services.serve import NodeDesk
from runtime.world_db import MemoryWorldDb

pytest_plugins = ["tests.warm_start"]
CREATED_MS = 1_000_000


def pytest_collection_finish() -> None:
    """All is imported: the tests run with the collector as a node has it."""
    collect_seldom()


# For every property test: how fast an example is tells of the machine's load, not of our code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def key(number: int) -> SigningKey:
    """One of a row of fixed keys."""
    return SigningKey(bytes([number]) * 32)


class SmallWorld:
    """Three actors with 1,000 fuel and 500 gold each, a box of 1,000 cm, moves of up to 100 cm; its chain.

    `run(envelopes...)` appends a block; `nonces` counts what was signed by each actor.
    """

    def __init__(self, **limit_changes: int) -> None:
        self.root, self.proposer, self.executor, self.certifier = key(200), key(201), key(202), key(203)
        self.executors = (self.executor, key(204))
        self.actors = (key(1), key(2), key(3))
        self.genesis = make_genesis(
            name="small",
            root_keys=[self.root.identity, key(205).identity],
            root_threshold=1,
            proposers=[self.proposer.identity],
            executors=[one.identity for one in self.executors],
            certifier=self.certifier.identity,
            body=make_body(
                bounds=Bounds(0, 1_000, 0, 1_000, -1_000, 1_000),
                max_move_cm=100,
                resource_kinds=["fuel", "gold"],
                balances={
                    (actor.identity, kind): amount
                    for actor in self.actors
                    for kind, amount in (("fuel", 1_000), ("gold", 500))
                },
                world_limits=replace(default_limits(), **limit_changes),
            ),
            created_ms=CREATED_MS,
        )
        self.world_id = self.genesis.header.world_id
        self.tip = chain.genesis_tip(self.genesis)
        self.nonces = dict.fromkeys((actor.identity for actor in self.actors), 0)
        self.blocks: list[chain.Built] = []

    def envelope(
        self,
        actor: SigningKey,
        *actions: tuple[str, dict[str, Any]],
        atomic: bool = False,
        nonce: int | None = None,
        expires_at_height: int = 100,
        timestamp_ms: int = CREATED_MS,
    ) -> Envelope:
        if nonce is None:
            nonce = self.nonces.get(actor.identity, 0)
            self.nonces[actor.identity] = nonce + 1
        return seal(
            ActionEnvelope(
                world_id=self.world_id,
                actor_id=actor.identity,
                nonce=nonce,
                expires_at_height=expires_at_height,
                timestamp_ms=timestamp_ms,
                atomic=atomic,
                actions=actions,
            ),
            actor,
        )

    def batch(self, envelopes: Sequence[Envelope], **changes: Any) -> tuple[ActionBatch, bytes]:
        """The next batch over these envelopes, and its actions blob; `changes` overrides fields."""
        blob = encode_envelopes(list(envelopes))
        values: dict[str, Any] = {
            "world_id": self.world_id,
            "epoch": 0,
            "term": 1,
            "height": self.tip.height + 1,
            "prev_batch_hash": self.tip.batch_hash,
            "envelope_count": len(envelopes),
            "actions_root": codec.merkle_root([envelope.to_bytes() for envelope in envelopes]),
            "actions_ref": codec.content_id(blob),
            "proposer_id": self.proposer.identity,
            "timestamp_ms": self.tip.timestamp_ms + 200,
        }
        return ActionBatch(**(values | changes)), blob

    def form(self, batch: ActionBatch, blob: bytes) -> list[Envelope]:
        """The form check of a batch on the tip."""
        tip = self.tip
        return chain.check_batch_form(self.genesis, tip.height, tip.batch_hash, tip.timestamp_ms, batch, blob)

    def run(self, *envelopes: Envelope) -> chain.Built:
        """One more block."""
        batch, blob = self.batch(envelopes)
        read = self.form(batch, blob)
        built = chain.build_block(self.genesis, self.tip, batch, read, world.check_signatures(read))
        self.tip = built.tip
        self.blocks.append(built)
        return built

    def commit(self, height: int, batch_hash: bytes, **changes: Any) -> Sealed[Commit]:
        values: dict[str, Any] = {
            "world_id": self.world_id,
            "epoch": 0,
            "term": 1,
            "height": height,
            "batch_hash": batch_hash,
            "certifier_id": self.certifier.identity,
            "as_of_ms": CREATED_MS + height,
        }
        return seal(Commit(**(values | changes)), self.certifier)

    def head(
        self,
        height: int,
        batch_hash: bytes,
        block_hash: bytes,
        executor: SigningKey | None = None,
        **changes: Any,
    ) -> WorldHeadAnnounce:
        """A head as its writers would sign it; `changes` are fields of the commit."""
        executor = executor or self.executor
        attestation = BlockAttestation(
            world_id=self.world_id,
            epoch=0,
            height=height,
            block_hash=block_hash,
            executor_id=executor.identity,
        )
        return WorldHeadAnnounce(
            header=self.genesis.header,
            authorities=SignedAuthorities(self.genesis.authorities),
            commit=self.commit(height, batch_hash, **changes),
            attestations=(seal(attestation, executor),),
            block_hash=block_hash,
        )

    def head_of(self, built: chain.Built, **changes: Any) -> WorldHeadAnnounce:
        """The head of a block that was run."""
        return self.head(built.block.height, built.block.batch_hash, built.block.hash(), **changes)


@pytest.fixture(scope="session")
def small_world() -> Callable[..., SmallWorld]:
    """Makes a fresh SmallWorld; arguments are limits of its genesis."""
    return SmallWorld


# --- a world of six nodes, one of which misses gossip --------------------------------------------------------

SIX_NODES = {
    "coordinator": frozenset({"coordinator", "index"}),
    "gateway": frozenset({"gateway"}),
    "sequencer": frozenset({"sequencer"}),
    "executor": frozenset({"executor"}),
    "storage": frozenset({"storage"}),
    "observer": frozenset({"observer"}),
}


class LossyGossip:
    """A network that hears only a share of the gossip of others. Which messages are lost, their bytes decide.

    So a copy from another neighbour is lost too, and every run loses the same of the same.
    """

    def __init__(self, network: Any, lost_of_256: int) -> None:
        self._network = network
        self._lost_of_256 = lost_of_256
        self.lost: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    async def join(self, topic: str, check: Check) -> Any:
        def lossy(message: Message) -> Verdict:
            is_own = message.author == self._network.peer_id
            if not is_own and codec.content_id(message.data)[0] < self._lost_of_256:
                self.lost[topic.rpartition(".")[2]] += 1
                return Verdict.IGNORE
            return check(message)

        return await self._network.join(topic, lossy)


class SixNodes:
    """The roles of a world on six nodes over any network, and envelopes of four actors handed in at the gateway."""

    def __init__(self, deaf: str = "", lost_of_256: int = 0) -> None:
        self.seeds = {name: bytes([100 + number]) * 32 for number, name in enumerate(SIX_NODES)}
        self.keys = {name: SigningKey(seed) for name, seed in self.seeds.items()}
        self.actors = [key(number) for number in range(1, 5)]
        self.deaf, self._lost_of_256 = deaf, lost_of_256
        self.lost: Counter[str] = Counter()
        self.contexts: dict[str, Context] = {}
        self.worlds: dict[str, WorldNode] = {}
        self.genesis = make_genesis(
            name="six",
            root_keys=[key(200).identity],
            root_threshold=1,
            proposers=[self.keys["sequencer"].identity],
            executors=[self.keys["executor"].identity],
            certifier=self.keys["coordinator"].identity,
            body=make_body(
                bounds=Bounds(0, 1_000, 0, 1_000, 0, 1_000),
                max_move_cm=1_000,
                resource_kinds=["fuel"],
                balances={(actor.identity, "fuel"): 1_000_000 for actor in self.actors},
            ),
            created_ms=CREATED_MS,
        )
        self.world_id = self.genesis.header.world_id

    def now_ms(self) -> int:
        return CREATED_MS + int(trio.current_time() * 1_000) % (1 << 40)

    def context(self, own_key: SigningKey, network: Any, dht: Any) -> Context:
        """A context on a network and an empty database in memory."""
        rng = random.Random(own_key.identity)
        providers = ProviderCache(own_key.identity, rng)
        cached = CachedDht(dht, providers, HeadRecords(), self.now_ms)

        async def direct(work: Callable[[], Any]) -> Any:
            await trio.lowlevel.checkpoint()
            return work()

        return Context(network, cached, providers, MemoryWorldDb(), own_key, self.now_ms, rng, direct)

    async def run_node(self, name: str, opened: Any, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """`opened(seed, routes)` is a context manager that gives (network, dht)."""
        methods = MethodTable()
        async with opened(self.seeds[name], methods.routes()) as (network, dht):
            if name == self.deaf:
                lossy = LossyGossip(network, self._lost_of_256)
                network, self.lost = lossy, lossy.lost  # noqa: PLW2901
            context = self.context(self.keys[name], network, dht)
            methods.mount_node(NodeDesk(context, (name,), tuple, {}).handlers())
            for other in self.contexts.values():
                await network.connect(other.network.addrs())
            async with trio.open_nursery() as nursery:
                self.worlds[name] = await nursery.start(
                    run_world, context, methods, self.genesis, SIX_NODES[name], lambda done, total: None
                )
                self.contexts[name] = context
                task_status.started()
                await trio.sleep_forever()

    def envelopes(self, each: int) -> list[Envelope]:
        """`each` of every actor, by (actor, nonce)."""
        return [
            seal(
                ActionEnvelope(
                    world_id=self.world_id,
                    actor_id=actor.identity,
                    nonce=nonce,
                    expires_at_height=4_000,
                    timestamp_ms=CREATED_MS,
                    atomic=False,
                    actions=(("say", {"text": str(nonce)}),),
                ),
                actor,
            )
            for actor in self.actors
            for nonce in range(each)
        ]

    async def hand_in(self, envelopes: Sequence[Envelope], pause_s: float = 0.25) -> None:
        """One request, and so one gossip message, for each; again when it is not known whether it arrived."""
        client, gateway = self.contexts["coordinator"], self.keys["gateway"].identity
        for envelope in envelopes:
            request = SubmitRequest(world_id=self.world_id, envelopes=(envelope,))
            answer = None
            while answer is None:
                try:
                    answer = await call(client, gateway, "submit_actions", request, SubmitAnswer)
                except NetworkError:
                    await trio.sleep(pause_s)
            assert answer.results[0].outcome == "accepted", answer.results[0]
            await trio.sleep(pause_s)

    async def all_taken(self, name: str, envelopes: Sequence[Envelope]) -> None:
        """Wait until the node has applied a block for each of them."""
        replica = self.worlds[name].replica
        assert replica is not None
        while True:
            places = [replica.tables.place(envelope.hash()) for envelope in envelopes]
            if None not in places:
                assert all(place is not None and place.taken for place in places)
                return
            await replica.applied.wait()


@pytest.fixture
def six_nodes() -> Callable[..., SixNodes]:
    """`six_nodes(deaf="observer", lost_of_256=77)`: a world whose observer misses 30 % of what is gossiped."""
    return SixNodes

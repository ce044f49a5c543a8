"""The whole network in one process: the real services over the in-memory network, under a seed.

Hides: clocks, links and crashes. Guarantees: nothing but the seed decides what happens, so equal seeds give equal
traces; the run ends only when an observer has replayed every accepted envelope, or says what is missing.
Must run under trio's MockClock with deterministic scheduling: see `run_seed`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import trio
import trio.testing

from bootstrap.world_node import WorldNode, run_world
from p2p.errors import NetworkError
from p2p.memory import Faults, InMemoryHub
from p2p.providers import CachedDht, ProviderCache, republish_loop
from runtime import codec
from runtime import genesis as genesis_module
from runtime.keys import SigningKey
from runtime.messages import SubmitAnswer, SubmitRequest
from runtime.records import ActionEnvelope, Bounds, Envelope, Genesis, seal
from runtime.services import HeadRecords
from runtime.services.context import Context
from runtime.services.fetch import call
from runtime.services.methods import MethodTable
from runtime.services.serve import NodeDesk
from runtime.world_db import MemoryWorldDb
from runtime.world_tables import WorldTables

T = TypeVar("T")
START_MS: Final = 1_700_000_000_000
END_S_MAX: Final = 600.0  # of simulated time
ACTORS: Final = 4
TROUBLES_MAX: Final = 4
NODES: Final = {
    "coordinator": frozenset({"index", "coordinator"}),
    "gateway": frozenset({"gateway"}),
    "leader": frozenset({"sequencer", "executor"}),
    "storage": frozenset({"storage"}),
    "observer": frozenset({"observer"}),
}


@dataclass(frozen=True, slots=True)
class Result:
    """What a seed gave. `trace` has a line per applied block and node, in the order in which it happened."""

    seed: int
    accepted: int
    height: int
    verified: bool
    roots: dict[str, str]
    trace: tuple[str, ...]
    simulated_s: float


@dataclass(slots=True)
class _Network:
    """One simulated network on its way."""

    seed: int
    rng: random.Random
    hub: InMemoryHub
    genesis: Genesis
    keys: dict[str, SigningKey]
    dbs: dict[str, MemoryWorldDb] = field(default_factory=dict)
    worlds: dict[str, WorldNode] = field(default_factory=dict)
    contexts: dict[str, Context] = field(default_factory=dict)
    lives: dict[str, trio.CancelScope] = field(default_factory=dict)
    trace: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        self.trace.append(f"{trio.current_time():10.3f} {line}")


def _key(seed: int, name: str) -> SigningKey:
    return SigningKey(codec.content_id(f"simulation {seed} {name}".encode()))


def faults_of(rng: random.Random) -> Faults:
    """Some trouble, drawn by the seed."""
    return Faults(
        delay_ms=(1, rng.randrange(2, 60)),
        gossip_loss=rng.randrange(40) / 100,
        gossip_duplication=rng.randrange(20) / 100,
        gossip_late=rng.randrange(20) / 100,
        stream_break=rng.randrange(3) / 100,
    )


def _genesis(seed: int, keys: dict[str, SigningKey]) -> Genesis:
    actors = [_key(seed, f"actor {number}") for number in range(ACTORS)]
    return genesis_module.make_genesis(
        name="simulation",
        root_keys=[_key(seed, "root").identity],
        root_threshold=1,
        proposers=[keys["leader"].identity],
        executors=[keys["leader"].identity],
        certifier=keys["coordinator"].identity,
        body=genesis_module.make_body(
            bounds=Bounds(0, 1_000_000, 0, 1_000_000, 0, 1_000_000),
            max_move_cm=1_000_000,
            resource_kinds=["fuel"],
            balances={(actor.identity, "fuel"): 1_000_000 for actor in actors},
        ),
        created_ms=START_MS,
    )


async def _direct(work: Callable[[], T]) -> T:
    """Offload in simulation: at once, after one turn of the others."""
    await trio.lowlevel.checkpoint()
    return work()


async def _live(network: _Network, name: str, task_status: trio.TaskStatus[None]) -> None:
    """A node as a service manager keeps it: killed by `lives[name].cancel()`, started again a while later."""
    first = True
    while True:
        with trio.CancelScope() as network.lives[name]:
            await _run_node(network, name, task_status if first else trio.TASK_STATUS_IGNORED)
        first = False
        network.note(f"{name} was killed")
        await trio.sleep(network.rng.randrange(100, 4_000) / 1_000)


async def _trouble(network: _Network, count: int) -> None:
    """Kill nodes and cut links, as the seed says."""
    for _ in range(count):
        await trio.sleep(network.rng.randrange(4_000) / 1_000)
        name = network.rng.choice(sorted(NODES))
        if network.rng.randrange(2):
            network.lives[name].cancel()
            continue
        others = [key.identity for other, key in network.keys.items() if other != name]
        network.note(f"{name} is cut off")
        lost = network.rng.sample(others, network.rng.randrange(1, len(others) + 1))
        network.hub.cut([network.keys[name].identity], lost)
        await trio.sleep(network.rng.randrange(6_000) / 1_000)
        network.hub.heal()
        network.note("links are whole")


async def _run_node(network: _Network, name: str, task_status: trio.TaskStatus[None]) -> None:
    """One life of a node; its database outlives it."""
    key, methods = network.keys[name], MethodTable()
    db = network.dbs.setdefault(name, MemoryWorldDb())
    rng = random.Random(network.rng.randrange(1 << 63))

    def now_ms() -> int:
        return START_MS + int(trio.current_time() * 1_000)

    async with network.hub.open_node(key.identity, methods.routes(), HeadRecords()) as (net, dht):
        providers = ProviderCache(key.identity, rng)
        cached = CachedDht(dht, providers, HeadRecords(), now_ms)
        context = Context(net, cached, providers, db, key, now_ms, rng, _direct)
        network.contexts[name] = context

        def status() -> tuple[()]:
            return ()

        methods.mount_node(NodeDesk(context, tuple(sorted(NODES[name])), status, {}).handlers())

        async def sleep_until_ms(at_ms: int) -> None:
            await trio.sleep(max(0, at_ms - now_ms()) / 1_000)

        async with trio.open_nursery() as nursery:
            for other in network.contexts.values():
                if other is not context:
                    nursery.start_soon(_stay_connected, net.connect, other.network.addrs())
            network.worlds[name] = await nursery.start(
                run_world, context, methods, network.genesis, NODES[name], lambda done, total: None
            )
            nursery.start_soon(republish_loop, providers, dht, now_ms, sleep_until_ms, lambda content: True)
            nursery.start_soon(_trace_blocks, network, name)
            network.note(f"{name} is up")
            task_status.started()
            await trio.sleep_forever()


async def _stay_connected(connect: Callable[[list[str]], object], addrs: list[str]) -> None:
    while True:
        try:
            await connect(addrs)  # type: ignore[misc]  # the port's connect is async
        except NetworkError:
            await trio.sleep(1)
            continue
        await trio.sleep(5)


async def _trace_blocks(network: _Network, name: str) -> None:
    replica = network.worlds[name].replica
    if replica is None:
        return
    while True:
        network.note(f"{name} {replica.cursor} {replica.height} {replica.block_hash.hex()[:16]}")
        await replica.applied.wait()


def _envelopes(network: _Network, count: int) -> list[Envelope]:
    """Each actor registers an agent, then walks it about."""
    made: list[Envelope] = []
    for number in range(ACTORS):
        key = _key(network.seed, f"actor {number}")
        agent = f"agent-{number}"
        for nonce in range(count // ACTORS):
            x_cm, y_cm = network.rng.randrange(1_000_001), network.rng.randrange(1_000_001)
            place = {"agent_id": agent, "x_cm": x_cm, "y_cm": y_cm, "z_cm": 0}
            kind = "register_agent" if nonce == 0 else "move_agent"
            record = ActionEnvelope(
                world_id=network.genesis.header.world_id,
                actor_id=key.identity,
                nonce=nonce,
                expires_at_height=4_000,
                timestamp_ms=START_MS,
                atomic=False,
                actions=((kind, place),),
            )
            made.append(seal(record, key))
    network.rng.shuffle(made)
    return made


async def _submit(network: _Network, envelopes: list[Envelope]) -> int:
    """Hand in through the gateway, again and again while it is refused for now; gives how many were accepted."""
    accepted, waiting = 0, list(envelopes)
    while waiting:
        chunk, waiting = waiting[:16], waiting[16:]
        request = SubmitRequest(world_id=network.genesis.header.world_id, envelopes=tuple(chunk))
        try:
            caller = network.contexts["storage"]  # any node is a client; it may have been started again
            answer = await call(
                caller, network.keys["gateway"].identity, "submit_actions", request, SubmitAnswer
            )
        except NetworkError:
            waiting += chunk  # accepted or not: handing in the same envelope again is no mistake
            await trio.sleep(0.5)
            continue
        for envelope, result in zip(chunk, answer.results, strict=True):
            if result.outcome == "accepted":
                accepted += 1
            elif result.retry_after_ms is not None:
                waiting.append(envelope)
            else:
                raise AssertionError(f"an honest envelope was refused: {result.message}")
        await trio.sleep(network.rng.randrange(1_000) / 1_000)
    return accepted


async def _all_verified(network: _Network, envelopes: list[Envelope]) -> bool:
    """Wait until the observer has replayed every envelope; whether each was taken."""
    tables = WorldTables(network.dbs["observer"], network.genesis.header.world_id)
    while True:
        places = [tables.place(envelope.hash()) for envelope in envelopes]
        if None not in places:
            return all(place is not None and place.taken for place in places)
        await trio.sleep(0.1)


async def simulate(seed: int, envelope_count: int = 200, faults: Faults | None = None) -> Result:
    """One network with the trouble that the seed draws (or the given one)."""
    rng = random.Random(seed)
    keys = {name: _key(seed, name) for name in NODES}
    hub = InMemoryHub(random.Random(rng.randrange(1 << 63)))
    network = _Network(seed, rng, hub, _genesis(seed, keys), keys)
    trouble = faults or faults_of(rng)
    verified, accepted, simulated_s = False, 0, END_S_MAX
    with trio.move_on_after(END_S_MAX):
        async with trio.open_nursery() as nursery:
            for name in NODES:
                await nursery.start(_live, network, name)
            hub.faults = trouble
            network.note(f"faults {trouble}")
            nursery.start_soon(_trouble, network, rng.randrange(TROUBLES_MAX + 1) if faults is None else 0)
            envelopes = _envelopes(network, envelope_count)
            accepted = await _submit(network, envelopes)
            verified = await _all_verified(network, envelopes)
            network.note("all verified")
            simulated_s = trio.current_time()
            nursery.cancel_scope.cancel()
    roots = {
        name: world.replica.tip.state.root().hex()
        for name, world in network.worlds.items()
        if world.replica is not None and world.replica.tip is not None
    }
    heights = {world.replica.height for world in network.worlds.values() if world.replica is not None}
    return Result(seed, accepted, max(heights), verified, roots, tuple(network.trace), simulated_s)


def run_seed(seed: int, envelope_count: int = 200, faults: Faults | None = None) -> Result:
    """`simulate` under a mock clock, with trio's own order of tasks decided by the seed (private to trio 0.35)."""
    # trio offers no public switch for this; trio is pinned to 0.35 in pyproject.toml.
    core: Any = trio._core._run  # noqa: SLF001
    before = core._ALLOW_DETERMINISTIC_SCHEDULING  # noqa: SLF001
    core._ALLOW_DETERMINISTIC_SCHEDULING = True  # noqa: SLF001
    core._r.seed(seed)  # noqa: SLF001
    try:
        clock = trio.testing.MockClock(autojump_threshold=0)
        return trio.run(simulate, seed, envelope_count, faults, clock=clock)
    finally:
        core._ALLOW_DETERMINISTIC_SCHEDULING = before  # noqa: SLF001

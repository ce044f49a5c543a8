"""The simulated network: which nodes there are, how each lives, dies and comes back.

Hides: how a node is put together from ports that can be frozen, killed and filled. Guarantees: nothing but the seed
decides what happens; a killed node loses its memory at once and keeps its disk; an exception that ends a node is a
broken check, never the end of the simulation.
"""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from bootstrap.simulation.checks import Checks
from bootstrap.simulation.ports import (
    START_MS,
    Clock,
    Gate,
    GatedDht,
    GatedNetwork,
    gated_offload,
    gated_routes,
)
from bootstrap.world_node import WorldNode, run_world
from p2p.errors import NetworkError
from p2p.memory import NO_FAULTS, InMemoryHub
from p2p.network import DistributedNetwork
from p2p.providers import CachedDht, ProviderCache, republish_loop
from runtime import codec
from runtime import genesis as genesis_module
from runtime.keys import SigningKey
from runtime.records import Bounds, Genesis
from runtime.services import HeadRecords
from runtime.services.context import Context, Signal
from runtime.services.methods import MethodTable
from runtime.services.serve import NodeDesk

ACTORS: Final = 6
FUEL: Final = 1_000_000
NODES: Final = {
    "coordinator": frozenset({"index", "coordinator"}),
    "gateway": frozenset({"gateway"}),
    "leader": frozenset({"sequencer", "executor"}),
    "standby": frozenset({"sequencer", "gateway"}),
    "executor": frozenset({"executor"}),
    "storage": frozenset({"storage"}),
    "observer": frozenset({"observer"}),
}
GATEWAYS: Final = ("gateway", "standby")
TICK_S: Final = 0.5

Watch = Callable[["Network", str, str], None]
"""Told (network, node, point) before each point that a node passes."""


def key_of(seed: int, name: str) -> SigningKey:
    """The key of a node or actor in the run of a seed."""
    return SigningKey(codec.content_id(f"simulation {seed} {name}".encode()))


@dataclass(slots=True)
class _Life:
    """One life of a node: from its start to a kill."""

    gate: Gate
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    network: GatedNetwork | None = None
    context: Context | None = None
    world: WorldNode | None = None


class Network:
    """All nodes of one run."""

    def __init__(self, seed: int, rng: random.Random, watch: Watch | None = None) -> None:
        self.seed = seed
        self.rng = rng
        self.hub = InMemoryHub(random.Random(rng.randrange(1 << 63)))
        self.keys = {name: key_of(seed, name) for name in NODES}
        self.genesis = _genesis(seed, self.keys)
        self.checks = Checks(self.genesis)
        self.clocks = {name: Clock() for name in NODES}
        self.disks = {name: self.checks.add(name) for name in NODES}
        self.weather = NO_FAULTS
        self.troubles: Counter[str] = Counter()
        self.trace: list[str] = []
        self.nursery: trio.Nursery | None = None  # of the run, while it lasts
        self.stopped = trio.Event()  # set by a plan that stops a node at a point
        self.part = 0  # of the load that is being handed in
        self.calm = Signal()
        self._pending = 0
        self._watch = watch
        self._lives: dict[str, _Life] = {}
        self._down_s: dict[str, float] = {}

    def note(self, node: str, what: str) -> None:
        """A line of the trace."""
        self.trace.append(f"{trio.current_time():9.3f}  {node:<11}  {what}")

    @property
    def worlds(self) -> dict[str, WorldNode]:
        """The nodes that are up, as they see the world."""
        return {name: life.world for name, life in self._lives.items() if life.world is not None}

    # --- what can be done to a node

    def kill(self, name: str, down_s: float) -> None:
        """As kill -9: memory is lost, the disk stays, nobody is told; it starts again `down_s` later."""
        life = self._lives.get(name)
        if life is None:
            return
        self.note(name, f"is killed, for {down_s:.1f} s")
        self._down_s[name] = down_s
        self.hub.crash(self.keys[name].identity)
        life.gate.kill()
        life.scope.cancel()

    def stop(self, name: str, down_s: float) -> None:
        """As SIGTERM: it may say goodbye."""
        life = self._lives.get(name)
        if life is None:
            return
        self.note(name, f"is stopped, for {down_s:.1f} s")
        self._down_s[name] = down_s
        life.scope.cancel()

    def freeze(self, name: str, for_s: float) -> None:
        """As SIGSTOP and, `for_s` later, SIGCONT: its connections stay, its timers have all run out then."""
        life = self._lives.get(name)
        if life is None:
            return
        self.note(name, f"is frozen, for {for_s:.1f} s")
        life.gate.freeze()
        self.hub.pause(self.keys[name].identity)
        self.later(for_s, self._thaw, name, life)

    def _thaw(self, name: str, life: _Life) -> None:
        life.gate.thaw()
        if self._lives.get(name) is life:
            self.hub.resume(self.keys[name].identity)
            self.note(name, "goes on")

    def cut(self, some: Sequence[str], others: Sequence[str], for_s: float) -> None:
        """Nothing passes between any of `some` and any of `others` for a while."""
        self.note("links", f"are cut between {', '.join(some)} and {', '.join(others)}, for {for_s:.1f} s")
        self.hub.cut(*([self.keys[name].identity for name in half] for half in (some, others)))
        self.later(for_s, self._heal)

    def _heal(self) -> None:
        self.hub.heal()
        self.note("links", "are whole")

    def later(self, after_s: float, act: Callable[..., None], *arguments: Any) -> None:
        """Do something in a while; the run does not end before."""
        assert self.nursery is not None, "the network is not running"
        self.nursery.start_soon(self._do, after_s, act, arguments)

    async def _do(self, after_s: float, act: Callable[..., None], arguments: Sequence[Any]) -> None:
        self._pending += 1
        await trio.sleep(after_s)
        act(*arguments)
        self._pending -= 1
        self.calm.wake()

    async def until_calm(self) -> None:
        """Wait until everything that was to be done later is done."""
        await trio.lowlevel.checkpoint()
        while self._pending:
            await self.calm.wait()

    # --- how a node lives

    async def live(self, name: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A node as a service manager keeps it: started again some time after it ended."""
        identity = self.keys[name].identity
        has_been_up = False
        while True:
            gate = Gate(None if self._watch is None else self._watcher(self._watch, name))
            life = self._lives[name] = _Life(gate)
            self.hub.revive(identity)
            self.hub.resume(identity)
            try:
                with life.scope:
                    await self._run(name, life, trio.TASK_STATUS_IGNORED if has_been_up else task_status)
            except Exception as error:  # noqa: BLE001  # told as a broken check, with the whole way to it
                self.checks.fail("no_crash", f"{name} ended: {''.join(traceback.format_exception(error))}")
            del self._lives[name]
            if life.context is not None and life.network is not None:
                self.checks.blame(name, life.context.counters, life.network.counters())
            has_been_up = has_been_up or life.world is not None
            await trio.sleep(self._down_s.pop(name, 1.0))

    def _watcher(self, watch: Watch, name: str) -> Callable[[str], None]:
        return lambda what: watch(self, name, what)

    async def _run(self, name: str, life: _Life, task_status: trio.TaskStatus[None]) -> None:
        key, methods, clock = self.keys[name], MethodTable(), self.clocks[name]
        rng = random.Random(self.rng.randrange(1 << 63))
        routes = gated_routes(name, methods.routes(), life.gate, self.checks)
        async with self.hub.open_node(key.identity, routes, HeadRecords()) as (inner, inner_dht):
            net = life.network = GatedNetwork(name, inner, life.gate, self.checks)
            dht = GatedDht(name, inner_dht, life.gate, self.checks)
            providers = ProviderCache(key.identity, rng)
            cached = CachedDht(dht, providers, HeadRecords(), clock.now_ms)
            offload = gated_offload(life.gate, rng)
            db = self.disks[name]
            context = Context(net, cached, providers, db, key, clock.now_ms, rng, offload)
            life.context = context
            methods.mount_node(NodeDesk(context, tuple(sorted(NODES[name])), tuple, {}).handlers())

            async def sleep_until_ms(at_ms: int) -> None:
                await trio.sleep(max(0, at_ms - clock.now_ms()) / 1_000)

            async with trio.open_nursery() as nursery:
                for other in NODES:
                    if other != name and other in self._lives:
                        nursery.start_soon(connect, net, self.hub.addr(self.keys[other].identity))
                life.world = await nursery.start(
                    run_world, context, methods, self.genesis, NODES[name], lambda done, total: None
                )
                nursery.start_soon(
                    republish_loop, providers, dht, clock.now_ms, sleep_until_ms, lambda content: True
                )
                self.note(name, "is up")
                task_status.started()
                await trio.sleep_forever()

    async def watch_over(self) -> None:
        """Run the checks that look from outside, every TICK_S."""
        while True:
            used = {
                name: [*life.network.gauges(), *life.context.gauges.read()]
                for name, life in self._lives.items()
                if life.network is not None and life.context is not None
            }
            self.checks.tick(self.worlds, used, self.hub.open_streams())
            for name, life in self._lives.items():
                if life.context is not None and life.network is not None:
                    self.checks.blame(name, life.context.counters, life.network.counters())
            await trio.sleep(TICK_S)


async def connect(net: DistributedNetwork, addr: str) -> None:
    """Link two nodes; the hub keeps the link over their lives, as redialling does."""
    while True:
        try:
            await net.connect([addr])
        except NetworkError:
            await trio.sleep(1)
            continue
        return


def _genesis(seed: int, keys: dict[str, SigningKey]) -> Genesis:
    actors = [key_of(seed, f"actor {number}") for number in range(ACTORS)]
    return genesis_module.make_genesis(
        name="simulation",
        root_keys=[key_of(seed, "root").identity],
        root_threshold=1,
        proposers=[keys[name].identity for name, roles in NODES.items() if "sequencer" in roles],
        executors=[keys[name].identity for name, roles in NODES.items() if "executor" in roles],
        certifier=keys["coordinator"].identity,
        body=genesis_module.make_body(
            bounds=Bounds(0, 1_000_000, 0, 1_000_000, 0, 1_000_000),
            max_move_cm=1_000_000,
            resource_kinds=["fuel"],
            balances={(actor.identity, "fuel"): FUEL for actor in actors},
        ),
        created_ms=START_MS,
    )

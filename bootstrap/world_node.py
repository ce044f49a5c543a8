"""What a set of roles makes of one world: the services, their subscriptions, their order of birth.

Hides: which role needs which part. Guarantees: methods are mounted only when the world's disk state is restored; one
task applies blocks, whatever the roles; the same function runs in a node process and in the simulator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

import trio

from p2p import names
from p2p.network import Subscription
from runtime import genesis as genesis_module
from runtime import rules
from runtime.messages import WorldStatus
from runtime.records import Genesis, SignedAuthorities
from runtime.services import as_check
from runtime.services.context import Context
from runtime.services.coordinator import Coordinator
from runtime.services.executor import Executor
from runtime.services.fetch import Sources
from runtime.services.gateway import Gateway
from runtime.services.heads import HeadTracker
from runtime.services.index import keep_indexed
from runtime.services.lease_store import EmbeddedLeaseStore, LeaseStoreOf
from runtime.services.methods import Handlers, MethodTable
from runtime.services.observer import keep_verified
from runtime.services.replica import Progress, Replica
from runtime.services.sequencer import Sequencer
from runtime.services.serve import WorldDesk
from runtime.services.storage import keep_stored
from runtime.world_tables import WorldTables

# What applying a block means on a node: the strongest of its roles decides.
_CURSORS: Final = (("executor", "executed"), ("observer", "verified"))
_FOLLOWING_ROLES: Final = frozenset({"storage", "gateway", "sequencer"})
_TOPICS: Final = {
    "gateway": ("action",),
    "sequencer": ("action", "batch"),
    "executor": ("batch", "block"),
}


@dataclass(frozen=True, slots=True)
class WorldNode:
    """A world as one node runs it; `status` is its own account."""

    genesis: Genesis
    replica: Replica | None
    tracker: HeadTracker
    status: Callable[[], WorldStatus]


def cursor_of(roles: frozenset[str]) -> str | None:
    """executed, verified, stored, or None for a node that follows no blocks."""
    for role, cursor in _CURSORS:
        if role in roles:
            return cursor
    return "stored" if roles & _FOLLOWING_ROLES else None


async def run_world(
    context: Context,
    methods: MethodTable,
    genesis: Genesis,
    roles: frozenset[str],
    progress: Progress,
    lease_store: LeaseStoreOf = EmbeddedLeaseStore,
    task_status: trio.TaskStatus[WorldNode] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Restore, mount, start every service; `started` gives the WorldNode. Ends by cancellation or by a fault of ours.

    `lease_store` opens the coordinator's memory. Raises Corrupt when the stored chain does not replay.
    """
    world_id = genesis.header.world_id
    parts = _compose(context, genesis, roles)
    if parts.replica is not None:
        await parts.replica.restore(progress)
    subscriptions = await _join(context, genesis, roles)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parts.tracker.listen, subscriptions["head"])
        nursery.start_soon(parts.tracker.poll)
        coordinator = None
        if "coordinator" in roles:
            coordinator = Coordinator(context, genesis, lease_store(context, parts.tables), parts.tracker)
            await nursery.start(coordinator.run)
        order = coordinator.handlers() if coordinator else {"get_commit": parts.desk.get_commit}
        mounts = [parts.desk.handlers(), order]
        mounts += await _start_order(nursery, parts, roles, subscriptions)
        mounts += await _start_results(nursery, parts, roles, subscriptions, progress)
        for kind in _unread(roles):
            nursery.start_soon(_drain, subscriptions[kind])
        for handlers in mounts:
            methods.mount_world(world_id, handlers)
        if parts.replica is not None:
            context.providers.register(genesis_module.world_content_id(world_id), context.now_ms())
        task_status.started(
            WorldNode(genesis, parts.replica, parts.tracker, lambda: _status(parts, coordinator))
        )
    raise AssertionError("the services of a world end only by cancellation")


@dataclass(frozen=True, slots=True)
class _Parts:
    """What all roles of one world share on a node."""

    context: Context
    genesis: Genesis
    signed: SignedAuthorities
    tables: WorldTables
    tracker: HeadTracker
    sources: Sources
    replica: Replica | None
    desk: WorldDesk


def _compose(context: Context, genesis: Genesis, roles: frozenset[str]) -> _Parts:
    tables = WorldTables(context.db, genesis.header.world_id)
    tracker = HeadTracker(context, genesis, tables)
    signed = SignedAuthorities(genesis.authorities)
    cursor = cursor_of(roles)
    replica = None if cursor is None else Replica(context, genesis, tables, cursor)
    desk = WorldDesk(context, genesis, signed, tables, tracker, replica)
    sources = Sources(context, genesis.header.world_id)
    return _Parts(context, genesis, signed, tables, tracker, sources, replica, desk)


async def _start_order(
    nursery: trio.Nursery, parts: _Parts, roles: frozenset[str], subscriptions: dict[str, Subscription]
) -> list[Handlers]:
    """Sequencer, gateway: who hands actions on to be ordered."""
    context, replica, authorities = parts.context, parts.replica, parts.signed.authorities
    mounts: list[Handlers] = []
    pool = None
    if "sequencer" in roles:
        assert replica is not None
        sequencer = Sequencer(context, replica, authorities)
        await nursery.start(sequencer.run, subscriptions["action"], subscriptions["batch"])
        pool = sequencer.pool
        if "gateway" not in roles:
            mounts.append(sequencer.handlers())
    if "gateway" in roles:
        assert replica is not None
        gateway = Gateway(context, replica, authorities.certifier, pool)
        await nursery.start(gateway.run, subscriptions["action"])
        mounts.append(gateway.handlers())
    return mounts


async def _start_results(
    nursery: trio.Nursery,
    parts: _Parts,
    roles: frozenset[str],
    subscriptions: dict[str, Subscription],
    progress: Progress,
) -> list[Handlers]:
    """Executor, or whoever follows its heads; index."""
    replica, mounts = parts.replica, list[Handlers]()
    if "executor" in roles:
        assert replica is not None
        executor = Executor(parts.context, replica, parts.tracker, parts.sources, parts.signed)
        await nursery.start(
            executor.run, subscriptions["batch"], subscriptions["block"], subscriptions["head"]
        )
        mounts.append(executor.handlers())
    elif replica is not None:
        loop = keep_verified if replica.cursor == "verified" else keep_stored
        await nursery.start(loop, replica, parts.tracker, parts.sources, progress)
    if "index" in roles:
        await nursery.start(keep_indexed, parts.context, parts.tracker)
    return mounts


async def _join(context: Context, genesis: Genesis, roles: frozenset[str]) -> dict[str, Subscription]:
    world_id = genesis.header.world_id
    checks = rules.gossip_rules(world_id, genesis.body.limits.envelope_bytes_max)
    kinds = {"head"}.union(*(_TOPICS.get(role, ()) for role in roles))
    return {
        kind: await context.network.join(names.topic(world_id, kind), as_check(checks[kind]))
        for kind in sorted(kinds)
    }


def _unread(roles: frozenset[str]) -> list[str]:
    """Joined topics that no service of these roles reads; a relay still hears them, so that it passes them on."""
    unread = []
    if "gateway" in roles and "sequencer" not in roles:
        unread.append("action")
    if "sequencer" in roles and "executor" not in roles:
        unread.append("batch")
    if "executor" in roles:
        unread.append("block")
    return unread


async def _drain(subscription: Subscription) -> NoReturn:
    while True:
        await subscription.receive()


def _status(parts: _Parts, coordinator: Coordinator | None) -> WorldStatus:
    replica = parts.replica

    def height_of(cursor: str) -> int | None:
        return replica.height if replica is not None and replica.cursor == cursor else None

    kept = None if coordinator is None else coordinator.kept
    return WorldStatus(
        world_id=parts.genesis.header.world_id,
        name=parts.genesis.header.name,
        epoch=parts.genesis.authorities.epoch,
        head_height=parts.tracker.height,
        committed=None if kept is None else kept.height,
        lease_holder=None if kept is None or kept.lease is None else kept.lease.holder_id,
        stored=height_of("stored"),
        executed=height_of("executed"),
        verified=height_of("verified"),
        state_root=None if replica is None or replica.tip is None else replica.tip.state.root(),
        halted=parts.tracker.follower.is_halted,
    )

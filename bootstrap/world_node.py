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
from runtime.services.methods import Handlers, MethodTable
from runtime.services.observer import keep_verified
from runtime.services.replica import Progress, Replica
from runtime.services.sequencer import Sequencer
from runtime.services.serve import WorldDesk
from runtime.services.storage import keep_stored
from runtime.world_tables import WorldTables

ROLES: Final = ("gateway", "sequencer", "coordinator", "executor", "storage", "index", "observer")

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
    task_status: trio.TaskStatus[WorldNode] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Restore, mount, start every service; `started` gives the WorldNode. Ends by cancellation or by a fault of ours.

    Raises Corrupt when the stored chain does not replay.
    """
    world_id = genesis.header.world_id
    tables = WorldTables(context.db, world_id)
    tracker = HeadTracker(context, genesis, tables)
    signed = SignedAuthorities(genesis.authorities)
    sources = Sources(context, world_id)
    cursor = cursor_of(roles)
    replica = None if cursor is None else Replica(context, genesis, tables, cursor)
    if replica is not None:
        await replica.restore(progress)
    subscriptions = await _join(context, genesis, roles)
    desk = WorldDesk(context, genesis, signed, tables, tracker, replica)
    mounts: list[Handlers] = [desk.handlers()]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tracker.listen, subscriptions["head"])
        nursery.start_soon(tracker.poll)
        sequencer = gateway = None
        if "coordinator" in roles:
            coordinator = Coordinator(context, genesis, tables, tracker)
            mounts.append(coordinator.handlers())
            await nursery.start(coordinator.run)
        else:
            mounts.append({"get_commit": desk.get_commit})
        if "sequencer" in roles:
            assert replica is not None
            sequencer = Sequencer(context, replica, signed.authorities)
            await nursery.start(sequencer.run, subscriptions["action"], subscriptions["batch"])
        if "gateway" in roles:
            assert replica is not None
            pool = None if sequencer is None else sequencer.pool
            gateway = Gateway(context, replica, signed.authorities.certifier, pool)
            mounts.append(gateway.handlers())
            await nursery.start(gateway.run, subscriptions["action"])
        elif sequencer is not None:
            mounts.append(sequencer.handlers())
        if "executor" in roles:
            assert replica is not None
            executor = Executor(context, replica, tracker, sources, signed)
            mounts.append(executor.handlers())
            await nursery.start(
                executor.run, subscriptions["batch"], subscriptions["block"], subscriptions["head"]
            )
        elif replica is not None:
            loop = keep_verified if cursor == "verified" else keep_stored
            await nursery.start(loop, replica, tracker, sources, progress)
        if "index" in roles:
            await nursery.start(keep_indexed, context, tracker)
        for kind in _unread(roles):
            nursery.start_soon(_drain, subscriptions[kind])
        for handlers in mounts:
            methods.mount_world(world_id, handlers)
        if replica is not None:
            context.providers.register(genesis_module.world_content_id(world_id), context.now_ms())
        task_status.started(
            WorldNode(genesis, replica, tracker, lambda: _status(genesis, tables, tracker, replica, roles))
        )
    raise AssertionError("the services of a world end only by cancellation")


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


def _status(
    genesis: Genesis,
    tables: WorldTables,
    tracker: HeadTracker,
    replica: Replica | None,
    roles: frozenset[str],
) -> WorldStatus:

    def height_of(cursor: str) -> int | None:
        return replica.height if replica is not None and replica.cursor == cursor else None

    root = None if replica is None or replica.tip is None else replica.tip.state.root()
    lease = tables.lease() if "coordinator" in roles else None
    return WorldStatus(
        world_id=genesis.header.world_id,
        name=genesis.header.name,
        epoch=genesis.authorities.epoch,
        head_height=tracker.height,
        committed=tables.committed_height() if "coordinator" in roles else None,
        stored=height_of("stored"),
        executed=height_of("executed"),
        verified=height_of("verified"),
        state_root=root,
        lease_holder=None if lease is None else lease.record.holder_id,
        halted=tracker.follower.is_halted,
    )

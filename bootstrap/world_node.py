"""What a set of roles makes of one world: the services, their subscriptions, their order of birth.

Hides: which role needs which part. Guarantees: methods are mounted only when the world's disk state is restored; one
task applies blocks, whatever the roles; the same function runs in a node process and in the simulator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn

import trio

from p2p import names
from p2p.network import Subscription
from runtime import genesis as genesis_module
from runtime import rules
from runtime.epoch_tables import EpochTables
from runtime.errors import Invalid, Missing
from runtime.messages import WorldStatus
from runtime.records import Genesis, SignedAuthorities, WorldHeadAnnounce
from runtime.services import as_check
from runtime.services.authorities import Authorities, why_halted
from runtime.services.context import Context
from runtime.services.coordinator import Coordinator
from runtime.services.custody import bring_back, heal
from runtime.services.evidence import EvidenceKeeper
from runtime.services.executor import Executor
from runtime.services.fetch import Sources
from runtime.services.gaps import EnvelopeDesk, GapMender, Lookup
from runtime.services.gateway import Gateway
from runtime.services.heads import HeadTracker
from runtime.services.lease_store import EmbeddedLeaseStore, LeaseStoreOf
from runtime.services.methods import Handlers, MethodTable
from runtime.services.observer import keep_verified
from runtime.services.publish import keep_findable
from runtime.services.replica import Progress, Replica
from runtime.services.resume import resubmit_voided
from runtime.services.sequencer import Sequencer
from runtime.services.serve import WorldDesk
from runtime.services.storage import keep_stored
from runtime.world_tables import WorldTables

EVIDENCE_SHOWN_MAX: Final = 64  # of the newest, in a status answer
_log = logging.getLogger(__name__)
# What applying a block means on a node: the strongest of its roles decides. A gateway forgets a promise, and a
# sequencer builds on a parent, by what blocks say: neither may believe an executor's word.
_REPLAYING_ROLES: Final = frozenset({"observer", "gateway", "sequencer"})
RESTORE_PATIENCE_S: Final = 30
_TOPICS: Final = {
    "gateway": ("action", "block"),
    "sequencer": ("action", "batch", "block"),
    "executor": ("batch", "block"),
    "storage": ("block",),
    "observer": ("block",),
}


@dataclass(frozen=True, slots=True)
class WorldNode:
    """A world as one node runs it; `status` is its own account."""

    genesis: Genesis
    replica: Replica | None
    tracker: HeadTracker
    authorities: Authorities
    evidence: EvidenceKeeper
    status: Callable[[], WorldStatus]


def cursor_of(roles: frozenset[str]) -> str | None:
    """executed, verified, stored, or None for a node that follows no blocks."""
    if "executor" in roles:
        return "executed"
    if roles & _REPLAYING_ROLES:
        return "verified"
    return "stored" if "storage" in roles else None


async def run_world(
    context: Context,
    methods: MethodTable,
    genesis: Genesis,
    roles: frozenset[str],
    progress: Progress,
    installed: SignedAuthorities | None = None,
    lease_store: LeaseStoreOf = EmbeddedLeaseStore,
    task_status: trio.TaskStatus[WorldNode] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Restore, mount, start every service; `started` gives the WorldNode. Ends by cancellation or by a fault of ours.

    `installed` is the authority set that the operator has put down, if any: it is in force before anything runs.
    `lease_store` opens the coordinator's memory. Raises Corrupt when the stored chain does not replay.
    """
    world_id = genesis.header.world_id
    parts = _compose(context, genesis, roles)
    if installed is not None:
        try:
            await parts.authorities.install(installed)
        except Invalid as error:
            _log.error("world %s: the installed authority set is not taken up: %s", world_id, error)
    _hold_places(parts)
    if parts.replica is not None:
        await parts.replica.restore(progress, partial(_bring_back, parts))
    subscriptions = await _join(context, genesis, roles)
    async with trio.open_nursery() as nursery:
        await nursery.start(parts.authorities.run)
        await nursery.start(parts.evidence.run, subscriptions["evidence"])
        nursery.start_soon(parts.tracker.watch_epoch)
        nursery.start_soon(_follow_places, parts)
        nursery.start_soon(parts.tracker.listen, subscriptions["head"])
        nursery.start_soon(parts.tracker.poll)
        if "block" in subscriptions:
            nursery.start_soon(parts.tracker.hear_blocks, subscriptions["block"])
        nursery.start_soon(heal, context, parts.sources)
        coordinator = None
        if "coordinator" in roles:
            coordinator = await _start_coordinator(nursery, parts, lease_store)
        order = parts.desk.order_handlers() if coordinator is None else coordinator.handlers()
        mounts = [parts.desk.handlers(), parts.evidence.handlers(), order]
        mounts += await _start_order(nursery, parts, roles, subscriptions)
        mounts += await _start_results(nursery, parts, roles, subscriptions, progress)
        for kind in _unread(roles):
            nursery.start_soon(_drain, subscriptions[kind])
        for handlers in mounts:
            methods.mount_world(world_id, handlers)
        if parts.replica is not None:
            context.providers.register(genesis_module.world_content_id(world_id), context.now_ms())
            nursery.start_soon(resubmit_voided, context, parts.replica, parts.epoch_tables, parts.authorities)
        task_status.started(
            WorldNode(
                genesis,
                parts.replica,
                parts.tracker,
                parts.authorities,
                parts.evidence,
                lambda: _status(parts, coordinator),
            )
        )
    raise AssertionError("the services of a world end only by cancellation")


@dataclass(frozen=True, slots=True)
class _Parts:
    """What all roles of one world share on a node."""

    context: Context
    genesis: Genesis
    authorities: Authorities
    evidence: EvidenceKeeper
    tables: WorldTables
    epoch_tables: EpochTables
    tracker: HeadTracker
    sources: Sources
    replica: Replica | None
    desk: WorldDesk

    def newest_served(self) -> WorldHeadAnnounce | None:
        """The newest head whose block is served here; an index that holds no blocks passes on what it heard."""
        return self.tracker.head if self.replica is None else self.replica.head


def _compose(context: Context, genesis: Genesis, roles: frozenset[str]) -> _Parts:
    world_id = genesis.header.world_id
    tables, epoch_tables = WorldTables(context.db, world_id), EpochTables(context.db, world_id)
    authorities = Authorities(context, genesis, epoch_tables)
    sources = Sources(context, world_id)
    cursor = cursor_of(roles)
    replica = None if cursor is None else Replica(context, genesis, tables, cursor)
    evidence = EvidenceKeeper(context, genesis, epoch_tables, authorities, sources, replica)
    tracker = HeadTracker(context, genesis, tables, authorities, evidence)
    desk = WorldDesk(context, genesis, authorities, tables, epoch_tables, tracker, replica)
    return _Parts(
        context, genesis, authorities, evidence, tables, epoch_tables, tracker, sources, replica, desk
    )


def _hold_places(parts: _Parts) -> None:
    """The network keeps places for those whom the set in force names."""
    current = parts.authorities.current
    parts.context.network.keep((*current.proposers, *current.executors, *current.certifiers))


async def _follow_places(parts: _Parts) -> NoReturn:
    while True:
        _hold_places(parts)
        await parts.authorities.changed.wait()


async def _bring_back(parts: _Parts, content: bytes) -> None:
    """Ask for what the own disk has lost; peers may be on their way up themselves. Raises Missing."""
    with trio.move_on_after(RESTORE_PATIENCE_S) as patience:
        while True:
            try:
                await bring_back(parts.context, parts.sources, content)
            except Missing:
                await trio.sleep(1)
            else:
                return
    if patience.cancelled_caught:
        raise Missing("blob", f"{content.hex()}, asked for during {RESTORE_PATIENCE_S} s after it was lost,")


async def _start_coordinator(nursery: trio.Nursery, parts: _Parts, lease_store: LeaseStoreOf) -> Coordinator:
    """The coordinator, deciding; its memory is opened here."""
    coordinator = Coordinator(
        parts.context,
        parts.genesis,
        lease_store(parts.context, parts.tables),
        parts.tracker,
        parts.authorities,
        parts.sources,
        parts.desk.executed_batch,
    )
    await nursery.start(coordinator.run)
    parts.context.gauges.add(coordinator.gauges, world=parts.genesis.header.world_id)
    return coordinator


async def _start_order(
    nursery: trio.Nursery, parts: _Parts, roles: frozenset[str], subscriptions: dict[str, Subscription]
) -> list[Handlers]:
    """Sequencer, gateway: who hands actions on to be ordered."""
    context, replica, authorities = parts.context, parts.replica, parts.authorities
    world_id = parts.genesis.header.world_id
    mounts: list[Handlers] = []
    pool = None
    lookups: list[Lookup] = []
    if "sequencer" in roles:
        assert replica is not None
        sequencer = Sequencer(context, replica, authorities, parts.evidence)
        await nursery.start(sequencer.run, subscriptions["action"], subscriptions["batch"])
        context.gauges.add(sequencer.gauges, world=world_id)
        pool = sequencer.pool
        lookups.append(sequencer.held)
        bytes_max = parts.genesis.body.limits.envelope_bytes_max
        mender = GapMender(context, replica.world_id, bytes_max, sequencer.gaps, sequencer.mend)
        nursery.start_soon(mender.run)
        if "gateway" not in roles:
            mounts.append(sequencer.handlers())
    if "gateway" in roles:
        assert replica is not None
        gateway = Gateway(context, replica, authorities, parts.evidence, pool)
        await nursery.start(gateway.run, subscriptions["action"])
        context.gauges.add(gateway.gauges, world=world_id)
        mounts.append(gateway.handlers())
        lookups.append(gateway.promised)
    if lookups:
        mounts.append(EnvelopeDesk(lookups).handlers())
    return mounts


async def _start_results(
    nursery: trio.Nursery,
    parts: _Parts,
    roles: frozenset[str],
    subscriptions: dict[str, Subscription],
    progress: Progress,
) -> list[Handlers]:
    """Executor, or whoever follows its heads; and that the head can be found."""
    replica, mounts = parts.replica, list[Handlers]()
    if "executor" in roles:
        assert replica is not None
        executor = Executor(
            parts.context,
            replica,
            parts.tracker,
            parts.sources,
            parts.authorities,
            parts.evidence,
            parts.epoch_tables,
        )
        await nursery.start(
            executor.run, subscriptions["batch"], subscriptions["block"], subscriptions["head"]
        )
        parts.context.gauges.add(executor.gauges, world=replica.world_id)
        mounts.append(executor.handlers())
    elif replica is not None:
        loop = keep_verified if replica.cursor == "verified" else keep_stored
        await nursery.start(
            loop, replica, parts.tracker, parts.sources, progress, parts.authorities, parts.evidence
        )
    if "executor" not in roles and (replica is not None or "index" in roles):
        nursery.start_soon(keep_findable, parts.context, parts.tracker, parts.newest_served)
    return mounts


async def _join(context: Context, genesis: Genesis, roles: frozenset[str]) -> dict[str, Subscription]:
    world_id = genesis.header.world_id
    checks = rules.gossip_rules(world_id, genesis.body.limits.envelope_bytes_max)
    kinds = {"head", "evidence"}.union(*(_TOPICS.get(role, ()) for role in roles))
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
    return unread


async def _drain(subscription: Subscription) -> NoReturn:
    while True:
        await subscription.receive()


def _head_age_ms(parts: _Parts) -> int | None:
    """How long ago the certifier last vouched for the best head, by this node's clock."""
    head = parts.tracker.head
    return None if head is None else max(0, parts.context.now_ms() - head.commit.record.as_of_ms)


def _status(parts: _Parts, coordinator: Coordinator | None) -> WorldStatus:
    replica = parts.replica

    def height_of(cursor: str) -> int | None:
        return replica.height if replica is not None and replica.cursor == cursor else None

    kept = None if coordinator is None else coordinator.kept
    halted_by = parts.authorities.halted_by
    return WorldStatus(
        world_id=parts.genesis.header.world_id,
        name=parts.genesis.header.name,
        epoch=parts.authorities.epoch,
        head_height=parts.tracker.height,
        head_age_ms=_head_age_ms(parts),
        committed=None if kept is None else kept.height,
        lease_holder=None if kept is None or kept.lease is None else kept.lease.holder_id,
        stored=height_of("stored"),
        executed=height_of("executed"),
        verified=height_of("verified"),
        state_root=None if replica is None or replica.tip is None else replica.tip.state.root(),
        halted=parts.authorities.is_halted,
        halted_why=None if halted_by is None else why_halted(halted_by),
        evidence=tuple(parts.evidence.items()[:EVIDENCE_SHOWN_MAX]) or None,
    )

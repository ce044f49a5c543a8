"""One node, from configuration to shutdown; and the two clients that are no node.

Hides: the order of birth and death. Born: data dir, database, routes, network, worlds, ready. Dead: the reverse, each
step bounded in time. Guarantees: `ready` is said once everything answers; nothing listens before the routes stand;
the database is closed last.
"""

from __future__ import annotations

import gc
import logging
import platform
import random
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import trio

from bootstrap.config import CoordinatorConfig, NodeConfig
from bootstrap.data_dir import (
    ChosenWorld,
    DataDir,
    GenesisFileBad,
    choose_worlds,
    open_data_dir,
    read_authorities_file,
)
from bootstrap.metrics import open_metrics
from bootstrap.peers import AddressBook, load_address_book
from bootstrap.world_node import WorldNode, run_world
from p2p import names
from p2p.errors import Unreachable
from p2p.host import HostConfig, Libp2pNetwork, open_network
from p2p.identity import Identity, create_identity, load_identity
from p2p.loads import RouterLimits
from p2p.network import Gauge
from p2p.providers import CachedDht, ProviderCache, republish_loop
from runtime.db_check import check_database
from runtime.durable import replace_file
from runtime.errors import Invalid, Missing
from runtime.keys import SigningKey
from runtime.messages import WorldStatus
from runtime.records import Genesis, SignedAuthorities
from runtime.services import HeadRecords
from runtime.services.client import DistributedClient
from runtime.services.context import Context
from runtime.services.custody import keep_room, scrub
from runtime.services.etcd import EtcdClient, EtcdLeaseStore, open_http
from runtime.services.fetch import Sources, sleep_ms
from runtime.services.lease_store import EmbeddedLeaseStore, LeaseStoreOf
from runtime.services.methods import MethodTable
from runtime.services.replica import Progress
from runtime.services.serve import NodeDesk
from runtime.services.sync import bootstrap_world_from_dht, fetch_genesis
from runtime.world_db import LmdbWorldDb, MemoryWorldDb, WorldDb

T = TypeVar("T")
PEERS_SAVE_MS: Final = 30_000
GENESIS_RETRY_MS: Final = 1_000
AUTHORITIES_POLL_MS: Final = 1_000
# A thread that computes holds the interpreter for so long before the event loop, once woken, gets it back. At Python's
# own 5 ms a node that executes a full block hears its peers 200 times a second at most.
SWITCH_INTERVAL_S: Final = 0.000_5
GC_ALLOCATIONS: Final = 700  # CPython's own; while it starts, the command looks less often
_log = logging.getLogger(__name__)

Ready = Callable[[dict[str, object]], None]


def now_ms() -> int:
    """The wall clock, ms since 1970."""
    return time.time_ns() // 1_000_000


async def in_thread(work: Callable[[], T]) -> T:
    """Offload in production: a worker thread. A cancelled caller waits: work on disk is never abandoned."""
    return await trio.to_thread.run_sync(work)


def versions() -> dict[str, str]:
    """What this program is made of, as far as it matters to others."""
    return {
        "agent-world-runtime": version("agent-world-runtime"),
        "libp2p": version("libp2p"),
        "python": platform.python_version(),
        "rr": names.RR_PROTOCOL,
    }


def _thread_gauges() -> list[Gauge]:
    """Work handed to threads: signatures, execution, disk."""
    threads = trio.to_thread.current_default_thread_limiter().statistics()
    return [
        Gauge("thread_jobs_running", threads.borrowed_tokens, "threads_max", int(threads.total_tokens)),
        Gauge("thread_jobs_waiting", threads.tasks_waiting),
    ]


@dataclass(slots=True)
class _Worlds:
    """The worlds that run, for `status`."""

    running: dict[str, WorldNode]

    def statuses(self) -> tuple[WorldStatus, ...]:
        return tuple(self.running[world_id].status() for world_id in sorted(self.running))


def load_or_create_identity(data_dir: DataDir) -> Identity:
    """The node's key, made on the first start."""
    if data_dir.identity_path.exists():
        return load_identity(data_dir.identity_path)
    return create_identity(data_dir.identity_path)


async def run_node(config: NodeConfig, ready: Ready) -> NoReturn:
    """Run until cancelled. Raises DataDirUnusable, ConfigMistakes, ListenFailed, Corrupt: nothing is then running."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with open_data_dir(config.data_dir) as data_dir:
        identity = load_or_create_identity(data_dir)
        worlds = choose_worlds(data_dir, config.worlds)
        check_database(data_dir.db_path)
        db = LmdbWorldDb(data_dir.path, config.limits.disk_bytes_max)
        try:
            await _run_with(config, data_dir, identity, worlds, db, ready)
        finally:
            data_dir.remove_address()
            db.close()
    raise AssertionError("a node ends only by cancellation")


async def _run_with(
    config: NodeConfig,
    data_dir: DataDir,
    identity: Identity,
    chosen: Sequence[ChosenWorld],
    db: WorldDb,
    ready: Ready,
) -> None:
    methods, worlds = MethodTable(), _Worlds({})
    book, complaint = load_address_book(
        data_dir.peers_path,
        peers_max=config.limits.known_peers_max,
        addrs_max=config.limits.addrs_per_peer_max,
    )
    if complaint:
        _log.warning("%s", complaint)
    rng = random.Random(secrets.randbits(128))
    host = HostConfig(
        identity=identity,
        listen=config.listen,
        announce=config.announce,
        bootstrap=(*config.bootstrap, *_known_addrs(book, config)),
        kept=config.bootstrap,
        router_limits=_router_limits(config),
        rng=rng,
        now_ms=now_ms,
    )
    async with (
        _open_lease_store(config.coordinator) as lease_store,
        open_metrics(config.metrics_listen) as metrics,
        open_network(host, methods.routes(), HeadRecords()) as network,
    ):
        providers = ProviderCache(
            identity.peer_id,
            rng,
            ttl_ms=config.limits.provider_cache_ttl_ms,
            republish_ms=config.limits.provider_republish_ms,
        )
        dht = CachedDht(
            network.dht, providers, HeadRecords(), now_ms, head_ttl_ms=config.limits.head_cache_ttl_ms
        )
        context = Context(network, dht, providers, db, SigningKey(identity.seed), now_ms, rng, in_thread)
        context.gauges.add(_thread_gauges)
        desk = NodeDesk(context, config.roles, worlds.statuses, config.limits.in_force(), versions())
        methods.mount_node(desk.handlers())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_republish, providers, network)
            nursery.start_soon(_remember_peers, data_dir, book, network)
            if metrics is not None:
                nursery.start_soon(metrics.serve, desk.account)
            limits = config.limits
            nursery.start_soon(scrub, context, limits.scrub_bytes_per_s, limits.scrub_interval_ms)
            nursery.start_soon(keep_room, context, limits.disk_bytes_max)
            data_dir.write_address(names.peer_text(identity.peer_id), network.addrs())
            for world in chosen:
                genesis = world.genesis or await _learn_genesis(context, world.world_id)
                data_dir.keep_genesis(genesis)
                path = data_dir.authorities_path(world.world_id)
                node = await _start_world(
                    nursery, context, methods, genesis, config, _installed(path), lease_store
                )
                worlds.running[world.world_id] = node
                nursery.start_soon(_watch_authorities, path, node)
            page = {} if metrics is None else {"metrics": metrics.url}
            ready(_ready_event(config, data_dir, identity, network, chosen) | page)
            gc.freeze()  # what starting has made stays: looking at it again and again finds nothing
            gc.set_threshold(GC_ALLOCATIONS)
            await trio.sleep_forever()


@asynccontextmanager
async def _open_lease_store(config: CoordinatorConfig) -> AsyncIterator[LeaseStoreOf]:
    """How a coordinator's memory is opened: in the node's database, or over connections that end with this block."""
    if config.store == "embedded":
        yield EmbeddedLeaseStore
        return
    async with open_http() as http:
        client = EtcdClient(http, config.etcd)
        yield lambda context, tables: EtcdLeaseStore(context, tables, client)


def _installed(path: Path) -> SignedAuthorities | None:
    """The authority set that the operator has put down, if any; a bad file is told and does not stop the node."""
    if not path.exists():
        return None
    try:
        return read_authorities_file(path)
    except GenesisFileBad as bad:
        _log.error("%s; try: aw world epoch show %s", bad, path)
        return None


async def _watch_authorities(path: Path, node: WorldNode) -> NoReturn:
    """Take up the file when it comes or changes."""
    seen = _stamp(path)
    while True:
        await sleep_ms(AUTHORITIES_POLL_MS)
        stamp = await trio.to_thread.run_sync(_stamp, path)
        if stamp == seen:
            continue
        seen = stamp
        signed = await trio.to_thread.run_sync(_installed, path)
        if signed is None:
            continue
        try:
            node.authorities.offer(signed)
        except Invalid as error:
            _log.error("%s is not taken up: %s; try: aw world epoch show %s", path, error, path)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced; None for no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)


async def _start_world(
    nursery: trio.Nursery,
    context: Context,
    methods: MethodTable,
    genesis: Genesis,
    config: NodeConfig,
    installed: SignedAuthorities | None,
    lease_store: LeaseStoreOf,
) -> WorldNode:
    progress = log_progress(f"world {genesis.header.name}")
    node: WorldNode = await nursery.start(
        run_world, context, methods, genesis, frozenset(config.roles), progress, installed, lease_store
    )
    return node


def _known_addrs(book: AddressBook, config: NodeConfig) -> list[str]:
    """Addresses of peers met before, which may outlive the configured ones."""
    given = set(config.bootstrap)
    return [addr for peer in book.newest_first() for addr in peer.addrs if addr not in given]


def _router_limits(config: NodeConfig) -> RouterLimits:
    limits = config.limits
    return RouterLimits(
        in_flight_per_peer_max=limits.in_flight_per_peer_max,
        in_flight_total_max=limits.in_flight_total_max,
        streams_per_peer_max=limits.streams_per_peer_max,
        requests_per_s_max=limits.requests_per_s_per_peer_max,
        request_bytes_per_s_max=limits.request_bytes_per_s_per_peer_max,
    )


def _ready_event(
    config: NodeConfig,
    data_dir: DataDir,
    identity: Identity,
    network: Libp2pNetwork,
    chosen: Sequence[ChosenWorld],
) -> dict[str, object]:
    return {
        "event": "ready",
        "peer_id": names.peer_text(identity.peer_id),
        "addrs": network.addrs(),
        "roles": list(config.roles),
        "worlds": [world.world_id for world in chosen],
        "data_dir": str(data_dir.path),
    }


def log_progress(what: str) -> Progress:
    """Says at most once a second how far something slow is."""
    said = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal said
        if done < total and time.monotonic() - said >= 1:
            said = time.monotonic()
            _log.info("%s: height %d of %d", what, done, total)

    return progress


async def _learn_genesis(context: Context, world_id: str) -> Genesis:
    """Ask until somebody has it: a node may be started before its peers."""
    sources = Sources(context, world_id)
    while True:
        try:
            return await fetch_genesis(sources)
        except Missing as missing:
            _log.info("genesis of world %s: %s", world_id, missing)
            await sleep_ms(GENESIS_RETRY_MS)


async def _republish(providers: ProviderCache, network: Libp2pNetwork) -> None:
    """Worlds are provided as long as this process runs them, so what is registered is held."""

    async def sleep_until_ms(at_ms: int) -> None:
        await sleep_ms(max(0, at_ms - now_ms()))

    await republish_loop(providers, network.dht, now_ms, sleep_until_ms, lambda content_id: True)


async def _remember_peers(data_dir: DataDir, book: AddressBook, network: Libp2pNetwork) -> None:
    """Keep peers.json: whom a restart may dial. A peer's own word is not enough: it could aim us at anybody."""
    while True:
        await sleep_ms(PEERS_SAVE_MS)
        for peer in network.peers():
            book.saw(peer, network.proved_addrs_of(peer), now_ms())
        data = book.to_bytes()
        try:
            await trio.to_thread.run_sync(replace_file, data_dir.peers_path, data)
        except OSError as error:  # a full disk: the node serves on, the file is written when space returns
            _log.warning("%s: not written (%s)", data_dir.peers_path, error.strerror)


# --- clients -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_caller(bootstrap: Sequence[str]) -> AsyncIterator[Libp2pNetwork]:
    """A network for a program that is no node: a fresh identity, no listener, no record."""
    config = HostConfig(
        identity=Identity(secrets.token_bytes(32)),
        listen=(),
        announce=(),
        bootstrap=tuple(bootstrap),
        router_limits=RouterLimits(),
        rng=random.Random(secrets.randbits(128)),
        now_ms=now_ms,
    )
    async with open_network(config, {}, HeadRecords()) as network:
        yield network


@asynccontextmanager
async def open_client(addrs: Sequence[str]) -> AsyncIterator[DistributedClient]:
    """Typed calls to the first of these nodes that can be dialled. Raises Unreachable, the last one's."""
    async with open_caller(()) as network:
        failure: Unreachable | None = None
        for addr in addrs:
            try:
                peer = await network.connect([addr])
            except Unreachable as error:
                failure = error
                continue
            yield DistributedClient(network, peer)
            return
        raise failure or Unreachable("none", "no address was given")


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `aw verify` found, replaying every block from genesis."""

    world_id: str
    name: str
    trust: str
    epoch: int
    height: int
    block_hash: bytes
    state_root: bytes
    head_age_ms: int
    blocks_replayed: int
    blobs_fetched: int
    bytes_fetched: int


async def verify_world(
    world_id: str, bootstrap: Sequence[str], progress: Progress, *, head_age_max_ms: int | None = None
) -> VerifyReport:
    """Find a world by its id alone, fetch all of it, execute it, compare.

    Raises Unreachable (no bootstrap peer), Missing (no head, no provider), Ignored (head too old), Diverged, Invalid.
    """
    async with open_caller(()) as network:
        await _connect_any(network, bootstrap)
        rng = random.Random(secrets.randbits(128))
        identity = network.peer_id
        providers = ProviderCache(identity, rng)
        dht = CachedDht(network.dht, providers, HeadRecords(), now_ms)
        key = SigningKey(network.identity.seed)
        context = Context(network, dht, providers, MemoryWorldDb(), key, now_ms, rng, in_thread)
        found = await bootstrap_world_from_dht(context, world_id, progress, head_age_max_ms=head_age_max_ms)
        replica = found.replica
        assert replica.tip is not None
        return VerifyReport(
            world_id=world_id,
            name=found.genesis.header.name,
            trust=found.trust,
            epoch=found.head.commit.record.epoch,
            height=replica.height,
            block_hash=replica.block_hash,
            state_root=replica.tip.state.root(),
            head_age_ms=found.head_age_ms,
            blocks_replayed=replica.height,
            blobs_fetched=context.counters["fetch.blobs"],
            bytes_fetched=context.counters["fetch.bytes"],
        )


async def _connect_any(network: Libp2pNetwork, addrs: Sequence[str]) -> None:
    failure: Unreachable | None = None
    for addr in addrs:
        try:
            await network.connect([addr])
        except Unreachable as error:
            failure = error
        else:
            return
    raise failure or Unreachable("none", "no bootstrap address was given")

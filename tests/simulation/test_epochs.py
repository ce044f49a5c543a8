"""New epochs in memory: a certifier's key that is lost, one that signed a fork, an executor that lied, all replaced."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

from bootstrap.world_node import WorldNode, run_world
from p2p.errors import NetworkError, RequestFailed
from p2p.memory import InMemoryHub
from p2p.providers import CachedDht, ProviderCache, republish_loop
from runtime import chain, codec
from runtime import genesis as genesis_module
from runtime.errors import Corrupt
from runtime.evidence import CommitFork, WrongRootProof
from runtime.keys import SigningKey
from runtime.messages import SubmitAnswer, SubmitRequest
from runtime.records import (
    ActionBatch,
    ActionEnvelope,
    AuthoritySet,
    Bounds,
    Envelope,
    Genesis,
    Resume,
    SignedAuthorities,
    seal,
)
from runtime.services import HeadRecords
from runtime.services.context import Context
from runtime.services.executor import Executor
from runtime.services.fetch import call
from runtime.services.methods import MethodTable
from runtime.services.replica import Applied, Replica
from runtime.services.serve import NodeDesk
from runtime.world_db import MemoryWorldDb
from runtime.world_tables import WorldTables

T = TypeVar("T")
START_MS = 1_700_000_000_000
PATIENCE_S = 300.0  # of simulated time
LAYOUT = {
    "order": frozenset({"index", "coordinator"}),
    "lead": frozenset({"sequencer", "executor"}),
    "gate": frozenset({"gateway"}),
    "store": frozenset({"storage"}),
    "watch": frozenset({"observer"}),
}
KEYS = {
    name: SigningKey(bytes([number]) * 32)
    for number, name in enumerate(
        ["order", "lead", "gate", "store", "watch", "order-2", "lead-2", "gate-2", "watch-2"], 1
    )
}
ROOTS = [SigningKey(bytes([100 + number]) * 32) for number in range(3)]
ALICE = SigningKey(b"a" * 32)


@pytest.fixture(name="run")
def _run() -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Run an async test under trio's mock clock."""

    def run(test: Callable[[], Awaitable[None]]) -> None:
        trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))

    return run


@contextmanager
def catch(kind: type[Exception], note: Callable[[Any], None]) -> Iterator[None]:
    """What Python's `except*` does, as a context."""
    try:
        yield
    except* kind as group:
        note(group)


def now_ms() -> int:
    return START_MS + int(trio.current_time() * 1_000)


async def direct(work: Callable[[], T]) -> T:
    await trio.lowlevel.checkpoint()
    return work()


async def until(condition: Callable[[], object], what: str) -> None:
    with trio.move_on_after(PATIENCE_S):
        while not condition():
            await trio.sleep(0.05)
        return
    raise AssertionError(f"did not happen within {PATIENCE_S:.0f} simulated seconds: {what}")


def make_world() -> Genesis:
    return genesis_module.make_genesis(
        name="epochs",
        root_keys=[root.identity for root in ROOTS],
        root_threshold=2,
        proposers=[KEYS["lead"].identity, KEYS["lead-2"].identity],
        executors=[KEYS["lead"].identity, KEYS["lead-2"].identity],
        certifier=KEYS["order"].identity,
        body=genesis_module.make_body(
            bounds=Bounds(0, 1_000_000, 0, 1_000_000, 0, 0),
            max_move_cm=1_000_000,
            resource_kinds=["fuel"],
            balances={(ALICE.identity, "fuel"): 100},
        ),
        created_ms=START_MS,
    )


@dataclass(slots=True)
class Lab:
    """Nodes that may be started and ended one by one; a database outlives its node, unless it is said to be lost."""

    genesis: Genesis
    hub: InMemoryHub
    nursery: trio.Nursery
    dbs: dict[str, MemoryWorldDb] = field(default_factory=dict)
    contexts: dict[str, Context] = field(default_factory=dict)
    worlds: dict[str, WorldNode] = field(default_factory=dict)
    lives: dict[str, trio.CancelScope] = field(default_factory=dict)
    ended: dict[str, trio.Event] = field(default_factory=dict)
    damaged: dict[str, Corrupt] = field(default_factory=dict)  # nodes that ended by themselves
    accepted: list[Envelope] = field(default_factory=list)
    nonce: int = 0

    @property
    def world_id(self) -> str:
        return self.genesis.header.world_id

    async def start(
        self, name: str, roles: frozenset[str], key: SigningKey | None = None, db: str | None = None
    ) -> WorldNode:
        self.ended[name] = trio.Event()
        await self.nursery.start(self._live, name, roles, key or KEYS[name], db or name)
        return self.worlds[name]

    async def stop(self, name: str) -> None:
        self.lives[name].cancel()
        await self.ended[name].wait()
        del self.worlds[name], self.contexts[name]

    async def _live(
        self,
        name: str,
        roles: frozenset[str],
        key: SigningKey,
        db: str,
        task_status: trio.TaskStatus[None],
    ) -> None:
        def note(group: BaseExceptionGroup[Corrupt]) -> None:
            while isinstance(group.exceptions[0], BaseExceptionGroup):
                group = group.exceptions[0]
            self.damaged[name] = group.exceptions[0]

        with trio.CancelScope() as self.lives[name], catch(Corrupt, note):
            await self._run_node(name, roles, key, self.dbs.setdefault(db, MemoryWorldDb()), task_status)
        self.ended[name].set()

    async def _run_node(
        self,
        name: str,
        roles: frozenset[str],
        key: SigningKey,
        db: MemoryWorldDb,
        task_status: trio.TaskStatus[None],
    ) -> None:
        methods, rng = MethodTable(), random.Random(key.identity)
        async with self.hub.open_node(key.identity, methods.routes(), HeadRecords()) as (net, dht):
            providers = ProviderCache(key.identity, rng)
            cached = CachedDht(dht, providers, HeadRecords(), now_ms)
            context = Context(net, cached, providers, db, key, now_ms, rng, direct)
            methods.mount_node(NodeDesk(context, tuple(sorted(roles)), tuple, {}).handlers())

            async def sleep_until_ms(at_ms: int) -> None:
                await trio.sleep(max(0, at_ms - now_ms()) / 1_000)

            async def stay_connected(addrs: list[str]) -> None:
                while True:
                    try:
                        await net.connect(addrs)
                    except NetworkError:
                        await trio.sleep(1)
                        continue
                    await trio.sleep(2)

            async with trio.open_nursery() as nursery:
                for other in self.contexts.values():
                    nursery.start_soon(stay_connected, other.network.addrs())
                self.contexts[name] = context
                self.worlds[name] = await nursery.start(
                    run_world, context, methods, self.genesis, roles, lambda done, total: None
                )
                nursery.start_soon(
                    republish_loop, providers, dht, now_ms, sleep_until_ms, lambda content: True
                )
                task_status.started()

    # --- actors

    def envelope(self) -> Envelope:
        nonce, self.nonce = self.nonce, self.nonce + 1
        record = ActionEnvelope(
            world_id=self.world_id,
            actor_id=ALICE.identity,
            nonce=nonce,
            expires_at_height=1_000,
            timestamp_ms=now_ms(),
            atomic=True,
            actions=(
                (
                    "move_agent" if nonce else "register_agent",
                    {"agent_id": "alice", "x_cm": nonce, "y_cm": 0, "z_cm": 0},
                ),
            ),
        )
        return seal(record, ALICE)

    async def submit(self, envelopes: Sequence[Envelope], gate: str = "gate", caller: str = "watch") -> None:
        request = SubmitRequest(world_id=self.world_id, envelopes=tuple(envelopes))
        with trio.fail_after(PATIENCE_S):
            while True:
                try:
                    answer = await call(
                        self.contexts[caller], KEYS[gate].identity, "submit_actions", request, SubmitAnswer
                    )
                except NetworkError:
                    await trio.sleep(1)
                    continue
                assert {result.outcome for result in answer.results} == {"accepted"}, answer
                break
        self.accepted += envelopes

    async def work(self, count: int, gate: str = "gate", watch: str = "watch") -> None:
        """So many envelopes, one block after the other, each verified by the observer."""
        for _ in range(count):
            envelope = self.envelope()
            await self.submit([envelope], gate, watch)
            await self.verified([envelope], watch)

    async def verified(self, envelopes: Sequence[Envelope], watch: str = "watch") -> None:
        def all_taken() -> bool:
            replica = self.worlds[watch].replica
            assert replica is not None
            places = [replica.tables.place(envelope.hash()) for envelope in envelopes]
            return all(place is not None and place.taken for place in places)

        await until(all_taken, "all envelopes are verified")

    # --- roots

    def replica(self, name: str) -> Any:
        return self.worlds[name].replica

    def next_set(self, kept: Resume, **changes: Any) -> SignedAuthorities:
        """The next epoch's set, signed by two of the three roots."""
        current = next(iter(self.worlds.values())).authorities.current
        made: AuthoritySet = replace(
            current, epoch=current.epoch + 1, world_id=self.world_id, resume=kept, **changes
        )
        return self.signed(made)

    def signed(self, made: AuthoritySet, signers: Sequence[int] = (0, 2)) -> SignedAuthorities:
        keys = {root.identity: root for root in ROOTS}
        signatures = tuple(
            (index, keys[self.genesis.header.root_keys[index]].sign(made.hash())) for index in signers
        )
        return SignedAuthorities(made, signatures)

    def resume_at(self, name: str, height: int) -> Resume:
        return Resume(height, self.replica(name).block_at(height).batch_hash)

    async def all_in_epoch(self, epoch: int) -> None:
        await until(
            lambda: all(world.authorities.epoch == epoch for world in self.worlds.values()),
            f"all nodes are in epoch {epoch}",
        )

    def one_chain(self, *names: str) -> None:
        """The nodes hold the same blocks, up to the lowest of their heights."""
        replicas = [self.replica(name) for name in names]
        height = min(replica.height for replica in replicas)
        assert height > 0
        chains = [replica.tables.block_hashes(1, height) for replica in replicas]
        assert all(chain == chains[0] for chain in chains), names


@asynccontextmanager
async def open_lab(layout: dict[str, frozenset[str]] = LAYOUT) -> AsyncIterator[Lab]:
    async with trio.open_nursery() as nursery:
        lab = Lab(make_world(), InMemoryHub(random.Random(1)), nursery)
        for name, roles in layout.items():
            await lab.start(name, roles)
        yield lab
        nursery.cancel_scope.cancel()


# --- a lost key --------------------------------------------------------------------------------------------


def test_a_lost_certifier_key_costs_an_epoch_and_the_world_goes_on(run: Any) -> None:
    async def test() -> None:
        async with open_lab() as lab:
            await lab.work(5)
            height = lab.replica("lead").height
            await lab.stop("order")
            await lab.start("order-2", LAYOUT["order"])
            waiting = lab.envelope()
            await lab.submit([waiting])  # the gateway promises, whoever certifies
            made = lab.next_set(lab.resume_at("watch", height), certifiers=(KEYS["order-2"].identity,))
            lab.worlds["gate"].authorities.offer(made)  # one node is told; the others hear of it
            await lab.all_in_epoch(1)
            await lab.verified([waiting])
            await lab.work(3)
            await lab.verified(lab.accepted)
            lab.one_chain("lead", "watch", "store", "gate")
            head = lab.worlds["watch"].tracker.head
            assert head is not None
            assert head.commit.record.epoch == 1
            assert head.commit.record.term > 1  # terms never start over
            assert lab.contexts["lead"].counters["replica.taken_back"] == 0

    run(test)


def test_an_epoch_that_keeps_less_voids_blocks_and_what_they_took_comes_again(run: Any) -> None:
    async def test() -> None:
        async with open_lab() as lab:
            await lab.work(6)
            before = lab.replica("watch").tables.block_hashes(1, 6)
            made = lab.next_set(lab.resume_at("watch", 3))
            lab.worlds["store"].authorities.offer(made)
            await lab.all_in_epoch(1)
            await until(lambda: lab.contexts["watch"].counters["replica.taken_back"] == 3, "watch went back")
            await lab.verified(lab.accepted)
            await lab.work(2)
            lab.one_chain("lead", "watch", "store", "gate")
            after = lab.replica("watch").tables.block_hashes(1, 4)
            assert after[:3] == before[:3]
            assert after[3] != before[3]
            assert lab.replica("watch").tables.nonce(ALICE.identity) == 8
            await until(
                lambda: (
                    not any(
                        world.evidence._tables.voided(10) for world in lab.worlds.values() if world.replica
                    )
                ),
                "nothing voided waits any more",
            )

    run(test)


def test_an_epoch_may_resume_from_the_genesis(run: Any) -> None:
    async def test() -> None:
        async with open_lab() as lab:
            await lab.work(3)
            made = lab.next_set(Resume(0, lab.genesis.header.hash()))
            lab.worlds["watch"].authorities.offer(made)
            await lab.all_in_epoch(1)
            await until(lambda: lab.contexts["watch"].counters["replica.taken_back"] == 3, "watch went back")
            await lab.verified(lab.accepted)
            await lab.work(1)
            lab.one_chain("lead", "watch", "store", "gate")

    run(test)


def test_a_node_that_was_away_and_a_newcomer_come_onto_the_kept_chain(run: Any) -> None:
    async def test() -> None:
        async with open_lab() as lab:
            await lab.work(3)
            await lab.stop("store")
            await lab.work(3)
            await lab.stop("lead")  # the executor restarts into the new epoch, behind what it keeps
            made = lab.next_set(lab.resume_at("watch", 2))
            lab.worlds["watch"].authorities.offer(made)
            await lab.all_in_epoch(1)
            await lab.start("lead", LAYOUT["lead"])
            await lab.start("store", LAYOUT["store"])
            await lab.start("watch-2", LAYOUT["watch"])
            await lab.all_in_epoch(1)
            await lab.work(2)
            await lab.verified(lab.accepted, "watch-2")
            await until(lambda: lab.replica("store").height == lab.replica("lead").height, "store is there")
            lab.one_chain("lead", "watch", "store", "watch-2")

    run(test)


def test_a_new_executor_takes_up_a_resumed_world_with_no_commit_of_the_old_epoch(run: Any) -> None:
    async def test() -> None:
        async with open_lab() as lab:
            await lab.work(4)
            height = lab.replica("watch").height
            await lab.stop("order")
            await lab.stop("lead")  # with it go the seals of batches: only their hashes are left
            await lab.start("order-2", LAYOUT["order"])
            await lab.start("lead-2", LAYOUT["lead"])
            made = lab.next_set(
                lab.resume_at("watch", height),
                certifiers=(KEYS["order-2"].identity,),
                proposers=(KEYS["lead-2"].identity,),
                executors=(KEYS["lead-2"].identity,),
            )
            lab.worlds["watch"].authorities.offer(made)
            await lab.all_in_epoch(1)
            await lab.work(3)
            lab.one_chain("lead-2", "watch", "store", "gate")

    run(test)


# --- two sets ----------------------------------------------------------------------------------------------


def test_two_sets_of_one_epoch_halt_and_the_next_one_goes_on(run: Any) -> None:
    async def test() -> None:
        async with open_lab() as lab:
            await lab.work(3)
            kept = lab.resume_at("watch", 3)
            one = lab.next_set(kept)
            other = lab.signed(replace(one.authorities, executors=(KEYS["lead"].identity,)), (1, 2))
            lab.worlds["watch"].authorities.offer(one)
            await lab.all_in_epoch(1)
            lab.worlds["store"].authorities.offer(other)
            await until(
                lambda: all(world.authorities.is_halted for world in lab.worlds.values()), "all are halted"
            )
            for world in lab.worlds.values():
                assert world.authorities.signed == one  # the first is kept
                assert [item.kind for item in world.evidence.items()] == ["authorities_fork"]
            lab.worlds["gate"].authorities.offer(lab.next_set(kept))
            await lab.all_in_epoch(2)
            await lab.work(2)

    run(test)


# --- a leaked key ------------------------------------------------------------------------------------------

SIDES = {**LAYOUT, "lead-2": LAYOUT["lead"], "gate-2": LAYOUT["gate"], "watch-2": LAYOUT["watch"]}
ONE_SIDE, OTHER_SIDE = ("lead", "gate", "store", "watch"), ("lead-2", "gate-2", "watch-2")


def cut_apart(lab: Lab) -> None:
    lab.hub.cut([KEYS[name].identity for name in ONE_SIDE], [KEYS[name].identity for name in OTHER_SIDE])


def cut_off_order(lab: Lab, names: Sequence[str]) -> None:
    lab.hub.cut([KEYS["order"].identity], [KEYS[name].identity for name in names])


async def fork(lab: Lab) -> None:
    """The certifier's key serves one side from its store, the other from a copy that was made before."""
    await lab.work(3)
    await until(
        lambda: len({lab.replica(name).height for name in (*ONE_SIDE, *OTHER_SIDE)}) == 1, "all are level"
    )
    await lab.stop("order")
    copy = MemoryWorldDb()
    for table, rows in lab.dbs["order"]._tables.items():
        copy._tables[table].update(rows)
    copy.blobs.put_many(lab.dbs["order"].blobs.get(content) for content in lab.dbs["order"].blobs.iterate())
    lab.dbs["leaked"] = copy
    cut_apart(lab)
    cut_off_order(lab, OTHER_SIDE)
    await lab.start("order", LAYOUT["order"])
    nonce = lab.nonce
    await lab.work(4)
    await lab.stop("order")
    lab.hub.heal()
    cut_apart(lab)
    cut_off_order(lab, ONE_SIDE)
    await lab.start("order", LAYOUT["order"], db="leaked")
    lab.nonce = nonce + 20  # Bob's in truth: another actor's work, on the other side


def bobs(lab: Lab, nonce: int) -> Envelope:
    bob = SigningKey(b"b" * 32)
    place = {"agent_id": "bob", "x_cm": nonce, "y_cm": 1, "z_cm": 0}
    record = ActionEnvelope(
        world_id=lab.world_id,
        actor_id=bob.identity,
        nonce=nonce,
        expires_at_height=1_000,
        timestamp_ms=now_ms(),
        atomic=True,
        actions=(("move_agent" if nonce else "register_agent", place),),
    )
    return seal(record, bob)


def test_a_leaked_certifier_key_halts_everybody_and_the_roots_choose_a_side(run: Any) -> None:
    async def test() -> None:
        async with open_lab(SIDES) as lab:
            await fork(lab)
            for nonce in range(6):
                envelope = bobs(lab, nonce)
                await lab.submit([envelope], "gate-2", "watch-2")
                await lab.verified([envelope], "watch-2")
            lab.one_chain(*ONE_SIDE)
            lab.one_chain(*OTHER_SIDE)
            first, second = lab.replica("watch"), lab.replica("watch-2")
            assert first.tables.block_hash(4) != second.tables.block_hash(4)
            assert (first.height, second.height) == (7, 9)
            lab.hub.heal()
            await until(
                lambda: all(world.authorities.is_halted for world in lab.worlds.values()), "all are halted"
            )
            for world in lab.worlds.values():
                held = world.authorities.halted_by
                assert isinstance(held, CommitFork)
                assert held.accused == KEYS["order"].identity
                assert held.height > 3
            request = SubmitRequest(world_id=lab.world_id, envelopes=(bobs(lab, 6),))
            with pytest.raises(RequestFailed, match="halted: commit_fork"):  # it promises nothing
                await call(
                    lab.contexts["watch"], KEYS["gate"].identity, "submit_actions", request, SubmitAnswer
                )
            heights = {name: lab.replica(name).height for name in (*ONE_SIDE, *OTHER_SIDE)}
            await trio.sleep(30)
            assert heights == {name: lab.replica(name).height for name in heights}  # nothing advances
            await lab.stop("order")
            await lab.start("order-2", LAYOUT["order"])
            # One side is kept whole; what the other one took comes again from its gateway.
            made = lab.next_set(lab.resume_at("watch", 7), certifiers=(KEYS["order-2"].identity,))
            lab.worlds["watch-2"].authorities.offer(made)
            await lab.all_in_epoch(1)
            await lab.verified(lab.accepted)
            await lab.verified(lab.accepted, "watch-2")
            lab.one_chain(*ONE_SIDE, *OTHER_SIDE)
            assert lab.contexts["watch-2"].counters["replica.taken_back"] == 6
            assert lab.contexts["lead-2"].counters["replica.taken_back"] == 6
            assert lab.contexts["lead"].counters["replica.taken_back"] == 0

    run(test)


# --- a liar ------------------------------------------------------------------------------------------------


@pytest.fixture(name="liar")
def _liar(monkeypatch: pytest.MonkeyPatch) -> set[bytes]:
    """Executors whose key is in this set give blocks with a false state root."""
    liars: set[bytes] = set()
    step = Executor._step

    def lie(self: Executor, committed: Any) -> Applied:
        applied = step(self, committed)
        if self._context.peer_id not in liars:
            return applied
        false = replace(applied.block, state_root=bytes(32))
        return replace(
            applied,
            block=false,
            blobs=(false.preimage(), *applied.blobs),
            tip=replace(applied.tip, block_hash=false.hash()),  # type: ignore[type-var]  # an executor has a tip
        )

    monkeypatch.setattr(Executor, "_step", lie)
    return liars


def test_an_executor_that_lied_is_found_by_the_observer_and_replaced(run: Any, liar: set[bytes]) -> None:
    async def test() -> None:
        async with open_lab() as lab:
            await lab.work(3)
            liar.add(KEYS["lead"].identity)
            waiting = lab.envelope()
            await lab.submit([waiting])
            watch = lab.worlds["watch"]
            await until(lambda: watch.evidence.distrusts(KEYS["lead"].identity), "the observer has found it")
            [item] = watch.evidence.items()
            assert item.kind == WrongRootProof.NAME
            assert item.height == 4
            assert lab.replica("watch").height == 3
            assert not watch.authorities.is_halted
            await lab.start("lead-2", LAYOUT["lead"])
            await lab.stop("lead")
            names = {"proposers": (KEYS["lead-2"].identity,), "executors": (KEYS["lead-2"].identity,)}
            made = lab.next_set(lab.resume_at("watch", 3), **names)
            watch.authorities.offer(made)
            await lab.all_in_epoch(1)
            await lab.verified([waiting])
            await lab.work(2)
            lab.one_chain("lead-2", "watch", "store", "gate")

    run(test)


def test_executors_that_disagree_look_again_and_the_one_that_was_wrong_stops_with_both_roots(
    run: Any, liar: set[bytes]
) -> None:
    async def test() -> None:
        async with open_lab({**LAYOUT, "lead-2": frozenset({"executor"})}) as lab:
            liar.add(KEYS["lead-2"].identity)
            await lab.work(3)
            lead, watch = lab.worlds["lead"], lab.worlds["watch"]
            await until(lambda: lead.evidence.distrusts(KEYS["lead-2"].identity), "the executor has found it")
            await until(lambda: watch.evidence.distrusts(KEYS["lead-2"].identity), "the observer knows")
            assert not watch.evidence.distrusts(KEYS["lead"].identity)
            assert lab.contexts["lead"].counters["executor.disagreements"] == 1
            await until(lambda: "lead-2" in lab.damaged, "the one that was wrong has stopped")
            own, again = bytes(32).hex(), lab.replica("lead").block_at(1).state_root.hex()
            assert own in lab.damaged["lead-2"].why
            assert again in lab.damaged["lead-2"].why
            await lab.work(3)
            lab.one_chain("lead", "watch", "gate")

    run(test)


def test_an_executor_that_led_astray_below_a_true_commit_is_left_again(run: Any) -> None:
    """A block over a batch that nobody committed, under a head whose own commit is true."""

    async def test() -> None:
        async with open_lab() as lab:
            await lab.work(2)
            await until(
                lambda: lab.replica("watch").height == lab.replica("lead").height == 2, "all are level"
            )
            watch = lab.replica("watch")
            await lab.stop("watch")
            # What a liar's head would have made an observer apply: a well-formed block of a batch of its own.
            lost = lab.dbs["watch"]
            context = Context(*([Any] * 3), lost, KEYS["watch"], now_ms, random.Random(0), direct)  # type: ignore[arg-type]
            tables = WorldTables(lost, lab.world_id)
            astray = Replica(context, lab.genesis, tables, "verified")
            await astray.restore(lambda done, total: None)
            assert astray.tip is not None
            batch = ActionBatch(
                world_id=lab.world_id,
                epoch=0,
                term=1,
                height=3,
                prev_batch_hash=astray.batch_hash,
                envelope_count=0,
                actions_root=codec.merkle_root([]),
                actions_ref=codec.content_id(b"\x80"),
                proposer_id=KEYS["lead"].identity,
                timestamp_ms=astray.timestamp_ms,
            )
            built = chain.build_block(lab.genesis, astray.tip, batch, [], [])
            blobs = (*built.blobs.values(), batch.preimage(), b"\x80")
            await astray.apply(Applied(built.block, batch, (), built.outcome.receipts, blobs, built.tip))
            assert watch.height == 2
            await lab.start("watch", LAYOUT["watch"])
            assert lab.replica("watch").height == 3
            await lab.work(3)
            assert lab.contexts["watch"].counters["follow.led_astray"] == 1
            lab.one_chain("lead", "watch", "store", "gate")
            assert not lab.worlds["watch"].authorities.is_halted

    run(test)

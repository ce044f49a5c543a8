"""One node misses 30 % of what is gossiped, whichever role it has: in the end it has everything all the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import trio

from p2p.memory import InMemoryHub
from p2p.network import Message, Route
from runtime.epoch_tables import EpochTables
from runtime.keys import SigningKey
from runtime.messages import HeadAnswer
from runtime.records import BlockAnnounce, BlockAttestation, seal
from runtime.services import HeadRecords
from runtime.services.authorities import Authorities
from runtime.services.evidence import EvidenceKeeper
from runtime.services.fetch import Sources
from runtime.services.heads import HeadTracker
from runtime.world_db import MemoryWorldDb
from runtime.world_tables import WorldTables

LOST_OF_256 = 77  # 30 %
ROLES = ("coordinator", "gateway", "sequencer", "executor", "storage", "observer")
FOLLOWERS = ("gateway", "sequencer", "executor", "storage", "observer")


def opener(hub: InMemoryHub) -> Callable[..., Any]:
    return lambda seed, routes: hub.open_node(SigningKey(seed).identity, routes, HeadRecords())


async def whole_life(six: Any, each: int = 16) -> None:
    """Six nodes in memory; returns when every follower has applied every envelope."""
    hub = InMemoryHub(random.Random(1))
    async with trio.open_nursery() as nursery:
        for name in ROLES:
            await nursery.start(
                six.run_node,
                name,
                opener(hub),
            )
        envelopes = six.envelopes(each)
        await six.hand_in(envelopes)
        with trio.fail_after(120):  # of simulated time
            for name in FOLLOWERS:
                await six.all_taken(name, envelopes)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("deaf", ROLES)
async def test_a_subscriber_that_missed_30_percent_ends_complete(
    six_nodes: Callable[..., Any], autojump_clock: Any, deaf: str
) -> None:
    six = six_nodes(deaf, LOST_OF_256)
    await whole_life(six)
    assert sum(six.lost.values()) >= 3, "the test lost next to nothing"
    roots = {
        name: six.worlds[name].replica.tip.state.root()
        for name in ("executor", "observer")
        if six.worlds[name].replica.height == max(six.worlds[other].replica.height for other in FOLLOWERS)
    }
    assert len(set(roots.values())) <= 1


async def test_a_sequencer_asks_for_the_nonces_that_it_missed(
    six_nodes: Callable[..., Any], autojump_clock: Any
) -> None:
    six = six_nodes("sequencer", LOST_OF_256)
    await whole_life(six)
    counters = six.contexts["sequencer"].counters
    assert six.lost["action"] > 5
    assert counters["mempool.gaps_found"] > 0
    assert counters["mempool.gap_envelopes_repaired"] > 0
    assert counters["mempool.gap_false_answer"] == 0


async def test_an_observer_that_hears_nothing_fetches_the_heights_that_it_was_not_told_of(
    six_nodes: Callable[..., Any], autojump_clock: Any
) -> None:
    six = six_nodes("observer", 256)
    await whole_life(six)
    assert six.contexts["observer"].network.counters().get("gossip.accepted", 0) == 0
    counters = six.contexts["observer"].counters
    assert counters["follow.gap_heights_found"] > 0
    assert counters["follow.gap_heights_repaired"] >= counters["follow.gap_heights_found"]


async def test_an_executor_that_hears_no_batch_asks_for_it(
    six_nodes: Callable[..., Any], autojump_clock: Any
) -> None:
    six = six_nodes("executor", 256)
    hub = InMemoryHub(random.Random(1))
    async with trio.open_nursery() as nursery:
        for name in ROLES:
            await nursery.start(six.run_node, name, opener(hub))
        # Neither gossip nor hand-over reaches the executor: the link to the sequencer is cut.
        hub.cut([six.keys["sequencer"].identity], [six.keys["executor"].identity])
        envelopes = six.envelopes(4)
        await six.hand_in(envelopes)
        with trio.fail_after(120):
            await six.all_taken("executor", envelopes)
        nursery.cancel_scope.cancel()
    counters = six.contexts["executor"].counters
    assert counters["executor.gap_heights_found"] > 0
    assert counters["executor.gap_heights_repaired"] == counters["executor.gap_heights_found"]


class Heard:
    """A subscription that gives the messages that it was made with, then waits for ever."""

    topic = "aw.w.block"

    def __init__(self, *messages: Message) -> None:
        self._messages = list(messages)

    async def receive(self) -> Message:
        if not self._messages:
            await trio.sleep_forever()
        return self._messages.pop(0)


@pytest.mark.parametrize("is_executor", [True, False])
async def test_a_block_above_the_best_head_is_a_hint_that_its_head_was_missed(
    small_world: Callable[..., Any], six_nodes: Callable[..., Any], autojump_clock: Any, is_executor: bool
) -> None:
    world = small_world()
    built = world.run(world.envelope(world.actors[0], ("say", {"text": "x"})))
    head = world.head_of(built)
    signer = world.executor if is_executor else world.actors[0]
    attestation = BlockAttestation(world.world_id, 0, 1, built.block.hash(), signer.identity)
    announce = BlockAnnounce(built.block, seal(attestation, signer))
    hub = InMemoryHub(random.Random(1))
    asked = []

    async def answer(caller: bytes, body: bytes) -> bytes:
        asked.append(caller)
        return HeadAnswer(head).to_bytes()

    teller, hearer = world.executor, world.actors[1]
    six = six_nodes()
    routes = {"get_world_head": Route(answer)}
    async with (
        hub.open_node(teller.identity, routes, HeadRecords()) as (there, _),
        hub.open_node(hearer.identity, {}, HeadRecords()) as (here, dht),
    ):
        await here.connect(there.addrs())
        context = six.context(hearer, here, dht)
        db = MemoryWorldDb()
        tables, sources = EpochTables(db, world.world_id), Sources(context, world.world_id)
        authorities = Authorities(context, world.genesis, tables)
        evidence = EvidenceKeeper(context, world.genesis, tables, authorities, sources, None)
        tracker = HeadTracker(context, world.genesis, WorldTables(db, world.world_id), authorities, evidence)
        message = Message("t", announce.to_bytes(), teller.identity, teller.identity)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tracker.hear_blocks, Heard(message, message))
            await trio.sleep(5)
            nursery.cancel_scope.cancel()
    assert tracker.height == (1 if is_executor else 0)
    assert len(asked) == (1 if is_executor else 0)
    assert context.counters["head.gaps_found"] == context.counters["head.gaps_repaired"] == len(asked)

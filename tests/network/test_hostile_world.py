"""A world of five real nodes on loopback, honest traffic all the time, and one who wants it to go wrong.

Whatever the stranger (or a member of the set) says, what the gateway accepted is verified by the observer in the end.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio

from bootstrap.world_node import WorldNode, run_world
from p2p import names
from p2p.errors import NetworkError
from p2p.host import HostConfig, Libp2pNetwork, open_network
from p2p.identity import Identity
from p2p.network import Message, PartsRoute, RecordRule, Routes, SendPart, Subscription, Verdict
from p2p.providers import ProviderCache, republish_loop
from runtime import chain, codec, rules, world
from runtime import genesis as genesis_module
from runtime.blob_store import MemoryBlobStore
from runtime.errors import Invalid, Missing
from runtime.keys import SigningKey
from runtime.messages import BlobEnd, BlobRequest
from runtime.records import (
    ActionBatch,
    ActionEnvelope,
    BlockAttestation,
    Bounds,
    Envelope,
    Genesis,
    SignedAuthorities,
    WorldBlock,
    WorldHeadAnnounce,
    encode_envelopes,
    seal,
)
from runtime.services import HeadRecords, as_failure, blobs, fetch
from runtime.services.client import DistributedClient
from runtime.services.context import Context
from runtime.services.methods import MethodTable
from runtime.services.serve import NodeDesk
from runtime.world_db import MemoryWorldDb

pytestmark = [pytest.mark.network, pytest.mark.timeout(120)]

PATIENCE_S = 60.0
COMPANY_S = 0.2  # honest traffic is company, not load
LAYOUT = {
    "order": frozenset({"index", "coordinator"}),
    "gateway": frozenset({"gateway"}),
    "lead": frozenset({"sequencer", "executor"}),
    "storage": frozenset({"storage"}),
    "observer": frozenset({"observer"}),
}
# All nodes of a test share one interpreter. Where each of them tries every lie, there are no more than it takes.
FEW = {
    "order": frozenset({"index", "coordinator"}),
    "lead": frozenset({"gateway", "sequencer", "executor"}),
    "observer": frozenset({"observer"}),
}
LATE = {"late": frozenset({"observer"})}
KEYS = {name: Identity(number.to_bytes(32, "big")) for number, name in enumerate([*LAYOUT, *LATE], 1)}
TRAITOR = Identity(b"t" * 32)  # an executor of the set
STRANGER = Identity(b"s" * 32)
ALICE, BOB = SigningKey(b"a" * 32), SigningKey(b"b" * 32)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def in_thread(work: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(work)


async def sleep_until_ms(at_ms: int) -> None:
    await trio.sleep(max(0, at_ms - now_ms()) / 1_000)


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that nobody sends an event for."""
    with trio.move_on_after(PATIENCE_S):
        while not condition():
            await trio.sleep(0.02)
        return
    raise AssertionError(f"did not happen within {PATIENCE_S:.0f} s: {what}")


def make_world() -> Genesis:
    return genesis_module.make_genesis(
        name="besieged",
        root_keys=[ALICE.identity],
        root_threshold=1,
        proposers=[KEYS["lead"].peer_id],
        executors=[KEYS["lead"].peer_id, TRAITOR.peer_id],
        certifier=KEYS["order"].peer_id,
        body=genesis_module.make_body(
            bounds=Bounds(0, 1_000_000, 0, 1_000_000, 0, 0),
            max_move_cm=1_000_000,
            resource_kinds=["fuel"],
            balances={(ALICE.identity, "fuel"): 100},
        ),
        created_ms=now_ms(),
    )


class NoRule:
    """The DHT validator of one who takes and tells everything, and thinks best of `favourite`."""

    def __init__(self) -> None:
        self.favourite = b""

    def validate(self, key: str, value: bytes) -> None:
        """Everything is welcome."""

    def select(self, key: str, values: Sequence[bytes]) -> int:
        return values.index(self.favourite) if self.favourite in values else len(values) - 1


def accept(message: Message) -> Verdict:
    return Verdict.ACCEPT


@asynccontextmanager
async def open_host(
    identity: Identity, routes: Routes, bootstrap: Sequence[str], rule: RecordRule, listen: bool = True
) -> AsyncIterator[Libp2pNetwork]:
    config = HostConfig(
        identity=identity,
        listen=("/ip4/127.0.0.1/tcp/0",) if listen else (),
        rng=random.Random(identity.seed),
        now_ms=now_ms,
        bootstrap=tuple(bootstrap),
    )
    async with open_network(config, routes, rule) as network:
        yield network


def make_context(network: Libp2pNetwork, identity: Identity) -> Context:
    rng = random.Random(identity.seed)
    return Context(
        network=network,
        dht=network.dht,
        providers=ProviderCache(identity.peer_id, rng),
        db=MemoryWorldDb(),
        key=SigningKey(identity.seed),
        now_ms=now_ms,
        rng=rng,
        offload=in_thread,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One honest node, as bootstrap/node.py would have made it."""

    context: Context
    world: WorldNode
    network: Libp2pNetwork

    @property
    def counters(self) -> Counter[str]:
        """Of services, network and DHT, as `status` gives them."""
        return Counter({**self.network.counters(), **self.network.dht.counters(), **self.context.counters})

    @property
    def replica(self) -> Any:
        return self.world.replica

    @property
    def addr(self) -> str:
        return self.network.addrs()[0]


async def run_node(
    identity: Identity,
    roles: frozenset[str],
    genesis: Genesis,
    bootstrap: Sequence[str],
    task_status: trio.TaskStatus[Node],
) -> None:
    methods = MethodTable()
    async with open_host(identity, methods.routes(), bootstrap, HeadRecords()) as network:
        context = make_context(network, identity)
        methods.mount_node(NodeDesk(context, tuple(sorted(roles)), tuple, {}).handlers())
        async with trio.open_nursery() as nursery:
            world = await nursery.start(run_world, context, methods, genesis, roles, lambda done, total: None)
            nursery.start_soon(
                republish_loop, context.providers, network.dht, now_ms, sleep_until_ms, lambda content: True
            )
            task_status.started(Node(context, world, network))


@dataclass(slots=True)
class Lab:
    """The nodes, and Alice, who goes on submitting; `accepted` is what the gateway has promised her."""

    genesis: Genesis
    nursery: trio.Nursery
    layout: Mapping[str, frozenset[str]]
    nodes: dict[str, Node] = field(default_factory=dict)
    accepted: list[Envelope] = field(default_factory=list)
    enough: trio.Event = field(default_factory=trio.Event)
    alice_stopped: trio.Event = field(default_factory=trio.Event)
    client: DistributedClient | None = None

    @property
    def world_id(self) -> str:
        return self.genesis.header.world_id

    @property
    def addrs(self) -> list[str]:
        return [node.addr for node in self.nodes.values()]

    def topic(self, kind: str) -> str:
        return names.topic(self.world_id, kind)

    async def start(self, name: str, *more: str, identity: Identity | None = None) -> Node:
        node: Node = await self.nursery.start(
            run_node,
            identity or KEYS[name],
            {**self.layout, **LATE}[name],
            self.genesis,
            (*self.addrs, *more),
        )
        self.nodes[name] = node
        return node

    def envelope(self, key: SigningKey, nonce: int, agent_id: str, x_cm: int) -> Envelope:
        record = ActionEnvelope(
            world_id=self.world_id,
            actor_id=key.identity,
            nonce=nonce,
            expires_at_height=1_000,
            timestamp_ms=now_ms(),
            atomic=True,
            actions=(
                (
                    "move_agent" if nonce else "register_agent",
                    {"agent_id": agent_id, "x_cm": x_cm, "y_cm": 0, "z_cm": 0},
                ),
            ),
        )
        return seal(record, key)

    async def submit(self, envelope: Envelope) -> Any:
        """Hand in over a connection, as a program outside would; gives the one result."""
        assert self.client is not None
        [result] = await self.client.submit(self.world_id, [envelope])
        return result

    async def submit_patiently(self, envelope: Envelope) -> Any:
        """Again after a lost connection, as a program outside would: the same envelope twice is no mistake."""
        assert self.client is not None
        gateway = next(node for name, node in self.nodes.items() if "gateway" in self.layout.get(name, ()))
        with trio.fail_after(PATIENCE_S):
            while True:
                with suppress(NetworkError):
                    return await self.submit(envelope)
                with suppress(NetworkError):
                    await self.client.network.connect([gateway.addr])
                await trio.sleep(COMPANY_S)

    async def keep_company(self) -> None:
        """Alice registers her agent and moves it on and on."""
        while not self.enough.is_set():
            nonce = len(self.accepted)
            envelope = self.envelope(ALICE, nonce, "alice", nonce)
            result = await self.submit_patiently(envelope)
            assert result.outcome == "accepted", result.message
            self.accepted.append(envelope)
            await trio.sleep(COMPANY_S)
        self.alice_stopped.set()

    async def goes_on(self, blocks: int = 3) -> None:
        """The observer verifies that many blocks more, all of them the honest executor's."""
        replica, lead = self.nodes["observer"].replica, self.nodes["lead"].replica
        target = replica.height + blocks
        await until(lambda: replica.height >= target, f"the observer verifies height {target}")
        ours, theirs = (one.tables.block_hashes(1, target) for one in (replica, lead))
        assert ours == theirs

    async def all_verified(self) -> None:
        """Alice stops; everything she was promised is taken, by the observer's own replay."""
        self.enough.set()
        await self.alice_stopped.wait()
        assert len(self.accepted) >= 3, "that was no traffic"
        replica, lead = self.nodes["observer"].replica, self.nodes["lead"].replica
        places = replica.tables.place
        await until(lambda: all(places(one.hash()) for one in self.accepted), "all accepted are verified")
        assert all(places(one.hash()).taken for one in self.accepted)
        assert replica.tables.nonce(ALICE.identity) == len(self.accepted)
        await until(lambda: replica.height == lead.height, "observer and executor are at one height")
        assert replica.block_hash == lead.block_hash
        assert replica.tip.state.root() == lead.tip.state.root()


def innermost(error: BaseException) -> BaseException:
    """What a failed test shall show: groups of one, a nursery each, hide it behind pages of tracebacks."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


@asynccontextmanager
async def open_lab(layout: Mapping[str, frozenset[str]] = LAYOUT) -> AsyncIterator[Lab]:
    """All nodes up and talking; Alice's first envelopes are in blocks."""
    try:
        async with _open_lab(layout) as lab:
            yield lab
    except BaseExceptionGroup as group:
        raise innermost(group) from None


@asynccontextmanager
async def _open_lab(layout: Mapping[str, frozenset[str]]) -> AsyncIterator[Lab]:
    async with trio.open_nursery() as nursery:
        lab = Lab(make_world(), nursery, layout)
        for name in layout:
            await lab.start(name)
        gateway = next(node for name, node in lab.nodes.items() if "gateway" in layout[name])
        async with open_host(Identity(b"c" * 32), {}, (), HeadRecords(), listen=False) as network:
            peer = await network.connect([gateway.addr])
            lab.client = DistributedClient(network, peer)
            async with trio.open_nursery() as traffic:
                traffic.start_soon(lab.keep_company)
                await until(lambda: lab.nodes["lead"].replica.height >= 2, "honest blocks are made")
                yield lab
                await lab.all_verified()
        nursery.cancel_scope.cancel()


async def knows_the_dht(lab: Lab, network: Libp2pNetwork) -> None:
    """What it puts and provides from here on reaches servers."""
    servers = min(4, len(lab.nodes))
    await until(lambda: network.dht.counters().get("dht.introduced", 0) >= servers, "the DHT is known")


async def say_until(topic: Subscription, data: bytes, heard: Callable[[], object]) -> None:
    """Publish again and again: a mesh takes a moment to form, and to drop a message is its right."""
    with trio.move_on_after(PATIENCE_S):
        while not heard():
            await topic.publish(data)
            await trio.sleep(0.2)
        return
    raise AssertionError("what was said was never heard")


async def say_until_counted(topic: Subscription, data: bytes, counter: str, *nodes: Node) -> None:
    """Publish until each of these nodes has counted one more."""
    before = [node.counters[counter] for node in nodes]

    def heard() -> bool:
        return all(node.counters[counter] > count for node, count in zip(nodes, before, strict=True))

    await say_until(topic, data, heard)


# --- forged heads ------------------------------------------------------------------------------------------


def forgeries(lab: Lab, head: WorldHeadAnnounce) -> dict[str, bytes]:
    """Heads, each wrong in one signature; those with a false commit would beat every honest head."""
    [attested] = head.attestations
    beyond = replace(head.commit.record, height=1_000_000, as_of_ms=now_ms())
    vouched = BlockAttestation(lab.world_id, 0, beyond.height, head.block_hash, TRAITOR.peer_id)
    high = replace(head, attestations=(seal(vouched, SigningKey(TRAITOR.seed)),))
    by_stranger = seal(replace(beyond, certifier_id=STRANGER.peer_id), SigningKey(STRANGER.seed))
    no_executor = replace(attested.record, executor_id=STRANGER.peer_id)
    forged = {
        "a commit that its certifier never signed": replace(high, commit=replace(head.commit, record=beyond)),
        "a commit of one who is no certifier": replace(high, commit=by_stranger),
        "an attestation of one who is no executor": replace(
            head, attestations=(seal(no_executor, SigningKey(STRANGER.seed)),)
        ),
        "an attestation that its executor never signed": replace(
            head, attestations=(replace(attested, signature=bytes(64)),)
        ),
    }
    return {name: one.to_bytes() for name, one in forged.items()}


async def test_a_forged_head_is_rejected_by_gossip_and_by_every_dht_server() -> None:
    async with open_lab() as lab:
        observer = lab.nodes["observer"]
        await until(lambda: observer.replica.head is not None, "the observer follows a head")
        forged = forgeries(lab, observer.replica.head)
        for data in forged.values():
            with pytest.raises(Invalid):
                rules.check_head_message(data, lab.world_id)
        rule = NoRule()
        async with open_host(STRANGER, {}, lab.addrs, rule) as stranger:
            topic = await stranger.join(lab.topic("head"), accept)
            for data in forged.values():
                await say_until_counted(topic, data, "gossip.rejected", observer)
            key = names.head_key(lab.world_id)
            await knows_the_dht(lab, stranger)
            for data in list(forged.values())[:2]:
                rule.favourite = data
                with suppress(
                    NetworkError
                ):  # whether anybody took it is asked below, of those who might have
                    await stranger.dht.put_record(key, data)
                for node in lab.nodes.values():
                    record = await node.network.dht.get_record(key)
                    assert record is not None
                    rules.check_head_message(record, lab.world_id)
            await lab.goes_on()
        heard = [observer.counters[f"head.{what}"] for what in ("false", "false_answer")]
        assert heard == [0, 0], "a forgery came past the check of its topic"


# --- envelopes ---------------------------------------------------------------------------------------------


async def test_an_unsigned_envelope_is_refused_by_the_gateway_and_rejected_by_every_relay() -> None:
    async with open_lab() as lab:
        gateway, lead = lab.nodes["gateway"], lab.nodes["lead"]
        signed = lab.envelope(BOB, 0, "bob", 1)
        unsigned = [
            replace(signed, signature=bytes(64)),
            replace(signed, signature=lab.envelope(BOB, 0, "bob", 2).signature),
            replace(signed, signature=ALICE.sign(signed.record.hash())),
        ]
        for envelope in unsigned:
            result = await lab.submit(envelope)
            assert (result.outcome, result.reason) == ("refused", "BadSignature")
            assert result.acceptance is None
        async with open_host(STRANGER, {}, lab.addrs, NoRule()) as stranger:
            topic = await stranger.join(lab.topic("action"), accept)
            for envelope in unsigned:
                # A good one beside it does not help it in.
                data = encode_envelopes([signed, envelope])
                await say_until_counted(topic, data, "gossip.rejected", gateway, lead)
            await lab.goes_on()
        await lab.all_verified()
        for name in ("gateway", "lead", "storage", "observer"):
            tables = lab.nodes[name].replica.tables
            assert tables.nonce(BOB.identity) == 0
            assert tables.place(signed.hash()) is None


async def test_a_replayed_nonce_is_denied_and_never_taken_twice() -> None:
    async with open_lab() as lab:
        gateway, lead, observer = (lab.nodes[name] for name in ("gateway", "lead", "observer"))
        first = lab.envelope(BOB, 0, "bob", 1)
        rival = lab.envelope(BOB, 0, "rival", 2)
        assert (await lab.submit(first)).outcome == "accepted"
        # Promised, but maybe in no block yet.
        refused = await lab.submit(rival)
        assert (refused.outcome, refused.reason, refused.next_nonce) == ("refused", "NonceDenied", 1)
        await until(lambda: gateway.replica.tables.place(first.hash()), "the first is in a block")
        # Taken: the same bytes are no mistake, other bytes are.
        again = await lab.submit(first)
        assert again.outcome == "accepted"
        assert again.acceptance.record.envelope_hash == first.hash()
        refused = await lab.submit(rival)
        assert (refused.outcome, refused.reason, refused.next_nonce) == ("refused", "NonceDenied", 1)
        async with open_host(STRANGER, {}, lab.addrs, NoRule()) as stranger:
            topic = await stranger.join(lab.topic("action"), accept)
            for envelope in (first, rival, lab.accepted[0]):
                # Well signed: relays let it pass, so it is the sequencer and the kernel who must not take it.
                await say_until_counted(topic, encode_envelopes([envelope]), "gossip.accepted", lead)
            await lab.goes_on(blocks=5)
        await lab.all_verified()
        await until(lambda: gateway.replica.height == lead.replica.height, "the gateway is there too")
        for node in (gateway, lead, observer):
            assert node.replica.tables.nonce(BOB.identity) == 1
            assert node.replica.tables.nonce(ALICE.identity) == len(lab.accepted)
            assert node.replica.tables.place(rival.hash()) is None
        assert taken_counts(observer)[first.hash()] == 1
        assert set(taken_counts(observer).values()) == {1}


def taken_counts(node: Node) -> Counter[bytes]:
    """How often each envelope was taken, by the receipts of every block of a node."""
    counts: Counter[bytes] = Counter()
    blobs = node.context.db.blobs
    for block_hash in node.replica.tables.block_hashes(1, node.replica.height):
        block = WorldBlock.from_preimage(blobs.get(block_hash))
        receipts = chain.decode_receipts(blobs.get(block.receipts_ref))
        counts.update({one.envelope_hash for one in receipts if one.index is not None})
    return counts


# --- a member of the set that lies -------------------------------------------------------------------------


class Traitor:
    """An executor of the set. At every height it makes a false head, well signed, as fast as anybody is told of it.

    `blobs` is what it serves: with `stored`, a consistent false block, all of its hashes right; else nothing.
    """

    def __init__(self, lab: Lab, *, stored: bool) -> None:
        self._lab = lab
        self._key = SigningKey(TRAITOR.seed)
        self._stored = stored
        self.blobs = MemoryBlobStore()
        self.lies: dict[int, bytes] = {}  # height -> hash of the false block

    def routes(self) -> Routes:
        """It has an answer for who asks for a blob, and says no to the rest."""

        async def fetch_blob(caller: bytes, body: bytes, send: SendPart) -> bytes:
            request = BlobRequest.from_bytes(body)
            try:
                data = self.blobs.get(request.content_hash)
            except Missing as error:
                raise as_failure(error) from None
            await send(data)
            return BlobEnd(size=len(data)).to_bytes()

        return {"fetch_blob": PartsRoute(fetch_blob)}

    async def lie(self, batches: Subscription, heads: Subscription) -> None:
        """Hear that a height is certified; say at once what it gave, wrongly."""
        lab, lead = self._lab, self._lab.nodes["lead"]
        while True:
            batch, commit = rules.check_batch_message((await batches.receive()).data, lab.world_id)
            tip = lead.replica.tip_at(batch.record.height - 1)  # it executes as fast as the honest one
            if tip is None:
                continue
            block_hash = self._false_block(tip, batch.record)
            vouched = BlockAttestation(lab.world_id, 0, batch.record.height, block_hash, TRAITOR.peer_id)
            head = WorldHeadAnnounce(
                header=lab.genesis.header,
                authorities=SignedAuthorities(lab.genesis.authorities),
                commit=commit,
                attestations=(seal(vouched, self._key),),
                block_hash=block_hash,
            )
            rules.check_head_message(head.to_bytes(), lab.world_id)  # nothing in its bytes is wrong
            self.lies[batch.record.height] = block_hash
            await heads.publish(head.to_bytes())

    def _false_block(self, tip: chain.Tip, batch: ActionBatch) -> bytes:
        if not self._stored:
            return codec.content_id(b"never made %d" % batch.height)
        actions = self._lab.nodes["lead"].context.db.blobs.get(batch.actions_ref)
        envelopes = self._lab.nodes["lead"].replica.decode_actions(actions)
        built = chain.build_block(self._lab.genesis, tip, batch, envelopes, world.check_signatures(envelopes))
        false = replace(built.block, state_root=codec.content_id(b"a state that never was"))
        self.blobs.put_many([*built.blobs.values(), false.preimage(), batch.preimage(), actions])
        return false.hash()


@asynccontextmanager
async def open_traitor(lab: Lab, *, stored: bool) -> AsyncIterator[Traitor]:
    traitor = Traitor(lab, stored=stored)
    async with open_host(TRAITOR, traitor.routes(), lab.addrs, HeadRecords()) as network:
        batches = await network.join(lab.topic("batch"), accept)
        heads = await network.join(lab.topic("head"), accept)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(traitor.lie, batches, heads)
            await knows_the_dht(lab, network)
            await network.dht.provide(genesis_module.world_content_id(lab.world_id))
            yield traitor
            nursery.cancel_scope.cancel()


async def test_a_well_signed_head_of_a_block_that_nobody_has_costs_a_try() -> None:
    async with open_lab(FEW) as lab:
        observer = lab.nodes["observer"]
        async with open_traitor(lab, stored=False) as traitor:
            await until(lambda: observer.counters["follow.missing"] >= 2, "the observer misses blocks")
            await lab.goes_on(blocks=5)
        assert not set(traitor.lies.values()) & set(all_hashes(observer))


async def test_a_forged_state_root_behind_valid_hashes_is_found_by_replay_and_passed_over() -> None:
    async with open_lab(FEW) as lab:
        observer = lab.nodes["observer"]
        async with open_traitor(lab, stored=True) as traitor:
            distrusts = observer.world.evidence.distrusts
            await until(lambda: distrusts(TRAITOR.peer_id), "the observer finds the liar out")
            assert observer.counters["follow.diverged"] >= 1
            assert not distrusts(KEYS["lead"].peer_id)
            await lab.goes_on(blocks=5)
            assert not observer.world.status().halted
        assert not set(traitor.lies.values()) & set(all_hashes(observer))


def all_hashes(node: Node) -> list[bytes]:
    hashes: list[bytes] = node.replica.tables.block_hashes(1, node.replica.height)
    return hashes


# --- providers that help nobody ----------------------------------------------------------------------------


class FalseProvider:
    """A peer that provides the world in the DHT and answers as it likes whoever asks for a piece of it."""

    def __init__(self, answer: Callable[[], Awaitable[bytes]]) -> None:
        self._answer = answer
        self.asked = 0

    async def blob(self, caller: bytes, body: bytes, send: SendPart) -> bytes:
        self.asked += 1
        data = await self._answer()
        await send(data)
        return BlobEnd(size=len(data)).to_bytes()

    @asynccontextmanager
    async def opened(self, lab: Lab, identity: Identity) -> AsyncIterator[str]:
        """Gives its address."""
        async with open_host(
            identity, {"fetch_blob": PartsRoute(self.blob)}, lab.addrs, HeadRecords()
        ) as network:
            await knows_the_dht(lab, network)
            await network.dht.provide(genesis_module.world_content_id(lab.world_id))
            yield network.addrs()[0]


async def wrong() -> bytes:
    return b"not what you wanted"


async def silent() -> bytes:
    await trio.sleep_forever()
    raise AssertionError


async def test_providers_of_wrong_bytes_and_of_silence_are_rested_and_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blobs, "TRY_MS", 3_000)  # silence is waited for as long as a try takes
    monkeypatch.setattr(
        fetch, "HEDGE_MS", 60_000
    )  # one after the other: who is slow on a busy machine loses no race
    liar, mute = FalseProvider(wrong), FalseProvider(silent)
    auditor = Identity(b"u" * 32)
    async with open_lab(FEW) as lab:
        await lab.goes_on(blocks=8)
        async with (
            liar.opened(lab, STRANGER) as first,
            mute.opened(lab, Identity(b"q" * 32)) as second,
            open_host(auditor, {}, lab.addrs, HeadRecords()) as network,
        ):
            sources = fetch.Sources(make_context(network, auditor), lab.world_id)
            liar_id, mute_id = [await network.connect([addr]) for addr in (first, second)]
            for peer in (
                liar_id,
                mute_id,
            ):  # both have helped before: so they are asked before the honest ones
                sources.praise(peer)
            first_hash, *others = all_hashes(lab.nodes["observer"])[:10]
            assert codec.content_id(await blobs.fetch_blob(sources, first_hash)) == first_hash
            # Both were tried; on a busy machine a try may be over before the silent one has heard of it.
            assert (liar.asked, mute.asked <= 1, sources.failures.get(mute_id)) == (1, True, 1)
            assert sources.context.counters["fetch.false_answer"] == 1
            assert set((await sources.candidates())[-2:]) == {liar_id, mute_id}  # after everybody else
            for block_hash in others:
                assert codec.content_id(await blobs.fetch_blob(sources, block_hash)) == block_hash
            assert liar.asked == 1
            await lab.goes_on()

"""The flights in four languages: `make demo-polyglot`.

A JavaScript peer signs and submits for the carriers, a Rust peer follows heads and checks proofs, a Go peer stores;
Python nodes order, execute and observe. Hides: the order of it. Guarantees: `verified` is said only when every envelope
has the hash that the Python plan gives it, all proofs held, the observer holds the executor's state root, and a replay
from genesis of what the Go peer alone still serves comes to that root too; exit 0 only then.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from bootstrap.cli import interrupt
from bootstrap.cli.output import note
from bootstrap.demo.flights import AIRPORTS_FILE, FLIGHTS_FILE, Flight, packaged, read_airports, read_flights
from bootstrap.demo.flying import At, Clients, connect, same_height, settle, watch
from bootstrap.demo.plan import (
    AIRPORTS_OWNER,
    Authorities,
    Plan,
    aircraft_id,
    make_plan,
    owner_key,
    owner_seed,
)
from bootstrap.demo.processes import Network, NodeFailed, end_process
from bootstrap.demo.report import show_progress
from bootstrap.demo.tracking import Tracker
from bootstrap.node import VerifyReport, now_ms, open_caller, verify_world
from interop.ctrl_c import exit_code
from interop.demo_report import Result, print_result
from interop.driver import CommandFailed, Ground, Peer, PeerFailed, open_ground
from interop.languages import BuildFailed, Missing, build, command
from interop.run import reasons
from interop.steps import SETTLE_S, if_held, proved_receipt, until
from p2p import names
from runtime import codec
from runtime import genesis as genesis_module
from runtime.records import Envelope

FOREIGN: Final = ("js", "rust", "go")
LAYOUT: Final = {
    "index": ("index",),  # has no blobs: at the end, when it alone is left, only the Go peer has any
    "coordinator": ("coordinator",),
    "gateway": ("gateway",),
    "executor": ("sequencer", "executor"),
    "observer": ("observer",),
}
SEED: Final = 0  # of the carriers' keys, as `aw demo --seed`
IN_FLIGHT: Final = 32  # requests of one session
BUSY_S: Final = 0.2
BUSY_S_MAX: Final = 60.0  # that a gateway may go on saying so
PROVED_AT_END: Final = 50
STORE_S: Final = 120.0
READ_S: Final = 60.0


class Lied(Exception):
    """A peer said what does not agree with what this program computes itself."""


FAULTS: Final = (Lied, CommandFailed, PeerFailed, NodeFailed, trio.TooSlowError, AssertionError)


@dataclass(slots=True)
class Told:
    """What each language did: counted as it happens."""

    submitted: int = 0
    heads: int = 0
    receipts: int = 0
    positions: int = 0
    stored_height: int = 0
    served: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """All that takes part."""

    plan: Plan
    places: dict[bytes, tuple[int, int]]  # agent id of an aircraft -> where its last flight ended
    network: Network
    clients: Clients
    tracker: Tracker
    peers: dict[str, Peer]
    told: Told

    @property
    def world_id(self) -> str:
        return self.plan.genesis.header.world_id

    def node(self, name: str) -> str:
        """The peer id of a Python node, as text."""
        return names.peer_text(self.network.nodes[name].identity.peer_id)


# --- JavaScript: signs and submits for the carriers ------------------------------------------------------------------


async def act(stage: Stage, envelopes: Sequence[Envelope], seeds: dict[bytes, bytes]) -> None:
    """Hand in all of them, IN_FLIGHT at a time, in their order but for that. Raises Lied, CommandFailed."""
    places = trio.Semaphore(IN_FLIGHT)
    async with trio.open_nursery() as nursery:
        for envelope in envelopes:
            await places.acquire()
            nursery.start_soon(_hand_in, stage, envelope, seeds[envelope.record.actor_id].hex(), places)


async def _hand_in(stage: Stage, envelope: Envelope, seed: str, places: trio.Semaphore) -> None:
    record = envelope.record
    stage.tracker.submit([envelope], time.monotonic())
    with trio.fail_after(BUSY_S_MAX):
        while not await _is_accepted(
            stage,
            envelope,
            seed=seed,
            nonce=record.nonce,
            expires_at_height=record.expires_at_height,
            timestamp_ms=record.timestamp_ms,
            atomic=record.atomic,
            actions=[[kind, dict(payload)] for kind, payload in record.actions],
        ):
            await trio.sleep(BUSY_S)
    stage.tracker.accepted.add(envelope.hash())
    stage.told.submitted += 1
    places.release()


async def _is_accepted(stage: Stage, envelope: Envelope, **fields: Any) -> bool:
    """False where the gateway is busy; what it wrote must be the very bytes of the plan."""
    try:
        said = await stage.peers["js"].do(
            "submit", peer=stage.node("gateway"), world_id=stage.world_id, **fields
        )
    except CommandFailed as failure:
        if failure.kind == "rr" and failure.error.get("retry_after_ms"):
            return False
        raise
    if said["envelope_hash"] != envelope.hash().hex():
        raise Lied(f"js-1: submit: signed {said['envelope_hash']}, the plan has {envelope.hash().hex()}")
    if said["outcome"] == "accepted":
        return True
    if said.get("reason") == "Busy":
        return False
    raise Lied(f"js-1: submit: {said['outcome']}: {said.get('reason')}: {said.get('message')}")


# --- Rust: follows heads, checks proofs ----------------------------------------------------------------------


async def check_on_the_way(stage: Stage) -> None:
    """With every head that the Rust peer follows, one more receipt is proved to it."""
    rust, asked = stage.peers["rust"], set[bytes]()
    while True:
        heads = [event for event in rust.events if event["event"] == "head"]
        if len(heads) > stage.told.heads and (fresh := stage.tracker.verified_s.keys() - asked):
            stage.told.heads = len(heads)
            envelope_hash = min(fresh)
            asked.add(envelope_hash)
            await prove_receipt(stage, envelope_hash)
        await trio.sleep(BUSY_S)


async def prove_receipt(stage: Stage, envelope_hash: bytes) -> None:
    """What became of an envelope, as the observer proves it to the Rust peer. Raises FAULTS.

    The observer has replayed its block, and may still be on its way to the head that proves it: of a burst of heads it
    takes the newest, and applies what is below it block by block.
    """
    proved = await proved_receipt(
        stage.peers["rust"], stage.node("observer"), stage.world_id, envelope_hash.hex()
    )
    if any(receipt["code"] != "Applied" for receipt in proved["receipts"]):
        raise Lied(f"rust-2: receipt_proof: {proved['receipts']} for {envelope_hash.hex()}")
    stage.told.receipts += 1


async def prove_receipts(stage: Stage) -> None:
    """Some of all flights, evenly. Raises FAULTS."""
    for envelope in stage.plan.flights[:: max(1, len(stage.plan.flights) // PROVED_AT_END)]:
        await prove_receipt(stage, envelope.hash())


async def position(stage: Stage, agent_id: bytes) -> dict[str, Any]:
    """An aircraft's cell, as the executor proves it to the Rust peer: {height, value, ..}. Raises CommandFailed."""
    return await stage.peers["rust"].do(
        "state_proof",
        peer=stage.node("executor"),
        world_id=stage.world_id,
        namespace="agents",
        key=agent_id.hex(),
    )


async def vouched_for(stage: Stage, height: int) -> None:
    """The executor holds a head of that height: it executes a block, and vouches for it after. Raises FAULTS."""
    some_agent = min(stage.places)

    async def is_head() -> bool:
        found = await if_held(partial(position, stage, some_agent))  # of a head whose state was let go: not
        return found is not None and bool(found["height"] >= height)

    await until(is_head, f"the executor's head of height {height}", SETTLE_S)


async def prove_positions(stage: Stage) -> None:
    """Where aircraft stand after all flights, as the executor proves it. Raises Lied, CommandFailed."""
    for agent_id in sorted(stage.places)[:: max(1, len(stage.places) // PROVED_AT_END)]:
        found = await position(stage, agent_id)
        cell = codec.decode(bytes.fromhex(found["value"]), 4_096, "agents cell")
        assert isinstance(cell, dict)
        if (cell["x_cm"], cell["y_cm"]) != stage.places[agent_id]:
            raise Lied(
                f"rust-2: state_proof: {agent_id.decode()} stands at {cell}, not {stage.places[agent_id]}"
            )
        stage.told.positions += 1


# --- Go: stores, and serves alone ----------------------------------------------------------------------------


async def store(stage: Stage) -> None:
    """The Go peer mirrors the world from the executor, tells the DHT, and is left alone with the index."""
    go, world_id = stage.peers["go"], stage.world_id
    mirrored = await go.do("mirror", world_id=world_id, peer=stage.node("executor"), within_s=STORE_S)
    head = await go.do("head", world_id=world_id, peer=stage.node("executor"))
    await go.do("dht_put", key=names.head_key(world_id), value=head["head"])
    await go.do("provide", content_hash=genesis_module.world_content_id(world_id).hex())
    stage.told.stored_height = mirrored["height"]


async def stop_others(network: Network) -> None:
    """Every Python node that has blocks or blobs."""
    for name, node in network.nodes.items():
        if name != "index" and node.process is not None:
            node.may_start = trio.Event()
            await end_process(node.process)


async def replay(stage: Stage) -> VerifyReport:
    """A stranger with the world id and the index' address, as `aw verify`: replays what the Go peer serves."""
    index = stage.network.nodes["index"].addr
    with trio.fail_after(READ_S):
        while True:
            report = await verify_world(stage.world_id, [index], lambda _done, _of: None)
            if report.height >= stage.told.stored_height:
                return report


# --- the whole -----------------------------------------------------------------------------------------------


def make_stage_plan(flights: Sequence[Flight], network: Network) -> tuple[Plan, dict[bytes, tuple[int, int]]]:
    """The plan of `aw demo`, and where it leaves every aircraft."""
    airports = read_airports(packaged(AIRPORTS_FILE))
    leader = network.holding("executor").identity.peer_id
    nodes = Authorities(leader, leader, network.holding("coordinator").identity.peer_id)
    plan = make_plan(flights, airports, nodes, SEED, now_ms())
    ended = {aircraft_id(flight): airports[flight.destination] for flight in flights}
    return plan, {agent_id.encode(): (place.x_cm, place.y_cm) for agent_id, place in ended.items()}


async def start_peers(stage: Stage, ground: Ground) -> None:
    """One peer of each language, connected with every Python node, that knows the world."""
    for number, language in enumerate(FOREIGN, start=1):
        peer = stage.peers[language] = await ground.start(language, number)
        for node in stage.network.nodes.values():
            await peer.do("dial", addr=node.addr)
        await peer.do("world", genesis=stage.plan.genesis.to_bytes().hex())
    await stage.peers["rust"].do("follow", world_id=stage.world_id)


async def fly(stage: Stage, flights: Sequence[Flight]) -> None:
    """Everything is submitted, watched and checked until it is verified, or nothing moves any more."""
    owners = {AIRPORTS_OWNER, *(flight.carrier for flight in flights)}
    seeds = {owner_key(SEED, owner).identity: owner_seed(SEED, owner) for owner in owners}
    envelopes = len(stage.plan.airports) + len(stage.plan.flights)
    with show_progress(envelopes) as show:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, stage.clients, stage.world_id, stage.tracker, show)
            nursery.start_soon(check_on_the_way, stage)
            for part in (stage.plan.airports, stage.plan.flights):
                await act(stage, part, seeds)
                await settle(stage.tracker)
            nursery.cancel_scope.cancel()


async def run(flights: Sequence[Flight], directory: Path) -> Result:
    """The whole demo. Raises FAULTS, maybe in a group."""
    began = time.monotonic()
    logging.getLogger().addHandler(logging.NullHandler())
    network = Network(directory, layout=LAYOUT)
    plan, places = await trio.to_thread.run_sync(make_stage_plan, flights, network)
    genesis_file = directory / "airtraffic.genesis"
    genesis_file.write_bytes(plan.genesis.to_bytes())
    network.configure(genesis_file)
    commands = {language: command(language) for language in FOREIGN}
    note(f"world {plan.genesis.header.world_id}: starting {len(network.nodes)} Python nodes")
    async with network.running(), open_ground(commands, directory / "peers") as ground:
        async with open_caller([node.addr for node in network.nodes.values()]) as caller:
            clients = await connect(caller, network)
            stage = Stage(plan, places, network, clients, Tracker(), {}, Told())
            await start_peers(stage, ground)
            note("a peer each in " + ", ".join(FOREIGN) + " has joined; the flights begin")
            await fly(stage, flights)
            executed, observed = await same_height(clients, stage.world_id)
        await prove_receipts(stage)
        await vouched_for(stage, executed.height)
        await prove_positions(stage)
        note("the Go peer stores the world; then it is the only one left that has it")
        await store(stage)
        await stop_others(network)
        replayed = await replay(stage)
        stage.told.served = (await stage.peers["go"].do("served"))["blobs"]
    return judge(stage, executed, observed, replayed, len(flights), time.monotonic() - began)


def judge(
    stage: Stage, executed: At, observed: At, replayed: VerifyReport, flights: int, seconds: float
) -> Result:
    """What it all comes to."""
    told, tracker = stage.told, stage.tracker
    envelopes = len(stage.plan.airports) + len(stage.plan.flights)
    roots = {executed.state_root, observed.state_root, replayed.state_root}
    return Result(
        verified=len(roots) == 1
        and executed.height == observed.height
        and replayed.height >= executed.height
        and told.submitted == envelopes == len(tracker.verified_s)
        and not tracker.refused
        and min(told.heads, told.receipts, told.positions) > 0
        and told.served >= replayed.blobs_fetched > 0,
        world_id=stage.world_id,
        flights=flights,
        envelopes=envelopes,
        actions_applied=tracker.applied,
        actions_lost=stage.plan.actions - tracker.applied,
        blocks=tracker.height,
        submitted_by_js=told.submitted,
        heads_followed_by_rust=told.heads,
        receipts_proved_by_rust=told.receipts,
        positions_proved_by_rust=told.positions,
        height_stored_by_go=told.stored_height,
        executor_state_root=(executed.state_root or b"").hex(),
        observer_state_root=(observed.state_root or b"").hex(),
        replayed_state_root=replayed.state_root.hex(),
        blobs_served_by_go=told.served,
        seconds=round(seconds, 1),
    )


def main() -> int:
    """Parse, build, run, print. Exit 0: verified; 1: not, or a fault; 2: wrong use, or no toolchain; 130: Ctrl-C."""
    parser = argparse.ArgumentParser(prog="make demo-polyglot", description=__doc__)
    parser.add_argument("--flights", type=int, help="only the first so many")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object")
    parser.add_argument("--no-build", action="store_true", help="the peers are built")
    options = parser.parse_args()
    if options.flights is not None and options.flights < 1:
        parser.error("--flights is at least 1")
    try:
        for language in () if options.no_build else FOREIGN:
            build(language)
    except (Missing, BuildFailed) as failed:
        print(f"error: {failed}", file=sys.stderr)
        return 2
    data = read_flights(packaged(FLIGHTS_FILE), read_airports(packaged(AIRPORTS_FILE)))
    with tempfile.TemporaryDirectory(prefix="aw-polyglot-") as directory:
        try:
            result = interrupt.run(partial(run, data.flights[: options.flights], Path(directory)))
        except* FAULTS as group:
            print(*(f"error: {reason}" for reason in reasons(group)), sep="\n", file=sys.stderr)
            return_code = 1
        else:
            return_code = 0 if result.verified else 1
            if options.json:
                print(json.dumps(asdict(result)))
            else:
                print_result(result)
    return return_code


if __name__ == "__main__":
    sys.exit(exit_code(main))

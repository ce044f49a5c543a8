"""Node processes that end, politely and not, under load: nothing accepted is lost, and the state is the plan's.

In the end storage alone is left, killed and started once more: what it has on disk is enough for a stranger, the
command `aw verify`, to find and verify the world.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from bootstrap.demo.flights import AIRPORTS_FILE, FLIGHTS_FILE, packaged, read_airports, read_flights
from bootstrap.demo.plan import Authorities, Plan, make_plan
from bootstrap.demo.processes import Network, NodeProcess
from bootstrap.node import now_ms, open_caller
from p2p import names
from p2p.errors import NetworkError
from p2p.host import Libp2pNetwork
from p2p.network import DistributedNetwork
from runtime import chain, codec, rules, world
from runtime.messages import WorldStatus
from runtime.records import ActionBatch, Envelope, encode_envelopes
from runtime.services.client import DistributedClient

pytestmark = [pytest.mark.network, pytest.mark.demo, pytest.mark.timeout(300)]

T = TypeVar("T")
FLIGHTS = 30
PATIENCE_S = 60.0
LOAD_S = 0.2  # between envelopes, so that there is load as long as a restart takes


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until there is an answer: a node may be away just now."""
    with trio.move_on_after(PATIENCE_S):
        while True:
            try:
                return await ask()
            except NetworkError:
                await trio.sleep(0.05)
    raise AssertionError(f"no answer within {PATIENCE_S:.0f} s")


def plan_of(network: Network) -> Plan:
    airports = read_airports(packaged(AIRPORTS_FILE))
    flights = read_flights(packaged(FLIGHTS_FILE), airports).flights[:FLIGHTS]
    leader = network.holding("executor").identity.peer_id
    nodes = Authorities(leader, leader, network.holding("coordinator").identity.peer_id)
    return make_plan(flights, airports, nodes, 7, now_ms())


def replayed_root(plan: Plan) -> bytes:
    """The state that the plan gives when nothing goes wrong: all of it as one batch, built here."""
    envelopes = [*plan.airports, *plan.flights]
    tip, actions = chain.genesis_tip(plan.genesis), encode_envelopes(envelopes)
    batch = ActionBatch(
        world_id=plan.genesis.header.world_id,
        epoch=0,
        height=1,
        term=1,
        proposer_id=plan.genesis.authorities.proposers[0],
        prev_batch_hash=tip.batch_hash,
        timestamp_ms=now_ms(),
        actions_root=codec.merkle_root([envelope.to_bytes() for envelope in envelopes]),
        actions_ref=codec.content_id(actions),
        envelope_count=len(envelopes),
    )
    built = chain.build_block(plan.genesis, tip, batch, envelopes, world.check_signatures(envelopes))
    assert {receipt.code for receipt in built.outcome.receipts} == {"Applied"}
    return built.outcome.state.root()


async def status_of(caller: DistributedNetwork, node: NodeProcess) -> WorldStatus:
    """A node's own account of the one world."""
    client = DistributedClient(caller, await caller.connect([node.addr]))
    worlds = (await client.status()).worlds
    if not worlds:
        raise NetworkError("the world is not up yet")
    return worlds[0]


async def submit(gateway: DistributedClient, envelopes: Sequence[Envelope], accepted: list[Envelope]) -> None:
    """One envelope after the other; what is refused for now is handed in again."""
    for envelope in envelopes:
        while True:
            [result] = await patiently(
                lambda envelope=envelope: gateway.submit(envelope.record.world_id, [envelope])  # type: ignore[misc]
            )
            if result.outcome == "accepted":
                accepted.append(envelope)
                break
            assert result.retry_after_ms is not None, result.message
            await trio.sleep(result.retry_after_ms / 1_000)
        await trio.sleep(LOAD_S)


async def end_process(node: NodeProcess, sign: signal.Signals, comes_back: bool = True) -> None:
    """Signal the process that runs now, and wait for its end and, unless it stays down, for the next one."""
    process = node.process
    assert process is not None
    process.send_signal(sign)
    with trio.fail_after(PATIENCE_S):
        await process.wait()
        while comes_back and node.process is process:
            await trio.sleep(0.02)
    expected = 0 if sign is signal.SIGTERM else -sign
    assert process.returncode == expected, f"{node.name} ended with {process.returncode} after {sign.name}"


async def height_in_dht(caller: Libp2pNetwork, world_id: str) -> int:
    """Height of the head that the DHT gives; 0 for none."""
    record = await caller.dht.get_record(names.head_key(world_id))
    return 0 if record is None else rules.check_head_message(record, world_id).commit.record.height


async def all_proved(client: DistributedClient, world_id: str, envelopes: Sequence[Envelope]) -> None:
    """The node proves for each envelope that a block has it and that every action was applied."""
    for envelope in envelopes:
        proved = await patiently(lambda envelope=envelope: client.receipt(world_id, envelope.hash()))  # type: ignore[misc]
        assert [receipt.code for receipt in proved.receipts] == ["Applied"] * len(envelope.record.actions)


async def restarted_under_load(network: Network, plan: Plan) -> tuple[int, bytes]:
    """Every process is told to end while flights go on, and comes back; gives height and state root.

    What kill -9 does to each of them, test_demo.py sees.
    """
    world_id, accepted = plan.genesis.header.world_id, list[Envelope]()
    async with open_caller([node.addr for node in network.nodes.values()]) as caller:
        gateway, observer, executor = (network.holding(role) for role in ("gateway", "observer", "executor"))
        clients = [DistributedClient(caller, node.identity.peer_id) for node in (gateway, observer)]
        restarts = list(network.nodes.values())
        # Actors are ordered among themselves only: airports come first because they are waited for.
        await submit(clients[0], plan.airports, accepted)
        await all_proved(clients[1], world_id, plan.airports)
        share = -(-len(plan.flights) // len(restarts))
        for number, node in enumerate(restarts):
            async with trio.open_nursery() as load:
                flights = plan.flights[number * share : (number + 1) * share]
                load.start_soon(submit, clients[0], flights, accepted)
                await end_process(node, signal.SIGTERM)
                await patiently(lambda node=node: status_of(caller, node))  # type: ignore[misc]
        assert network.restarts == len(network.nodes)
        assert accepted == [*plan.airports, *plan.flights]
        await all_proved(clients[1], world_id, accepted)
        expected, heights = replayed_root(plan), list[int]()
        for node in (executor, observer):
            status = await patiently(lambda node=node: status_of(caller, node))  # type: ignore[misc]
            heights.append(status.executed or status.verified or 0)
            assert status.state_root == expected
        with trio.fail_after(PATIENCE_S):
            while (await patiently(lambda: status_of(caller, network.holding("storage")))).stored != max(
                heights
            ):
                await trio.sleep(0.05)
    return max(heights), expected


async def left_alone(network: Network, alone: NodeProcess) -> None:
    """Every other node is stopped for good; this one is killed, and comes back with nothing but its disk."""
    for node in network.nodes.values():
        if node is not alone:
            node.may_start = trio.Event()
            await end_process(node, signal.SIGTERM, comes_back=False)
    await end_process(alone, signal.SIGKILL)


async def aw_verify(world_id: str, addr: str) -> dict[str, Any]:
    """The command, a process that knows one id and one address; its answer."""
    command = [sys.executable, "-m", "bootstrap.cli", "verify", world_id, "--bootstrap", addr, "--json"]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


async def test_every_process_restarts_under_load_and_storage_alone_serves_a_verifier(tmp_path: Path) -> None:
    network = Network(tmp_path)
    plan = plan_of(network)
    world_id = plan.genesis.header.world_id
    genesis_file = tmp_path / "world.genesis"
    genesis_file.write_bytes(plan.genesis.to_bytes())
    network.configure(genesis_file)
    async with network.running():
        height, expected = await restarted_under_load(network, plan)
        storage = network.holding("storage")
        await left_alone(network, storage)
        async with open_caller([storage.addr]) as caller:  # until it is up again, and has told its own DHT
            with trio.fail_after(PATIENCE_S):
                while await patiently(lambda: height_in_dht(caller, world_id)) != height:
                    await trio.sleep(0.1)
        report = await aw_verify(world_id, storage.addr)
    assert report["verified"] is True
    assert report["trust"] == "replayed_from_genesis"
    assert (report["height"], report["blocks_replayed"]) == (height, height)
    assert report["state_root"] == expected.hex()

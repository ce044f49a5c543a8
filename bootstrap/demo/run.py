"""`aw demo`: a whole network on this machine, real flights, a verdict.

Hides: the order of the demo. Guarantees: nodes are processes of their own, talking libp2p; `verified` is said only
when the observer has replayed every envelope of the plan and holds the executor's state root; exit 0 only then. A
signal ends the nodes before it ends the demo.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import trio

from bootstrap.cli.failures import Exit, Failure
from bootstrap.cli.output import note, print_json
from bootstrap.demo.flights import (
    AIRPORTS_FILE,
    DataFileBad,
    FlightData,
    packaged,
    read_airports,
    read_file,
    read_flights,
)
from bootstrap.demo.flights import FLIGHTS_FILE as PACKAGED_FLIGHTS
from bootstrap.demo.flying import Clients, connect, patiently, same_height, settle, submit, watch
from bootstrap.demo.options import DemoOptions
from bootstrap.demo.plan import Authorities, Plan, make_plan
from bootstrap.demo.processes import Network, NodeFailed
from bootstrap.demo.report import Report, Show, make_report, print_next_steps, print_table, show_progress
from bootstrap.demo.tracking import Tracker
from bootstrap.node import now_ms, open_caller
from p2p.errors import NetworkError
from runtime.errors import WorldError
from runtime.services.client import ProvedOutcome

ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(options: DemoOptions) -> int:
    """Run the demo; gives the exit code. Raises Failure for bad data, and for nodes that do not start."""
    data, plan_for = _read(options)
    with ExitStack() as stack:
        directory = options.data_dir
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aw-demo-")))
        else:
            _make_empty(directory)
        try:
            outcome = trio.run(_until_told, options, directory, data, plan_for)
        except* NodeFailed as group:
            failed = group.exceptions[0]
            while isinstance(failed, BaseExceptionGroup):
                failed = failed.exceptions[0]
            assert isinstance(failed, NodeFailed)
            tail = failed.log.read_text(errors="replace").splitlines()[-5:] if failed.log.exists() else []
            raise Failure(Exit.NOT_REACHED, f"node {failed.name}", "; ".join([failed.why, *tail])) from None
    if isinstance(outcome, signal.Signals):  # all is cleared away: end as whoever sent it expects
        signal.signal(outcome, signal.SIG_DFL)
        os.kill(os.getpid(), outcome)
    return int(outcome)


def _make_empty(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        is_empty = not any(directory.iterdir())
    except OSError as error:
        why = error.strerror or str(error)
        raise Failure(Exit.WRONG_USE, f"data dir {directory}", why, "another --data-dir") from error
    if not is_empty:
        raise Failure(Exit.WRONG_USE, f"data dir {directory}", "is not empty", "another --data-dir")


def _read(options: DemoOptions) -> tuple[FlightData, Callable[[Authorities, int], Plan]]:
    try:
        airports = read_airports(packaged(AIRPORTS_FILE))
        if options.data is None:
            data = read_flights(packaged(PACKAGED_FLIGHTS), airports)
        else:
            data = read_flights(read_file(options.data), airports, str(options.data))
    except DataFileBad as bad:
        raise Failure(Exit.WRONG_USE, f"data file {bad.path}", f"{bad.field}: {bad.why}") from bad
    flights = data.flights[: options.flights]
    if not flights:
        which = f"data file {options.data or PACKAGED_FLIGHTS}"
        raise Failure(Exit.WRONG_USE, which, "holds no flight that can be flown")
    return data, lambda nodes, created_ms: make_plan(flights, airports, nodes, options.seed, created_ms)


async def _until_told(
    options: DemoOptions, directory: Path, data: FlightData, plan_for: Callable[[Authorities, int], Plan]
) -> int | signal.Signals:
    """The demo, or the signal that cut it short. After its verdict a signal is how --keep is meant to end."""
    verdicts: list[Exit] = []
    told: list[signal.Signals] = []
    with trio.open_signal_receiver(*ENDING_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def listen() -> None:
                async for number in signals:
                    told.append(signal.Signals(number))
                    note(f"{told[0].name}: stopping the nodes")
                    scope.cancel()

            nursery.start_soon(listen)
            with scope:
                await _run(options, directory, data, plan_for, verdicts.append)
            nursery.cancel_scope.cancel()
    return [*verdicts, *told][0]


async def _run(
    options: DemoOptions,
    directory: Path,
    data: FlightData,
    plan_for: Callable[[Authorities, int], Plan],
    judged: Callable[[Exit], None],
) -> None:
    """Everything, in order; `judged` is told the verdict before --keep begins to wait."""
    started = time.monotonic()
    logging.getLogger().addHandler(logging.NullHandler())
    network = Network(directory)
    leader = network.holding("executor").identity.peer_id
    nodes = Authorities(leader, leader, network.holding("coordinator").identity.peer_id)
    plan = await trio.to_thread.run_sync(plan_for, nodes, now_ms())
    genesis_file = directory / "airtraffic.genesis"
    genesis_file.write_bytes(plan.genesis.to_bytes())
    network.configure(genesis_file)
    note(f"world {plan.genesis.header.world_id}: starting {len(network.nodes)} node processes")
    async with network.running(), open_caller([node.addr for node in network.nodes.values()]) as caller:
        clients = await connect(caller, network)
        tracker = Tracker()
        with show_progress(len(plan.airports) + len(plan.flights)) as show:
            flying_s = await _fly(options, network, clients, plan, tracker, show)
        report = await _judge(options, network, clients, plan, tracker, data)
        report = make_report(report, wall_s=time.monotonic() - started, flying_s=flying_s)
        if options.json:
            print_json(report.as_json())
        else:
            print_table(report)
        judged(Exit.YES if report.verified else Exit.NO)
        if options.keep:
            print_next_steps(network, plan.genesis.header.world_id)
            await trio.sleep_forever()


# --- flying ------------------------------------------------------------------------------------------------


async def _fly(
    options: DemoOptions, network: Network, clients: Clients, plan: Plan, tracker: Tracker, show: Show
) -> float:
    """Submit everything and wait until the observer has replayed it; gives how long that took, in seconds."""
    world_id = plan.genesis.header.world_id
    begun = time.monotonic()
    async with trio.open_nursery() as nursery:
        for role, after_s in options.kills:
            nursery.start_soon(_kill_later, network, role, after_s)
        nursery.start_soon(watch, clients, world_id, tracker, show)
        await submit(clients, world_id, plan.airports, tracker)
        await settle(tracker)
        await submit(clients, world_id, plan.flights, tracker)
        await settle(tracker)
        flying_s = time.monotonic() - begun
        if options.kills:  # a kill that is still to come belongs to the demo
            last_s = max(after_s for _role, after_s in options.kills)
            await trio.sleep(max(0.0, begun + last_s + 1 - time.monotonic()))
        nursery.cancel_scope.cancel()
    return flying_s


async def _kill_later(network: Network, role: str, after_s: float) -> None:
    await trio.sleep(after_s)
    note(f"kill -9 {network.kill(role)} ({role})")


# --- judging -----------------------------------------------------------------------------------------------


async def _judge(
    options: DemoOptions, network: Network, clients: Clients, plan: Plan, tracker: Tracker, data: FlightData
) -> Report:
    """Compare executor and observer at one height; prove one receipt; count what it took."""
    world_id = plan.genesis.header.world_id
    executed, verified = await same_height(clients, world_id)
    flown = min(len(data.flights), options.flights or len(data.flights))
    proved = await _prove_one(clients, world_id, plan, tracker)
    lookups = 0
    for client in clients.all:
        counters = (await patiently(client.status)).counters
        lookups += counters.get("dht.lookups", 0)
    return Report(
        verified=executed == verified
        and executed.state_root is not None
        and not tracker.lost()
        and not tracker.turned_away,
        world_id=world_id,
        flights_read=data.rows,
        flights_flown=tracker.applied_of(plan.flights),
        flights_planned=flown,
        flights_skipped=dict(data.skipped),
        envelopes=len(tracker.submitted_s),
        actions_submitted=tracker.submitted_actions,
        actions_applied=tracker.applied,
        actions_refused=dict(sorted(tracker.refused.items())),
        actions_lost=_lost_actions(plan, tracker),
        turned_away=dict(sorted(tracker.turned_away.items())),
        blocks=tracker.height,
        head_height=executed.height,
        verified_height=verified.height,
        executor_state_root=executed.state_root or b"",
        observer_state_root=verified.state_root or b"",
        delays_ms=tuple(tracker.delays_ms()),
        disk_bytes=network.disk_bytes(),
        dht_lookups=lookups,
        processes=tuple(network.described()),
        restarts=network.restarts,
        receipt_proved_at=None if proved is None else proved.block.height,
    )


async def _prove_one(clients: Clients, world_id: str, plan: Plan, tracker: Tracker) -> ProvedOutcome | None:
    """The last flight's receipts, with a proof that this process checks itself."""
    last = plan.flights[-1].hash()
    if last not in tracker.verified_s:
        return None
    try:
        return await patiently(lambda: clients.observer.receipt(world_id, last))
    except (NetworkError, WorldError) as error:
        note(f"no proof of the last flight's receipts: {error}")
        return None


def _lost_actions(plan: Plan, tracker: Tracker) -> int:
    lost = tracker.lost()
    return sum(
        len(envelope.record.actions)
        for envelope in (*plan.airports, *plan.flights)
        if envelope.hash() in lost
    )

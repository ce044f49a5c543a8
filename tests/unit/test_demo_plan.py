"""The plan of the demo: pure, repeatable, and every action of it is one that the kernel applies."""

from __future__ import annotations

from collections import Counter

import pytest

from bootstrap.demo.flights import AIRPORTS_FILE, FLIGHTS_FILE, packaged, read_airports, read_flights
from bootstrap.demo.plan import Authorities, Plan, airport_id, make_plan, owner_key, passengers_of
from bootstrap.demo.report import Report
from bootstrap.demo.tracking import Tracker, percentile
from runtime import chain, codec, world
from runtime.keys import SigningKey
from runtime.records import ActionBatch, Receipt, encode_envelopes

CREATED_MS = 1_700_000_000_000
NODE = SigningKey(b"n" * 32).identity
AIRPORTS = read_airports(packaged(AIRPORTS_FILE))
FLIGHTS = read_flights(packaged(FLIGHTS_FILE), AIRPORTS).flights


def plan_of(count: int | None = None, seed: int = 0) -> Plan:
    return make_plan(FLIGHTS[:count], AIRPORTS, Authorities(NODE, NODE, NODE), seed, CREATED_MS)


def run(plan: Plan) -> tuple[chain.Tip, Counter[str]]:
    """All envelopes of a plan, 500 a block."""
    tip, codes = chain.genesis_tip(plan.genesis), Counter[str]()
    envelopes = [*plan.airports, *plan.flights]
    for first in range(0, len(envelopes), 500):
        part = envelopes[first : first + 500]
        blob = encode_envelopes(part)
        batch = ActionBatch(
            world_id=plan.genesis.header.world_id,
            epoch=0,
            term=1,
            height=tip.height + 1,
            prev_batch_hash=tip.batch_hash,
            envelope_count=len(part),
            actions_root=codec.merkle_root([envelope.to_bytes() for envelope in part]),
            actions_ref=codec.content_id(blob),
            proposer_id=NODE,
            timestamp_ms=CREATED_MS + first,
        )
        read = chain.check_batch_form(plan.genesis, tip.height, tip.batch_hash, tip.timestamp_ms, batch, blob)
        built = chain.build_block(plan.genesis, tip, batch, read, world.check_signatures(read))
        tip = built.tip
        codes.update(receipt.code for receipt in built.outcome.receipts)
    return tip, codes


@pytest.mark.timeout(120)
def test_the_kernel_applies_every_action_of_the_whole_week() -> None:
    plan = plan_of()
    tip, codes = run(plan)
    assert codes == {"Applied": plan.actions}
    assert plan.actions == 17_733
    for code in ("IAH", "LAX", "MIA"):
        arrived = sum(passengers_of(flight) for flight in FLIGHTS if flight.destination == code)
        assert world.balance(tip.state, airport_id(code), "passengers") == arrived


def test_equal_input_gives_equal_envelopes_and_another_seed_others() -> None:
    assert plan_of(50) == plan_of(50)
    assert plan_of(50).genesis.header.world_id != plan_of(50, seed=1).genesis.header.world_id
    assert owner_key(0, "UA").identity != owner_key(1, "UA").identity


def test_a_flight_is_one_atomic_envelope_of_its_carrier() -> None:
    plan = plan_of(200)
    assert len(plan.flights) == 200
    for flight, envelope in zip(FLIGHTS, plan.flights, strict=False):
        assert envelope.record.atomic
        assert envelope.record.actor_id == owner_key(0, flight.carrier).identity
        kinds = [kind for kind, _payload in envelope.record.actions]
        assert kinds[-2:] == ["move_agent", "transfer_resource"]
        assert kinds[:-2] in ([], ["register_agent"], ["move_agent"])


class TestTracking:
    def test_what_is_accepted_and_in_no_verified_block_is_lost(self) -> None:
        plan = plan_of(3)
        one, two, three = plan.flights
        tracker = Tracker()
        tracker.submit([one, two, three], 1.0)
        tracker.accepted = {one.hash(), two.hash()}
        assert tracker.lost() == {one.hash(), two.hash()}
        tracker.block(1, [Receipt(one.hash(), "Applied", 0), Receipt(three.hash(), "NonceMismatch")], 1.5)
        assert tracker.lost() == {two.hash()}
        assert tracker.applied == 1
        assert tracker.refused == {"NonceMismatch": 1}
        assert tracker.delays_ms() == [500, 500]

    def test_a_flight_is_flown_when_every_action_of_it_was_applied(self) -> None:
        one, two, three = plan_of(3).flights
        tracker = Tracker()
        tracker.submit([one, two, three], 1.0)
        rolled_back = [Receipt(two.hash(), "AtomicRolledBack", 0), Receipt(two.hash(), "OutOfBounds", 1)]
        tracker.block(1, [Receipt(one.hash(), "Applied", 0), *rolled_back], 1.5)
        assert tracker.applied_of([one]) == 1
        assert tracker.applied_of([one, two, three]) == 1

    def test_handing_in_again_counts_once(self) -> None:
        [one] = plan_of(1).flights
        tracker = Tracker()
        tracker.submit([one], 1.0)
        tracker.submit([one], 2.0)
        assert tracker.submitted_actions == len(one.record.actions)
        assert tracker.submitted_s == {one.hash(): 1.0}

    @pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 6), (99, 10), (100, 10)])
    def test_percentiles(self, percent: int, value: int) -> None:
        assert percentile(range(1, 11), percent) == value
        assert percentile([], percent) == 0


def test_the_json_object_has_the_documented_fields() -> None:
    report = Report(
        verified=True,
        world_id="w",
        flights_read=1,
        flights_flown=1,
        flights_planned=1,
        flights_skipped={},
        envelopes=1,
        actions_submitted=3,
        actions_applied=3,
        actions_refused={},
        actions_lost=0,
        turned_away={},
        blocks=1,
        head_height=1,
        verified_height=1,
        executor_state_root=b"\x01" * 32,
        observer_state_root=b"\x01" * 32,
        delays_ms=(10,),
        disk_bytes=1,
        dht_lookups=1,
        processes=(),
        restarts=0,
        receipt_proved_at=1,
        wall_s=2.0,
        flying_s=1.5,
    )
    documented = {
        "verified", "world_id", "flights_read", "flights_flown", "flights_skipped", "envelopes", "actions_submitted",
        "actions_applied", "actions_refused", "actions_lost", "blocks", "head_height", "verified_height",
        "executor_state_root", "observer_state_root", "actions_per_second", "submit_to_verified_ms", "disk_bytes",
        "processes", "restarts", "wall_s",
    }  # fmt: skip
    shown = report.as_json()
    assert documented <= shown.keys()
    assert shown["actions_per_second"] == 2.0

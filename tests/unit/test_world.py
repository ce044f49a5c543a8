"""The kernel: every receipt code, what stands after it, and that a taken envelope always uses its nonce."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from runtime import world
from runtime.actions import ACTION_KINDS, FUEL_MOVE_AGENT, FUEL_REGISTER_AGENT, FUEL_UNKNOWN_ACTION
from runtime.keys import SigningKey
from runtime.records import Envelope

World = Any  # tests/conftest.py: SmallWorld
MakeWorld = Callable[..., World]
AMOUNT_MAX = (1 << 63) - 1


@pytest.fixture
def small(small_world: MakeWorld) -> World:
    return small_world()


def register(agent_id: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return ("register_agent", {"agent_id": agent_id, "x_cm": 10, "y_cm": 20, "z_cm": 30} | more)


def move(agent_id: str, x_cm: int, y_cm: int = 20, z_cm: int = 30) -> tuple[str, dict[str, Any]]:
    return ("move_agent", {"agent_id": agent_id, "x_cm": x_cm, "y_cm": y_cm, "z_cm": z_cm})


def transfer(amount: int, kind: str = "fuel", **ends: Any) -> tuple[str, dict[str, Any]]:
    return ("transfer_resource", {"kind": kind, "amount": amount} | ends)


def codes(small: World, *envelopes: Envelope) -> list[str]:
    """Receipt codes of one more block."""
    return [receipt.code for receipt in small.run(*envelopes).outcome.receipts]


def code(small: World, actor: SigningKey, *actions: tuple[str, dict[str, Any]], **fields: Any) -> list[str]:
    return codes(small, small.envelope(actor, *actions, **fields))


# --- genesis -----------------------------------------------------------------------------------------------


def test_height_0_holds_the_balances_and_parameters_of_the_genesis(small: World) -> None:
    state = world.genesis_state(small.genesis)
    ann = small.actors[0].identity
    assert world.balance(state, ann, "fuel") == 1_000
    assert world.actor_nonce(state, ann) == 0
    assert world.agent(state, "ann") is None
    assert state.count(world.LEDGER) == 6
    assert state.get(world.KERNEL, b"max_move_cm") == b"\x18\x64"
    assert world.genesis_state(small.genesis).root() == state.root()


# --- actions that apply ------------------------------------------------------------------------------------


def test_an_agent_is_registered_with_an_endowment_from_its_actor(small: World) -> None:
    ann = small.actors[0]
    built = small.run(small.envelope(ann, register("plane", endow={"fuel": 300})))
    state = built.outcome.state
    assert world.agent(state, "plane") == world.Agent(ann.identity, 10, 20, 30)
    assert world.balance(state, "plane", "fuel") == 300
    assert world.balance(state, ann.identity, "fuel") == 700
    assert world.actor(state, ann.identity) == world.Actor(nonce=1, agents=1)
    [event] = built.outcome.events
    assert (event.kind, event.index) == ("AgentRegistered", 0)
    assert event.data == {
        "agent_id": "plane",
        "owner": ann.identity,
        "x_cm": 10,
        "y_cm": 20,
        "z_cm": 30,
        "endow": {"fuel": 300},
    }


def test_a_move_of_exactly_the_limit_applies_and_one_beyond_is_too_far(small: World) -> None:
    ann = small.actors[0]
    assert code(small, ann, register("plane")) == ["Applied"]
    built = small.run(small.envelope(ann, move("plane", 70, 100)))  # 60, 80: 100 away
    assert [receipt.code for receipt in built.outcome.receipts] == ["Applied"]
    assert built.outcome.events[0].data == {
        "agent_id": "plane",
        "from_cm": [10, 20, 30],
        "to_cm": [70, 100, 30],
    }
    assert code(small, ann, move("plane", 10, 20, 31)) == ["MoveTooFar"]  # 60, 80, 1
    assert world.agent(small.tip.state, "plane") == world.Agent(ann.identity, 70, 100, 30)


def test_resources_go_from_actor_and_agent_to_agent_and_actor(small: World) -> None:
    ann, bob = small.actors[0], small.actors[1]
    assert (
        code(
            small,
            ann,
            register("plane"),
            transfer(40, to_agent="plane"),
            transfer(15, from_agent="plane", to_actor=bob.identity),
            transfer(5, to_actor=bob.identity),
        )
        == ["Applied"] * 4
    )
    state = small.tip.state
    assert world.balance(state, "plane", "fuel") == 25
    assert world.balance(state, bob.identity, "fuel") == 1_020
    assert world.balance(state, ann.identity, "fuel") == 955
    sources = [event.data for event in small.blocks[-1].outcome.events[1:]]
    assert sources[0] == {"from_actor": ann.identity, "kind": "fuel", "amount": 40, "to_agent": "plane"}
    assert sources[1] == {"from_agent": "plane", "kind": "fuel", "amount": 15, "to_actor": bob.identity}


def test_a_balance_that_becomes_zero_leaves_no_cell(small: World) -> None:
    ann, bob = small.actors[0], small.actors[1]
    assert code(small, ann, transfer(500, "gold", to_actor=bob.identity)) == ["Applied"]
    state = small.tip.state
    assert state.get(world.LEDGER, world.ledger_key(ann.identity, "gold")) is None
    assert world.balance(state, ann.identity, "gold") == 0
    assert state.count(world.LEDGER) == 5


def test_a_transfer_to_oneself_changes_no_balance(small: World) -> None:
    ann = small.actors[0]
    assert code(small, ann, transfer(1_000, to_actor=ann.identity)) == ["Applied"]
    assert code(small, ann, transfer(1_001, to_actor=ann.identity)) == ["InsufficientResources"]
    assert world.balance(small.tip.state, ann.identity, "fuel") == 1_000


def test_a_transfer_of_nothing_applies_and_makes_no_cell(small: World) -> None:
    ann, stranger = small.actors[0], SigningKey(bytes([99]) * 32)
    cells = small.tip.state.count(world.LEDGER)
    assert code(small, ann, transfer(0, to_actor=stranger.identity)) == ["Applied"]
    assert small.tip.state.count(world.LEDGER) == cells


def test_an_actor_that_the_genesis_does_not_know_may_act(small: World) -> None:
    stranger = SigningKey(bytes([99]) * 32)
    assert codes(small, small.envelope(stranger, register("drone"), nonce=0)) == ["Applied"]
    assert world.agent(small.tip.state, "drone") == world.Agent(stranger.identity, 10, 20, 30)


# --- actions that are refused ------------------------------------------------------------------------------

OTHER = SigningKey(bytes([77]) * 32).identity

REFUSALS = {
    "an unknown kind": (("teleport", {"agent_id": "plane"}), "UnknownAction"),
    "a kind that later versions know": (("mint_resource", {"kind": "fuel", "amount": 1}), "UnknownAction"),
    "no payload": (("move_agent", {}), "BadPayload"),
    "a field too many": (register("new", size=1), "BadPayload"),
    "a version field": (register("new", v=1), "BadPayload"),
    "a null for an absent field": (register("new", endow=None), "BadPayload"),
    "an empty endowment": (register("new", endow={}), "BadPayload"),
    "an endowment of 17 kinds": (register("new", endow={f"k{i}": 1 for i in range(17)}), "BadPayload"),
    "a name with capitals": (register("New"), "BadPayload"),
    "a coordinate that is a bool": (move("plane", True), "BadPayload"),
    "a coordinate over 2^53-1": (move("plane", 1 << 53), "BadPayload"),
    "a negative amount": (transfer(-1, to_agent="plane"), "BadPayload"),
    "no receiver": (transfer(1), "BadPayload"),
    "two receivers": (transfer(1, to_agent="plane", to_actor=OTHER), "BadPayload"),
    "a receiver that is no key id": (transfer(1, to_actor=OTHER[6:]), "BadPayload"),
    "an id that is taken": (register("plane"), "AgentExists"),
    "another's id": (register("theirs"), "AgentExists"),
    "a place outside the box": (register("new", x_cm=1_001), "OutOfBounds"),
    "a place below the box": (register("new", z_cm=-1_001), "OutOfBounds"),
    "a move out of the box": (move("plane", -1), "OutOfBounds"),
    "a move of nobody": (move("nobody", 10), "AgentNotFound"),
    "a move of another's agent": (move("theirs", 10), "NotAuthorized"),
    "a gift from another's agent": (transfer(1, from_agent="theirs", to_agent="plane"), "NotAuthorized"),
    "a gift from nobody": (transfer(1, from_agent="nobody", to_agent="plane"), "AgentNotFound"),
    "a gift to nobody": (transfer(1, to_agent="nobody"), "AgentNotFound"),
    "a resource that is not": (transfer(1, "water", to_agent="plane"), "UnknownResource"),
    "an endowment of a resource that is not": (register("new", endow={"water": 1}), "UnknownResource"),
    "more than is held": (transfer(1_001, to_agent="plane"), "InsufficientResources"),
    "all that there is and more": (transfer(AMOUNT_MAX, to_agent="plane"), "InsufficientResources"),
    "more than the agent holds": (transfer(1, from_agent="plane", to_agent="plane"), "InsufficientResources"),
    "an endowment beyond the balance": (
        register("new", endow={"fuel": 1, "gold": 501}),
        "InsufficientResources",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_action_gets_its_code_and_changes_nothing_but_the_nonce(small: World, case: str) -> None:
    action, expected = REFUSALS[case]
    ann, bob = small.actors[0], small.actors[1]
    small.run(small.envelope(ann, register("plane")), small.envelope(bob, register("theirs")))
    before = small.tip.state
    built = small.run(small.envelope(ann, action))
    assert [receipt.code for receipt in built.outcome.receipts] == [expected]
    assert built.outcome.receipts[0].index == 0
    assert built.outcome.events == ()
    assert world.actor(small.tip.state, ann.identity) == world.Actor(nonce=2, agents=1)
    for namespace in (world.AGENTS, world.LEDGER, world.KERNEL):
        assert dict(small.tip.state.items(namespace)) == dict(before.items(namespace))


def test_an_actor_has_at_most_agents_per_actor_max_agents(small_world: MakeWorld) -> None:
    small = small_world(agents_per_actor_max=2)
    assert code(small, small.actors[0], register("a"), register("b"), register("c")) == [
        "Applied",
        "Applied",
        "TooManyAgents",
    ]
    assert code(small, small.actors[1], register("c")) == ["Applied"]


def test_the_fuel_of_a_block_is_bounded_and_its_envelopes_are_taken_all_the_same(
    small_world: MakeWorld,
) -> None:
    small = small_world(block_fuel_max=FUEL_REGISTER_AGENT + FUEL_MOVE_AGENT)
    ann = small.actors[0]
    built = small.run(small.envelope(ann, register("a"), register("b"), move("a", 11), ("unknown", {})))
    assert [receipt.code for receipt in built.outcome.receipts] == [
        "Applied",
        "BlockFuelExhausted",
        "Applied",  # it still fits
        "BlockFuelExhausted",
    ]
    assert built.block.fuel_used == FUEL_REGISTER_AGENT + FUEL_MOVE_AGENT
    assert code(small, ann, register("b")) == ["Applied"]


def test_refused_and_rolled_back_attempts_are_paid_for(small: World) -> None:
    ann = small.actors[0]
    envelope = small.envelope(ann, register("a"), ("unknown", {}), move("a", 11), atomic=True)
    built = small.run(envelope)
    assert built.block.fuel_used == FUEL_REGISTER_AGENT + FUEL_UNKNOWN_ACTION  # the third was not attempted


def test_every_kind_has_a_price() -> None:
    assert all(row.fuel > 0 for row in ACTION_KINDS.values())


# --- envelopes ---------------------------------------------------------------------------------------------


def test_an_atomic_envelope_applies_all_or_nothing(small: World) -> None:
    ann = small.actors[0]
    small.run(small.envelope(ann, register("plane")))
    bad = small.envelope(
        ann,
        transfer(10, to_agent="plane"),
        register("x"),
        move("plane", 900),
        transfer(1, to_agent="x"),
        atomic=True,
    )
    built = small.run(bad)
    assert [receipt.code for receipt in built.outcome.receipts] == [
        "AtomicRolledBack",
        "AtomicRolledBack",
        "MoveTooFar",
        "AtomicRolledBack",
    ]
    assert built.outcome.events == ()
    state = small.tip.state
    assert world.balance(state, ann.identity, "fuel") == 1_000
    assert world.agent(state, "x") is None
    assert world.actor(state, ann.identity) == world.Actor(nonce=2, agents=1)
    good = small.envelope(ann, transfer(10, to_agent="plane"), move("plane", 20), atomic=True)
    assert codes(small, good) == ["Applied", "Applied"]
    assert world.balance(small.tip.state, "plane", "fuel") == 10


def test_a_plain_envelope_keeps_what_applied(small: World) -> None:
    ann = small.actors[0]
    assert code(small, ann, register("plane"), move("plane", 900), move("plane", 20)) == [
        "Applied",
        "MoveTooFar",
        "Applied",
    ]
    assert world.agent(small.tip.state, "plane") == world.Agent(ann.identity, 20, 20, 30)


def assert_refused(small: World, envelope: Envelope, expected: str) -> None:
    """One refusal receipt, nothing taken, no fuel used."""
    before = small.tip.state.root()
    built = small.run(envelope)
    [receipt] = built.outcome.receipts
    assert (receipt.code, receipt.index, receipt.envelope_hash) == (expected, None, envelope.hash())
    assert not world.was_taken(built.outcome.receipts)
    assert built.block.fuel_used == 0
    assert small.tip.state.root() == before


def test_an_envelope_signed_by_another_is_refused_before_anything_else(small: World) -> None:
    ann, bob = small.actors[0], small.actors[1]
    expired = small.envelope(ann, register("plane"), register("x"), expires_at_height=1, nonce=7)
    forged = replace(expired, signature=bob.sign(expired.hash()))
    small.run()
    assert_refused(small, forged, "BadSignature")


@pytest.mark.parametrize(
    ("expires_at_height", "expected"),
    [(2, "Expired"), (3, None), (13, None), (14, "ExpiryTooFar")],
)
def test_the_expiry_holds_from_this_height_to_expiry_blocks_max_later(
    small_world: MakeWorld, expires_at_height: int, expected: str | None
) -> None:
    small = small_world(expiry_blocks_max=10)
    small.run(), small.run()  # the next is height 3
    envelope = small.envelope(small.actors[0], register("plane"), expires_at_height=expires_at_height)
    if expected is None:
        assert codes(small, envelope) == ["Applied"]
    else:
        assert_refused(small, envelope, expected)


def test_only_the_future_is_refused(small_world: MakeWorld) -> None:
    small = small_world(action_skew_ms=50)
    ann = small.actors[0]
    limit = small.tip.timestamp_ms + 200 + 50
    assert_refused(
        small, small.envelope(ann, register("plane"), timestamp_ms=limit + 1, nonce=0), "FromTheFuture"
    )
    small = small_world(action_skew_ms=50)
    late, early = (
        small.envelope(ann, register("plane"), timestamp_ms=limit),
        small.envelope(ann, move("plane", 11), timestamp_ms=0),
    )
    assert codes(small, late, early) == ["Applied", "Applied"]


@pytest.mark.parametrize("nonce", [0, 2, 3])
def test_a_nonce_that_is_not_the_next_is_refused(small: World, nonce: int) -> None:
    small.run(small.envelope(small.actors[0], register("plane")))
    assert_refused(small, small.envelope(small.actors[0], move("plane", 11), nonce=nonce), "NonceMismatch")


def test_nonces_follow_the_order_of_the_list(small: World) -> None:
    ann = small.actors[0]
    first, second = small.envelope(ann, register("plane")), small.envelope(ann, move("plane", 11))
    assert codes(small, second, first) == ["NonceMismatch", "Applied"]
    assert codes(small, second) == ["Applied"]


def test_a_refusal_is_found_among_the_receipts_and_leaves_the_envelope_untaken(small: World) -> None:
    ann, bob = small.actors[0], small.actors[1]
    taken = small.envelope(ann, register("plane"), move("plane", 900))
    refused = small.envelope(bob, register("drone"), nonce=5)
    receipts = small.run(refused, taken).outcome.receipts
    assert [receipt.code for receipt in world.envelope_outcome(receipts, taken.hash())] == [
        "Applied",
        "MoveTooFar",
    ]
    assert world.was_taken(world.envelope_outcome(receipts, taken.hash()))
    assert not world.was_taken(world.envelope_outcome(receipts, refused.hash()))
    assert world.envelope_outcome(receipts, bytes(32)) == ()
    assert not world.was_taken(())
    assert world.taken_places(receipts) == {taken.hash(): 1}


def test_step_leaves_the_state_before_as_it_was(small: World) -> None:
    before = small.tip.state
    root = before.root()
    small.run(small.envelope(small.actors[0], register("plane")))
    assert before.root() == root
    assert world.agent(before, "plane") is None

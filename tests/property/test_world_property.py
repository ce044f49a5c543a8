"""The kernel under any input: it never raises, never makes or loses a resource, repeats itself to the bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from runtime import chain, codec, limits, world
from runtime.keys import SigningKey
from runtime.records import Envelope
from runtime.state import State

MakeWorld = Callable[..., Any]  # tests/conftest.py: SmallWorld
Actions = list[tuple[str, dict[str, Any]]]

IDS = [SigningKey(bytes([number]) * 32).identity for number in (1, 2, 3)]  # the actors of SmallWorld

# --- payloads that mean something, and payloads that do not ------------------------------------------------

agents = st.sampled_from(["a", "b", "c"])
kinds = st.sampled_from(["fuel", "fuel", "gold", "water"])
amounts = st.one_of(st.integers(0, 600), st.just(limits.AMOUNT_MAX))
spots = st.integers(-10, 120)
places = st.fixed_dictionaries({"agent_id": agents, "x_cm": spots, "y_cm": spots, "z_cm": spots})
registers = st.builds(
    lambda place, endow: ("register_agent", place | ({"endow": endow} if endow else {})),
    places,
    st.dictionaries(kinds, amounts, max_size=2),
)
moves = places.map(lambda place: ("move_agent", place))
sources = st.just({}) | agents.map(lambda agent: {"from_agent": agent})
targets = agents.map(lambda agent: {"to_agent": agent}) | st.sampled_from(IDS).map(
    lambda key: {"to_actor": key}
)
transfers = st.builds(
    lambda kind, amount, source, target: (
        "transfer_resource",
        {"kind": kind, "amount": amount} | source | target,
    ),
    kinds,
    amounts,
    sources,
    targets,
)

texts = st.text(max_size=8)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(codec.INT_MIN, codec.INT_MAX) | texts | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "agent_id",
    "x_cm",
    "y_cm",
    "z_cm",
    "endow",
    "kind",
    "amount",
    "from_agent",
    "to_agent",
    "to_actor",
    "v",
]
senseless = st.tuples(
    st.sampled_from(["register_agent", "move_agent", "transfer_resource", "mint_resource", "\N{SNOWMAN}"]),
    st.dictionaries(st.sampled_from(FIELDS) | texts, anything, max_size=7),
)
# A payload that is right but for one field, so that every check behind the first is reached too.
spoiled = st.builds(
    lambda action, field, value: (action[0], action[1] | {field: value}),
    registers | moves | transfers,
    st.sampled_from(FIELDS),
    anything,
)

actions = st.lists(registers | moves | transfers | senseless | spoiled, min_size=1, max_size=4)
# Most envelopes are to be taken: now and then a nonce is off, or another key signs.
mishaps = st.sampled_from([(0, False)] * 8 + [(1, False), (0, True)])
signed = st.builds(
    lambda actor, wanted, atomic, mishap: (actor, wanted, atomic, *mishap),
    st.integers(0, 2),
    actions,
    st.booleans(),
    mishaps,
)
blocks = st.lists(st.lists(signed, max_size=6), min_size=1, max_size=3)
Blocks = list[list[tuple[int, Actions, bool, int, bool]]]


def run(small: Any, plan: Blocks) -> list[tuple[list[Envelope], chain.Built]]:
    """Blocks as planned: (actor, actions, atomic, how far the nonce is off, whether another key signs).

    Two agents are there from the start, so that actions find something to act on.
    """
    first = [("register_agent", {"agent_id": agent, "x_cm": 50, "y_cm": 50, "z_cm": 50}) for agent in "ab"]
    opening = [small.envelope(small.actors[number], action, nonce=0) for number, action in enumerate(first)]
    done = [(opening, small.run(*opening))]
    for block in plan:
        ahead = [world.actor_nonce(small.tip.state, identity) for identity in IDS]
        envelopes: dict[bytes, Envelope] = {}
        for actor, wanted, atomic, off, forged in block:
            envelope = small.envelope(small.actors[actor], *wanted, atomic=atomic, nonce=ahead[actor] + off)
            if forged:
                envelope = replace(envelope, signature=small.root.sign(envelope.hash()))
            elif off == 0:
                ahead[actor] += 1
            envelopes.setdefault(envelope.hash(), envelope)
        done.append((list(envelopes.values()), small.run(*envelopes.values())))
    return done


def totals(state: State) -> Counter[str]:
    found: Counter[str] = Counter()
    for key, value in state.items(world.LEDGER):
        amount = world.decode_amount(value)
        assert 0 < amount <= limits.AMOUNT_MAX
        found[codec.decode(key, limits.KEY_BYTES_MAX)[2]] += amount
    return found


@given(blocks)
def test_resources_are_conserved_and_balances_stay_in_range(small_world: MakeWorld, plan: Blocks) -> None:
    for _envelopes, built in run(small_world(), plan):
        assert totals(built.outcome.state) == {"fuel": 3_000, "gold": 1_500}


@given(blocks)
def test_the_nonce_counts_the_envelopes_that_were_taken(small_world: MakeWorld, plan: Blocks) -> None:
    taken: Counter[bytes] = Counter()
    for envelopes, built in run(small_world(), plan):
        for envelope in envelopes:
            outcome = world.envelope_outcome(built.outcome.receipts, envelope.hash())
            asked = len(envelope.record.actions)
            if world.was_taken(outcome):
                assert [receipt.index for receipt in outcome] == list(range(asked))
                taken[envelope.record.actor_id] += 1
            else:
                assert [receipt.index for receipt in outcome] == [None]
        for identity in IDS:
            assert world.actor_nonce(built.outcome.state, identity) == taken[identity]


@given(blocks)
def test_atomic_envelopes_apply_all_or_none_and_events_are_those_of_applied_actions(
    small_world: MakeWorld, plan: Blocks
) -> None:
    for envelopes, built in run(small_world(), plan):
        applied = [(r.envelope_hash, r.index) for r in built.outcome.receipts if r.code == "Applied"]
        assert [(event.envelope_hash, event.index) for event in built.outcome.events] == applied
        for envelope in envelopes:
            codes = [r.code for r in world.envelope_outcome(built.outcome.receipts, envelope.hash())]
            if envelope.record.atomic and len(set(codes)) > 1:
                assert "Applied" not in codes
                assert codes.count("AtomicRolledBack") == len(codes) - 1


@given(blocks)
def test_agents_are_counted_and_inside_the_box(small_world: MakeWorld, plan: Blocks) -> None:
    small = small_world(agents_per_actor_max=2)
    run(small, plan)
    owned: Counter[bytes] = Counter()
    for _key, value in small.tip.state.items(world.AGENTS):
        placed = world.Agent.from_bytes(value)
        owned[placed.owner] += 1
        assert 0 <= placed.x_cm <= 1_000
        assert 0 <= placed.y_cm <= 1_000
    for identity in IDS:
        assert world.actor(small.tip.state, identity).agents == owned[identity] <= 2


@given(blocks)
def test_a_replay_from_genesis_gives_the_same_blocks(small_world: MakeWorld, plan: Blocks) -> None:
    small = small_world()
    done = run(small, plan)
    again = small_world()
    for envelopes, built in done:
        batch, blob = again.batch(envelopes)
        read = again.form(batch, blob)
        signatures = world.check_signatures(read)
        replayed = chain.verify_block(again.genesis, again.tip, batch, read, signatures, built.block)
        again.tip = replayed.tip
        assert replayed.blobs == built.blobs
    assert again.tip.history == small.tip.history
    assert again.tip.state.root() == small.tip.state.root()

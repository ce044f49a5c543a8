"""Batches and blocks: their form, replay to the bit, and the proofs that hang on a block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from runtime import chain, codec, world
from runtime.errors import BadSignature, Diverged, Invalid
from runtime.records import WorldBlock, encode_envelopes
from runtime.state import StateProof

World = Any  # tests/conftest.py: SmallWorld
MakeWorld = Callable[..., World]
Forge = Callable[[World, Any, bytes], tuple[Any, bytes]]


@pytest.fixture
def small(small_world: MakeWorld) -> World:
    return small_world()


def register(agent_id: str) -> tuple[str, dict[str, Any]]:
    return ("register_agent", {"agent_id": agent_id, "x_cm": 1, "y_cm": 2, "z_cm": 3, "endow": {"fuel": 5}})


def run_blocks(small: World, count: int) -> None:
    """Blocks of two actions, every third of them empty."""
    for number in range(count):
        one = (
            small.envelope(small.actors[number % 3], register(f"agent{number}"), ("unknown", {}))
            if number % 3
            else None
        )
        small.run(*([one] if one else []))


# --- the form of a batch -----------------------------------------------------------------------------------


def test_a_batch_as_it_should_be_gives_its_envelopes_in_order(small: World) -> None:
    envelopes = [small.envelope(actor, register(f"a{n}")) for n, actor in enumerate(small.actors)]
    batch, blob = small.batch(envelopes)
    assert small.form(batch, blob) == envelopes


def test_an_empty_batch_is_valid_and_its_list_is_one_byte(small: World) -> None:
    batch, blob = small.batch([])
    assert blob == b"\x80"
    assert batch.actions_root == codec.EMPTY_ROOT
    assert small.form(batch, blob) == []


def with_list(small: World, envelopes: list[Any]) -> tuple[Any, bytes]:
    return small.batch(envelopes)


def foreign(small: World) -> Any:
    envelope = small.envelope(small.actors[0], register("x"))
    return replace(envelope, record=replace(envelope.record, world_id="a" * 32))


FORM: dict[str, tuple[Callable[[World, list[Any]], tuple[Any, bytes]], str]] = {
    "another world": (lambda s, e: s.batch(e, world_id="a" * 32), "batch.world_id"),
    "a height left out": (lambda s, e: s.batch(e, height=2), "batch.height"),
    "another parent": (lambda s, e: s.batch(e, prev_batch_hash=bytes(32)), "batch.prev_batch_hash"),
    "a time before the parent's": (lambda s, e: s.batch(e, timestamp_ms=999_999), "batch.timestamp_ms"),
    "another blob": (lambda s, e: (s.batch(e)[0], s.batch([])[1]), "batch.actions_ref"),
    "a count that is wrong": (lambda s, e: s.batch(e, envelope_count=2), "batch.envelope_count"),
    "a root that is wrong": (lambda s, e: s.batch(e, actions_root=bytes(32)), "batch.actions_root"),
    "an envelope twice": (lambda s, e: s.batch([*e, *e]), r"batch.actions\[3\]"),
    "an envelope twice, by other signatures": (
        lambda s, e: s.batch([e[0], replace(e[0], signature=bytes(64))]),
        r"batch.actions\[1\]",
    ),
    "an envelope of another world": (lambda s, e: s.batch([foreign(s)]), r"batch.actions\[0\].world_id"),
}


@pytest.mark.parametrize("case", FORM)
def test_a_batch_of_false_form_is_refused_by_its_field(small: World, case: str) -> None:
    forge, field = FORM[case]
    envelopes = [small.envelope(actor, register(f"a{n}")) for n, actor in enumerate(small.actors)]
    with pytest.raises(Invalid, match=f"^{field}: "):
        small.form(*forge(small, envelopes))


BLOBS = {
    "no list": codec.encode({"a": 1}),
    "a list of something else": codec.encode([1]),
    "no CBOR": b"\xff",
    "a longer head than needed": b"\x98\x00",
    "an envelope with an unknown key": codec.encode([[{"v": 1, "x": 1}, bytes(64)]]),
}


@pytest.mark.parametrize("case", BLOBS)
def test_actions_that_are_no_canonical_list_of_envelopes_are_refused(small: World, case: str) -> None:
    blob = BLOBS[case]
    batch, _ = small.batch([], actions_ref=codec.content_id(blob))
    with pytest.raises(Invalid, match=r"^batch\.actions"):
        small.form(batch, blob)


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        ("batch_envelopes_max", 2),
        ("envelope_bytes_max", 1_024),
        ("batch_actions_max", 64),
        ("batch_bytes_max", 32_776),
    ],
)
def test_the_limits_of_the_genesis_bound_a_batch(small_world: MakeWorld, limit: str, value: int) -> None:
    crowd = {
        "batch_envelopes_max": lambda s: [s.envelope(actor, register("x")) for actor in s.actors],
        "envelope_bytes_max": lambda s: [s.envelope(s.actors[0], ("k", {"x": bytes(1_000)}))],
        "batch_actions_max": lambda s: [
            s.envelope(s.actors[n], *[("k", {})] * (64 - 63 * n)) for n in (0, 1)
        ],
        "batch_bytes_max": lambda s: [
            s.envelope(s.actors[n], ("k", {"x": bytes(16_300)})) for n in (0, 1, 2)
        ],
    }[limit]
    roomy, tight = small_world(), small_world(**{limit: value})
    assert roomy.form(*roomy.batch(crowd(roomy)))
    with pytest.raises(Invalid, match=r"^batch\.actions"):
        tight.form(*tight.batch(crowd(tight)))


def test_signatures_nonces_and_expiry_are_no_matter_of_form(small: World) -> None:
    bad = replace(
        small.envelope(small.actors[0], register("x"), nonce=9, expires_at_height=1), signature=bytes(64)
    )
    small.run()
    assert small.form(*small.batch([bad])) == [bad]


# --- blocks ------------------------------------------------------------------------------------------------


def test_the_first_block_stands_on_the_header(small: World) -> None:
    header_hash = small.genesis.header.hash()
    block = small.run(small.envelope(small.actors[0], register("plane"))).block
    assert (block.height, block.prev_block_hash, block.history_root) == (1, header_hash, codec.EMPTY_ROOT)
    assert small.blocks[0].outcome.receipts[0].code == "Applied"


def test_a_block_names_its_batch_lists_and_history(small: World) -> None:
    run_blocks(small, 5)
    hashes = [built.block.hash() for built in small.blocks]
    for number, built in enumerate(small.blocks):
        block = built.block
        assert block.history_root == codec.merkle_root(hashes[:number])
        assert block.state_root == built.outcome.state.root()
        assert built.blobs[block.hash()] == block.preimage()
        assert WorldBlock.from_preimage(built.blobs[block.hash()]) == block
        assert chain.decode_receipts(built.blobs[block.receipts_ref]) == built.outcome.receipts
        assert chain.decode_events(built.blobs[block.journal_ref]) == built.outcome.events
        assert all(codec.content_id(blob) == content for content, blob in built.blobs.items())
        chain.check_lists(block, built.outcome.receipts, built.outcome.events)
        if number:
            assert block.prev_block_hash == hashes[number - 1]
    assert small.tip == chain.Tip(
        5,
        hashes[-1],
        small.blocks[-1].block.batch_hash,
        small.tip.timestamp_ms,
        small.tip.state,
        small.tip.history,
    )


def test_lists_of_another_block_are_refused(small: World) -> None:
    run_blocks(small, 3)
    _, second, third = small.blocks
    with pytest.raises(Invalid, match="receipts_root"):
        chain.check_lists(second.block, third.outcome.receipts, second.outcome.events)
    with pytest.raises(Invalid, match="event_root"):
        chain.check_lists(second.block, second.outcome.receipts, third.outcome.events)


CHANGES: dict[str, Any] = {
    "world_id": "a" * 32,
    "manifest_hash": bytes(32),
    **dict.fromkeys(("height", "term", "timestamp_ms", "fuel_used"), 77),
    "proposer_id": bytes.fromhex("002408011220") + bytes(32),
}


@pytest.mark.parametrize("field", [item.name for item in fields(WorldBlock)])
def test_a_block_with_one_field_changed_diverges_and_the_field_is_named(small: World, field: str) -> None:
    tip = small.tip
    envelopes = [small.envelope(small.actors[0], register("plane"))]
    batch, _ = small.batch(envelopes)
    signatures = world.check_signatures(envelopes)
    right = chain.build_block(small.genesis, tip, batch, envelopes, signatures).block
    verified = chain.verify_block(small.genesis, tip, batch, envelopes, signatures, right)
    assert verified.block == right
    changed = CHANGES.get(field)
    if changed is None:
        value = getattr(right, field)
        changed = bytes([value[0] ^ 1]) + value[1:]
    with pytest.raises(Diverged) as caught:
        chain.verify_block(
            small.genesis, tip, batch, envelopes, signatures, replace(right, **{field: changed})
        )
    assert (caught.value.field, caught.value.height) == (field, 1)
    assert caught.value.claimed != caught.value.replayed


def test_a_batch_that_does_not_follow_the_tip_is_not_executed(small: World) -> None:
    batch, _ = small.batch([], height=2)
    with pytest.raises(Invalid, match=r"batch\.height"):
        chain.build_block(small.genesis, small.tip, batch, [], [])


def test_the_order_of_the_list_decides(small: World, small_world: MakeWorld) -> None:
    other = small_world()
    ann, bob = small.actors[0], small.actors[1]
    first, second = small.envelope(ann, register("plane")), small.envelope(bob, register("plane"))
    assert small.run(first, second).block.state_root != other.run(second, first).block.state_root


# --- proofs ------------------------------------------------------------------------------------------------


def test_every_receipt_and_event_is_proved_under_its_block_and_no_other(small: World) -> None:
    run_blocks(small, 4)
    small.run(
        *(small.envelope(actor, register(f"z{n}"), ("unknown", {})) for n, actor in enumerate(small.actors))
    )
    built, other = small.blocks[-1], small.blocks[1]
    for index, receipt in enumerate(built.outcome.receipts):
        proof = chain.prove_receipt(built.outcome.receipts, index)
        chain.verify_receipt_proof(built.block, receipt, proof)
        with pytest.raises(Invalid):
            chain.verify_receipt_proof(other.block, receipt, proof)
        with pytest.raises(Invalid):
            chain.verify_receipt_proof(built.block, replace(receipt, code="Applause"), proof)
    for index, event in enumerate(built.outcome.events):
        proof = chain.prove_event(built.outcome.events, index)
        chain.verify_event_proof(built.block, event, proof)
        wrong = replace(proof, path=proof.path[:-1])
        with pytest.raises(Invalid):
            chain.verify_event_proof(built.block, event, wrong)
        with pytest.raises(Invalid):
            chain.verify_event_proof(
                built.block, event, replace(proof, index=(proof.index + 1) % proof.count)
            )


def told_apart(built: chain.Built) -> tuple[list[Any], list[Any], list[Any]]:
    """All receipts of a block with their places: those of its first envelope, of the next, of the last."""
    receipts = built.outcome.receipts
    placed = [(receipt, chain.prove_receipt(receipts, n)) for n, receipt in enumerate(receipts)]
    first, middle, last = (
        [each for each in placed if each[0].envelope_hash == digest]
        for digest in dict.fromkeys(receipt.envelope_hash for receipt in receipts)
    )
    return first, middle, last


def block_of_three(small: World) -> chain.Built:
    """Envelopes of three and two actions, and a refused one between them."""
    wrong = small.envelope(small.actors[1], ("unknown", {}), nonce=7)
    three = small.envelope(small.actors[0], *(("unknown", {}) for _ in range(3)))
    return small.run(three, wrong, small.envelope(small.actors[2], ("unknown", {}), ("unknown", {})))


def test_all_receipts_of_an_envelope_are_proved_with_the_one_behind_them(small: World) -> None:
    built = block_of_three(small)
    first, middle, last = told_apart(built)
    assert [len(first), len(middle), len(last)] == [3, 1, 2]
    for own, after in ((first, middle[0]), (middle, last[0]), (last, None)):
        chain.verify_envelope_receipts(built.block, own[0][0].envelope_hash, own, after)


def test_receipts_of_which_one_is_left_out_moved_or_added_are_refused(small: World) -> None:
    built = block_of_three(small)
    first, middle, last = told_apart(built)
    shorter = [(receipt, replace(place, count=place.count - 1)) for receipt, place in last]
    for own, after in [
        ([], first[0]),
        (first[:2], None),  # left out at the end, hidden or not
        (first[:2], first[2]),
        (first[:2], middle[0]),
        (first[1:], middle[0]),  # at the start
        ([first[0], first[2]], middle[0]),
        ([first[1], first[0], first[2]], middle[0]),
        (first, None),
        (first, last[0]),
        (first + middle, last[0]),
        (middle + last, None),
        (last, first[0]),
        (last[:1], None),
        (shorter[:1], None),  # a false count makes no last receipt
        ([*first[:2], (replace(first[2][0], code="Applied"), first[2][1])], middle[0]),
        (first, (replace(middle[0][0], code="Applied"), middle[0][1])),
        ([(replace(first[0][0], index=None), first[0][1]), *first[1:]], middle[0]),
    ]:
        envelope_hash = (own or first)[0][0].envelope_hash
        with pytest.raises(Invalid, match=r"receipt|proof\.path"):
            chain.verify_envelope_receipts(built.block, envelope_hash, own, after)


def test_every_old_block_is_proved_under_the_newest(small: World) -> None:
    run_blocks(small, 9)
    newest = small.blocks[-1].block
    below = [built.block.hash() for built in small.blocks[:-1]]
    for built in small.blocks[:-1]:
        path = tuple(codec.merkle_path(below, built.block.height - 1))
        chain.verify_history_proof(newest, built.block, path)
        with pytest.raises(Invalid):
            chain.verify_history_proof(newest, replace(built.block, state_root=bytes(32)), path)
        with pytest.raises(Invalid):
            chain.verify_history_proof(newest, replace(built.block, height=built.block.height % 8 + 1), path)
    chain.verify_history_proof(newest, newest, ())
    with pytest.raises(Invalid):
        chain.verify_history_proof(newest, replace(newest, state_root=bytes(32)), ())
    with pytest.raises(Invalid):
        chain.verify_history_proof(small.blocks[0].block, newest, ())


def test_one_answer_proves_an_agent_from_the_world_id_alone(small: World) -> None:
    small.run(small.envelope(small.actors[0], register("plane")))
    built = small.blocks[-1]
    head, key = small.head_of(built), world.agent_key("plane")
    proof = StateProof.from_bytes(small.tip.state.prove(world.AGENTS, key).to_bytes())
    verdict = chain.verify_state_answer(small.world_id, head, built.block, world.AGENTS, key, proof)
    assert verdict.value is not None
    assert world.Agent.from_bytes(verdict.value) == world.agent(small.tip.state, "plane")
    assert (verdict.trust, verdict.epoch, verdict.height) == ("attested", 0, 1)
    assert verdict.age_ms(head.commit.record.as_of_ms + 5) == 5
    absent = small.tip.state.prove(world.AGENTS, b"ghost")
    assert (
        chain.verify_state_answer(small.world_id, head, built.block, world.AGENTS, b"ghost", absent).value
        is None
    )


def test_a_state_answer_with_a_false_head_block_or_proof_is_refused(small: World) -> None:
    run_blocks(small, 2)
    old, built = small.blocks
    head, key = small.head_of(built), world.agent_key("agent1")
    proof = small.tip.state.prove(world.AGENTS, key)
    stale = old.outcome.state.prove(world.AGENTS, key)
    forged = replace(head, commit=replace(head.commit, signature=bytes(64)))
    lying = small.head(2, bytes(32), built.block.hash())  # certified for another batch than the block's
    for world_id, claimed, block, path, error in (
        ("a" * 32, head, built.block, proof, Invalid),
        (small.world_id, forged, built.block, proof, BadSignature),
        (small.world_id, head, old.block, proof, Invalid),
        (small.world_id, head, replace(built.block, state_root=bytes(32)), proof, Invalid),
        (small.world_id, head, built.block, stale, Invalid),
        (small.world_id, lying, built.block, proof, Invalid),
    ):
        with pytest.raises(error):
            chain.verify_state_answer(world_id, claimed, block, world.AGENTS, key, path)


def test_a_forged_state_with_a_proof_of_its_own_is_refused(small: World) -> None:
    run_blocks(small, 2)
    built, ann = small.blocks[-1], small.actors[0].identity
    key = world.ledger_key(ann, "fuel")
    forged = small.tip.state.set(world.LEDGER, key, codec.encode(1_000_000))
    block = replace(built.block, state_root=forged.root())
    proof = forged.prove(world.LEDGER, key)
    with pytest.raises(Invalid, match="block_hash"):
        chain.verify_state_answer(small.world_id, small.head_of(built), block, world.LEDGER, key, proof)


def test_the_list_that_a_sequencer_encodes_is_the_list_that_is_read(small: World) -> None:
    envelopes = [small.envelope(small.actors[0], register(f"a{n}")) for n in range(30)]
    assert small.form(*small.batch(envelopes)) == envelopes
    assert encode_envelopes(envelopes) == codec.encode([envelope.to_value() for envelope in envelopes])

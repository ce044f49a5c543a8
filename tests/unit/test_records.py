"""Rules between the fields of records; seals; sizes: the largest of each fits where it must go."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from runtime import codec, limits, records
from runtime.errors import BadSignature, Invalid, UnknownVersion
from runtime.keys import SigningKey
from runtime.records import SEAL_OVERHEAD_BYTES, seal, sealed_from_bytes
from runtime.schema import Record

KEYS = [SigningKey(bytes([number]) * 32) for number in range(1, 41)]
IDS = sorted(key.identity for key in KEYS)
BY_ID = {key.identity: key for key in KEYS}
LAST = limits.COUNT_MAX
HASH = b"\xff" * 32
WORLD_ID = "a" * 32


@pytest.fixture
def world(small_world: Any) -> Any:
    return small_world()


@pytest.fixture
def envelope(world: Any) -> Any:
    return world.envelope(world.actors[0], ("move_agent", {"agent_id": "x"}))


class TestSeals:
    def test_a_seal_comes_back_and_verifies(self, envelope: Any) -> None:
        read = sealed_from_bytes(records.ActionEnvelope, envelope.to_bytes())
        read.verify()
        assert read == envelope
        assert read.to_bytes() == envelope.to_bytes() == codec.encode(envelope.to_value())

    def test_the_signature_is_no_part_of_the_hash(self, envelope: Any) -> None:
        assert replace(envelope, signature=bytes(64)).hash() == envelope.hash()

    def test_a_seal_by_nobody_is_well_formed_and_does_not_verify(self, envelope: Any) -> None:
        read = sealed_from_bytes(records.ActionEnvelope, replace(envelope, signature=bytes(64)).to_bytes())
        with pytest.raises(BadSignature, match="envelope.signature"):
            read.verify()

    def test_a_signature_moved_to_another_record_does_not_verify(self, world: Any, envelope: Any) -> None:
        other = replace(envelope, record=replace(envelope.record, nonce=7))
        with pytest.raises(BadSignature):
            other.verify()

    def test_only_the_key_that_the_record_names_can_seal_it(self, world: Any, envelope: Any) -> None:
        with pytest.raises(Invalid, match="envelope.actor_id"):
            seal(envelope.record, world.proposer)

    def test_a_seal_of_another_kind_of_record_is_refused(self, world: Any, envelope: Any) -> None:
        with pytest.raises(Invalid):
            sealed_from_bytes(records.Commit, envelope.to_bytes())

    def test_a_sealed_record_of_another_version_is_unknown(self, envelope: Any) -> None:
        data = codec.encode([{**envelope.record.to_value(), "v": 2}, envelope.signature])
        with pytest.raises(UnknownVersion):
            sealed_from_bytes(records.ActionEnvelope, data)


class TestEnvelopes:
    def test_a_list_comes_back_in_its_order(self, world: Any) -> None:
        envelopes = [world.envelope(world.actors[0], ("x", {})) for _ in range(3)]
        data = records.encode_envelopes(envelopes[::-1])
        assert records.decode_envelopes(data, len(data), 3) == envelopes[::-1]
        assert data == codec.encode([envelope.to_value() for envelope in envelopes[::-1]])

    def test_a_list_has_a_size_and_a_count(self, envelope: Any) -> None:
        data = records.encode_envelopes([envelope, envelope])
        with pytest.raises(Invalid, match="at most 1 envelopes"):
            records.decode_envelopes(data, len(data), 1)
        with pytest.raises(Invalid, match=f"at most {len(data) - 1}"):
            records.decode_envelopes(data, len(data) - 1, 2)

    def test_the_empty_list_is_one_byte(self) -> None:
        assert records.encode_envelopes([]) == b"\x80"
        assert records.decode_envelopes(b"\x80", 1, 0) == []

    @pytest.mark.parametrize(
        "actions",
        [
            (),
            (("x", {}),) * 65,
            (("", {}),),
            (("x" * 65, {}),),
            (("x", []),),
            (("x",),),
            (("x", {}, 1),),
            ((1, {}),),
            (["x", {}],),
        ],
    )
    def test_actions_that_are_no_1_to_64_pairs_are_refused(self, envelope: Any, actions: Any) -> None:
        with pytest.raises(Invalid, match=r"envelope\.actions"):
            replace(envelope.record, actions=actions)

    def test_a_payload_outside_the_encoding_has_no_bytes(self, envelope: Any) -> None:
        for payload in ({"x": 1.5}, {1: "x"}, {"x": 1 << 63}, {"x": {"y": object()}}):
            with pytest.raises(Invalid):
                replace(envelope.record, actions=(("x", payload),)).to_bytes()

    def test_an_envelope_fills_its_32_kib_to_the_byte_and_no_further(self, world: Any) -> None:
        def sized(size: int) -> Any:
            return world.envelope(world.actors[0], ("x", {"p": bytes(size)}), nonce=0)

        small = len(sized(30_000).to_bytes()) - 30_000
        largest = sized(limits.ENVELOPE_BYTES_MAX - small)
        assert len(largest.to_bytes()) == limits.ENVELOPE_BYTES_MAX
        assert sealed_from_bytes(records.ActionEnvelope, largest.to_bytes()) == largest
        with pytest.raises(Invalid, match="at most"):
            sized(limits.ENVELOPE_BYTES_MAX - small + 1)


class TestLists:
    def test_the_executors_of_a_head_ascend_without_equals(self, world: Any) -> None:
        built = world.run(world.envelope(world.actors[0], ("x", {})))
        head = world.head_of(built)
        other = world.head_of(built, executor=world.executors[1])
        both = sorted((*head.attestations, *other.attestations), key=lambda sealed: sealed.record.executor_id)
        replace(head, attestations=tuple(both))
        for bad in (both[::-1], [both[0], both[0]], []):
            with pytest.raises(Invalid, match=r"head\.attestations"):
                replace(head, attestations=tuple(bad))

    def test_the_threshold_is_at_most_the_number_of_root_keys(self, world: Any) -> None:
        header = world.genesis.header
        with pytest.raises(Invalid, match=r"genesis\.root_threshold"):
            replace(header, root_threshold=len(header.root_keys) + 1)

    def test_a_world_cannot_begin_with_more_than_an_amount_of_one_kind(self, world: Any) -> None:
        body = world.genesis.body
        half = limits.AMOUNT_MAX // 2 + 1
        replace(body, balances=((IDS[0], "gold", half), (IDS[1], "gold", half - 1)))
        with pytest.raises(Invalid, match=r"balances\[1\]"):
            replace(body, balances=((IDS[0], "gold", half), (IDS[1], "gold", half)))

    @pytest.mark.parametrize("code", ["", "x" * 65, "Äpfel", "a b", "a1", 1, b"Applied"])
    def test_a_code_is_1_to_64_ascii_letters(self, code: Any) -> None:
        with pytest.raises(Invalid, match=r"receipt\.code"):
            records.Receipt(HASH, code)

    @pytest.mark.parametrize("index", [-1, 64, True])
    def test_an_index_is_one_of_64(self, index: Any) -> None:
        with pytest.raises(Invalid, match=r"receipt\.index"):
            records.Receipt(HASH, "Applied", index)


def largest_set() -> records.AuthoritySet:
    return records.AuthoritySet(
        epoch=LAST,
        proposers=tuple(IDS[:16]),
        executors=tuple(IDS[16:32]),
        certifiers=(IDS[32],),
        commit_threshold=1,
        world_id=WORLD_ID,
        resume=records.Resume(LAST, HASH),
    )


def largest_head() -> records.WorldHeadAnnounce:
    header = records.GenesisHeader("n" * 64, tuple(IDS[:8]), 8, HASH, HASH, LAST)
    commit = records.Commit(WORLD_ID, LAST, LAST, LAST, HASH, IDS[32], LAST)
    attestations = [
        records.BlockAttestation(WORLD_ID, LAST, LAST, HASH, executor, records.SnapshotRef(LAST, HASH))
        for executor in IDS[16:20]
    ]
    signatures = tuple((index, b"\xff" * 64) for index in range(8))
    return records.WorldHeadAnnounce(
        header,
        records.SignedAuthorities(largest_set(), signatures),
        seal(commit, BY_ID[commit.signer]),
        tuple(seal(attestation, BY_ID[attestation.signer]) for attestation in attestations),
        HASH,
    )


def largest(record: type[Record], **values: Any) -> Record:
    """The record with the greatest value in every field that is not given."""
    greatest = {
        "world_id": WORLD_ID,
        "stage": "replicated",
        "snapshot": records.SnapshotRef(LAST, HASH),
        **values,
    }
    for item in fields(record):  # type: ignore[arg-type]
        name = item.name
        if name not in greatest:
            greatest[name] = IDS[0] if name.endswith("_id") else LAST
            if name.endswith(("_hash", "_root", "_ref")):
                greatest[name] = HASH
    return record(**{item.name: greatest[item.name] for item in fields(record)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "record",
    [
        records.Acceptance,
        records.ActionBatch,
        records.BlockAttestation,
        records.Commit,
        records.LeaseGrant,
        records.WorldBlock,
    ],
    ids=lambda record: record.NAME,
)
def test_the_largest_record_of_a_kind_fits_its_limit_with_its_seal(record: type[Record]) -> None:
    seal_bytes = 0 if record is records.WorldBlock else SEAL_OVERHEAD_BYTES
    assert len(largest(record).to_bytes()) + seal_bytes <= record.BYTES_MAX


def test_the_largest_set_of_authorities_and_the_largest_head_fit_their_limits() -> None:
    assert len(largest_set().to_bytes()) <= limits.AUTHORITIES_BYTES_MAX
    head = largest_head()
    assert len(head.to_bytes()) <= limits.HEAD_BYTES_MAX
    assert records.WorldHeadAnnounce.from_bytes(head.to_bytes()) == head


def test_the_largest_block_announcement_fits_a_gossip_message() -> None:
    block: Any = largest(records.WorldBlock)
    attestation = largest_head().attestations[0]
    data = records.BlockAnnounce(block, attestation).to_bytes()
    assert records.BlockAnnounce.from_bytes(data) == records.BlockAnnounce(block, attestation)

"""A world id binds its genesis to the last bit; authority comes from there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from runtime import codec, genesis
from runtime.errors import BadSignature, Invalid, UnknownVersion
from runtime.keys import SigningKey
from runtime.records import (
    AuthoritySet,
    Bounds,
    Genesis,
    Resume,
    SignedAuthorities,
    signed_authorities_from_value,
)

ROOTS = [SigningKey(bytes([number]) * 32) for number in (1, 2, 3)]


@pytest.fixture
def world(small_world: Any) -> Any:
    return small_world()


def test_every_bit_of_the_file_matters(world: Any) -> None:
    data = world.genesis.to_bytes()
    assert genesis.decode_genesis(data, world.world_id) == world.genesis
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises((Invalid, UnknownVersion)):
            genesis.decode_genesis(bytes(changed), world.world_id)


def test_the_genesis_of_another_world_is_refused(world: Any, small_world: Any) -> None:
    other = small_world(block_fuel_max=7).genesis
    with pytest.raises(Invalid, match="not " + world.world_id):
        genesis.decode_genesis(other.to_bytes(), world.world_id)


def test_parts_that_the_header_does_not_name_are_refused(world: Any, small_world: Any) -> None:
    other = small_world(block_fuel_max=7).genesis
    with pytest.raises(Invalid, match="body"):
        genesis.check_genesis(Genesis(world.genesis.header, other.body, world.genesis.authorities))
    stranger = replace(world.genesis.authorities, proposers=(ROOTS[0].identity,))
    with pytest.raises(Invalid, match="authorities"):
        genesis.check_genesis(Genesis(world.genesis.header, world.genesis.body, stranger))


def test_a_world_id_is_32_base32_characters_of_the_headers_hash(world: Any) -> None:
    assert codec.unbase32(world.world_id, "world_id") == world.genesis.header.hash()[:20]
    assert len(world.world_id) == 32


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"balances": {(ROOTS[0].identity, "gold"): 1}}, "resource_kinds"),
        ({"balances": {(root.identity, "fuel"): 2**62 for root in ROOTS}}, "total of fuel"),
        ({"balances": {(b"short", "fuel"): 1}}, "38 bytes"),
        ({"resource_kinds": ["Fuel"]}, "resource_kinds"),
        ({"max_move_cm": -1}, "max_move_cm"),
    ],
)
def test_a_body_that_breaks_a_rule_names_the_field(changes: dict[str, Any], field: str) -> None:
    good: dict[str, Any] = {
        "bounds": Bounds(0, 1, 0, 1, 0, 1),
        "max_move_cm": 1,
        "resource_kinds": ["fuel"],
        "balances": {},
    }
    genesis.make_body(**good)
    with pytest.raises(Invalid, match=field):
        genesis.make_body(**(good | changes))


def test_bounds_that_are_inside_out_are_refused() -> None:
    with pytest.raises(Invalid, match="y_min_cm"):
        Bounds(0, 1, 2, 1, 0, 1)


class TestLaterEpochs:
    @pytest.fixture
    def header(self, world: Any) -> Any:
        keys = tuple(sorted(root.identity for root in ROOTS))
        return replace(world.genesis.header, root_keys=keys, root_threshold=2)

    def signed(self, header: Any, *signers: SigningKey, **changes: Any) -> SignedAuthorities:
        values = {
            "epoch": 1,
            "proposers": (ROOTS[0].identity,),
            "executors": (ROOTS[0].identity,),
            "certifiers": (ROOTS[0].identity,),
            "commit_threshold": 1,
            "world_id": header.world_id,
            "resume": Resume(0, header.hash()),
        }
        authorities = AuthoritySet(**(values | changes))
        pairs = sorted(
            (header.root_keys.index(key.identity), key.sign(authorities.hash())) for key in signers
        )
        return SignedAuthorities(authorities, tuple(pairs))

    def test_exactly_the_threshold_of_root_keys_is_needed(self, header: Any) -> None:
        good = self.signed(header, ROOTS[0], ROOTS[2])
        assert genesis.check_authorities(header, good) == good.authorities
        for signers in ((ROOTS[0],), ROOTS):
            with pytest.raises(Invalid, match="exactly 2"):
                genesis.check_authorities(header, self.signed(header, *signers))

    def test_a_signature_of_something_else_is_refused(self, header: Any) -> None:
        good = self.signed(header, ROOTS[0], ROOTS[1])
        forged = replace(good, signatures=tuple((index, bytes(64)) for index, _signature in good.signatures))
        with pytest.raises(BadSignature):
            genesis.check_authorities(header, forged)
        moved = replace(good, authorities=replace(good.authorities, epoch=2))
        with pytest.raises(BadSignature):
            genesis.check_authorities(header, moved)

    def test_a_set_of_another_world_is_refused(self, header: Any) -> None:
        with pytest.raises(Invalid, match="world_id"):
            genesis.check_authorities(header, self.signed(header, ROOTS[0], ROOTS[1], world_id="a" * 32))

    def test_epoch_0_has_no_signatures_and_is_bound_by_its_hash(self, world: Any) -> None:
        header, first = world.genesis.header, world.genesis.authorities
        assert genesis.check_authorities(header, SignedAuthorities(first)) == first
        with pytest.raises(Invalid, match="epoch 0 has none"):
            genesis.check_authorities(header, SignedAuthorities(first, ((0, bytes(64)),)))
        with pytest.raises(Invalid, match="not the set"):
            genesis.check_authorities(
                header, SignedAuthorities(replace(first, proposers=(ROOTS[0].identity,)))
            )

    def test_world_and_resume_come_with_epoch_1_and_not_before(self, header: Any) -> None:
        for changes in ({"epoch": 0}, {"world_id": None}, {"resume": None}):
            with pytest.raises(Invalid, match="from epoch 1 on"):
                self.signed(header, **changes)

    def test_root_indexes_ascend(self, header: Any) -> None:
        value = self.signed(header, ROOTS[0], ROOTS[1]).to_value()
        assert signed_authorities_from_value(value)
        value[1].reverse()
        with pytest.raises(Invalid, match="ascend"):
            signed_authorities_from_value(value)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: data[:-1], "ends too early, at byte"),
        (lambda data: data + b"\0\0", "2 bytes after the end of the CBOR value"),
        (lambda data: b"\xff" + data, "not CBOR, or what the profile has not"),
        (lambda data: data[:1] + b"\x78" + bytes([data[1] - 0x60]) + data[2:], "is not canonical"),
        (lambda data: data.replace(b"small", b"sm\xffll"), "a text is not UTF-8"),
    ],
)
def test_a_damaged_genesis_says_in_words_what_is_wrong(small_world: Any, damage: Any, why: str) -> None:
    with pytest.raises(Invalid) as caught:
        genesis.decode_genesis(damage(small_world().genesis.to_bytes()))
    assert why in str(caught.value)
    assert "Error" not in str(caught.value)

"""The state trie at its edges: shape, roots by hand, proofs, bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from blake3 import blake3

from runtime import codec
from runtime.errors import Invalid
from runtime.state import State, StateProof, TriePath, verify_state_proof

ZEROS = bytes(32)


def digest(data: bytes) -> bytes:
    return blake3(data).digest()


def filled(count: int) -> State:
    return State.empty().update({("cells", b"key %d" % number): b"\x01" for number in range(count)})


def root_under_top(root: bytes) -> bytes:
    """The state root over one namespace `cells` with this root, by the formula of the document."""
    return digest(b"aw/trie/1\0\0" + codec.encode([[b"cells", 0, root]]))


def formula(entries: list[tuple[bytes, bytes]], depth: int = 0) -> bytes:
    """Root of a trie by the definition: no sharing, no cache."""
    if not entries:
        return ZEROS
    if len(entries) <= 16:
        ordered = sorted(entries, key=lambda entry: digest(entry[0]))
        return digest(b"aw/trie/1\0\0" + codec.encode([[key, 0, value] for key, value in ordered]))
    children = []
    for nibble in range(16):
        child = [entry for entry in entries if int(digest(entry[0]).hex()[depth], 16) == nibble]
        children.append(formula(child, depth + 1))
    return digest(b"aw/trie/1\0\1" + b"".join(children))


def test_the_empty_trie_is_32_zero_bytes() -> None:
    assert State.empty().root() == ZEROS


@pytest.mark.parametrize("count", [1, 15, 16, 17, 18, 40, 300])
def test_a_root_is_what_the_definition_gives(count: int) -> None:
    entries = [(b"key %d" % number, b"\x01") for number in range(count)]
    assert filled(count).root() == root_under_top(formula(entries))


def test_the_seventeenth_entry_splits_a_bucket_and_deleting_it_joins_it_again() -> None:
    sixteen, seventeen = filled(16), filled(17)
    assert sixteen.prove("cells", b"key 3").cells.siblings == ()  # type: ignore[union-attr]
    assert len(seventeen.prove("cells", b"key 3").cells.siblings) == 1  # type: ignore[union-attr]
    assert seventeen.set("cells", b"key 16", None).root() == sixteen.root()


def test_a_namespace_that_loses_its_last_cell_is_gone() -> None:
    state = filled(1).set("other", b"key", b"\x02")
    assert state.set("other", b"key", None).root() == filled(1).root()
    assert filled(1).set("cells", b"key 0", None).root() == ZEROS


def test_more_than_sixteen_namespaces_make_an_inner_node_above_them() -> None:
    names = [f"space{number}" for number in range(20)]
    state = State.empty().update({(name, b"key"): name.encode() for name in names})
    for name in names:
        assert state.get(name, b"key") == name.encode()
        assert verify_state_proof(state.root(), name, b"key", state.prove(name, b"key")) == name.encode()
    assert verify_state_proof(state.root(), "absent", b"key", state.prove("absent", b"key")) is None


def test_an_update_leaves_the_older_state_as_it_was() -> None:
    before = filled(100)
    root = before.root()
    after = before.update({("cells", b"key 5"): b"\x09", ("cells", b"key 6"): None})
    assert (before.get("cells", b"key 5"), before.get("cells", b"key 6")) == (b"\x01", b"\x01")
    assert (after.get("cells", b"key 5"), after.get("cells", b"key 6")) == (b"\x09", None)
    assert before.root() == root != after.root()


def test_deleting_what_is_not_there_changes_nothing() -> None:
    assert filled(17).set("cells", b"absent", None).root() == filled(17).root()
    assert State.empty().set("cells", b"absent", None).root() == ZEROS


@pytest.mark.parametrize("size", [256, 257])
def test_a_value_over_256_bytes_is_an_entry_of_hash_and_size(size: int) -> None:
    value = bytes(size)
    state = State.empty().set("cells", b"key", value)
    entry = [b"key", 0, value] if size == 256 else [b"key", 1, digest(value), size]
    assert state.root() == root_under_top(digest(b"aw/trie/1\0\0" + codec.encode([entry])))
    proof = StateProof.from_bytes(state.prove("cells", b"key").to_bytes())
    assert verify_state_proof(state.root(), "cells", b"key", proof) == value


def test_a_value_beside_the_trie_must_be_the_one_that_the_entry_names() -> None:
    state = State.empty().set("cells", b"key", bytes(300))
    proof = state.prove("cells", b"key")
    for value in (bytes(299) + b"\x01", bytes(301), None):
        with pytest.raises(Invalid, match=r"state_proof\.value"):
            verify_state_proof(state.root(), "cells", b"key", replace(proof, value=value))
    inline = filled(3)
    proof = replace(inline.prove("cells", b"key 1"), value=bytes(300))
    with pytest.raises(Invalid, match=r"state_proof\.value"):
        verify_state_proof(inline.root(), "cells", b"key 1", proof)


@pytest.mark.parametrize("count", [0, 1, 16, 17, 5_000])
def test_presence_and_absence_are_proved(count: int) -> None:
    state = filled(count)
    for number in (*range(0, count, max(1, count // 7)), count + 1, count + 2):
        proof = StateProof.from_bytes(state.prove("cells", b"key %d" % number).to_bytes())
        proved = verify_state_proof(state.root(), "cells", b"key %d" % number, proof)
        assert proved == (b"\x01" if number < count else None)


def test_absence_in_an_empty_slot_is_proved() -> None:
    state = filled(20)
    keys = (b"other %d" % number for number in range(1_000))
    key = next(key for key in keys if not state.prove("cells", key).cells.bucket)  # type: ignore[union-attr]
    assert verify_state_proof(state.root(), "cells", key, state.prove("cells", key)) is None


def test_a_proof_of_one_key_says_nothing_of_another() -> None:
    state = filled(5_000)
    for other in (b"key 2", b"absent"):
        with pytest.raises(Invalid):
            verify_state_proof(state.root(), "cells", other, state.prove("cells", b"key 1"))


def test_an_absent_namespace_comes_without_cells() -> None:
    state = filled(20)
    proof = replace(state.prove("absent", b"key"), cells=TriePath((), ()))
    with pytest.raises(Invalid, match=r"state_proof\.cells"):
        verify_state_proof(state.root(), "absent", b"key", proof)
    proof = replace(state.prove("cells", b"key 1"), cells=None)
    with pytest.raises(Invalid, match=r"state_proof\.cells"):
        verify_state_proof(state.root(), "cells", b"key 1", proof)


def test_a_bucket_out_of_order_or_off_the_path_is_refused() -> None:
    state = filled(5_000)
    proof = state.prove("cells", b"key 1")
    assert proof.cells is not None
    swapped = replace(proof.cells, bucket=proof.cells.bucket[::-1])
    with pytest.raises(Invalid, match="ascend"):
        verify_state_proof(state.root(), "cells", b"key 1", replace(proof, cells=swapped))
    foreign = next(
        path.bucket
        for number in range(2, 5_000)
        if (path := state.prove("cells", b"key %d" % number).cells) and path.bucket != proof.cells.bucket
    )
    moved = replace(proof, cells=replace(proof.cells, bucket=foreign))
    with pytest.raises(Invalid, match="not on the path"):
        verify_state_proof(state.root(), "cells", b"key 1", moved)


@pytest.mark.parametrize(
    ("key", "value"), [(b"", b"\x01"), (bytes(257), b"\x01"), (b"key", b""), (b"key", bytes(64 * 1024 + 1))]
)
def test_keys_and_values_beyond_their_bounds_are_refused(key: bytes, value: bytes) -> None:
    with pytest.raises(Invalid):
        State.empty().set("cells", key, value)


def test_an_entry_with_a_bool_for_its_tag_is_refused() -> None:
    with pytest.raises(Invalid):
        TriePath((), ((b"key", False, b"\x01"),))

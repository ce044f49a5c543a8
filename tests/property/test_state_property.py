"""The state trie against a dict: history does not matter, and no proof survives a changed bit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import Invalid
from runtime.state import State, StateProof, verify_state_proof

# Few distinct keys, so that inserts, overwrites and deletes meet; enough of them to cross 16 and 17 often.
cells = st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 59).map(lambda number: b"%d" % number))
values = st.one_of(st.none(), st.binary(min_size=1, max_size=4), st.sampled_from([bytes(256), bytes(257)]))
change = st.tuples(cells, values)
# Hypothesis draws short lists by itself: the longer ones are asked for, so that inner nodes come and go.
changes = st.one_of(st.lists(change, max_size=12), st.lists(change, min_size=30, max_size=120))


@given(changes, st.integers(1, 40))
def test_the_root_is_a_function_of_the_content(
    history: list[tuple[tuple[str, bytes], bytes | None]], step: int
) -> None:
    state, content = State.empty(), dict[tuple[str, bytes], bytes]()
    for start in range(0, len(history), step):
        part = dict(history[start : start + step])
        state = state.update(part)
        for cell, value in part.items():
            content.pop(cell, None)
            if value is not None:
                content[cell] = value
    fresh = State.empty()
    for (namespace, key), value in sorted(content.items()):
        fresh = fresh.set(namespace, key, value)
    assert state.root() == fresh.root() == State.empty().update(content).root()
    for namespace in ("a", "b"):
        held = {key: value for (name, key), value in content.items() if name == namespace}
        assert dict(state.items(namespace)) == held
        assert state.count(namespace) == len(held)


@given(changes, cells)
def test_every_cell_is_proved_present_or_absent(
    history: list[tuple[tuple[str, bytes], bytes | None]], cell: tuple[str, bytes]
) -> None:
    state = State.empty().update(dict(history))
    proof = StateProof.from_bytes(state.prove(*cell).to_bytes())
    assert verify_state_proof(state.root(), *cell, proof) == state.get(*cell) == dict(history).get(cell)


@given(changes, cells, st.data())
def test_a_proof_with_any_bit_changed_is_refused(
    history: list[tuple[tuple[str, bytes], bytes | None]], cell: tuple[str, bytes], data: st.DataObject
) -> None:
    state = State.empty().update(dict(history))
    good = state.prove(*cell).to_bytes()
    bit = data.draw(st.integers(0, 8 * len(good) - 1))
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    try:
        verify_state_proof(state.root(), *cell, StateProof.from_bytes(bytes(bad)))
    except Invalid:
        return
    raise AssertionError(f"bit {bit} of {good.hex()} does not matter")

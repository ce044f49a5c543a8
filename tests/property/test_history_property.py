"""Paths of old blocks: the same as over all hashes at once, at every width, also after a chain went back."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from runtime import codec
from runtime.history import GROUP_LEAVES, History

HASHES = [codec.content_id(b"block %d" % number) for number in range(5 * GROUP_LEAVES + 3)]


class Reader:
    """Hashes of a chain, and how many of them were asked for."""

    def __init__(self, hashes: Sequence[bytes]) -> None:
        self.hashes = list(hashes)
        self.read = 0

    def __call__(self, first: int, count: int) -> Sequence[bytes]:
        self.read += count
        return self.hashes[first : first + count]


@given(st.data())
def test_a_path_is_that_of_the_whole_list(data: st.DataObject) -> None:
    reader = Reader(HASHES)
    history = History(reader)
    for _ in range(3):  # what was remembered for one width serves another
        count = data.draw(st.integers(1, len(HASHES)))
        height = data.draw(st.integers(1, count))
        assert list(history.path(height, count + 1)) == codec.merkle_path(HASHES[:count], height - 1)


@given(kept=st.integers(1, len(HASHES) - 1))
def test_a_chain_that_went_back_and_on_is_answered_for_with_its_own_roots(kept: int) -> None:
    reader = Reader(HASHES)
    history = History(reader)
    history.path(1, len(HASHES) + 1)
    other = [
        *HASHES[:kept],
        *[codec.content_id(b"other %d" % number) for number in range(len(HASHES) - kept)],
    ]
    reader.hashes = other
    assert list(history.path(1, len(other) + 1)) == codec.merkle_path(other, 0)


def test_the_second_path_reads_a_group_or_two_and_not_the_chain() -> None:
    reader = Reader([codec.content_id(b"%d" % number) for number in range(64 * GROUP_LEAVES + 1)])
    history = History(reader)
    history.path(1, len(reader.hashes) + 1)
    assert reader.read > 60 * GROUP_LEAVES
    reader.read = 0
    history.path(5_000, len(reader.hashes) + 1)
    assert reader.read < 3 * GROUP_LEAVES

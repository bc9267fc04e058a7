"""Tiles of queries hold every token once, and never extend beyond its window."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from varve.encoder.kernels.attention_tiles import make_tiles

ANY = st.one_of(st.integers(1, 70), st.integers(1, 600))
LENGTHS = st.lists(ANY, min_size=1, max_size=60).map(sorted).map(np.array)


def queries_of(table, groups):
    """(N, 2) first query of each tile, and the query after its last."""
    sizes = np.concatenate([np.full(group.count, group.queries) for group in groups])
    return np.stack([table[:, 0], np.minimum(table[:, 0] + sizes, table[:, 2])], axis=1)


@given(LENGTHS)
def test_each_token_is_in_one_tile_of_its_own_window(lengths):
    table, groups = make_tiles(lengths)
    queries = queries_of(table, groups)
    assert queries[0, 0] == 0
    assert queries[-1, 1] == lengths.sum()
    assert (queries[1:, 0] == queries[:-1, 1]).all()
    ends = np.cumsum(lengths)
    window = np.searchsorted(ends, table[:, 0], side="right")
    assert (table[:, 1] == (ends - lengths)[window]).all()
    assert (table[:, 2] == ends[window]).all()


@given(LENGTHS)
def test_groups_are_consecutive_and_hold_the_length_of_their_longest_window(lengths):
    table, groups = make_tiles(lengths)
    assert [group.first for group in groups] == [sum(other.count for other in groups[:at]) for at in range(len(groups))]
    assert sum(group.count for group in groups) == len(table)
    for group in groups:
        tiles = table[group.first : group.first + group.count]
        assert (tiles[:, 2] - tiles[:, 1]).max() == group.longest


@given(LENGTHS, st.integers(1, 600))
def test_a_window_has_the_same_tiles_alone_and_with_others(lengths, length):
    together = np.sort(np.append(lengths, length))
    table, groups = make_tiles(together)
    alone_table, alone_groups = make_tiles(np.array([length]))
    start = together[together < length].sum()
    own = table[:, 1] == start
    assert (table[own] - start == alone_table).all()
    sizes = np.concatenate([np.full(group.count, group.queries) for group in groups])
    assert set(sizes[own]) == {alone_groups[0].queries}

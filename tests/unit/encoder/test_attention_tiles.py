"""Tiles of queries: every token once, never beyond its window."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from varve.encoder.kernels.attention_tiles import make_tiles

ANY = st.one_of(st.integers(1, 70), st.integers(1, 600))
LENGTHS = st.lists(ANY, min_size=1, max_size=60).map(sorted).map(np.array)


def queries_of(table, parts):
    """(N, 2) the first query of each tile and the one after its last."""
    most = np.concatenate([np.full(part.count, part.queries) for part in parts])
    return np.stack([table[:, 0], np.minimum(table[:, 0] + most, table[:, 2])], axis=1)


@given(LENGTHS)
def test_tiles_of_any_windows_hold_each_token_once_beside_those_of_its_window(lengths):
    table, parts = make_tiles(lengths)
    queries = queries_of(table, parts)
    assert queries[0, 0] == 0
    assert queries[-1, 1] == lengths.sum()
    assert (queries[1:, 0] == queries[:-1, 1]).all()
    ends = np.cumsum(lengths)
    window = np.searchsorted(ends, table[:, 0], side="right")
    assert (table[:, 1] == (ends - lengths)[window]).all()
    assert (table[:, 2] == ends[window]).all()


@given(LENGTHS)
def test_parts_of_any_windows_follow_each_other_and_know_their_longest(lengths):
    table, parts = make_tiles(lengths)
    assert [part.first for part in parts] == [sum(other.count for other in parts[:at]) for at in range(len(parts))]
    assert sum(part.count for part in parts) == len(table)
    for part in parts:
        tiles = table[part.first : part.first + part.count]
        assert (tiles[:, 2] - tiles[:, 1]).max() == part.longest


@given(LENGTHS, st.integers(1, 600))
def test_a_window_is_cut_alike_alone_and_beside_others(lengths, length):
    together = np.sort(np.append(lengths, length))
    table, parts = make_tiles(together)
    alone_table, alone_parts = make_tiles(np.array([length]))
    start = together[together < length].sum()
    own = table[:, 1] == start
    assert (table[own] - start == alone_table).all()
    sizes = np.concatenate([np.full(part.count, part.queries) for part in parts])
    assert set(sizes[own]) == {alone_parts[0].queries}

from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from varve.encoder.deduplication import find_distinct
from varve.encoder.packing import Pack, pack_windows, token_index
from varve.preprocessing.tokens import Tokens

LENGTHS = st.lists(st.integers(1, 64), max_size=60).map(lambda lengths: np.array(lengths, np.int64))
BUDGET = st.integers(1, 256)


@given(LENGTHS, BUDGET, st.booleans(), st.booleans())
def test_packs_are_a_permutation_within_the_budget(lengths, budget, padded, equal):
    packs = list(pack_windows(lengths, budget, padded=padded, equal=equal))
    order = np.concatenate([np.zeros(0, np.int64), *packs])
    assert sorted(order) == list(range(len(lengths)))
    for windows in packs:
        size = lengths[windows].max() * len(windows) if padded else lengths[windows].sum()
        assert len(windows) == 1 or size <= budget
        assert np.all(np.diff(lengths[windows]) >= 0)
        assert not equal or len(set(lengths[windows])) == 1


@given(LENGTHS, st.data())
def test_gathered_windows_stand_end_to_end(lengths, data):
    cu_seqlens = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    values = np.arange(cu_seqlens[-1])
    chosen = data.draw(st.lists(st.integers(0, max(0, len(lengths) - 1)), max_size=20)) if len(lengths) else []
    windows = np.array(chosen, np.int64)
    want = [value for window in chosen for value in range(cu_seqlens[window], cu_seqlens[window + 1])]
    assert list(values[token_index(cu_seqlens, windows)]) == want


def tokens_of(windows) -> Tokens:
    lengths = np.array([len(window) for window in windows], np.int64)
    return Tokens(
        input_ids=np.array([token for window in windows for token in window], np.int32),
        cu_seqlens=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        cu_windows=np.arange(len(windows) + 1),
        truncated=np.zeros(len(windows), np.bool_),
    )


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=40))
def test_windows_count_as_alike_exactly_when_all_their_ids_are_equal(windows):
    distinct, inverse = find_distinct(tokens_of(windows))
    assert [windows[place] for place in distinct[inverse]] == windows
    assert len(distinct) == len({tuple(window) for window in windows})
    assert list(distinct) == sorted(distinct)


def test_windows_that_differ_in_token_types_alone_are_not_alike():
    tokens = tokens_of([[5, 6, 7], [5, 6, 7], [5, 6, 7]])
    types = np.array([0, 0, 1, 0, 1, 1, 0, 0, 1], np.int32)
    distinct, inverse = find_distinct(replace(tokens, token_type_ids=types))
    assert list(distinct) == [0, 1]
    assert list(inverse) == [0, 1, 0]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=2, max_size=20))
def test_halves_of_a_pack_hold_its_windows_in_order(windows):
    whole = Pack.of_windows([np.array(window, np.int32) for window in sorted(windows, key=len)])
    first, second = whole.halves()
    assert len(first.windows) >= 1
    assert len(second.windows) >= 1
    assert list(np.concatenate([first.windows, second.windows])) == list(whole.windows)
    assert list(np.concatenate([first.input_ids, second.input_ids])) == list(whole.input_ids)


def test_windows_that_differ_in_attended_tokens_alone_are_not_alike():
    tokens = replace(tokens_of([[5, 6, 7]] * 4), attended=np.array([3, 2, 3, 2]))
    distinct, inverse = find_distinct(tokens)
    assert list(distinct) == [0, 1]
    assert list(inverse) == [0, 1, 0, 1]


def with_chunks(windows, chunks) -> Tokens:
    """Tokens of windows whose chunks are lists of (first, stop)."""
    counts = [len(each) for each in chunks]
    return replace(
        tokens_of(windows),
        attended=np.array([max(1, len(window) - 1) for window in windows], np.int64),
        cu_chunks=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]),
        chunk_tokens=np.array([chunk for each in chunks for chunk in each], np.int32).reshape(-1, 2),
    )


def test_windows_with_chunks_are_all_distinct():
    tokens = with_chunks([[5, 6, 7]] * 2, [[(0, 3)], [(0, 1), (1, 3)]])
    distinct, inverse = find_distinct(tokens)
    assert list(distinct) == list(inverse) == [0, 1]


@st.composite
def chunked_windows(draw):
    windows = draw(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=2, max_size=12))
    chunks = []
    for window in windows:
        edges = st.tuples(st.integers(0, len(window)), st.integers(0, len(window))).map(sorted)
        chunks.append([tuple(edge) for edge in draw(st.lists(edges, min_size=1, max_size=3))])
    return windows, chunks


def check_pack(pack, windows, chunks) -> None:
    """A pack holds the tokens, the attended lengths and the chunks of the windows that it names."""
    index, starts = pack.chunk_index()
    want = [windows[window][first:stop] for window in pack.windows for first, stop in chunks[window]]
    gathered = pack.input_ids[index]
    assert [list(gathered[first:stop]) for first, stop in pairwise(starts)] == want
    assert list(pack.chunk_counts) == [len(chunks[window]) for window in pack.windows]
    assert list(pack.attended) == [max(1, len(windows[window]) - 1) for window in pack.windows]


@given(chunked_windows(), st.data())
def test_chunks_and_attended_tokens_follow_their_windows(drawn, data):
    windows, chunks = drawn
    tokens = with_chunks(windows, chunks)
    order = np.argsort(tokens.lengths, kind="stable")
    pack = Pack.of(tokens, order, order)
    check_pack(pack, windows, chunks)
    for half in pack.halves():
        check_pack(half, windows, chunks)
    places = data.draw(st.lists(st.integers(0, len(windows) - 1), min_size=1, unique=True).map(sorted))
    check_pack(pack.select(np.array(places)), windows, chunks)

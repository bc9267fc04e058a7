from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from varve.encoder.deduplication import find_distinct
from varve.encoder.packing import Pack, pack_windows, token_index
from varve.preprocessing.tokenizer import Tokens

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

"""Reciprocal rank fusion against tables made by hand."""

import numpy as np

from varve.indexing.neighbours import NONE, Neighbours
from varve.retrieval.fusion import best_of_rows, fuse


def ranking(*lists: list[int]) -> Neighbours:
    widest = max(map(len, lists))
    found = Neighbours.none(len(lists), widest)
    for query, rows in enumerate(lists):
        found.positions[query, : len(rows)] = rows
        found.scores[query, : len(rows)] = -np.arange(len(rows))
    return found


def test_sums_of_reciprocal_ranks_are_those_of_the_table():
    fused = fuse([ranking([7, 3, 5]), ranking([3, 9])], 4)
    # 3: 1/62 + 1/61; 7: 1/61; 9: 1/62; 5: 1/63
    assert fused.positions.tolist() == [[3, 7, 9, 5]]
    want = [1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63]
    np.testing.assert_allclose(fused.scores[0], want, rtol=1e-6)


def test_equal_sums_are_ordered_by_row():
    fused = fuse([ranking([9, 4, 1]), ranking([4, 9, 2])], 4)
    assert fused.positions.tolist() == [[4, 9, 1, 2]]


def test_each_query_is_fused_alone_and_short_lists_are_padded():
    fused = fuse([ranking([1, 2, 3], []), ranking([3], [8, 6])], 5)
    assert fused.positions.tolist() == [[3, 1, 2, NONE, NONE], [8, 6, NONE, NONE, NONE]]
    assert np.isneginf(fused.scores[0, 3:]).all()


def test_scores_of_the_rankings_do_not_count():
    strong = ranking([1, 2])
    strong.scores[:] = 1e6
    assert fuse([strong, ranking([2, 1])], 2).positions.tolist() == [[1, 2]]


def test_row_has_the_rank_of_its_best_position():
    found = ranking([10, 11, 12, 13, 14])
    rows = np.array([[5, 5, 2, 5, 3]])
    best = best_of_rows(found, rows)
    assert best.positions.tolist() == [[5, 2, 3, NONE, NONE]]
    assert best.scores[0, :3].tolist() == [0, -2, -4]
    assert best_of_rows(found, np.array([[NONE, 4, NONE, NONE, NONE]])).positions[0].tolist()[:2] == [4, NONE]

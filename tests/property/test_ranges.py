from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varve.output.manifest import splits
from varve.output.part_file import part_name
from varve.ranges import Range, gaps, missing

GRID = st.integers(1, 50)
ROWS = st.integers(0, 400)


def cells(num_rows: int, rows_per_part: int) -> list[Range]:
    """The parts of a finished shard, computed independently: full cells, then one that is shorter or empty."""
    full = [Range(0, at * rows_per_part, (at + 1) * rows_per_part) for at in range(num_rows // rows_per_part)]
    return [*full, Range(0, num_rows // rows_per_part * rows_per_part, num_rows)]


@given(ROWS, GRID, st.data())
def test_missing_and_committed_cells_cover_the_shard_exactly_once(num_rows, rows_per_part, data):
    whole = cells(num_rows, rows_per_part)
    done = data.draw(st.lists(st.sampled_from(whole), unique=True))
    lacks = missing(done, rows_per_part)
    assert {cell.start for cell in whole if lacks.wants(cell.start)} == {cell.start for cell in whole} - {
        cell.start for cell in done
    }
    assert lacks.is_empty == (len(done) == len(whole))
    assert lacks.is_empty or lacks.first == min(cell.start for cell in whole if lacks.wants(cell.start))


@given(ROWS, GRID, st.data())
def test_reading_never_stops_before_a_missing_cell(num_rows, rows_per_part, data):
    whole = cells(num_rows, rows_per_part)
    lacks = missing(data.draw(st.lists(st.sampled_from(whole), unique=True)), rows_per_part)
    for at, cell in enumerate(whole):
        if lacks.is_past(cell.start):
            assert not any(lacks.wants(later.start) for later in whole[at:])


@given(ROWS, GRID)
def test_whole_shard_has_no_gaps(num_rows, rows_per_part):
    assert gaps(cells(num_rows, rows_per_part), num_rows) == []


@given(st.integers(1, 400), GRID, st.data())
def test_lost_repeated_or_surplus_rows_are_reported(num_rows, rows_per_part, data):
    whole = [cell for cell in cells(num_rows, rows_per_part) if cell.num_rows]
    at = data.draw(st.integers(0, len(whole) - 1))
    lost = whole[:at] + whole[at + 1 :]
    assert gaps(lost, num_rows)
    assert gaps([*whole, whole[at]], num_rows)
    assert gaps(whole, num_rows + 1)


@given(st.integers(0, 100), st.integers(2, 50), st.data())
def test_part_off_the_grid_is_refused(cell, rows_per_part, data):
    """The part is not longer than a cell, so the position of its first row alone is wrong."""
    start = cell * rows_per_part + data.draw(st.integers(1, rows_per_part - 1))
    part = Range(0, start, start + data.draw(st.integers(0, rows_per_part)))
    with pytest.raises(ValueError, match=rf"rows \[{part.start}, {part.stop}\)"):
        missing([part], rows_per_part)


@given(st.integers(0, 100), GRID, st.integers(1, 50))
def test_part_longer_than_its_cell_is_refused(cell, rows_per_part, surplus):
    start = cell * rows_per_part
    with pytest.raises(ValueError, match=f"{rows_per_part} rows"):
        missing([Range(0, start, start + rows_per_part + surplus)], rows_per_part)


@given(st.lists(st.integers(0, 3_000_000), min_size=1, max_size=40), st.integers(1, 500), st.booleans())
def test_splits_of_a_listing_leave_no_part_out(shard_rows, rows_per_part, known):
    names = [
        part_name(Range(shard, start, min(start + rows_per_part, rows)))
        for shard, rows in enumerate(shard_rows)
        for start in range(0, rows + 1, max(rows_per_part, rows // 200 * rows_per_part or rows_per_part))
    ]
    cuts = splits(len(shard_rows), rows_per_part, shard_rows if known else None)
    assert cuts == sorted(set(cuts))
    bounds = ["", *cuts, "~"]
    pieces = [[name for name in names if low < name <= high] for low, high in pairwise(bounds)]
    assert sum(map(len, pieces)) == len(names)


def test_large_output_is_listed_in_equal_pieces():
    shard_rows, rows_per_part = [1_000_000, 0, 500, 2_000_000], 100
    names = [
        part_name(Range(shard, start, min(start + rows_per_part, rows)))
        for shard, rows in enumerate(shard_rows)
        for start in range(0, rows + 1, rows_per_part)
    ]
    bounds = ["", *splits(4, rows_per_part, shard_rows), "~"]
    sizes = [sum(low < name <= high for name in names) for low, high in pairwise(bounds)]
    assert sum(sizes) == len(names)
    assert max(sizes) < 1.1 * len(names) / len(sizes)

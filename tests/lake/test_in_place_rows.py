"""Rows of files with new values at some places; offsets of fragments; comparison bit by bit."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lance.bitmap import Bitmap

from tests.lake.backend_lance import Backend
from tests.lake.backends import rows
from tests.lake.in_place_run import InPlaceRun, missing
from varve.backfill.in_place.rows import overlay_rows, same_bits
from varve.lake.lance.offsets import encode_offsets

SCHEMA = pa.schema([("value", pa.int64())])
Places = dict[int, int]


def chunks(values: Places, size: int):
    places = sorted(values)
    for start in range(0, len(places), size):
        taken = places[start : start + size]
        yield np.array(taken, np.int64), pa.table({"value": [values[place] for place in taken]}, schema=SCHEMA)


PLACES = st.dictionaries(st.integers(0, 39), st.integers(-5, 5))
SIZES = st.integers(1, 9)


@given(PLACES, PLACES, SIZES, SIZES, SIZES)
def test_overlay_of_any_chunks_has_the_new_value_else_the_stored_one_else_null(stored, new, one, other, step):
    tables = list(overlay_rows(40, SCHEMA, chunks(stored, one), chunks(new, other), step))
    assert [len(table) for table in tables[:-1]] == [step] * (len(tables) - 1)
    both = {**stored, **new}
    assert pa.concat_tables(tables)["value"].to_pylist() == [both.get(place) for place in range(40)]


@given(st.sets(st.integers(0, 200_000)), st.integers(0, 20_000))
def test_offsets_are_a_bitmap_that_lance_reads(offsets, dense):
    values = np.array(sorted(offsets | set(range(70_000, 70_000 + dense))), np.int64)
    read: Any = Bitmap().__reduce__()[0]  # as in a pickle
    assert list(read(encode_offsets(values))) == values.tolist()


FLOATS = pa.list_(pa.float32(), 2)


@pytest.mark.parametrize(("one", "other", "expected"), [
    ([[0.0, 1.0]], [[0.0, 1.0]], True),
    ([[0.0, 1.0]], [[-0.0, 1.0]], False),
    ([[float("nan"), 1.0]], [[float("nan"), 1.0]], True),
    ([None, [1.0, 2.0]], [None, [1.0, 2.0]], True),
    ([None], [[0.0, 0.0]], False),
    ([[1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]], False),
])  # fmt: skip
@pytest.mark.parametrize("kind", [FLOATS, pa.list_(pa.float32())])
def test_vectors_are_the_same_if_their_bits_are(one, other, expected, kind):
    assert same_bits(pa.table({"v": pa.array(one, kind)}), pa.table({"v": pa.array(other, kind)})) is expected


def test_rows_of_other_types_are_compared_by_value():
    assert same_bits(pa.table({"v": ["a", None]}), pa.table({"v": ["a", None]}))
    assert not same_bits(pa.table({"v": ["a", None]}), pa.table({"v": ["a", "b"]}))
    assert not same_bits(pa.table({"v": [1]}), pa.table({"v": pa.array([1], pa.int32())}))


def test_work_on_fragments_runs_in_other_processes(tmp_path):
    docs = Backend(str(tmp_path))
    docs.create(rows(range(35)))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        run = InPlaceRun(docs, tmp_path / "runs", spread=processes.map)
        run.go()
        docs.update_text(3, "changed")
        docs.append(rows([40]))
        run.go()
    assert missing(docs) == []
    assert run.encoded == 37

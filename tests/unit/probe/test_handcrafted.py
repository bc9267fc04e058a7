import numpy as np
import pyarrow as pa
import pytest

from tests.probes import train
from varve.probe.data.handcrafted import encode, fit_column


def test_columns_are_standardised_by_training_rows_and_missing_values_are_marked():
    table = pa.table(
        {
            "n": [1.0, 3.0, None, float("nan")],
            "when": [1.7e9, 1.7e9 + 1, 1.7e9 + 2, 1.7e9 + 3],
            "yes": [True, False, True, True],
            "kind": pa.array(["a", "b", "a", None]).dictionary_encode(),
            "same": [4, 4, 4, 4],
        }
    )
    fitted = [fit_column(name, table[name]) for name in table.column_names]
    encoding, note = fitted[4]
    assert encoding is None
    assert note.startswith("--with same")
    assert "(4)" in note
    assert "2 of 4 training rows" in fitted[0][1]
    columns = [column for column, _ in fitted if column]
    names = [name for column in columns for name in column.names]
    assert names == ["n", "n is missing", "when", "yes", "kind=a", "kind=b", "kind is missing"]
    found = dict(zip(names, encode(columns, table).T, strict=True))
    assert found["n"].tolist() == [-1, 1, 0, 0]
    assert found["n is missing"].tolist() == [0, 0, 1, 1]
    assert found["when"].std() == pytest.approx(1, abs=1e-6)  # seconds since 1970 do not fit float32
    assert found["kind=a"].tolist() == [1, 0, 1, 0]
    unseen = pa.table({"n": [5], "when": [1.7e9], "yes": [None], "kind": ["z"]})
    assert np.isfinite(encode(columns, unseen)).all()


def test_constant_columns_are_left_out_and_nothing_is_trained_on_them(output):
    study = train(output(), features=("cls_01",), handcrafted=("truncated",))
    assert [result.name for result in study.results] == ["cls_01", "majority class"]
    assert any(note.startswith("--with truncated") and "(0)" in note for note in study.notes)

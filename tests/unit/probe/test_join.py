import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.probes import ROWS, read_rows
from varve.errors import JobError

NUM_DOCS = ROWS // 3


def test_joined_table_adds_columns_by_key(output, tmp_path):
    keys = [f"doc {row}" for row in range(NUM_DOCS - 1)][::-1]
    lines = "".join(json.dumps({"doc": key, "weight": int(key.split()[1])}) + "\n" for key in keys)
    (tmp_path / "more.jsonl").write_text(lines)
    rows = read_rows(output(), handcrafted=("weight",), join=str(tmp_path / "more.jsonl"), on="doc")
    assert any("3 rows of the run do not match by doc" in note for note in rows.notes)
    assert [column.name for column in rows.columns] == ["weight"]
    order = np.argsort(rows.handcrafted[:, 0], kind="stable")[1:-3]
    assert (np.diff(order) > 0).mean() > 0.9


def test_dictionary_encoded_keys_match_plain_values(output, tmp_path):
    keys = pa.array([f"doc {row}" for row in range(NUM_DOCS)]).dictionary_encode()
    pq.write_table(pa.table({"doc": keys, "weight": np.arange(NUM_DOCS)}), tmp_path / "more.parquet")
    rows = read_rows(output(), handcrafted=("weight",), join=str(tmp_path / "more.parquet"), on="doc")
    assert [column.name for column in rows.columns] == ["weight"]
    assert not any("do not match by doc" in note for note in rows.notes)


def test_joined_file_without_keys_is_rejected(output, tmp_path):
    (tmp_path / "more.csv").write_text("doc,weight\n")
    with pytest.raises(JobError, match=r"more.csv: .* the file has no key"):
        read_rows(output(), handcrafted=("weight",), join=str(tmp_path / "more.csv"), on="doc")


def test_blank_cells_of_a_joined_csv_are_neither_classes_nor_keys(output, tmp_path):
    kinds = {doc: ("", "ham", "spam")[doc % 3] for doc in range(NUM_DOCS)}
    lines = [f"doc {doc},{kind}\n" for doc, kind in kinds.items()]
    (tmp_path / "kinds.csv").write_text("".join(["doc,kind\n", *lines, ",ham\n", ",spam\n"]))
    docs = [None, None, *(f"doc {row // 3}" for row in range(2, ROWS))]
    rows = read_rows(output(doc=docs), "kind", join=str(tmp_path / "kinds.csv"), on="doc")
    assert rows.classes == ("ham", "spam")
    assert rows.left_out == {"no kind": 3 * sum(not kind for kind in kinds.values())}
    assert any("2 rows of the run do not match by doc" in note for note in rows.notes)

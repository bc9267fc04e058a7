"""Outputs with sparse vectors and with late interaction, whose rows have different numbers of values."""

from unittest.mock import patch

import numpy as np

from tests.outputs import column, write_output
from varve.encoder.ragged import Ragged

VOCABULARY = 500


def write_sparse(path, rows: int, most: int = 40) -> str:
    """An output with the feature `words`: 1 to `most` weights per row; row 2 has an error."""
    random = np.random.default_rng(3)
    counts = random.integers(1, most + 1, rows)
    ids = [np.sort(random.choice(VOCABULARY, count, replace=False)).astype(np.int32) for count in counts]
    weights = [random.uniform(0.1, 2, count).astype(np.float32) for count in counts]
    feature = column("words", VOCABULARY, form="sparse")
    return _write(path, rows, feature, {"words_ids": ids, "words_weights": weights})


def write_late(path, rows: int, width: int = 8, *, dtype: str = "float32") -> str:
    """An output with the feature `tokens`: 0 to 6 vectors of length 1 per row; row 2 has an error."""
    random = np.random.default_rng(4)
    vectors = [random.normal(size=(count, width)) for count in random.integers(0, 7, rows)]
    unit = [(each / np.linalg.norm(each, axis=1, keepdims=True)).astype(dtype) for each in vectors]
    input_ids = [np.arange(len(each), dtype=np.int32) for each in unit]
    spans = [np.zeros((len(each), 2), np.int32) for each in unit]
    lists = {"tokens": unit, "tokens_input_ids": input_ids, "tokens_offsets": spans}
    return _write(path, rows, column("tokens", width, form="late", dtype=dtype), lists)


def _write(path, rows: int, feature, lists: dict) -> str:
    def stored(_features, start: int, stop: int, encoded: np.ndarray) -> dict:
        kept = np.flatnonzero(encoded) + start
        columns = {}
        for name, values in lists.items():
            lengths = [len(values[row]) for row in kept]
            offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
            columns[name] = Ragged(np.concatenate([values[0][:0], *(values[row] for row in kept)]), offsets)
        return columns

    kept = {"id": np.arange(rows), "title": [f"Title {row}" for row in range(rows)]}
    shards = [rows // 2, 0, rows - rows // 2]
    with patch("tests.outputs._stored", stored):  # it knows dense features only
        return write_output(path, {feature: None}, kept, rows_per_part=30, errors=(2,), shards=shards)

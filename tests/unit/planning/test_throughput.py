"""The estimate of `varve plan`: figures computed by hand, and sizes of computed columns."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from varve.config.job import Job
from varve.planning.resolve import make_plan
from varve.planning.throughput import estimate, flops_per_token, histogram

TEXTS = ["one two", "three", None, "four five six"] * 3


@pytest.fixture
def plan(tmp_path, tiny):
    (tmp_path / "docs").mkdir()
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "docs/0.parquet")
    (tmp_path / "my_functions.py").write_text("def label(rows): return ['abcd'] * len(rows)\n")
    content = {
        "source": {"dataset": str(tmp_path / "docs"), "text": "text"},
        "model": {"name": tiny("bert")},
        "features": {"e": {"pool": "mean", "layers": 1}, "label": {"python": "my_functions:label", "type": "string"}},
        "output": {"path": str(tmp_path / "out"), "rows_per_part": 5},
    }
    return make_plan(Job.parse(content).in_folder(str(tmp_path)), device="cpu")


def test_estimate_counts_rows_tokens_and_bytes(plan):
    figures = estimate(plan, "cpu", 1)
    assert (figures.num_rows, figures.rows_known, figures.sampled_rows) == (12, True, 12)
    assert (figures.num_shards, figures.num_parts, figures.rows_per_part) == (1, 3, 5)
    assert figures.share_errors == 0.25
    assert figures.row_bytes["e"] == 4 * plan.checkpoint.shape.hidden_size
    assert figures.row_bytes["label"] >= 4
    assert figures.output_bytes == 12 * sum(figures.row_bytes.values())
    assert sum(rows for *_, rows in figures.length_histogram) == 9
    assert min(figures.tokens_per_s, figures.tokenizer_tokens_per_s, figures.ready_s, figures.write_s) > 0
    assert figures.compute_s is not None
    assert figures.compute_s > 0


def test_flops_of_one_layer(plan):
    hidden = plan.checkpoint.shape.hidden_size
    assert flops_per_token(plan, 10, first_tokens=False) == 24 * hidden**2 + 40 * hidden
    assert flops_per_token(plan, 10, first_tokens=True) == pytest.approx(
        6 * hidden**2 + 40 * hidden + 18 * hidden**2 / 10
    )


def test_bins_of_the_histogram_double():
    lengths = np.array([1, 8, 9, 16, 17, 40], np.int32)
    assert histogram(lengths) == [(1, 8, 2), (9, 16, 2), (17, 32, 1), (33, 64, 1)]
    assert histogram(lengths[:0]) == []

"""The estimate of `varve plan`: figures computed by hand, and sizes of computed columns."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.declared_checkpoints import CLUSTERED
from varve.config.job import Job
from varve.planning.part_sizing import row_bytes
from varve.planning.plan import Plan
from varve.planning.resolve import make_plan
from varve.planning.throughput import estimate, flops_per_token, histogram

TEXTS = ["one two", "three", None, "four five six"] * 3
DECLARED = {"e": {"pool": "declared"}}


@pytest.fixture
def plan_of(tmp_path):
    """(checkpoint, features) → the plan of a job over the texts."""

    def make(name: str, features: dict) -> Plan:
        (tmp_path / "docs").mkdir()
        pq.write_table(pa.table({"text": TEXTS}), tmp_path / "docs/0.parquet")
        content = {
            "source": {"dataset": str(tmp_path / "docs"), "text": "text"},
            "model": {"name": name}, "features": features,
            "output": {"path": str(tmp_path / "out"), "rows_per_part": 5},
        }  # fmt: skip
        return make_plan(Job.parse(content).in_folder(str(tmp_path)), device="cpu")

    return make


@pytest.fixture
def plan(plan_of, tmp_path, tiny):
    (tmp_path / "my_functions.py").write_text("def label(rows): return ['abcd'] * len(rows)\n")
    label = {"python": "my_functions:label", "type": "string"}
    return plan_of(tiny("bert"), {"e": {"pool": "mean", "layers": 1}, "label": label})


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


def test_sizes_of_sparse_and_pooled_vectors_are_those_of_the_sample(plan_of, declared):
    figures = estimate(plan_of(declared("SPLADE with max_active_dims"), DECLARED), "cpu", 1)
    entries = 20 * (4 + 4) * 9 / 12  # three of twelve rows are null
    assert entries < figures.row_bytes["e"] < entries + 32  # offsets of two lists


def test_size_of_pooled_tokens_is_that_after_pooling(plan_of, declared):
    plan = plan_of(declared(CLUSTERED), DECLARED)
    assert row_bytes(plan.feature_plan, 10.0)["e"] == 10 * 4 * plan.feature_plan.columns[0].width
    figures = estimate(plan, "cpu", 1)
    assert figures.row_bytes["e"] < 0.7 * row_bytes(plan.feature_plan, figures.num_tokens / 12)["e"]


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

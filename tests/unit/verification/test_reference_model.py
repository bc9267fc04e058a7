"""The canary's reference computes what sentence-transformers computes, for every shape of a declaring checkpoint."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tests.declared_checkpoints import PUNCTUATION, SHAPES, TEXTS, expected_vectors
from varve import Job
from varve.planning.plan import Plan
from varve.planning.resolve import make_plan
from varve.verification.reference_model import Reference

TOLERANCE = 5e-6
CASES = [(name, role) for name, shape in SHAPES.items() for role in shape.roles]
DECLARED = {"e": {"pool": "declared"}}


@pytest.fixture
def plan_of(tmp_path):
    """Makes the plan of a job over a source of two texts."""

    def make(features: dict, **model) -> Plan:
        source = tmp_path / "source.parquet"
        pq.write_table(pa.table({"text": list(TEXTS[:2])}), source)
        job = {
            "source": {"dataset": "parquet", "data_files": str(source), "text": "text"},
            "model": model, "features": features, "output": {"path": str(tmp_path / "output")},
        }  # fmt: skip
        return make_plan(Job.parse(job), device="cpu")

    return make


def token_vectors(folder: str, text: str) -> np.ndarray:
    """(T, H) vectors of the tokens of a text, by plain transformers."""
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.inference_mode():
        return AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[0].numpy()


@pytest.mark.parametrize(
    ("chunk", "pieces"),
    [
        ({"tokens": 5}, [(0, 5), (5, 10), (10, 12)]),
        ({"tokens": 6, "overlap": 2}, [(0, 6), (4, 10), (8, 12)]),
        ({"by": "sentences", "tokens": 6}, [(0, 4), (4, 9), (9, 12)]),
        ({"by": "sentences", "tokens": 3}, [(0, 3), (3, 4), (4, 7), (7, 9), (9, 12)]),
        ({"by": "sentences", "tokens": 99}, [(0, 12)]),
    ],
)
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_chunks_are_pooled_from_tokens_that_saw_the_whole_text(plan_of, tiny, chunk, pieces, pool):
    text = "Cats like fish. Dogs eat too much. Birds sing."  # sentences of 4, 5 and 3 tokens
    folder = tiny("bert")
    plan = plan_of({"e": {"pool": pool}}, name=folder, long_text={"window": 64, "chunk": chunk})
    vectors = token_vectors(folder, text)[1:-1]
    reduce = {"mean": np.mean, "max": np.max}[pool]
    want = [reduce(vectors[start:stop], axis=0) for start, stop in pieces]
    np.testing.assert_allclose(Reference(plan).vectors([text])["e"], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "role"), CASES)
def test_reference_equals_sentence_transformers(plan_of, declared, name, role):
    folder = declared(name)
    plan = plan_of(DECLARED, name=folder, role=role)
    reference, texts = Reference(plan), (*TEXTS, PUNCTUATION)
    limit = plan.feature_plan.heads["e"].max_active_dims
    for text, want in zip(texts, expected_vectors(folder, SHAPES[name].family, role, texts), strict=True):
        got = reference.vectors([text])["e"]
        if limit:  # the reference keeps all weights
            got = np.where(np.abs(got) >= np.sort(np.abs(got[0]))[-limit], got, 0)
        expected = want.reshape(-1, plan.feature_plan.columns[0].width)
        assert got.shape == expected.shape
        largest = max(1.0, float(np.abs(expected).max(initial=0)))
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * largest)

"""Declared, sparse, late and chunked vectors on a GPU, against a CPU in float32."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models import RAGGED
from tests.splade_checkpoint import splade_folder
from varve.config.model import Model
from varve.encoder.encoder import Encoder
from varve.encoder.ragged import Ragged

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPES = {
    "two Dense, LayerNorm and Normalize": "none",
    "pooling mean, cls and max concatenated": "none",
    "prompts without a default": "query",
    "SPLADE max": "none",
    "SPLADE sum": "none",
    "MultiVectorEncoder": "document",
    "Stanford's ColBERT": "query",
}
TEXTS = [text for text in RAGGED if text.strip()]


def vectors(columns: dict[str, Any], width: int) -> dict[str, np.ndarray]:
    """Columns as arrays; sparse vectors over the vocabulary."""
    arrays = {name: value.values if isinstance(value, Ragged) else value for name, value in columns.items()}
    if "embedding_ids" in arrays:
        ids = columns["embedding_ids"]
        dense = np.zeros((len(ids), width), np.float32)
        dense[np.repeat(np.arange(len(ids)), np.diff(ids.offsets)), ids.values] = arrays["embedding_weights"]
        return {"embedding": dense}
    return {"embedding": arrays["embedding"].astype(np.float32)}


def encode(folder: str, device: str, dtype: str, role: str = "none", **model) -> dict[str, np.ndarray]:
    encoder = Encoder(Model(name=folder, role=role, dtype=dtype, **model), device=device)
    return vectors(encoder(TEXTS), encoder.feature_plan.columns[0].width)


def relative(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> float:
    assert got["embedding"].shape == want["embedding"].shape
    return float(np.linalg.norm(got["embedding"] - want["embedding"]) / np.linalg.norm(want["embedding"]))


@pytest.mark.parametrize(("shape", "role"), SHAPES.items())
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("float16", 5e-3)])
def test_declared_vectors_on_cuda_equal_those_of_the_cpu(dtype, bound, shape, role, declared):
    folder = declared(shape)
    want = encode(folder, "cpu", "float32", role)
    assert relative(encode(folder, "cuda", dtype, role), want) <= bound


def test_real_sparse_vectors_on_cuda_equal_those_of_the_cpu(tmp_path):
    folder = splade_folder(Path(tmp_path, "splade"))
    assert relative(encode(folder, "cuda", "float16"), encode(folder, "cpu", "float32")) <= 5e-3


def test_chunks_on_cuda_equal_those_of_the_cpu(tiny):
    folder, chunk = tiny("bert"), {"window": 64, "stride": 8, "chunk": {"tokens": 16, "overlap": 4}}
    want = encode(folder, "cpu", "float32", long_text=chunk)
    assert relative(encode(folder, "cuda", "float32", long_text=chunk), want) <= 1e-4

"""Varve in bfloat16 on a CPU, by compiled code and by torch, against float32: time, and difference from it.

python -m tests.bench.precision [--model minilm|bert-base] [--texts N] [--rounds N]

The rounds are interleaved in one process; texts are docstrings of up to 256 tokens. On a CPU without bfloat16
instructions the exit code is 2.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from tests.bench.corpus import docstrings, make_model
from varve.config.model import Model
from varve.encoder.description import describe
from varve.encoder.encoder import Encoder
from varve.encoder.kernels.cpu_library import find_cpu_library, supports_bfloat16

MAX_TOKENS = 256
FEATURES = {"e": "mean@-1"}


def main() -> None:
    """Measure and print one line per precision."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="minilm", choices=["minilm", "bert-base"])
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if not supports_bfloat16() or find_cpu_library(torch.bfloat16) is None:
        cpu = torch.cpu.get_capabilities()["cpu_name"]
        sys.stderr.write(f"{cpu}: no AVX512-BF16 or AMX, or nothing was compiled for it; run this on such a CPU\n")
        sys.exit(2)
    with tempfile.TemporaryDirectory() as folder:
        texts = docstrings(args.texts)
        name = str(make_model(args.model, Path(folder), texts))
        encoders = load_encoders(name)
        report(encoders, texts, args.rounds)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def load_encoders(name: str) -> dict[str, Encoder]:
    """Precision → encoder; "torch bfloat16" runs as if there were no compiled code for bfloat16."""
    spec = Model(name=name, max_tokens=MAX_TOKENS)
    half = spec.model_copy(update={"dtype": "bfloat16"})
    encoders = {
        "float32": Encoder(spec, FEATURES, device="cpu"),
        "bfloat16": Encoder(half, FEATURES, device="cpu"),
    }
    with patch("varve.encoder.loaded_model.find_cpu_library", lambda *_: None):
        return encoders | {"torch bfloat16": Encoder(half, FEATURES, device="cpu")}


def report(encoders: dict[str, Encoder], texts: list[str], rounds: int) -> None:
    """Run the rounds and print medians, ratios and differences."""
    tokens = encoders["float32"].tokenizer(texts)
    vectors = {name: np.asarray(encoder.encode(tokens)["e"]) for name, encoder in encoders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for turn in range(rounds):
        for name in list(encoders)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            encoders[name].encode(tokens)
            seconds[name].append(time.perf_counter() - start)
    want = vectors["float32"]
    for name, encoder in encoders.items():
        ratio = statistics.median(a / b for a, b in zip(seconds["float32"], seconds[name], strict=True))
        error = np.linalg.norm(vectors[name] - want, axis=1) / np.linalg.norm(want, axis=1)
        cosine = np.sum(unit(vectors[name]) * unit(want), axis=1)
        error_of_all = np.linalg.norm(vectors[name] - want) / np.linalg.norm(want)
        way, median_s = describe(encoder)["linear"], statistics.median(seconds[name])
        accuracy = f"relative error {error_of_all:.1e}, worst row {error.max():.1e}, least cosine {cosine.min():.6f}"
        sys.stdout.write(f"{name:16s} {way:7s} {median_s:7.2f} s, {ratio:.2f} x float32, {accuracy}\n")


if __name__ == "__main__":
    main()

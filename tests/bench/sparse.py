"""Compares sparse vectors with sentence-transformers' SparseEncoder on one core: rates and peak memory.

python -m tests.bench.sparse [--models splade-tiny minilm bert-base] [--texts 256] [--rounds 5]

splade-tiny is a real checkpoint; the others are random masked-LM models of these shapes. Each side has its own process;
runs are interleaved. The texts are docstrings.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench import corpus
from tests.bench.peers import Setup
from tests.bench.worker import Remote
from tests.splade_checkpoint import splade_folder

REAL = "splade-tiny"
MODELS = (REAL, "minilm", "bert-base")
CHECKED = 16  # texts whose vectors are compared


class SentenceTransformersSparse:
    """`SparseEncoder.encode` in batches of 32 texts, with its defaults."""

    packages = ("sentence-transformers", "transformers", "torch")
    layers = (-1,)
    takes_tokens = False

    def __init__(self, setup: Setup) -> None:
        import torch
        from sentence_transformers import SparseEncoder

        _use_one_core()
        torch.set_num_threads(setup.threads)
        self._model = SparseEncoder(setup.folder, device=setup.device)
        self._model.max_seq_length = setup.max_tokens

    def tokenize(self, texts: Sequence[str]) -> Sequence[str]:
        return texts

    def encode(self, texts: Sequence[str]) -> Any:
        return Rows(self._model.encode(list(texts), batch_size=32, show_progress_bar=False))


class VarveSparse:
    """Varve's encoder with `pool: splade`."""

    packages = ("transformers", "torch")
    layers = (-1,)
    takes_tokens = False

    def __init__(self, setup: Setup) -> None:
        from varve.config.feature import Feature
        from varve.config.model import Model
        from varve.encoder.encoder import Encoder

        _use_one_core()
        model, features = Model(name=setup.folder, max_tokens=setup.max_tokens), {"s": Feature(pool="splade")}
        self._encoder = Encoder(model, features, device=setup.device, threads=setup.threads)
        self.ways = {"linear": self._encoder.linear}

    def tokenize(self, texts: Sequence[str]) -> Sequence[str]:
        return texts

    def encode(self, texts: Sequence[str]) -> Any:
        import torch

        columns = self._encoder(texts)
        ids, weights = columns["s_ids"], columns["s_weights"].values
        rows = np.arange(len(texts)).repeat(np.diff(ids.offsets))
        places = torch.from_numpy(np.stack([rows, ids.values]))
        vocabulary = self._encoder.checkpoint.vocab_size
        return Rows(torch.sparse_coo_tensor(places, torch.from_numpy(weights), (len(texts), vocabulary)))


class Rows:
    """Sparse rows, of which a selection becomes dense."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __getitem__(self, selected: list[int]) -> NDArray[np.float32]:
        import torch

        return self._rows.index_select(0, torch.tensor(selected)).to_dense().numpy()


def _use_one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def make_checkpoint(name: str, folder: Path) -> str:
    """The real checkpoint, or its files with the weights and configuration of a random model."""
    path = splade_folder(folder / name)
    if name != REAL:
        import torch
        from transformers import AutoConfig, AutoModelForMaskedLM

        torch.manual_seed(0)
        AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **corpus.SHAPES[name])).save_pretrained(path)
    return path


def compare(name: str, texts: Sequence[str], rounds: int, scratch: Path) -> str:
    """Measure one checkpoint; returns a row of the table."""
    setup = replace(Setup(make_checkpoint(name, scratch), 256, "cpu"), threads=1)
    peers = [f"tests.bench.sparse:{peer.__name__}" for peer in (VarveSparse, SentenceTransformersSparse)]
    sessions = [Remote(peer, setup, folder=scratch, env={}) for peer in peers]
    try:
        for session in sessions:
            session.load()
            session.use(texts)
            session.run()
        ours, theirs = (session.vectors(range(CHECKED)) for session in sessions)
        seconds = [[session.run().seconds for session in sessions] for _ in range(rounds)]
        peaks = [session.peak_bytes() / 1e6 for session in sessions]
    finally:
        for session in sessions:
            session.close()
    medians = [statistics.median(column) for column in zip(*seconds, strict=True)]
    rates = " | ".join(f"{len(texts) / median:,.1f}" for median in medians)
    memory = " | ".join(f"{peak:,.0f} MB" for peak in peaks)
    difference = float(np.abs(ours - theirs).max())
    return f"| {name} | {rates} | {medians[1] / medians[0]:.2f} | {memory} | {difference:.1e} |\n"


def main() -> None:
    """Print the table, a row at a time."""
    parser = argparse.ArgumentParser(description="Compares sparse vectors with sentence-transformers.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    texts = corpus.docstrings(arguments.texts)
    sys.stdout.write("| model | varve, texts/s | sentence-transformers, texts/s | ratio | peak | peak | difference |\n")
    sys.stdout.write("| --- | --- | --- | --- | --- | --- | --- |\n")
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as scratch:
            sys.stdout.write(compare(name, texts, arguments.rounds, Path(scratch)))
            sys.stdout.flush()


if __name__ == "__main__":
    main()

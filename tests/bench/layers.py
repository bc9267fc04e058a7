"""Time of a forward pass up to layer k of an encoder with the shape of bert-base, as a share of the whole pass.

python -m tests.bench.layers
"""

import statistics
import sys
import tempfile
import time
from itertools import islice

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer

from varve.cli.corpus import docstrings, model_folder
from varve.config.feature import Feature
from varve.config.model import Model
from varve.encoder.encoder import Encoder

LAYERS = (2, 6, 12)
TEXTS = 48
ROUNDS = 5


def main() -> None:
    """Interleave the passes and print the medians as a table."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    texts = [text for _, text in islice(docstrings(), TEXTS)]
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.for_model("bert")).save_pretrained(folder)
        AutoTokenizer.from_pretrained(model_folder()).save_pretrained(folder)
        model = Model(name=folder, max_tokens=128)
        encoders = {k: Encoder(model, {"e": Feature(pool="mean", layers=k)}, device="cpu") for k in LAYERS}
    seconds: dict[int, list[float]] = {k: [] for k in LAYERS}
    for _ in range(ROUNDS):
        for k, encoder in encoders.items():
            tokens = encoder.tokenizer(texts)
            started = time.perf_counter()
            encoder.encode(tokens)
            seconds[k].append(time.perf_counter() - started)
    whole = statistics.median(seconds[LAYERS[-1]])
    sys.stdout.write(
        "| highest layer | parameters in memory | share of the whole pass | layers / 12 |\n| --- | --- | --- | --- |\n"
    )
    for k, encoder in encoders.items():
        share = statistics.median(seconds[k]) / whole
        sys.stdout.write(f"| {k} | {encoder.num_parameters / 1e6:.1f} M | {share:.2f} | {k / LAYERS[-1]:.2f} |\n")


if __name__ == "__main__":
    main()

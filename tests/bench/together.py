"""Time of dense, sparse and late vectors and CLS of all layers in one pass, against the sparse vector alone, on a CPU.

python -m tests.bench.together [--texts 256] [--rounds 7]

The checkpoint is a random masked-LM model with the shape of MiniLM that also declares late-interaction vectors.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from varve.cli.corpus import docstrings, model_folder
from varve.config.model import Model
from varve.encoder.encoder import Encoder

SHAPE = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
WIDTH = 128  # of a token's vector
SPARSE = {"sparse": "splade"}
ALL = {**SPARSE, "late": "declared", "dense": "mean+normalize", "cls": "cls@all"}
SETS = {"sparse alone": SPARSE, "sparse and late": {**SPARSE, "late": "declared"}, "all four": ALL}


def make_checkpoint(folder: Path) -> None:
    """Save the model and the files that declare late interaction."""
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **SHAPE)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder()).save_pretrained(folder)
    weight = torch.randn(WIDTH, SHAPE["hidden_size"]) * 0.05
    modules = {"": "Transformer", "1_Dense": "Dense", "2_Mask": "MultiVectorMask", "3_Normalize": "Normalize"}
    tokens = {"module_input_name": "token_embeddings"}
    configs = {
        "modules.json": [{"idx": n, "path": path, "type": f"x.{modules[path]}"} for n, path in enumerate(modules)],
        "config_sentence_transformers.json": {"model_type": "MultiVectorEncoder"},
        "1_Dense/config.json": {"activation_function": "torch.nn.modules.linear.Identity", **tokens},
        "3_Normalize/config.json": tokens,
    }
    for name, content in configs.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    save_file({"linear.weight": weight}, folder / "1_Dense/model.safetensors")


def main() -> None:
    """Interleave the calls and print the medians as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    texts = [text for _, text in islice(docstrings(), arguments.texts)]
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder))
        model = Model(name=folder, max_tokens=256)
        encoders = {name: Encoder(model, features, device="cpu") for name, features in SETS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in SETS}
    for _ in range(arguments.rounds):
        for name, encoder in encoders.items():
            tokens = encoder.tokenizer(texts)
            started = time.perf_counter()
            encoder.encode(tokens)
            seconds[name].append(time.perf_counter() - started)
    alone = seconds["sparse alone"]
    sys.stdout.write("| features | seconds | of the time of sparse alone, in the same round |\n| --- | --- | --- |\n")
    for name, each in seconds.items():
        share = statistics.median(time_s / alone_s for time_s, alone_s in zip(each, alone, strict=True))
        sys.stdout.write(f"| {name} | {statistics.median(each):.2f} | {share:.2f} |\n")


if __name__ == "__main__":
    main()

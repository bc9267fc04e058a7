"""Compares the encoder with its peers: texts in memory → mean of the last layer.

python -m tests.bench.encode [--models minilm bert-base] [--mixes docstrings short] [--max-tokens 256 512] [--out DIR]

Each variant has its own process and is idle while another one runs. Rounds are interleaved; results are medians, and
ratios are medians of the ratios within a round. Vectors are compared with eager float32 transformers, one text at a
time, before anything is timed. The floor is measured in the same rounds. Needs neither Ray nor Arrow nor datasets. The
tables are printed last: float32 first, then reduced precision with its error, where float32 Varve is timed in the same
rounds.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import corpus
from tests.bench.floor import flops
from tests.bench.peers import Setup
from tests.bench.report import document, save
from tests.bench.results import Comparison
from tests.bench.rounds import Start, load, log, measure
from tests.bench.variants import FLOOR, REFERENCE, VARIANTS, chosen
from tests.bench.worker import AbsentError, Remote

# Default number of docstrings: a round takes some seconds on two cores, less than one on a GPU.
TEXTS = {"cpu": {"minilm": 1024, "bert-base": 128, "bert-large": 48}, "cuda": {"bert-large": 4096}}
OTHER_TEXTS = {"cpu": 256, "cuda": 16384}


@dataclass(slots=True)
class Budget:
    """A time limit; variants that do not fit are left out."""

    seconds: float
    started: float = field(default_factory=time.monotonic)

    def share(self, parts: int) -> float:
        """The deadline, on time.monotonic(), of the first of `parts` equal shares of the remaining time."""
        remaining_s = self.started + self.seconds - time.monotonic()
        return time.monotonic() + max(0.0, remaining_s) / parts


def run(arguments: argparse.Namespace, start: Start, scratch: Path) -> list[Comparison]:
    """Run the requested comparisons."""
    device, budget = arguments.device, Budget(60 * arguments.minutes)
    half = device == "cuda"
    counts = {model: TEXTS[device].get(model, OTHER_TEXTS[device]) for model in arguments.models}
    docstrings = corpus.docstrings(arguments.texts or max(counts.values()))
    log(f"{len(docstrings):,} docstrings")
    comparisons: list[Comparison] = []
    cases = [(model, most) for model in arguments.models for most in arguments.max_tokens]
    for at, (model, max_tokens) in enumerate(cases):
        folder = corpus.make_model(model, scratch, docstrings)
        setup = Setup(str(folder), max_tokens, device)
        deadline = budget.share(len(cases) - at)
        names = [REFERENCE, FLOOR, *chosen(arguments.peers, device)]
        sessions, left_out = load(names, setup, start, deadline, setup.threads)
        try:
            texts = docstrings[: arguments.texts or counts[model]]
            mixes = [mix for mix in arguments.mixes if not mix.isdigit() or int(mix) <= max_tokens]
            for place, mix in enumerate(mixes):
                part = Budget(max(0.0, deadline - time.monotonic())).share(len(mixes) - place)
                comparisons.append(_compare(model, mix, texts, setup, sessions, arguments.rounds, part, half=half))
                comparisons[-1].left_out = {**left_out, **comparisons[-1].left_out}
                save(comparisons, arguments.out, "encode")
        finally:
            for session in sessions.values():
                session.close()
    return comparisons


def _compare(
    model: str,
    mix: str,
    docstrings: Sequence[str],
    setup: Setup,
    sessions: dict[str, Any],
    rounds: int,
    deadline: float,
    *,
    half: bool,
) -> Comparison:
    from transformers import AutoConfig

    tokenizer = corpus.load_tokenizer(Path(setup.folder))
    texts = corpus.mix(mix, docstrings, tokenizer, setup.max_tokens)
    lengths = [min(len(encoding), setup.max_tokens) for encoding in tokenizer.encode_batch_fast(texts)]
    title = f"{Path(model).name}, {mix}, max_tokens {setup.max_tokens}, {setup.device}"
    operations = flops(AutoConfig.from_pretrained(setup.folder), lengths) if FLOOR in sessions else 0
    comparison = Comparison(title, len(texts), sum(lengths), [], operations=operations)
    try:
        measure(comparison, texts, sessions, rounds, deadline, half=half)
    except AbsentError as e:
        comparison.left_out["all"] = str(e)
    return comparison


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compares the encoder with its peers.")
    parser.add_argument(
        "--models", nargs="+", default=list(corpus.SHAPES), help="minilm, bert-base, bert-large, folders"
    )
    parser.add_argument("--mixes", nargs="+", default=list(corpus.MIXES), help="docstrings, short, or a length")
    parser.add_argument("--max-tokens", nargs="+", type=int, default=[256, 512])
    parser.add_argument("--texts", type=int, help="number of docstrings; other mixes have as many tokens in total")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--peers", nargs="*", help=f"beginnings of names, or module:class; default: {', '.join(VARIANTS)}"
    )
    parser.add_argument("--python", nargs="*", default=[], metavar="PEER=PATH", help="Python interpreter for a peer")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="time limit; variants that do not fit are left out"
    )
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    return parser.parse_args()


def main() -> None:
    """Run the comparisons and print their tables."""
    arguments = _arguments()
    pythons = dict(pair.split("=", 1) for pair in arguments.python)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)

        def start(variant: str, setup: Setup) -> Remote:
            python = next((path for peer, path in pythons.items() if variant.startswith(peer)), sys.executable)
            env = dict(VARIANTS[variant].env) if variant in VARIANTS else {}
            return Remote(variant, setup, folder=scratch, python=python, env=env)

        comparisons = run(arguments, start, scratch)
    sys.stdout.write(document(comparisons))


if __name__ == "__main__":
    main()

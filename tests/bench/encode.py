"""The encoder alone beside its peers: texts in memory → one mean of the last layer per text.

python -m tests.bench.encode [--models minilm bert-base] [--mixes docstrings short] [--max-tokens 256 512] [--out DIR]

Each variant lives in a process of its own and waits while another one runs; rounds are interleaved; medians count, of
ratios those within a round. No time counts before the vectors have been compared with eager float32 transformers, one
text at a time. The floor is measured in the same rounds. Needs neither Ray nor Arrow nor datasets. The tables stand
last on stdout.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import corpus
from tests.bench.floor import flops
from tests.bench.peers import Setup
from tests.bench.report import Comparison, Row, compare, save, table
from tests.bench.variants import FLOOR, OURS, REFERENCE, VARIANTS, chosen
from tests.bench.worker import AbsentError, Remote, Session

# Docstrings by default: some seconds a round on two cores, parts of one on a GPU.
TEXTS = {"cpu": {"minilm": 1024, "bert-base": 128, "bert-large": 48}, "cuda": {"bert-large": 4096}}
OTHER_TEXTS = {"cpu": 256, "cuda": 16384}
CHECKED = {"cpu": 512, "cuda": 128}  # texts that are compared
ANY_LAYERS = ("varve, all layers", "varve, CLS", "varve, layers <= half", "varve, layers <= 1")

Start = Callable[[str, Setup], Session | Remote]


@dataclass(slots=True)
class Budget:
    """Time in which all must be done; what does not fit is left out."""

    seconds: float
    began: float = field(default_factory=time.monotonic)

    def share(self, parts: int) -> float:
        """The deadline, on time.monotonic(), of the first of so many equal parts of what is left."""
        left = self.began + self.seconds - time.monotonic()
        return time.monotonic() + max(0.0, left) / parts


def measure(
    comparison: Comparison, texts: Sequence[str], sessions: dict[str, Any], rounds: int, deadline: float, *, half: bool
) -> None:
    """Compare what the variants give, then time them in turns.

    Args:
        comparison: takes the figures.
        texts: to encode.
        sessions: the reference, the floor if it is wanted, and the variants, loaded.
        rounds: of the interleaved runs.
        deadline: on time.monotonic(), by which the last round should end.
        half: the variants run in half precision.
    """
    checked = sorted({at * len(texts) // CHECKED["cuda" if half else "cpu"] for at in range(CHECKED["cpu"])})
    checked = [at for at in checked if at < len(texts)]
    if REFERENCE not in sessions:
        msg = "nothing to compare with"
        raise AbsentError(msg)
    reference = sessions[REFERENCE]
    reference.use([texts[at] for at in checked])
    reference.run()
    right = reference.vectors(range(len(checked))).reshape(len(checked), len(reference.layers()), -1)
    warm: dict[str, tuple[Row, float]] = {}
    for name in (name for name in sessions if name not in {REFERENCE, FLOOR}):
        if time.monotonic() > deadline:
            comparison.left_out[name] = "no time left"
            continue
        try:
            sessions[name].use(texts)
            took = sessions[name].run().seconds
            wanted = right[:, sessions[name].layers()].reshape(len(checked), -1)
            difference = compare(sessions[name].vectors(checked), wanted)
        except AbsentError as e:
            comparison.left_out[name] = str(e)
            continue
        row = Row(name, difference=difference, exact=difference.is_exact(half=half), ours=name.startswith(OURS))
        row.whole = name not in ANY_LAYERS
        _tell(f"{comparison.title}: {name}: {took:.2f} s, {difference}")
        left = deadline - time.monotonic()
        if warm and took + sum(others for _, others in warm.values()) > left:
            comparison.left_out[name] = "no time left"
            continue
        warm[name] = row, took
        comparison.rows.append(row)
    for turn in range(rounds):
        if time.monotonic() > deadline and turn:
            break
        if FLOOR in sessions:
            for product, rate in sessions[FLOOR].measure().items():
                comparison.floor.setdefault(product, []).append(rate)
        for name, (row, _) in warm.items():
            if time.monotonic() > deadline and turn:
                break
            ran = sessions[name].run()
            row.seconds.append(ran.seconds)
            row.more.setdefault("of it encoding", []).extend([] if ran.encode_seconds is None else [ran.encode_seconds])
            _tell(f"{comparison.title}: round {turn + 1}: {name}: {ran.seconds:.2f} s")
    for name, (row, _) in warm.items():
        row.peak_bytes = sessions[name].peak_bytes()


def load(
    names: Sequence[str], setup: Setup, start: Start, deadline: float, at_once: int = 1
) -> tuple[dict[str, Any], dict[str, str]]:
    """(the variants that could be loaded by half of the time, why the others could not)."""
    half_time = (time.monotonic() + deadline) / 2

    def load_one(name: str) -> tuple[str, Any, str]:
        if time.monotonic() > half_time:
            return name, None, "no time left to load it"
        session = start(name, setup)
        session.deadline = half_time
        try:
            told = ", ".join(f"{package} {version}" for package, version in session.load().items())
        except AbsentError as e:
            session.close()
            return name, None, str(e)
        session.deadline = deadline
        _tell(f"{Path(setup.folder).name}: {name}: loaded ({told})")
        return name, session, ""

    with ThreadPoolExecutor(at_once) as pool:
        loaded = list(pool.map(load_one, names))
    sessions = {name: session for name, session, _ in loaded if session}
    return sessions, {name: why for name, session, why in loaded if not session}


def run(arguments: argparse.Namespace, start: Start, scratch: Path) -> list[Comparison]:
    """All comparisons that were asked for."""
    device, budget = arguments.device, Budget(60 * arguments.minutes)
    half = device == "cuda"
    counts = {model: TEXTS[device].get(model, OTHER_TEXTS[device]) for model in arguments.models}
    docstrings = corpus.docstrings(arguments.texts or max(counts.values()))
    _tell(f"{len(docstrings):,} docstrings")
    done: list[Comparison] = []
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
                done.append(_compare(model, mix, texts, setup, sessions, arguments.rounds, part, half=half))
                done[-1].left_out = {**left_out, **done[-1].left_out}
                save(done, arguments.out, "encode")
        finally:
            for session in sessions.values():
                session.close()
    return done


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
        comparison.left_out["the rest"] = str(e)
    return comparison


def _tell(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The encoder alone beside its peers.")
    parser.add_argument(
        "--models", nargs="+", default=list(corpus.SHAPES), help="minilm, bert-base, bert-large, folders"
    )
    parser.add_argument("--mixes", nargs="+", default=list(corpus.MIXES), help="docstrings, short, or a length")
    parser.add_argument("--max-tokens", nargs="+", type=int, default=[256, 512])
    parser.add_argument("--texts", type=int, help="docstrings; other mixes have as many tokens in all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", help=f"first words of names, or module:class; all: {', '.join(VARIANTS)}")
    parser.add_argument("--python", nargs="*", default=[], metavar="PEER=PATH", help="interpreter of a peer")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="leave out what does not fit")
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    return parser.parse_args()


def main() -> None:
    """Run, and print the tables last."""
    arguments = _arguments()
    pythons = dict(pair.split("=", 1) for pair in arguments.python)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)

        def start(variant: str, setup: Setup) -> Remote:
            python = next((path for peer, path in pythons.items() if variant.startswith(peer)), sys.executable)
            env = dict(VARIANTS[variant].env) if variant in VARIANTS else {}
            return Remote(variant, setup, folder=scratch, python=python, env=env)

        comparisons = run(arguments, start, scratch)
    sys.stdout.write("\n".join(table(comparison) for comparison in comparisons))


if __name__ == "__main__":
    main()

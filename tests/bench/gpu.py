"""What only a machine with a GPU can show, in one command of less than nine minutes.

python -m tests.bench.gpu [--device cuda] [--rows 2000000] [--minutes 9] [--out bench-output]

Runs in turn, each in a process of its own and within its share of the time: the whole MiniLM job, files to files, with
the tokens per second that it reaches once the first replica is ready; the encoder and its peers for MiniLM, bert-base
and bert-large (`tests.bench.encode`); and the kernels that a pass of bert-base spends its time in. A step that fails or
takes too long is named, and the others run. `--device cpu --rows 2000` shows that the steps work.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench import corpus

_SHARDS = 16
_CHARACTERS = 240  # of a text: 49 tokens on average
_MAX_TOKENS = 128
_DISTINCT = 4_000  # docstrings; a number in front makes each row a text of its own
_SHARES = {"job": 0.4, "encoder": 0.45, "kernels": 0.15}  # of the time
_PASSES, _PASS_TOKENS, _LISTED = 20, 32_768, 15


def whole_job(folder: Path, rows: int, device: str) -> str:
    """Run `varve embed` over generated files; returns a line with its rate."""
    texts = corpus.docstrings(_DISTINCT)
    source, model = folder / "source", corpus.make_model("minilm", folder, texts)
    source.mkdir()
    for shard in range(_SHARDS):
        own = [f"{row} {texts[row % len(texts)][:_CHARACTERS]}" for row in range(shard, rows, _SHARDS)]
        pq.write_table(pa.table({"text": own}), source / f"{shard:02}.parquet")
    command = ["embed", "--dataset", str(source), "--text", "text", "--model", str(model), "--feature", "e=mean"]
    command += ["--output", str(folder / "out"), "--set", f"model.max_tokens={_MAX_TOKENS}"]
    command += ["--set", f"compute.gpus={int(device == 'cuda')}"]
    subprocess.run([sys.executable, "-m", "varve", *command], check=True)
    manifest = json.loads((folder / "out/_varve/manifest.json").read_text())
    stages, encode = manifest["stages"], manifest["stages"]["encode"]
    span_s = encode["work_s"] / encode["busy"] / encode["at_once"]
    busy = ", ".join(f"{name} {stage['busy']:.0%}" for name, stage in stages.items() if isinstance(stage, dict))
    alone = manifest["num_tokens"] / encode["work_s"] * encode["at_once"]
    return (
        f"{manifest['num_tokens']:,} tokens, {manifest['num_tokens'] / span_s:,.0f} tokens/s once a replica is ready; "
        f"the encoder while busy {alone:,.0f}; busy: {busy}; seconds: {manifest['seconds']}; {manifest['encoder']}"
    )


def encoder_and_peers(out: Path, device: str, minutes: float) -> str:
    """Run `tests.bench.encode`; returns its tables."""
    peers = ["varve", "sentence-transformers, 32 rows", "sentence-transformers, 256 rows"]
    command = [sys.executable, "-m", "tests.bench.encode", "--device", device, "--minutes", f"{minutes:.2f}"]
    command += ["--models", *corpus.SHAPES, "--mixes", "docstrings", "128", "--max-tokens", "512", "--peers", *peers]
    command += ["--texts", "64"] * (device == "cpu")
    return subprocess.run([*command, "--out", str(out)], check=True, capture_output=True, text=True).stdout


def kernels(folder: Path, device: str) -> str:
    """The share of each kernel in passes of the bert-base shape at 128 tokens."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from varve.encoder.encoder import Encoder

    tokens = _PASS_TOKENS if device == "cuda" else 1024
    texts = corpus.docstrings(_DISTINCT)
    model = corpus.make_model("bert-base", folder, texts)
    mixed = corpus.mix("128", texts[:tokens], corpus.load_tokenizer(model), 128)[: tokens // 128]
    encoder = Encoder(str(model), {"e": "mean"}, device=device, tokens_per_pack=tokens)
    encoder.encode(encoder.tokenizer(mixed))
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiled:
        for _ in range(_PASSES if device == "cuda" else 1):
            encoder.encode(encoder.tokenizer(mixed))
        if device == "cuda":
            torch.cuda.synchronize()
    kind = "device" if device == "cuda" else "cpu"
    times = {event.key: getattr(event, f"self_{kind}_time_total") for event in profiled.key_averages()}
    total = sum(times.values())
    slowest = sorted(times, key=lambda name: -times[name])[:_LISTED]
    return "\n".join(f"{times[name] / total:6.1%}  {name[:100]}" for name in slowest)


def _run_step(name: str, arguments: argparse.Namespace) -> None:
    """One step, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        if name == "job":
            result = whole_job(Path(folder), arguments.rows, arguments.device)
        elif name == "encoder":
            result = encoder_and_peers(arguments.out, arguments.device, _SHARES[name] * arguments.minutes * 0.9)
        else:
            result = kernels(Path(folder), arguments.device)
    sys.stdout.write(f"{result}\n")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures what only a machine with a GPU can show.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rows", type=int, default=2_000_000, help="of the whole job")
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit of all steps together")
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    parser.add_argument("--step", choices=_SHARES, help="run this step only, in this process")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the steps; write their results to stdout and to gpu.txt in the output folder."""
    arguments = _arguments(argv)
    if arguments.step:
        _run_step(arguments.step, arguments)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "gpu.txt").open("w") as file:
        for name, share in _SHARES.items():
            began = time.monotonic()
            command = [sys.executable, "-m", "tests.bench.gpu", "--step", name, "--device", arguments.device]
            command += ["--rows", str(arguments.rows), "--minutes", str(arguments.minutes), "--out", str(arguments.out)]
            try:
                limit_s = 60 * share * arguments.minutes
                done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=limit_s)
                text = done.stdout if done.returncode == 0 else f"failed:\n{done.stderr[-2000:]}"
            except subprocess.TimeoutExpired:
                text = "did not end within its share of the time\n"
            result = f"## {name}, {time.monotonic() - began:.0f} s\n\n{text}\n"
            sys.stdout.write(result)
            file.write(result)
            file.flush()


if __name__ == "__main__":
    main()

"""`varve plan`: say what a job will take, before it runs. Nothing is written."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.command import add_job_arguments, print_json, read_job, run
from pipeline.progress import clock_time, file_size

if TYPE_CHECKING:
    from pipeline.estimate import Estimate

_BAR = 40


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run("plan", "Say what a job will take, before it runs.", add_job_arguments, _plan, argv)


def _plan(arguments: argparse.Namespace) -> int:
    job = read_job(arguments)
    from pipeline.estimate import estimate
    from pipeline.plan import local_device, prepare
    from pipeline.quiet import quiet_datasets, quiet_transformers

    quiet_transformers()
    quiet_datasets()
    plan = prepare(job, device=local_device())
    figures = estimate(plan)
    if arguments.json:
        print_json({"fingerprint": plan.fingerprint, "resolved": asdict(plan.resolved), **asdict(figures)})
    else:
        sys.stdout.write(_text(figures))
    return 0


def _text(figures: "Estimate") -> str:
    rows = f"{figures.num_rows:,}" if figures.rows_known else f"about {figures.num_rows:,} (estimated from a sample)"
    how = ", ".join(figures.encoder[key] for key in ("device", "dtype", "layout"))
    lines = {
        "shards": f"{figures.num_shards:,}",
        "rows": rows,
        "tokens": f"about {figures.num_tokens:,}: {figures.tokens_per_row:.0f} a row, {figures.sampled_rows:,} sampled",
        "truncated": f"{figures.num_truncated:.1%} of rows; errors {figures.num_errors:.1%}",
        "layers": f"{figures.layers_run} of {figures.num_layers} run",
        "compute": f"{figures.flops:.2e} FLOPs",
        "speed": f"{figures.tokens_per_s:,.0f} tokens/s measured here ({how})",
        "tokenizer": f"{figures.tokenizer_tokens_per_s:,.0f} tokens/s on a core: {figures.tokenizer_cores:.2f} cores "
        "keep a replica of this speed fed",
        **_functions(figures),
        "time": f"{clock_time(figures.encode_s)} of encoding on one replica, besides the start of Ray",
        "output": f"about {file_size(figures.output_bytes)} before compression",
        "parts": f"about {figures.num_parts:,}, of up to {figures.rows_per_part:,} rows",
    }
    text = "".join(f"  {name:<10} {told}\n" for name, told in lines.items())
    columns = "".join(f"    {name:<20} {file_size(size)}\n" for name, size in figures.row_bytes.items())
    return f"{text}  bytes of one row:\n{columns}  tokens of a row:\n{_histogram(figures.length_histogram)}"


def _functions(figures: "Estimate") -> dict[str, str]:
    if figures.compute_s is None:
        return {}
    row_us = 1e6 * figures.compute_s / max(1, figures.num_rows)
    return {"functions": f"{row_us:,.1f} µs a row on a core, {clock_time(figures.compute_s)} for all rows"}


def _histogram(bins: list[tuple[int, int, int]]) -> str:
    most = max((rows for *_, rows in bins), default=1)
    return "".join(f"    {low:>5}-{high:<5} {'█' * round(_BAR * rows / most)} {rows:,}\n" for low, high, rows in bins)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`varve plan`: say what a job will take, before it runs. Nothing is written."""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from varve.cli.cluster_client import add_cluster_arguments, connect, exit_code_of, hand_over
from varve.cli.command import print_json, run
from varve.cli.job_arguments import add_job_arguments, read_job
from varve.config.job import Job
from varve.errors import JobError
from varve.monitoring.progress_line import clock_time, data_size

if TYPE_CHECKING:
    from varve.cluster.placement import Placement
    from varve.planning.plan import Plan
    from varve.planning.throughput import Estimate

_BAR = 40
_RAY_START_S = 6.0  # of a Ray that the run starts itself: 5 to 7 on two cores
_JSON_BEGINS = "\n{"


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run("plan", "Say what a job will take, before it runs.", _add, _plan, argv, uses_ray=True)


def _add(parser: argparse.ArgumentParser) -> None:
    add_job_arguments(parser)
    add_cluster_arguments(parser, required=False)
    parser.add_argument("--price-per-hour", type=float, metavar="PRICE", help="of the whole cluster, for the cost")


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.installed and not arguments.to:
        msg = "--installed goes with --to ADDRESS: without one the job is measured here, or at RAY_ADDRESS"
        raise JobError(msg)
    price = arguments.price_per_hour
    _refuse_price(price)
    job = read_job(arguments)
    if arguments.to:
        report = _ask_cluster(job, arguments.to, price, with_code=not arguments.installed)
    else:
        report = _measure_here(job, price)
    sys.stderr.writelines(f"{note}\n" for note in report.get("notes", ()))
    if "error" in report:
        sys.stderr.write(f"varve plan: {report['error']}\n")
    if arguments.json:
        print_json(report)
    elif "error" not in report:
        sys.stdout.write(_text(report))
    return report.get("exit_code", 0)


def _refuse_price(price: float | None) -> None:
    if price is not None and not 0 <= price < math.inf:  # NaN is nowhere
        msg = f"--price-per-hour: {price:g} is not allowed: expected 0 or more"
        raise JobError(msg)


def _measure_here(job: Job, price_per_hour: float | None) -> dict[str, Any]:
    """The report, measured on this machine, or on the cluster that RAY_ADDRESS names."""
    began = time.perf_counter()
    from varve.cluster.nodes import this_machine
    from varve.cluster.placement import place_on_cluster, place_workers
    from varve.planning.forecast import forecast
    from varve.planning.saved_plan import prepare
    from varve.process_state import silence_datasets, silence_transformers
    from varve.storage.object_store import Storage

    silence_transformers()
    silence_datasets()
    if os.environ.get("RAY_ADDRESS"):
        from varve.cluster.connection import start_ray

        start_ray(job.compute)
        cluster, placement = place_on_cluster(job.compute)
    else:
        cluster = this_machine()
        placement = place_workers(cluster, job.compute)
    plan = prepare(job, Storage(job.output.path, patient=False), device=placement.device)
    prepared_s = time.perf_counter() - began
    figures, waited_s = _measure(plan, placement)
    # A run prepares like this command does; then each replica does so for itself, and loads its model.
    start_s = 2 * prepared_s + waited_s + (0.0 if os.environ.get("RAY_ADDRESS") else _RAY_START_S)
    ahead = forecast(figures, placement, cluster, start_s=start_s, price_per_hour=price_per_hour)
    return {
        "fingerprint": plan.fingerprint,
        "resolved": asdict(plan.resolved),
        "notes": plan.notes,
        **asdict(figures),
        "cluster": asdict(cluster),
        "placement": asdict(placement),
        "forecast": asdict(ahead),
    }


def _measure(plan: "Plan", placement: "Placement") -> tuple["Estimate", float]:
    """(what a replica is measured to do, seconds until it could begin)."""
    from varve.planning.throughput import estimate

    if not os.environ.get("RAY_ADDRESS"):
        figures = estimate(plan, placement.device, placement.threads)
        return figures, figures.ready_s
    from varve.engine.ray_tasks import on_replica

    asked_at = time.time()
    began_at, figures = on_replica(
        plan, placement, lambda there: (time.time(), estimate(there, placement.device, placement.threads))
    )
    return figures, began_at - asked_at + figures.ready_s


def _ask_cluster(job: Job, address: str, price_per_hour: float | None, *, with_code: bool) -> dict[str, Any]:
    """The report that a cluster makes of itself, or {"error", "exit_code"}."""
    head = connect(address)
    from varve.submission.jobs_client import name_of

    name = f"{name_of(job)}-plan"
    submission_id = f"{name}-{head.latest(name)[1] + 1}"
    options = ["--json", *([f"--price-per-hour={price_per_hour}"] if price_per_hour is not None else [])]
    hand_over(head, job, submission_id, "plan", *options, with_code=with_code)
    put_out = "\n" + "".join(head.follow(submission_id))
    _, begins, report = put_out.rpartition(_JSON_BEGINS)
    if begins:
        return json.JSONDecoder().raw_decode(f"{{{report}")[0]
    ended = head.find(submission_id)
    told = put_out.strip().rpartition("varve: ")[2] or (ended.message if ended else "its head was started anew")
    return {"error": f"{submission_id}: {told}", "exit_code": exit_code_of(ended) if ended else 1}


def _text(report: dict[str, Any]) -> str:
    known = report["rows_known"]
    rows = f"{report['num_rows']:,}" if known else f"about {report['num_rows']:,} (estimated from a sample)"
    how = ", ".join(report["encoder"][key] for key in ("device", "dtype", "layout"))
    ahead = report["forecast"]
    lines = {
        "shards": f"{report['num_shards']:,}",
        "rows": rows,
        "tokens": f"about {report['num_tokens']:,}: {report['tokens_per_row']:.0f} a row, "
        f"{report['sampled_rows']:,} sampled",
        "truncated": f"{report['share_truncated']:.1%} of rows; errors {report['share_errors']:.1%}",
        "layers": f"{report['layers_run']} of {report['num_layers']} run",
        "compute": f"{report['flops']:.2e} FLOPs",
        "cluster": _cluster(report["cluster"]),
        "takes": _placement(report["placement"]),
        "speed": f"{report['tokens_per_s']:,.0f} tokens/s of a replica, measured ({how})",
        "tokenizer": f"{report['tokenizer_tokens_per_s']:,.0f} tokens/s on a core: {report['tokenizer_cores']:.2f} "
        "cores keep a replica of this speed fed",
        **_functions(report),
        "time": f"about {clock_time(ahead['seconds'])}, {clock_time(ahead['start_s'])} of it to start and to prove",
        "bottleneck": ahead["bottleneck"],
        "output": f"about {data_size(report['output_bytes'])} before compression",
        "parts": f"about {report['num_parts']:,}, of up to {report['rows_per_part']:,} rows",
    }
    if ahead["cost"] is not None:
        lines["cost"] = f"about {ahead['cost']:,.2f} at that price"
    text = "".join(f"  {name:<10} {told}\n" for name, told in lines.items())
    columns = "".join(f"    {name:<20} {data_size(size)}\n" for name, size in report["row_bytes"].items())
    return f"{text}  bytes of one row:\n{columns}  tokens of a row:\n{_histogram(report['length_histogram'])}"


def _cluster(cluster: dict[str, Any]) -> str:
    nodes = cluster["nodes"]
    gpus: dict[str, float] = {}
    for node in nodes:
        if node["gpus"]:
            kind = node["accelerator"] or "GPU"
            gpus[kind] = gpus.get(kind, 0) + node["gpus"]
    parts = [f"{len(nodes)} node(s)", f"{sum(node['cpus'] for node in nodes):.0f} CPUs"]
    parts += [f"{count:g} × {kind}" for kind, count in gpus.items()]  # noqa: RUF001 (it is a times sign)
    memory = sum(node["object_store_bytes"] for node in nodes)
    return ", ".join(parts + ([f"object store {data_size(memory)}"] if memory else []))


def _placement(placement: dict[str, Any]) -> str:
    each = (
        f"{placement['gpus']:g} GPU and {placement['cpus']:g} CPUs"
        if placement["gpus"]
        else f"{placement['threads']} thread(s)"
    )
    most = f" (up to {placement['most_replicas']})" if placement["most_replicas"] > placement["replicas"] else ""
    tokenizers = f", {placement['tokenizers']} tokenizer(s)" if placement["tokenizers"] else ""
    return f"{placement['replicas']} replica(s){most} of {each}{tokenizers}"


def _functions(report: dict[str, Any]) -> dict[str, str]:
    if report["compute_s"] is None:
        return {}
    row_us = 1e6 * report["compute_s"] / max(1, report["num_rows"])
    return {"functions": f"{row_us:,.1f} µs a row on a core, {clock_time(report['compute_s'])} for all rows"}


def _histogram(bins: list[list[int]]) -> str:
    most = max((rows for *_, rows in bins), default=1)
    return "".join(f"    {low:>5}-{high:<5} {'█' * round(_BAR * rows / most)} {rows:,}\n" for low, high, rows in bins)

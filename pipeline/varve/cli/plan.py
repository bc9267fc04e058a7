"""`varve plan`: estimate the time, size and cost of a job from a short measurement. Writes nothing."""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from varve.cli.cluster_client import add_cluster_arguments, exit_code_of, hand_over
from varve.cli.command import print_json, run
from varve.cli.job_arguments import add_job_arguments, read_job
from varve.cli.plan_report import plan_report
from varve.config.job import Job
from varve.errors import JobError

if TYPE_CHECKING:
    from varve.cluster.placement import Placement
    from varve.planning.plan import Plan
    from varve.planning.throughput import Estimate

_RAY_START_S = 6.0  # of a Ray that the run starts itself: 5 to 7 s on two cores
_JSON_START = "\n{"
_DESCRIPTION = """Estimate the time, size and cost of a job before it runs: measure a replica and the tokenizer on a
sample for some seconds, and extrapolate to all rows and the whole cluster. Nothing is written. The measurement runs on
this machine, on the Ray cluster at RAY_ADDRESS, or on the cluster of --to."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run("plan", _DESCRIPTION, _add_arguments, _plan, argv, uses_ray=True)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job_arguments(parser)
    add_cluster_arguments(parser, required=False)
    parser.add_argument(
        "--price-per-hour", type=float, metavar="PRICE", help="price of the whole cluster, to estimate the cost"
    )


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.installed and not arguments.cluster:
        msg = "--installed needs --to ADDRESS: without it the job is measured on this machine or at RAY_ADDRESS"
        raise JobError(msg)
    price = arguments.price_per_hour
    if price is not None and not 0 <= price < math.inf:  # also false for NaN
        msg = f"--price-per-hour: {price:g} is not allowed: expected 0 or more"
        raise JobError(msg)
    job = read_job(arguments)
    if arguments.cluster:
        report = _measure_at(arguments.cluster, job, price, with_code=not arguments.installed)
    else:
        report = _measure_here(job, price)
    sys.stderr.writelines(f"{note}\n" for note in report.get("notes", ()))
    if "error" in report:
        sys.stderr.write(f"varve plan: {report['error']}\n")
    if arguments.json:
        print_json(report)
    elif "error" not in report:
        sys.stdout.write(plan_report(report))
    return report.get("exit_code", 0)


def _measure_here(job: Job, price_per_hour: float | None) -> dict[str, Any]:
    """Return the report, measured on this machine or on the cluster at RAY_ADDRESS."""
    start = time.perf_counter()
    from varve.cluster.nodes import this_machine
    from varve.cluster.placement import place_on_cluster, place_workers
    from varve.driver.node_instructions import check_instructions
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
    check_instructions(job.model, cluster, placement)
    with ExitStack() as cleanup:
        job, table = _compare_tables(job, cleanup) if job.output.table else (job, {})
        plan = prepare(job, Storage(job.output.root, patient=False), device=placement.device)
        prepared_s = time.perf_counter() - start
        estimate, waited_s = _measure(plan, placement)
    # A run prepares as this command does. Then each replica prepares and loads its model.
    start_s = 2 * prepared_s + waited_s + (0.0 if os.environ.get("RAY_ADDRESS") else _RAY_START_S)
    prediction = forecast(estimate, placement, cluster, start_s=start_s, price_per_hour=price_per_hour)
    return {
        "fingerprint": plan.fingerprint,
        **({"table": table} if table else {}),
        "resolved": asdict(plan.resolved),
        "notes": plan.notes,
        "descriptions": plan.descriptions,
        **asdict(estimate),
        "cluster": asdict(cluster),
        "placement": asdict(placement),
        "forecast": asdict(prediction),
    }


def _compare_tables(job: Job, cleanup: ExitStack) -> tuple[Job, dict[str, Any]]:
    """(the job of the rows that a run would encode, counts of rows); the comparison is written to a temporary folder.

    A destination that does not exist is not created.
    """
    from varve.backfill.open_backfill import open_backfill
    from varve.engine.parallel import in_threads
    from varve.storage.object_store import Storage

    folder = cleanup.enter_context(TemporaryDirectory())
    backfill = open_backfill(job, create=False)
    selection = backfill.select(Storage(folder), in_threads)
    table = {"address": job.output.table, "in_step": backfill.is_in_step, "rows": dict(selection.counts)}
    output = backfill.job.output.model_copy(update={"path": folder})
    return backfill.job.model_copy(update={"output": output}), table


def _measure(plan: "Plan", placement: "Placement") -> tuple["Estimate", float]:
    """(the measurement of one replica, seconds until the replica was ready)."""
    from varve.planning.throughput import estimate

    if not os.environ.get("RAY_ADDRESS"):
        result = estimate(plan, placement.device, placement.threads)
        return result, result.ready_s
    from varve.engine.ray_tasks import on_replica

    asked_at = time.time()
    began_at, result = on_replica(
        plan, placement, lambda pinned: (time.time(), estimate(pinned, placement.device, placement.threads))
    )
    return result, began_at - asked_at + result.ready_s


def _measure_at(address: str, job: Job, price_per_hour: float | None, *, with_code: bool) -> dict[str, Any]:
    """Return the report of `varve plan --json` on a cluster, or {"error", "exit_code"}."""
    from varve.submission.jobs_client import ClusterHead, submission_name

    head = ClusterHead(address)
    name = f"{submission_name(job)}-plan"
    submission_id = f"{name}-{head.latest(name)[1] + 1}"
    options = ["--json", *([f"--price-per-hour={price_per_hour}"] if price_per_hour is not None else [])]
    hand_over(head, job, submission_id, "plan", *options, with_code=with_code)
    output = "\n" + "".join(head.follow(submission_id))
    _, start, report = output.rpartition(_JSON_START)
    if start:
        return json.JSONDecoder().raw_decode(f"{{{report}")[0]
    ended = head.find(submission_id)
    message = output.strip().rpartition("varve: ")[2] or (ended.message if ended else "the cluster was restarted")
    return {"error": f"{submission_id}: {message}", "exit_code": exit_code_of(ended) if ended else 1}

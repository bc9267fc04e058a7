"""The dataflow of a run on Ray Data: read → encode → write.

One row of Ray's dataset holds one whole part (workers/part_message.py), so what is encoded together never depends on
how Ray bundles, splits or retries rows. Replicas tokenize their own texts (infra/decisions/0037). Knows nothing of
manifests or coverage. Invariant: importing this file imports neither torch nor transformers, since every process that
reads or writes imports it.
"""

import ctypes
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO, cast

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError, UserCodeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from varve.cluster.nodes import read_cluster
from varve.cluster.placement import IO_CPUS, WRITE_CPUS, Placement, diagnose
from varve.encoder.checkpoint.head import TokenPooling
from varve.engine.data_context import make_context, quiet_ray_data
from varve.engine.datasource import ShardDatasource
from varve.engine.lazy_stages import Replica
from varve.engine.ray_reporter import RayReporter
from varve.engine.ray_tasks import MAX_RETRIES, TWO_CALLS, model_files, unwrap_error
from varve.errors import VarveError
from varve.monitoring.history_file import HistoryFile
from varve.monitoring.progress_line import ProgressLine
from varve.monitoring.progress_text import ProgressText
from varve.monitoring.prometheus import MeteredCounters
from varve.monitoring.run_counters import Snapshot
from varve.monitoring.source_sizes import SourceSizes
from varve.monitoring.watchdog import Watchdog
from varve.output import part_file
from varve.output.part_file import Part
from varve.output.part_layout import PartLayout
from varve.output.part_table import PartTable
from varve.output.token_pooling import pool_tokens
from varve.ranges import Missing
from varve.storage.object_store import Storage
from varve.storage.retry import retries
from varve.workers.part_message import unpack_message

if TYPE_CHECKING:
    from varve.planning.plan import Plan

_POOLING_CPUS = 1.0  # of a writer that clusters token vectors
# Restarts of one replica. A part that kills its worker is isolated long before (workers/replica.py); nodes may come and
# go for days.
_MAX_RESTARTS = 1000
# The heap has grown by some ten megabytes after so many parts; a trim takes milliseconds.
_PARTS_PER_TRIM = 4000
# Their actor answers within milliseconds, unless it cannot start or has died.
_SNAPSHOT_TIMEOUT_S = 5.0
_HISTORY_TIMEOUT_S = 2.0  # the end of a run waits for it
_READ: dict[str, Any] = {"num_cpus": IO_CPUS, "max_retries": MAX_RETRIES}
_PART_BY_PART: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}


@dataclass(frozen=True, slots=True)
class DataflowResult:
    """What a dataflow did."""

    parts: PartTable  # that this run committed
    counters: Snapshot  # zeros if it stopped early
    placement: Placement
    stop_reason: str | None  # why it stopped early; None if it completed


def run_dataflow(
    plan: "Plan",
    storage: Storage,
    missing: Mapping[int, Missing],
    committed_rows: int,
    placement: Placement,
    progress: TextIO | None,
    layout: PartLayout | None = None,
    history: HistoryFile | None = None,
) -> DataflowResult:
    """Read, encode and commit what is missing, all at the same time.

    Args:
        plan: of the job.
        storage: the output.
        missing: shard → what is missing of it.
        committed_rows: rows that earlier runs have committed.
        placement: where replicas run.
        progress: stream of the progress line; None logs progress instead.
        layout: of the parts, if they become files of a lake table.
        history: where the counters' history is kept.

    Raises:
        RunError: it failed. After a signal or a stall it returns, with `stop_reason`.
    """
    total_rows = plan.total_rows
    missing_rows = None if total_rows is None else total_rows - committed_rows
    sizes = _sizes(plan, missing)
    counters = _start_counters(plan.fingerprint, missing_rows, history.started_at if history else time.time(), sizes)

    def snapshot() -> Snapshot:
        return ray.get(counters.snapshot.remote(), timeout=_SNAPSHOT_TIMEOUT_S)

    def stop() -> None:
        with suppress(RayError):  # the actor may be gone
            ray.get(counters.stop.remote())

    watchdog = Watchdog(
        snapshot,
        stop,
        lambda now: diagnose(placement, read_cluster(), now.replicas, len(now.under_way)),
        stall_s=plan.job.compute.stall_s,
    )
    if history:
        history.follow(lambda: ray.get(counters.history.remote(), timeout=_HISTORY_TIMEOUT_S), lambda: watchdog.reason)
    text = ProgressText(
        committed_rows,
        total_rows,
        remaining=sizes.remaining(missing, plan.resolved.rows_per_part) if sizes else None,
        replicas=placement.replicas,
        lanes=placement.lanes,
    )
    line = ProgressLine(snapshot, text, progress)
    parts = PartTable.of(())
    try:
        with quiet_ray_data(make_context()), watchdog, line:
            dataset = _build(plan, placement, storage, RayReporter(counters), missing, layout)
            parts = PartTable.of(_trim_heap(_committed_parts(dataset)))
        # A run that was stopped may have no counters any more.
        final: Any = Snapshot() if watchdog.reason else ray.get(counters.snapshot.remote())
        return DataflowResult(parts, final, placement, watchdog.reason)
    except (RayError, UserCodeException, VarveError) as e:
        raise unwrap_error(e) from e
    finally:
        if history:
            history.freeze()
        with suppress(RayError):  # Ray may be gone
            ray.kill(counters)  # idle workers still refer to the actor, so it would outlive the run


def _sizes(plan: "Plan", missing: Mapping[int, Missing]) -> SourceSizes | None:
    """What is known of the source; None if its rows are not."""
    shards = plan.dataset.shards
    return SourceSizes.of(shards.rows, shards.text_bytes, missing) if shards.rows is not None else None


def _start_counters(fingerprint: str, missing_rows: int | None, started_at: float, sizes: SourceSizes | None) -> Any:
    """Start the actor that holds the run's counters, on the driver's node: no other node's death can lose them."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    options["enable_task_events"] = False  # several calls for each part would replace the events of all other tasks
    return ray.remote(MeteredCounters).options(**options).remote(fingerprint, missing_rows, started_at, sizes)


def _build(
    plan: "Plan",
    placement: Placement,
    storage: Storage,
    reporter: RayReporter,
    missing: Mapping[int, Missing],
    layout: PartLayout | None,
) -> "ray.data.Dataset":
    """The stages, from shards to records of committed parts."""
    spec = plan.worker_spec(placement.device, placement.threads, model_files(plan, placement))
    dataset = ray.data.read_datasource(
        ShardDatasource(plan.dataset, missing, plan.resolved.rows_per_part, reporter),
        override_num_blocks=len(missing),
        ray_remote_args=_READ,
    )
    dataset = dataset.map_batches(
        Replica,
        fn_constructor_args=(spec, reporter),
        compute=_pool(placement),
        num_cpus=placement.cpus,
        num_gpus=placement.gpus,
        accelerator_type=placement.accelerator,
        max_restarts=_MAX_RESTARTS,
        max_task_retries=_MAX_RESTARTS,
        **_PART_BY_PART,
    )
    return dataset.map_batches(
        _commit,  # pyright: ignore[reportArgumentType] (its stub lacks fn_args)
        fn_args=(storage, plan.fingerprint, reporter, plan.feature_plan.token_poolings, layout),
        num_cpus=_POOLING_CPUS if plan.feature_plan.token_poolings else WRITE_CPUS,
        max_retries=MAX_RETRIES,
        **_PART_BY_PART,
    )


def _pool(placement: Placement) -> ActorPoolStrategy:
    if placement.most_replicas > placement.replicas:
        return ActorPoolStrategy(min_size=placement.replicas, max_size=placement.most_replicas, **TWO_CALLS)
    return ActorPoolStrategy(size=placement.replicas, **TWO_CALLS)


def _commit(
    batch: pa.Table,
    storage: Storage,
    fingerprint: str,
    reporter: RayReporter,
    token_poolings: Mapping[str, TokenPooling],
    layout: PartLayout | None,
) -> pa.Table:
    """Write one part of features; returns its record as JSON."""
    message = unpack_message(batch)
    started, retries_before = time.perf_counter(), retries()
    table = pool_tokens(message.table, token_poolings)
    part = part_file.write_part(storage, message.rows, table, fingerprint, message.counts, layout)
    reporter.commit(part, time.perf_counter() - started, retries() - retries_before)
    return pa.table({"part": [json.dumps(part.to_json())]})


def _committed_parts(dataset: "ray.data.Dataset") -> Iterator[Part]:
    """Run the dataflow; yields each part when it is committed.

    Blocks are taken one by one: Ray keeps the lineage of a result for as long as the driver refers to it.
    """
    for bundle in dataset.iter_internal_ref_bundles():
        for entry in bundle.blocks:
            block: Any = ray.get(cast("Any", entry.ref))
            # A run that is stopping passes on empty blocks, which lack the column.
            for part in block["part"] if len(block) else ():
                yield Part.from_json(json.loads(part.as_py()))


def _trim_heap(parts: Iterable[Part]) -> Iterator[Part]:
    """The same parts; from time to time freed memory goes back to the system.

    Ray's small objects leave free pages all over the heap, which grows otherwise.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    for number, part in enumerate(parts, 1):
        yield part
        if trim is not None and number % _PARTS_PER_TRIM == 0:
            trim(0)

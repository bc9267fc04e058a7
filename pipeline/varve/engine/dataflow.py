"""The Ray graph: source → tokenizer → encoder → sink.

A row of Ray's dataset is one whole part (envelope.py), so what is encoded together never depends on how Ray bundles,
splits or retries. On a CPU tokenizing stands in the replica: with one budget of cores that measured faster than tasks
of its own; beside GPUs it has tasks. Knows nothing of manifests or coverage. Invariant: importing this file brings
neither torch nor transformers, which take seconds, since every process that reads or writes imports it.
"""

import ctypes
import json
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.exceptions import RayError, UserCodeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from varve.cluster.nodes import look
from varve.cluster.placement import IO_CPUS, WRITE_CPUS, Placement, diagnose
from varve.engine.datasource import Shards
from varve.engine.lazy_stages import Replica, tokenize_part
from varve.engine.ray_reporter import RayReporter
from varve.engine.ray_tasks import MAX_RETRIES, TWO_CALLS, model_files, unwrap_error
from varve.errors import VarveError
from varve.monitoring.progress_line import ProgressLine
from varve.monitoring.prometheus import MeteredCounters
from varve.monitoring.run_counters import Snapshot
from varve.monitoring.watchdog import Watchdog
from varve.output import part_file
from varve.output.part_file import Part
from varve.output.part_table import PartTable
from varve.ranges import Missing
from varve.storage.object_store import Storage
from varve.storage.retry import retries
from varve.workers.part_message import unpack_message

if TYPE_CHECKING:
    from varve.planning.plan import Plan

# Of one that tokenizes: `tokenizers` spreads a batch over cores, and other tasks fill its pauses.
_TOKENIZER_CPUS = 1.0
# Of a replica. A part that kills is found out long before (replica.py); nodes may come and go for days.
_MAX_RESTARTS = 1000
# Replicas that die one after the other before they are ready.
_MAX_START_DEATHS = 3
# Parts smaller than this travel together, since what Ray's scheduling costs a block can be more than encoding it does;
# others one by one. So many bytes of text are encoded in seconds on the slowest CPU: that much a kill may cost.
TOGETHER_BYTES = 16 << 10
# Takes some milliseconds; the heap has grown by some ten megabytes then.
_PARTS_A_TRIM = 4000
_READ: dict[str, Any] = {"num_cpus": IO_CPUS, "max_retries": MAX_RETRIES}
_PART_BY_PART: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}


def _commit(batch: pa.Table, storage: Storage, fingerprint: str, reporter: RayReporter) -> pa.Table:
    """Commit a part of features; returns what was committed."""
    sealed = unpack_message(batch)
    began, repeated = time.perf_counter(), retries()
    part = part_file.write_part(storage, sealed.rows, sealed.table, fingerprint, sealed.counts)
    reporter.commit(part, time.perf_counter() - began, retries() - repeated)
    return pa.table({"part": [json.dumps(part.to_json())]})


@dataclass(frozen=True, slots=True)
class DataflowResult:
    """What the graph has done."""

    parts: PartTable
    last: Snapshot
    placement: Placement
    ended: str | None  # why it ended before everything was done; None where all is done


def run_dataflow(
    plan: "Plan", storage: Storage, lacking: Mapping[int, Missing], done_rows: int, placement: Placement
) -> "DataflowResult":
    """Read, tokenize, encode and commit what is missing, all at the same time.

    Raises:
        RunError: it failed. A run that was ended early by a signal, or since nothing moved, returns and says so.
    """
    # On the driver's node: a run whose driver lives must not lose its counters with another node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    shard_rows = plan.dataset.shard_rows
    total_rows = sum(shard_rows) if shard_rows else None
    always = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    counters: Any = (
        ray.remote(MeteredCounters)
        .options(**always)
        .remote(plan.fingerprint, None if total_rows is None else total_rows - done_rows)
    )
    reporter, parts = RayReporter(counters), PartTable.of(())
    watch = Watchdog(
        lambda: ray.get(counters.snapshot.remote()),
        lambda: ray.get(counters.stop.remote()),
        lambda now: diagnose(placement, look(), now.replicas, len(now.under_way)),
        stall_s=plan.job.compute.stall_s,
    )
    line = ProgressLine(lambda: ray.get(counters.snapshot.remote()), done_rows, total_rows)
    try:
        # Bounds on retries have no other place in Ray 2.60 than the arguments that it calls deprecated.
        with warnings.catch_warnings(action="ignore"), DataContext.current(context()), watch, line:
            parts = PartTable.of(_trimmed(_committed(_flow(plan, placement, storage, reporter, lacking))))
        return DataflowResult(parts, ray.get(counters.snapshot.remote()), placement, watch.reason)
    except (RayError, UserCodeException, VarveError) as e:
        raise unwrap_error(e) from e
    finally:
        with suppress(RayError):  # of a Ray that is gone
            ray.kill(counters)  # idle workers still hold it, and with it a process for every run of a program


def _flow(
    plan: "Plan", placement: Placement, storage: Storage, reporter: RayReporter, lacking: Mapping[int, Missing]
) -> "ray.data.Dataset":
    """The stages, from the shards to what was committed of them."""
    spec = plan.worker_spec(placement.device, placement.threads, model_files(plan, placement))
    flow = ray.data.read_datasource(
        Shards(plan.dataset, lacking, plan.resolved.rows_per_part, reporter),
        override_num_blocks=len(lacking),
        ray_remote_args=_READ,
    )
    if placement.tokenizers:
        flow = flow.map_batches(
            tokenize_part,  # pyright: ignore[reportArgumentType] (its stub knows no fn_args)
            fn_args=(spec, reporter),
            compute=TaskPoolStrategy(size=placement.tokenizers),
            num_cpus=_TOKENIZER_CPUS,
            max_retries=MAX_RETRIES,
            **_PART_BY_PART,
        )
    flow = flow.map_batches(
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
    return flow.map_batches(
        _commit,  # pyright: ignore[reportArgumentType] (as above)
        fn_args=(storage, plan.fingerprint, reporter),
        num_cpus=WRITE_CPUS,
        max_retries=MAX_RETRIES,
        **_PART_BY_PART,
    )


def _committed(flow: "ray.data.Dataset") -> Iterator[Part]:
    """Run the flow; what it has committed, as it comes.

    Taken one by one, not as one result: Ray keeps what it takes to make a result again for as long as that is held.
    """
    for bundle in flow.iter_internal_ref_bundles():
        for entry in bundle.blocks:
            block: Any = ray.get(cast("Any", entry.ref))
            # A run that is asked to end passes on empty blocks, which no write has given its columns.
            for part in block["part"] if len(block) else ():
                yield Part.from_json(json.loads(part.as_py()))


def _trimmed(parts: Iterable[Part]) -> Iterator[Part]:
    """The same parts; now and then freed memory is given back."""
    for number, part in enumerate(parts, 1):
        yield part
        if number % _PARTS_A_TRIM == 0:
            _give_back_freed_memory()


def _give_back_freed_memory() -> None:
    """Give the pages back that Ray's small objects have left free all over the heap, which grows for them else."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:  # glibc has it
        trim(0)


def _pool(placement: Placement) -> ActorPoolStrategy:
    if placement.most_replicas > placement.replicas:
        return ActorPoolStrategy(min_size=placement.replicas, max_size=placement.most_replicas, **TWO_CALLS)
    return ActorPoolStrategy(size=placement.replicas, **TWO_CALLS)


def context() -> DataContext:
    """Ray Data's options for this graph alone: the caller may have a Ray program of its own."""
    options = DataContext.get_current().copy()
    options.target_max_block_size = TOGETHER_BYTES
    options.enable_progress_bars = False
    options.print_on_execution_start = False
    options.max_consecutive_actor_init_deaths = _MAX_START_DEATHS
    # It counts whole parts, which may take longer than any bound; `Watchdog` counts blocks.
    options.execution_no_progress_timeout_s = -1
    # Else what a replica raised is lost on its way here but for its traceback.
    options.raise_original_map_exception = True
    with suppress(ImportError):  # another Ray may have moved what it needs
        from varve.engine.backpressure import bound  # noqa: PLC0415
        from varve.engine.loop_throttle import pace  # noqa: PLC0415

        bound(options)
        pace(options)
    return options

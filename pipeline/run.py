"""The Ray graph: source → tokenizer → encoder → sink. The only file that imports ray.data.

A row of Ray's dataset is one whole part (envelope.py), so what is encoded together never depends on how Ray bundles,
splits or retries. On a CPU tokenizing stands in the replica: with one budget of cores that measured faster than tasks
of its own; beside GPUs it has tasks. Knows nothing of manifests or coverage. Invariant: importing this file brings
neither torch nor transformers, which take seconds, since every process that reads or writes imports it.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask, TaskPoolStrategy
from ray.data.block import BlockMetadata
from ray.exceptions import RayError, UserCodeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import sink
from pipeline.cluster.layout import IO_CPUS, WRITE_CPUS, Layout, diagnose
from pipeline.cluster.model_files import ModelFiles
from pipeline.cluster.nodes import look
from pipeline.envelope import Sealed, seal, unseal
from pipeline.errors import RunError, VarveError
from pipeline.metrics import MeteredTally
from pipeline.progress import Line
from pipeline.quiet import quiet_datasets
from pipeline.ranges import Missing, Range
from pipeline.sink import Part
from pipeline.spec.feature import Feature
from pipeline.spec.model import Model
from pipeline.spec.short import parse_features
from pipeline.storage.objects import Storage
from pipeline.storage.persistence import retries
from pipeline.tally import Block, Snapshot, Verdict
from pipeline.watch import Watch

if TYPE_CHECKING:
    from pipeline.plan import Plan
    from pipeline.source.dataset import Dataset

T = TypeVar("T")

# Of one that tokenizes: `tokenizers` spreads a batch over cores, and other tasks fill its pauses.
_TOKENIZER_CPUS = 1.0
# Of a read, a write or a tokenizing task whose worker or node dies. Ray's own default for writes is without end.
_MAX_RETRIES = 10
# Of a replica. A part that kills is found out long before (replica.py); nodes may come and go for days.
_MAX_RESTARTS = 1000
# Replicas that die one after the other before they are ready.
_MAX_START_DEATHS = 3
# Parts smaller than this travel together, since what Ray's scheduling costs a block can be more than encoding it does;
# others one by one. So many bytes of text are encoded in seconds on the slowest CPU: that much a kill may cost.
_TOGETHER_BYTES = 16 << 10
# Enough that one slow block at the end keeps few waiting.
_BLOCKS_PER_CPU = 8
_READ: dict[str, Any] = {"num_cpus": IO_CPUS, "max_retries": _MAX_RETRIES}
_PART_BY_PART: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}


def features(
    dataset: "ray.data.Dataset",
    *,
    text: str | tuple[str, str],
    model: str | Model,
    features: Mapping[str, Feature | str] | None = None,
    output_dtype: str = "float32",
    replicas: int = 1,
    batch_rows: int = 1024,
) -> "ray.data.Dataset":
    """Add feature columns to a Ray dataset, inside a Ray program of one's own.

    No parts, ranges or manifest: rows and their order are Ray's. `num_tokens`, `truncated` and `error` come along.

    Args:
        dataset: with the text column(s).
        text: column of the text, or two for a sentence pair.
        model: hub id, folder, or the model section of a job.
        features: name → definition, or its short form; the mean of the last layer by default.
        output_dtype: float32, float16, int8 or binary.
        replicas: actors; each takes a GPU where the cluster has GPUs.
        batch_rows: rows that are encoded together.
    """
    from pipeline.replica import FeatureColumns  # noqa: PLC0415 (see the top)

    spec = Model(name=model) if isinstance(model, str) else model
    columns = (text,) if isinstance(text, str) else text
    threads = max(1, int(ray.cluster_resources().get("CPU", 1)) // replicas)
    return dataset.map_batches(
        FeatureColumns,
        fn_constructor_args=(spec, parse_features(features), columns, output_dtype, threads),
        batch_size=batch_rows,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=replicas),
        num_gpus=1 if ray.cluster_resources().get("GPU", 0) else 0,
    )


def spread(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Do the same for each of many things as Ray tasks; results come in any order.

    Raises:
        RunError: Ray failed, or the work did.
    """
    if not items:
        return
    blocks = min(len(items), _BLOCKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1))))
    context = DataContext.get_current().copy()
    context.enable_progress_bars, context.print_on_execution_start = False, False
    try:
        with warnings.catch_warnings(action="ignore"), DataContext.current(context):
            rows = ray.data.from_items([{"item": item} for item in items], override_num_blocks=blocks)
            done = rows.map(lambda row: {"result": work(row["item"])}, num_cpus=1, max_retries=_MAX_RETRIES)
            for row in done.iter_rows():
                yield row["result"]
    except (RayError, UserCodeException, VarveError) as e:
        raise _told(e) from e


def on_replica(plan: "Plan", layout: Layout, work: Callable[["Plan"], T]) -> T:
    """Do something once where a replica would stand: its node, its share of the device, its copy of the model.

    Raises:
        RunError: Ray failed, or the work did.
    """
    files = _files(plan, layout)

    def there() -> T:
        folder = files.here() if files else plan.checkpoint.folder
        return work(replace(plan, checkpoint=replace(plan.checkpoint, folder=folder)))

    place = {"num_cpus": layout.cpus, "num_gpus": layout.gpus, "max_retries": _MAX_RETRIES}
    place |= {"accelerator_type": layout.accelerator} if layout.accelerator else {}
    try:
        return ray.get(ray.remote(**place)(there).remote())
    except (RayError, UserCodeException, VarveError) as e:
        raise _told(e) from e


class _Tell:
    """Tells the tally of what a worker does."""

    def __init__(self, tally: Any) -> None:
        self._tally = tally
        self._counted: Any = None
        self._replica: int | None = None  # its number, where it is one

    def join(self, encoder: dict[str, Any]) -> None:
        who, node = ray.get_runtime_context().get_actor_id(), ray.util.get_node_ip_address()
        self._replica = ray.get(self._tally.join.remote(encoder, who, node))

    def begin(self, stage: str, rows: Range) -> int:
        return ray.get(self._tally.begin.remote(stage, rows))

    def end(self, stage: str, rows: Range) -> None:
        self._tally.end.remote(stage, rows)

    def spend(self, stage: str, seconds: float) -> None:
        self._tally.spend.remote(stage, seconds)

    def commit(self, part: Part, seconds: float, repeated: int) -> None:
        self.spend("write", seconds)
        # Waited for, else the last part might be told of when nobody looks at the tally any more.
        ray.get(self._tally.commit.remote(part.range, part.file_bytes, repeated))

    def count(self, block: Block, *, wait: bool) -> Verdict:
        before, self._counted = self._counted, self._tally.add.remote(block, self._replica)
        # The answer to the block before is there already: nothing waits for it.
        answer = self._counted if wait or before is None else before
        return ray.get(answer)

    def stopped(self) -> bool:
        return ray.get(self._tally.stopped.remote())


class _Shards(Datasource):
    """One read task for each shard that lacks rows."""

    def __init__(self, dataset: "Dataset", lacking: Mapping[int, Missing], rows_per_part: int, tell: _Tell) -> None:
        super().__init__()
        self._tell = tell
        # Held once in the object store: a closure over it would be pickled for every shard.
        self._dataset = ray.put(dataset)
        self._lacking = dict(lacking)
        self._rows_per_part = rows_per_part

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 (one task per shard, always)
        per_task_row_limit: int | None = None,  # noqa: ARG002
        data_context: DataContext | None = None,  # noqa: ARG002
    ) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(self._reader(shard, lacks), unknown) for shard, lacks in self._lacking.items()]

    def _reader(self, shard: int, lacks: Missing) -> Callable[[], Iterator[pa.Table]]:
        held, rows_per_part, tell = self._dataset, self._rows_per_part, self._tell

        def read() -> Iterator[pa.Table]:
            if tell.stopped():
                return
            quiet_datasets()
            began = time.perf_counter()
            for start, table in ray.get(held).read_parts(shard, rows_per_part, lacks):
                seconds = time.perf_counter() - began
                if tell.stopped():
                    return
                tell.spend("read", seconds)
                yield seal(Sealed(Range(shard, start, start + len(table)), table))
                began = time.perf_counter()

        return read


def _commit(batch: pa.Table, storage: Storage, fingerprint: str, tell: _Tell) -> pa.Table:
    """Commit a part of features; returns what was committed."""
    sealed = unseal(batch)
    began, repeated = time.perf_counter(), retries()
    part = sink.write_part(storage, sealed.rows, sealed.table, fingerprint, sealed.counts)
    tell.commit(part, time.perf_counter() - began, retries() - repeated)
    return pa.table({"part": [json.dumps(part.to_json())]})


@dataclass(frozen=True, slots=True)
class Ran:
    """What the graph has done."""

    parts: list[Part]
    last: Snapshot
    layout: Layout
    ended: str | None  # why it ended before everything was done; None where all is done


def run_graph(plan: "Plan", storage: Storage, lacking: Mapping[int, Missing], done_rows: int, layout: Layout) -> "Ran":
    """Read, tokenize, encode and commit what is missing, all at the same time.

    Raises:
        RunError: it failed. A run that was ended early by a signal, or since nothing moved, returns and says so.
    """
    # On the driver's node: a run whose driver lives must not lose its tally with another node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    shard_rows = plan.dataset.shard_rows
    total_rows = sum(shard_rows) if shard_rows else None
    always = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    tally: Any = (
        ray.remote(MeteredTally)
        .options(**always)
        .remote(plan.fingerprint, None if total_rows is None else total_rows - done_rows)
    )
    tell, parts = _Tell(tally), []
    watch = Watch(
        lambda: ray.get(tally.snapshot.remote()),
        lambda: ray.get(tally.stop.remote()),
        lambda now: diagnose(layout, look(), now.replicas, len(now.under_way)),
        stall_s=plan.job.compute.stall_s,
    )
    line = Line(lambda: ray.get(tally.snapshot.remote()), done_rows, total_rows)
    try:
        # Bounds on retries have no other place in Ray 2.60 than the arguments that it calls deprecated.
        with warnings.catch_warnings(action="ignore"), DataContext.current(_context()), watch, line:
            parts.extend(_committed(_flow(plan, layout, storage, tell, lacking)))
        return Ran(parts, ray.get(tally.snapshot.remote()), layout, watch.reason)
    except (RayError, UserCodeException, VarveError) as e:
        raise _told(e) from e
    finally:
        with suppress(RayError):  # of a Ray that is gone
            ray.kill(tally)  # idle workers still hold it, and with it a process for every run of a program


def _flow(
    plan: "Plan", layout: Layout, storage: Storage, tell: _Tell, lacking: Mapping[int, Missing]
) -> "ray.data.Dataset":
    """The stages, from the shards to what was committed of them."""
    from pipeline.replica import Replica, Work, tokenize_part  # noqa: PLC0415 (see the top)

    work = Work.of(plan, layout.device, layout.threads, _files(plan, layout))
    flow = ray.data.read_datasource(
        _Shards(plan.dataset, lacking, plan.resolved.rows_per_part, tell),
        override_num_blocks=len(lacking),
        ray_remote_args=_READ,
    )
    if layout.tokenizers:
        flow = flow.map_batches(
            tokenize_part,  # pyright: ignore[reportArgumentType] (its stub knows no fn_args)
            fn_args=(work, tell),
            compute=TaskPoolStrategy(size=layout.tokenizers),
            num_cpus=_TOKENIZER_CPUS,
            max_retries=_MAX_RETRIES,
            **_PART_BY_PART,
        )
    flow = flow.map_batches(
        Replica,
        fn_constructor_args=(work, tell),
        compute=_pool(layout),
        num_cpus=layout.cpus,
        num_gpus=layout.gpus,
        accelerator_type=layout.accelerator,
        max_restarts=_MAX_RESTARTS,
        max_task_retries=_MAX_RESTARTS,
        **_PART_BY_PART,
    )
    return flow.map_batches(
        _commit,  # pyright: ignore[reportArgumentType] (as above)
        fn_args=(storage, plan.fingerprint, tell),
        num_cpus=WRITE_CPUS,
        max_retries=_MAX_RETRIES,
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


def _files(plan: "Plan", layout: Layout) -> ModelFiles | None:
    """The checkpoint's files for other nodes, where there are any or may be some day."""
    alone = len(look().nodes) == 1 and layout.most_replicas == layout.replicas
    return None if alone else ModelFiles(plan.checkpoint.folder)


def _pool(layout: Layout) -> ActorPoolStrategy:
    if layout.most_replicas > layout.replicas:
        return ActorPoolStrategy(min_size=layout.replicas, max_size=layout.most_replicas)
    return ActorPoolStrategy(size=layout.replicas)


def _context() -> DataContext:
    """Ray Data's options for this graph alone: the caller may have a Ray program of its own."""
    context = DataContext.get_current().copy()
    context.target_max_block_size = _TOGETHER_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = _MAX_START_DEATHS
    # It counts whole parts, which may take longer than any bound; `Watch` counts blocks.
    context.execution_no_progress_timeout_s = -1
    # Else what a replica raised is lost on its way here but for its traceback.
    context.raise_original_map_exception = True
    return context


def _told(error: BaseException) -> VarveError:
    """Our own error out of the layers in which Ray wraps it, or Ray's in one message."""
    advice = "\nFailed to apply UDF transform"  # Ray puts its own users' options behind our message
    seen: BaseException | None = error
    while seen is not None:
        for candidate in (seen, getattr(seen, "cause", None)):
            if isinstance(candidate, VarveError):
                return RunError(str(candidate.args[0]).partition(advice)[0])
        seen = seen.__cause__
    lines = [line.strip() for line in str(error).partition(advice)[0].splitlines() if line.strip()]
    return RunError(f"the run failed in Ray: {lines[-1] if lines else type(error).__name__}")

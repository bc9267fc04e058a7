"""The Ray graph: source → tokenizer → encoder → sink. The only file that imports ray.data.

A row of Ray's dataset is one whole part (envelope.py), so what is encoded together never depends on how Ray bundles,
splits or retries. On a CPU tokenizing stands in the replica: with one budget of cores that measured faster than tasks
of its own; beside GPUs it has tasks. Knows nothing of manifests or coverage. Invariant: importing this file brings
neither torch nor transformers, which take seconds, since every process that reads or writes imports it.
"""

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasink, Datasource, ReadTask, TaskPoolStrategy
from ray.data.block import BlockMetadata
from ray.data.datasource import WriteResult
from ray.exceptions import RayError, UserCodeException

from pipeline import sink
from pipeline.envelope import Sealed, seal, unseal
from pipeline.errors import RunError, VarveError
from pipeline.progress import Line, Snapshot, Tally
from pipeline.quiet import quiet_datasets
from pipeline.ranges import Missing, Range
from pipeline.sink import Part
from pipeline.spec import Compute, Feature, Model, parse_features
from pipeline.storage.objects import Storage

if TYPE_CHECKING:
    from pipeline.plan import Plan
    from pipeline.source import Dataset

# Share of a core that a reading or a writing task declares: they wait more than they work.
_IO_CPUS = 0.4
# Of one that tokenizes: `tokenizers` spreads a batch over cores, and other tasks fill its pauses.
_TOKENIZER_CPUS = 1.0
# Threads of a replica that share one Python without waiting for it.
_MAX_THREADS = 8
# Of a replica that dies, of a part on a replica, of a read or a write. Ray's own default is without end.
_MAX_RETRIES = 3


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


class _Tell:
    """Tells the tally of what a replica does."""

    def __init__(self, tally: Any) -> None:
        self._tally = tally

    def join(self, encoder: dict[str, Any]) -> None:
        self._tally.join.remote(encoder)

    def count(self, rows: int, tokens: int, errors: int, wait: bool) -> int:
        counted = self._tally.add.remote(rows, tokens, errors)
        return int(ray.get(counted)) if wait else 0


class _Shards(Datasource):
    """One read task for each shard that lacks rows."""

    def __init__(self, dataset: "Dataset", lacking: Mapping[int, Missing], rows_per_part: int) -> None:
        super().__init__()
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
        held, rows_per_part = self._dataset, self._rows_per_part

        def read() -> Iterator[pa.Table]:
            quiet_datasets()
            began = time.perf_counter()
            for start, table in ray.get(held).read_parts(shard, rows_per_part, lacks):
                seconds = {"read": time.perf_counter() - began}
                yield seal(Sealed(Range(shard, start, start + len(table)), table, seconds))
                began = time.perf_counter()

        return read


class _Parts(Datasink[list[dict[str, Any]]]):
    """Commits each part that arrives, and collects what was committed."""

    def __init__(self, storage: Storage, fingerprint: str) -> None:
        super().__init__()
        self._storage, self._fingerprint = storage, fingerprint
        self.parts: list[Part] = []

    def write(self, blocks: Iterable[pa.Table], ctx: object) -> list[dict[str, Any]]:  # noqa: ARG002
        return [self._write(block.slice(at, 1)).to_json() for block in blocks for at in range(len(block))]

    def _write(self, batch: pa.Table) -> Part:
        sealed = unseal(batch)
        began = time.perf_counter()
        part = sink.write_part(
            self._storage, sealed.rows, sealed.table, self._fingerprint, sealed.seconds, sealed.counts
        )
        written = {**sealed.seconds, "write": time.perf_counter() - began}
        return Part.from_json({**part.to_json(), "seconds": written})

    def on_write_complete(self, write_result: WriteResult[list[dict[str, Any]]]) -> None:
        self.parts = [Part.from_json(part) for parts in write_result.write_returns for part in parts]


def start_ray(compute: Compute) -> None:
    """Connect to a running Ray, or start one here with room for the replicas."""
    if ray.is_initialized():
        return
    replicas = compute.replicas if isinstance(compute.replicas, int) else 1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    with _silenced_stderr():
        ray.init(
            num_cpus=max(os.cpu_count() or 1, replicas + 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """How the work is spread over the cluster."""

    replicas: int
    threads: int  # of each replica, on a CPU
    gpus: int  # of each replica: 1 or 0
    cpus: float  # that a replica declares
    tokenizers: int  # tasks at once; 0: each replica tokenizes for itself

    @property
    def lanes(self) -> int:
        """Packs that all replicas encode at once."""
        return self.replicas * (1 if self.gpus else self.threads)


def lay_out(compute: Compute) -> Layout:
    """Spread a job over the cluster that Ray is connected to.

    A replica on a CPU has a thread for each of its cores. Beyond `_MAX_THREADS` threads would wait for each other's
    Python, so large machines take several replicas.
    """
    resources = ray.cluster_resources()
    gpus, cores = int(resources.get("GPU", 0)), max(1, int(resources.get("CPU", 1)))
    auto = gpus or -(-cores // _MAX_THREADS)
    replicas = auto if compute.replicas == "auto" else compute.replicas
    cpus = _replica_cpus(cores, replicas, most=1.0 if gpus else cores)
    spare = int(cores - replicas * cpus - 2 * _IO_CPUS)
    tokenizers = (max(1, spare) if gpus else 0) if compute.tokenizers == "auto" else compute.tokenizers
    return Layout(replicas, max(1, cores // replicas), min(gpus, 1), cpus, tokenizers)


@dataclass(frozen=True, slots=True)
class Ran:
    """What the graph has done."""

    parts: list[Part]
    last: Snapshot
    layout: Layout


def run_graph(plan: "Plan", storage: Storage, lacking: Mapping[int, Missing], done_rows: int) -> "Ran":
    """Read, tokenize, encode and commit what is missing, all at the same time."""
    from pipeline.replica import Replica, Work, tokenize_part  # noqa: PLC0415 (see the top)

    layout = lay_out(plan.job.compute)
    work = Work.of(plan, layout.threads)
    tally: Any = ray.remote(num_cpus=0)(Tally).remote()
    tell = _Tell(tally)
    shard_rows = plan.dataset.shard_rows
    parts = _Parts(storage, plan.fingerprint)
    try:
        # Bounds on retries have no other place in Ray 2.60 than the arguments that it calls deprecated.
        with (
            warnings.catch_warnings(action="ignore"),
            DataContext.current(_context()),
            Line(lambda: ray.get(tally.snapshot.remote()), done_rows, sum(shard_rows) if shard_rows else None),
        ):
            flow = ray.data.read_datasource(
                _Shards(plan.dataset, lacking, plan.resolved.rows_per_part),
                override_num_blocks=len(lacking),
                ray_remote_args={"num_cpus": _IO_CPUS, "max_retries": _MAX_RETRIES},
            )
            if layout.tokenizers:
                flow = flow.map_batches(
                    tokenize_part,  # pyright: ignore[reportArgumentType] (its stub knows no fn_args)
                    fn_args=(work,),
                    batch_size=1,
                    batch_format="pyarrow",
                    zero_copy_batch=True,
                    compute=TaskPoolStrategy(size=layout.tokenizers),
                    num_cpus=_TOKENIZER_CPUS,
                    max_retries=_MAX_RETRIES,
                )
            flow.map_batches(
                Replica,
                fn_constructor_args=(work, tell.join, tell.count),
                batch_size=1,
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=ActorPoolStrategy(size=layout.replicas),
                num_cpus=layout.cpus,
                num_gpus=layout.gpus,
                max_restarts=_MAX_RETRIES,
                max_task_retries=_MAX_RETRIES,
            ).write_datasink(parts, ray_remote_args={"num_cpus": _IO_CPUS, "max_retries": _MAX_RETRIES})
        return Ran(parts.parts, ray.get(tally.snapshot.remote()), layout)
    except (RayError, UserCodeException, VarveError) as e:
        raise _told(e) from e


def _replica_cpus(cores: int, replicas: int, most: float) -> float:
    """Cores that a replica declares: never so many that no reading or writing task finds room.

    Replicas that hold every core leave none to read with, and the run hangs (ray-project/ray#44687). Ray takes
    fractions below one core only.
    """
    share = min(most, (cores - 2 * _IO_CPUS) / replicas)
    return float(int(share)) if share >= 1 else max(0.01, round(share, 2) - 0.01)


def _context() -> DataContext:
    """Ray Data's options for this graph alone: the caller may have a Ray program of its own."""
    context = DataContext.get_current().copy()
    # One part to a block, so that parts stream one by one.
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
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


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Keep what Ray's C++ side writes to stderr while it starts out of the user's terminal."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

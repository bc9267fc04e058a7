"""The Ray graph: source → tokenizer and encoder → sink. The only file that imports ray.data.

A row of Ray's dataset is one whole part (envelope.py), so what is encoded together never depends on how Ray bundles,
splits or retries. Tokenizing stands in the encoder's actor: with one CPU budget that measured faster than tasks of its
own. Knows nothing of manifests or coverage.
"""

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext, Datasink, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.data.datasource import WriteResult
from ray.exceptions import RayError, UserCodeException

from pipeline import sink
from pipeline.encoder.encoder import Encoder, describe
from pipeline.encoder.load import Checkpoint
from pipeline.envelope import seal, unseal
from pipeline.errors import RunError, VarveError
from pipeline.featurize import featurize
from pipeline.plan import Plan
from pipeline.progress import Line, Snapshot, Tally
from pipeline.quiet import quiet_libraries
from pipeline.ranges import Missing, Range
from pipeline.schema import output_schema
from pipeline.sink import Part
from pipeline.source import Dataset
from pipeline.spec import Feature, Model, parse_features
from pipeline.storage import Storage

# Share of a core that a reading or a writing task declares: they wait more than they work.
_IO_CPUS = 0.4
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
    spec = Model(name=model) if isinstance(model, str) else model
    columns = (text,) if isinstance(text, str) else text
    return dataset.map_batches(
        _Columns,
        fn_constructor_args=(spec, parse_features(features), columns, output_dtype),
        batch_size=batch_rows,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=replicas),
        num_gpus=1 if ray.cluster_resources().get("GPU", 0) else 0,
    )


def local_device() -> str:
    """Where replicas run on this machine."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, slots=True)
class _Work:
    """What a replica needs to know, small enough to send to each."""

    model: Model
    checkpoint: Checkpoint
    features: dict[str, Feature]
    output_dtype: str
    text_columns: tuple[str, ...]
    schema: pa.Schema
    tokens_per_pack: int
    block_rows: int
    threads: int
    max_errors: int | None


class _Replica:
    """One encoder in one actor: a part of texts in, a part of features out."""

    def __init__(self, work: _Work, tally: Any) -> None:
        # Ray sets OMP_NUM_THREADS to the actor's num_cpus, which would leave the other cores idle.
        torch.set_num_threads(work.threads)
        quiet_libraries()
        self._work, self._tally = work, tally
        self._encoder = Encoder(
            work.model,
            work.features,
            output_dtype=work.output_dtype,
            tokens_per_pack=work.tokens_per_pack,
            checkpoint=work.checkpoint,
        )
        tally.join.remote(describe(self._encoder))

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows, table, seconds = unseal(batch)
        work = self._work
        result, spent, _ = featurize(
            self._encoder,
            table,
            text_columns=work.text_columns,
            schema=work.schema,
            shard=rows.shard,
            start=rows.start,
            block_rows=work.block_rows,
            on_block=self._count,
        )
        return seal(rows, result, {**seconds, **spent})

    def _count(self, rows: int, tokens: int, errors: int) -> None:
        limit = self._work.max_errors
        counted = self._tally.add.remote(rows, tokens, errors)
        if errors and limit is not None and (so_far := int(ray.get(counted))) > limit:
            msg = (
                f"{so_far} rows ended with an error, more than output.max_errors: {limit}. Their reasons stand in the "
                "error column of the parts written so far. Raise max_errors to go on"
            )
            raise RunError(msg)


class _Columns:
    """Adds feature columns to the batches of somebody's own Ray program."""

    def __init__(
        self, model: Model, wanted: dict[str, Feature], text_columns: Sequence[str], output_dtype: str
    ) -> None:
        quiet_libraries()
        self._encoder = Encoder(model, wanted, output_dtype=output_dtype)
        self._text_columns = text_columns

    def __call__(self, batch: pa.Table) -> pa.Table:
        schema = output_schema(self._encoder.plan, batch.schema, pairs=len(self._text_columns) > 1)
        result, _, _ = featurize(
            self._encoder,
            batch,
            text_columns=self._text_columns,
            schema=schema,
            shard=0,
            start=0,
            block_rows=max(1, len(batch)),
        )
        return result.drop_columns(["shard", "row"]).replace_schema_metadata(None)


class _Shards(Datasource):
    """One read task for each shard that lacks rows."""

    def __init__(self, dataset: Dataset, lacking: Mapping[int, Missing], rows_per_part: int) -> None:
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
            quiet_libraries()
            began = time.perf_counter()
            for start, table in ray.get(held).read_parts(shard, rows_per_part, lacks):
                seconds = {"read": time.perf_counter() - began}
                yield seal(Range(shard, start, start + len(table)), table, seconds)
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
        rows, table, seconds = unseal(batch)
        began = time.perf_counter()
        part = sink.write_part(self._storage, rows, table, self._fingerprint, seconds)
        written = {**seconds, "write": time.perf_counter() - began}
        return Part.from_json({**part.to_json(), "seconds": written})

    def on_write_complete(self, write_result: WriteResult[list[dict[str, Any]]]) -> None:
        self.parts = [Part.from_json(part) for parts in write_result.write_returns for part in parts]


def run_graph(
    plan: Plan, storage: Storage, lacking: Mapping[int, Missing], done_rows: int
) -> tuple[list[Part], Snapshot]:
    """Read, encode and commit what is missing."""
    replicas = _start_ray(plan)
    tally: Any = ray.remote(num_cpus=0)(Tally).remote()
    shard_rows = plan.dataset.shard_rows
    on_gpu = local_device() == "cuda"
    cores = os.cpu_count() or 1
    work = _Work(
        model=plan.pinned_model,
        checkpoint=plan.checkpoint,
        features=plan.job.features,
        output_dtype=plan.job.output.dtype,
        text_columns=plan.job.source.text_columns,
        schema=plan.schema,
        tokens_per_pack=plan.resolved.tokens_per_pack,
        block_rows=plan.resolved.block_rows,
        threads=max(1, cores // replicas),
        max_errors=plan.job.output.max_errors,
    )
    parts = _Parts(storage, plan.fingerprint)
    try:
        # Bounds on retries have no other place in Ray 2.60 than the arguments that it calls deprecated.
        with (
            warnings.catch_warnings(action="ignore"),
            DataContext.current(_context()),
            Line(lambda: ray.get(tally.snapshot.remote()), done_rows, sum(shard_rows) if shard_rows else None),
        ):
            ray.data.read_datasource(
                _Shards(plan.dataset, lacking, plan.resolved.rows_per_part),
                override_num_blocks=len(lacking),
                ray_remote_args={"num_cpus": _IO_CPUS, "max_retries": _MAX_RETRIES},
            ).map_batches(
                _Replica,
                fn_constructor_args=(work, tally),
                batch_size=1,
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=ActorPoolStrategy(size=replicas),
                num_cpus=_replica_cpus(replicas),
                num_gpus=1 if on_gpu else 0,
                max_restarts=_MAX_RETRIES,
                max_task_retries=_MAX_RETRIES,
            ).write_datasink(parts, ray_remote_args={"num_cpus": _IO_CPUS, "max_retries": _MAX_RETRIES})
        return parts.parts, ray.get(tally.snapshot.remote())
    except (RayError, UserCodeException, VarveError) as e:
        raise _told(e) from e


def _start_ray(plan: Plan) -> int:
    """Connect to a running Ray or start one here; returns the number of replicas."""
    asked = plan.job.compute.replicas
    if not ray.is_initialized():
        on_gpus = torch.cuda.device_count() if local_device() == "cuda" else 1
        cores = max(os.cpu_count() or 1, (on_gpus if asked == "auto" else asked) + 1)
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        with _silenced_stderr():
            ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return max(1, int(ray.cluster_resources().get("GPU", 1))) if asked == "auto" else asked


def _replica_cpus(replicas: int) -> float:
    """Cores that a replica declares: at most one, and never so much that no reading or writing task finds room.

    Replicas that hold every core leave none to read with, and the run hangs (ray-project/ray#44687).
    """
    spare = ray.cluster_resources().get("CPU", 1.0) - 2 * _IO_CPUS
    return max(0.01, min(1.0, round(spare / replicas, 2) - 0.01))


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

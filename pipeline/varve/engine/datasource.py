"""The source as Ray reads it: one task for each shard that lacks rows, which yields what is missing part by part.

Knows nothing of what becomes of the parts. Invariant: importing this file brings neither torch nor datasets, which
take seconds: every process of the graph imports it, and few read.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from varve.engine.ray_reporter import RayReporter
from varve.import_gc import uncollected
from varve.library_logs import quiet_datasets
from varve.ranges import Missing, Range
from varve.workers.part_message import PartMessage, pack_message

if TYPE_CHECKING:
    from ray.data import DataContext

    from varve.source.dataset import Dataset


class Shards(Datasource):
    """One read task for each shard that lacks rows."""

    def __init__(
        self, dataset: "Dataset", lacking: Mapping[int, Missing], rows_per_part: int, reporter: RayReporter
    ) -> None:
        super().__init__()
        self._reporter = reporter
        # Held once in the object store: a closure over it would be pickled for every shard.
        self._dataset = ray.put(dataset)
        self._lacking = dict(lacking)
        self._rows_per_part = rows_per_part

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: nothing of it is kept."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 (see below)
        per_task_row_limit: int | None = None,  # noqa: ARG002
        data_context: "DataContext | None" = None,  # noqa: ARG002
    ) -> list[ReadTask]:
        """One for each shard; their number is Varve's own, whatever Ray would have it be."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(self._reader(shard, lacks), unknown) for shard, lacks in self._lacking.items()]

    def _reader(self, shard: int, lacks: Missing) -> Callable[[], Iterator[pa.Table]]:
        held, rows_per_part, reporter = self._dataset, self._rows_per_part, self._reporter

        def read() -> Iterator[pa.Table]:
            if reporter.stopped():
                return
            with _code().streams_without_torch():
                began = time.perf_counter()
                for start, table in ray.get(held).read_parts(shard, rows_per_part, lacks):
                    seconds = time.perf_counter() - began
                    if reporter.stopped():
                        return
                    reporter.spend("read", seconds)
                    yield pack_message(PartMessage(Range(shard, start, start + len(table)), table))
                    began = time.perf_counter()

        return read


@cache
def _code() -> Any:
    """What reads, made ready once in a process."""
    with uncollected():
        module = import_module("varve.source.workarounds")
        quiet_datasets()
    return module

"""The source as Ray reads it: one task for each shard with missing rows, which yields the missing parts.

Knows nothing of what happens to the parts. Invariant: importing this file imports neither torch nor datasets: every
process of the dataflow imports it, and few of them read.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from varve.engine.ray_reporter import RayReporter
from varve.process_state import import_frozen, silence_datasets
from varve.ranges import Missing, Range
from varve.workers.part_message import PartMessage, pack_message

if TYPE_CHECKING:
    from ray.data import DataContext

    from varve.source.dataset import Dataset


class ShardDatasource(Datasource):
    """One read task for each shard with missing rows."""

    def __init__(
        self, dataset: "Dataset", missing: Mapping[int, Missing], rows_per_part: int, reporter: RayReporter
    ) -> None:
        super().__init__()
        self._reporter = reporter
        # Once in the object store: a closure over it would be pickled for every shard.
        self._dataset = ray.put(dataset)
        self._missing = dict(missing)
        self._rows_per_part = rows_per_part

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 (see below)
        per_task_row_limit: int | None = None,  # noqa: ARG002 (as above)
        data_context: "DataContext | None" = None,  # noqa: ARG002 (as above)
    ) -> list[ReadTask]:
        """One task for each shard, whatever parallelism Ray asks for."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(self._reader(shard, missing), unknown) for shard, missing in self._missing.items()]

    def _reader(self, shard: int, missing: Missing) -> Callable[[], Iterator[pa.Table]]:
        dataset, rows_per_part, reporter = self._dataset, self._rows_per_part, self._reporter

        def read() -> Iterator[pa.Table]:
            if reporter.stopped():
                return
            with _reading_code().streams_without_torch():
                started = time.perf_counter()
                for start, table in ray.get(dataset).read_parts(shard, rows_per_part, missing):
                    seconds = time.perf_counter() - started
                    if reporter.stopped():
                        return
                    reporter.spend("read", seconds)
                    yield pack_message(PartMessage(Range(shard, start, start + len(table)), table))
                    started = time.perf_counter()

        return read


@cache
def _reading_code() -> Any:
    """The code that reads, imported once in a process."""
    module = import_frozen("varve.source.workarounds")
    silence_datasets()
    return module

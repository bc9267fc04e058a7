"""JSON objects and Parquet files of which the columns that a job needs are read, whatever else each of them holds.

`datasets` casts every key of JSON to the types of the first file and refuses those that this one does not have, as it
refuses a Parquet file without one of the columns. Stands alone because `datasets` exchanges `open` in the module of
every builder that streams.
"""

from collections.abc import Generator, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetBuilder
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet, ParquetConfig


def another(builder: DatasetBuilder, kind: type[DatasetBuilder], **options: Any) -> Any:
    """A builder of the same files with other options; `copy` would make one whose attributes are those of the first."""
    other = object.__new__(kind)
    vars(other).update(vars(builder), info=copy(builder.info), config=replace(builder.config, **options))
    return other


class NeededJson(Json):
    """The builder of JSON, which drops what its features don't name before it casts."""

    def _cast_table(self, pa_table: pa.Table, json_field_paths: Sequence[Any] = ()) -> pa.Table:
        needed = [name for name in pa_table.column_names if name in self.info.features]
        return super()._cast_table(pa_table.select(needed), json_field_paths=json_field_paths)


class NeededParquet(Parquet):
    """The builder of Parquet, to which a column that a file lacks is null in each of its rows."""

    config: ParquetConfig

    def _generate_tables(self, files: Sequence[str], row_groups_list: Sequence[Any]) -> Generator[Any, None, None]:
        for file, row_groups in zip(files, row_groups_list, strict=True):
            try:
                yield from super()._generate_tables([file], [row_groups])
            except pa.ArrowInvalid:  # which comes before the first rows where a column is not there
                held = self._held(file)
                if held == self.config.columns:
                    raise
                lenient = another(self, Parquet, columns=held, features=None)  # `info` keeps all of them
                yield from lenient._generate_tables([file], [row_groups])  # noqa: SLF001 (a builder of the same kind)

    def _held(self, file: str) -> list[str]:
        with open(file, "rb") as opened:  # noqa: PTH123 (`datasets` exchanges it)
            names = set(pq.read_schema(opened).names)
        return [name for name in self.config.columns or [] if name in names]

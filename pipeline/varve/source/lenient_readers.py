"""JSON, CSV and Parquet of which the columns that a job needs are read, whatever else each file holds or lacks.

`datasets` casts every key of JSON to the types of the first file and refuses those that this one does not have, as it
refuses files of CSV and Parquet without one of the columns. Stands alone because `datasets` exchanges functions in the
module of every builder that streams.
"""

import json
from codecs import BOM_UTF8
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetBuilder, Features
from datasets.builder import Key
from datasets.packaged_modules.csv.csv import Csv, CsvConfig
from datasets.packaged_modules.json.json import Json, JsonConfig
from datasets.packaged_modules.parquet.parquet import Parquet, ParquetConfig
from datasets.utils.file_utils import xopen
from pandas.errors import EmptyDataError

from varve.source.json_lines import of_lines


def another(builder: DatasetBuilder, kind: type[DatasetBuilder], **options: Any) -> Any:
    """A builder of the same files with other options; `copy` would make one whose attributes are those of the first."""
    other = object.__new__(kind)
    vars(other).update(vars(builder), info=copy(builder.info), config=replace(builder.config, **options))
    return other


class NeededJson(Json):
    """The builder of JSON, which drops what its features don't name before it casts, and keeps values as they are."""

    config: JsonConfig

    def _cast_table(self, pa_table: pa.Table, json_field_paths: Sequence[Any] = ()) -> pa.Table:
        needed = [name for name in pa_table.column_names if name in self.info.features]
        return super()._cast_table(pa_table.select(needed), json_field_paths=json_field_paths)

    def _generate_tables(
        self,
        base_files: Any,
        files_iterables: Any,
        original_files: Any,
        allow_full_read: bool = True,  # noqa: FBT002 (as `datasets` has it)
    ) -> Generator[Any, None, None]:
        for number, (base, files, original) in enumerate(zip(base_files, files_iterables, original_files, strict=True)):
            for file in files:
                batch = -1
                try:
                    for batch, table in enumerate(self._exactly(file)):
                        yield Key(number, batch), self._cast_table(table)
                except ValueError:
                    if batch >= 0:
                        raise
                    # Objects over several lines, texts instead of objects, a field, another encoding.
                    yield from super()._generate_tables([base], [[file]], [original], allow_full_read)

    def _exactly(self, file: str) -> Iterator[pa.Table]:
        if self.config.field is not None or self.config.encoding != "utf-8":
            msg = "the builder itself reads these"
            raise ValueError(msg)
        with xopen(file, "rb") as opened:
            lines = opened.read(self.config.chunksize).removeprefix(BOM_UTF8)
            if lines.lstrip().startswith(b"["):
                lines = "\n".join(map(json.dumps, json.loads(lines + opened.read()))).encode()
            while lines:
                yield of_lines(lines + opened.readline(), cast("Features", self.info.features))
                lines = opened.read(self.config.chunksize)


class NeededCsv(Csv):
    """The builder of CSV, to which a column that a file lacks is null and an empty file one without rows."""

    config: CsvConfig

    def _cast_table(self, pa_table: pa.Table) -> pa.Table:
        schema = cast("Features", self.config.features).arrow_schema
        lacking = [field for field in schema if field.name not in pa_table.column_names]
        if len(lacking) == len(schema):
            msg = f"the file has none of the columns {', '.join(schema.names)}"
            raise ValueError(msg)
        for field in lacking:
            pa_table = pa_table.append_column(field, pa.nulls(len(pa_table), field.type))
        return super()._cast_table(pa_table)

    def _generate_tables(self, base_files: Any, files_iterables: Any) -> Generator[Any, None, None]:
        for base, files in zip(base_files, files_iterables, strict=True):
            for file in files:
                with suppress(EmptyDataError):
                    yield from super()._generate_tables([base], [[file]])


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
        with xopen(file, "rb") as opened:
            names = set(pq.read_schema(opened).names)
        return [name for name in self.config.columns or [] if name in names]

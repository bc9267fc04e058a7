"""CSV files as tables of declared types, parsed by pandas.

Columns that pandas cannot read with empty cells, such as int64, come as text; the reader of the dataset casts them.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

import pandas as pd
import pyarrow as pa
from datasets import ClassLabel, Features, Value
from pandas.io.parsers import TextFileReader

from varve.config.source import Source
from varve.source.bounded_lines import bound_lines
from varve.source.file_columns import check_present, check_unique

# The texts that pandas reads as a missing value. In a text column they are texts.
_NA_VALUES = ["", "#N/A", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "-nan", "-NaN", "<NA>"]
# Options that convert values; Arrow's casts do not know them.
_CONVERTING = {"thousands", "true_values", "false_values", "converters"}
# Options that decide where a line and a cell end.
_TOKENIZING = {"sep", "dialect", "skipinitialspace", "skiprows", "skip_blank_lines", "comment", "lineterminator"} | {
    "quotechar",
    "quoting",
    "doublequote",
    "escapechar",
    "encoding",
    "encoding_errors",
}
_HEAD_ROWS = 1024  # from which types are inferred
_FIRST_ROWS = 256
_TABLE_BYTES = 1 << 24


def read_csv(
    file: IO[bytes], features: Features, *, options: dict[str, Any], text_columns: Sequence[str]
) -> Iterator[pa.Table]:
    """The columns of a CSV file; a missing column is left out, unless it is a text column. An empty file has no rows.

    Raises:
        ValueError: a text column is missing, a column exists twice, or a value does not have its column's type.
    """
    texts = {name for name, feature in features.items() if isinstance(feature, ClassLabel)}  # names or numbers
    types = {
        field.name: str if field.name in texts else field.type.to_pandas_dtype() for field in features.arrow_schema
    }
    lines = _bound_lines(file, options)
    with suppress(pd.errors.EmptyDataError):
        header = read_header(lines, options)
        check_unique(header, list(features))
        for table in _read_tables(pd.read_csv(lines, dtype=types, **options), options["chunksize"]):
            if any(name not in table.column_names for name in text_columns):
                check_present(header or table.column_names, text_columns)
            yield table


def _read_tables(reader: TextFileReader, max_rows: int) -> Iterator[pa.Table]:
    """Tables of up to `max_rows` rows, fewer where the rows are long."""
    num_rows = min(_FIRST_ROWS, max_rows)
    with suppress(StopIteration):
        while True:
            table = pa.Table.from_pandas(reader.get_chunk(num_rows))
            yield table
            fitting = _TABLE_BYTES * len(table) // max(1, table.nbytes)
            num_rows = max(1, min(fitting, 2 * num_rows, max_rows))


def infer_csv_columns(file: IO[bytes], config: Any, spec: Source) -> Features | None:
    """All columns of a CSV file with the types of its first rows; None if the file is empty.

    Raises:
        ValueError: a needed column exists twice, or the file cannot be parsed.
    """
    options = {**config.pd_read_csv_kwargs, "chunksize": _HEAD_ROWS}
    lines = _bound_lines(file, options)
    try:
        check_unique(read_header(lines, options), spec.columns)
        frame = next(iter(pd.read_csv(lines, **options)), None)
    except pd.errors.EmptyDataError:
        return None
    return None if frame is None else Features.from_arrow_schema(pa.Table.from_pandas(frame).schema)


def _bound_lines(file: IO[bytes], options: Mapping[str, Any]) -> io.BufferedReader:
    end = options.get("lineterminator")
    return bound_lines(file, (end.encode(),)) if end else bound_lines(file)


def read_header(file: io.BufferedReader, options: Mapping[str, Any]) -> list[str]:
    """The names in the first line as the file has them, where pandas numbers repeated ones.

    Empty if the file has no such line, or if it does not end within the first 256 kB.
    """
    if options.get("names") or options.get("header") not in {"infer", 0}:
        return []
    tokenizing = {name: value for name, value in options.items() if name in _TOKENIZING}
    start, end, _ = file.peek().rpartition(b"\n")
    try:
        first = pd.read_csv(
            io.BytesIO(start + end), header=None, nrows=1, dtype=str, keep_default_na=False, **tokenizing
        )
    except ValueError:  # if the file cannot be parsed, pandas raises this again
        return []
    return [str(name) for name in first.iloc[0]]


def pandas_options(config: Any, spec: Source) -> dict[str, Any]:
    """The options of the dataset's builder, and ours unless `source.options` has them."""
    kept = [name for name in spec.keep if name not in spec.text_columns]
    options = {
        "usecols": frozenset(spec.columns).__contains__,  # a list would require each column in every file
        "keep_default_na": False,
        "na_values": dict.fromkeys(kept, _NA_VALUES),
    }
    options = {name: value for name, value in options.items() if name not in spec.options}
    return {**config.pd_read_csv_kwargs, "chunksize": config.chunksize, **options}


def readable_features(features: Features, spec: Source) -> Features:
    """Text instead of each type that pandas cannot read with empty cells: all but text, labels and floats."""
    converts = bool(_CONVERTING & spec.options.keys())

    def readable(name: str) -> Any:
        is_float = pa.types.is_floating(features.arrow_schema.field(name).type)
        stays = is_float or converts or isinstance(features[name], ClassLabel)
        return features[name] if name not in spec.text_columns and stays else Value("string")

    return Features({name: readable(name) for name in features})

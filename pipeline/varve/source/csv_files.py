"""CSV files as tables of declared types, parsed by pandas.

Columns that pandas cannot read with empty cells, such as int64, come as text; the reader of the dataset casts them.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

import pandas as pd
import pyarrow as pa
from datasets import Features, Value

from varve.config.source import Source

# The texts that pandas reads as a missing value. In a text column they are texts.
_NA_VALUES = ["", "#N/A", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "-nan", "-NaN", "<NA>"]
# Options that convert values; Arrow's casts do not know them.
_CONVERTING = {"thousands", "true_values", "false_values", "converters"}


def read_csv(file: IO[bytes], features: Features, options: dict[str, Any]) -> Iterator[pa.Table]:
    """The columns of a CSV file; a missing column is left out. An empty file has no rows.

    Raises:
        ValueError: the file has none of the columns, or a value does not have its column's type.
    """
    types = {field.name: field.type.to_pandas_dtype() for field in features.arrow_schema}
    with suppress(pd.errors.EmptyDataError):
        for frame in pd.read_csv(file, dtype=types, **options):
            table = pa.Table.from_pandas(frame)
            if features.keys().isdisjoint(table.column_names):
                msg = f"the file has none of the columns {', '.join(features)}"
                raise ValueError(msg)
            yield table


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
    """Text instead of each type that pandas cannot read with empty cells: all but text and floats."""
    converts = bool(_CONVERTING & spec.options.keys())

    def readable(name: str) -> Any:
        is_float = pa.types.is_floating(features.arrow_schema.field(name).type)
        return features[name] if name not in spec.text_columns and (is_float or converts) else Value("string")

    return Features({name: readable(name) for name in features})

"""JSON objects as tables of declared types: a text is the text that the file holds, a number keeps all its digits.

`datasets` lets Arrow guess the types of every ten megabytes anew and makes them fit afterwards: texts that all look
like dates come back in another form, one number among texts puts the others in quotes, and floats that it writes again
are rounded to ten digits. Knows nothing of files.
"""

import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.json as paj
from datasets import Features, Value
from datasets.utils.json import get_json_field_paths_from_feature, json_encode_field


def of_lines(lines: bytes, features: Features) -> pa.Table:
    """The named columns of objects that stand one to a line.

    Raises:
        ValueError: a line is no object of its own.
    """
    if not any(map(get_json_field_paths_from_feature, features.values())):
        wanted = paj.ParseOptions(explicit_schema=features.arrow_schema, unexpected_field_behavior="ignore")
        whole = paj.ReadOptions(use_threads=False, block_size=len(lines) + 1)
        try:
            return paj.read_json(io.BytesIO(lines), read_options=whole, parse_options=wanted)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass  # a value is of another type than its column
    return _of_rows([json.loads(line) for line in lines.splitlines() if line.strip()], features)


def _of_rows(rows: Sequence[Any], features: Features) -> pa.Table:
    if not all(isinstance(row, dict) for row in rows):
        msg = "rows that are no JSON objects"
        raise ValueError(msg)
    return pa.table({name: _column([row.get(name) for row in rows], kind) for name, kind in features.items()})


def _column(values: list[Any], kind: Any) -> pa.Array:
    if isinstance(kind, Value) and kind.dtype in {"string", "large_string"}:
        return pa.array([_text(value) for value in values], kind())
    for path in get_json_field_paths_from_feature(kind):
        values = [json_encode_field(value, path) for value in values]
    return pa.array(values)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

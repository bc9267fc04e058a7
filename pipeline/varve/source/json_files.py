"""JSON files as tables of declared types: a text stays as it is in the file, a number keeps all its digits.

`datasets` lets Arrow infer the types of each ten megabytes and casts afterwards. Then texts that all look like dates
change their form, one number among texts puts quotes around the others, and floats are rounded to ten digits.
"""

import io
import json
import re
from codecs import BOM_UTF8, EncodedFile
from collections.abc import Iterator
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.json as paj
from datasets import Features, Json, LargeList, List, Value
from pandas.io.json import ujson_dumps, ujson_loads

_WHITESPACE = re.compile(r"\s*")


def read_json(
    file: IO[bytes],
    features: Features,
    *,
    chunksize: int,
    field: str | None,
    encoding: str,
    encoding_errors: str | None,
) -> Iterator[pa.Table]:
    """The columns of a JSON file, with the options of the builder of `datasets`.

    Files with one object per line are read in chunks, others as a whole. A missing key is null, other keys are ignored.

    Raises:
        ValueError: the file is not JSON, or a row is not an object.
    """
    if encoding != "utf-8" or encoding_errors:
        file = cast("IO[bytes]", EncodedFile(file, "utf-8", encoding, encoding_errors or "strict"))
    chunk = file.read(chunksize).removeprefix(BOM_UTF8)
    if field is not None or chunk.lstrip().startswith(b"["):
        yield _parse_whole(chunk + file.read(), features, field)
        return
    chunk += file.readline()
    try:
        table = _parse_lines(chunk, features)
    except ValueError:
        table = _parse_whole(chunk + file.read(), features, field)
    yield table
    while chunk := file.read(chunksize):
        yield _parse_lines(chunk + file.readline(), features)


def _parse_whole(content: bytes, features: Features, field: str | None) -> pa.Table:
    """A table of any other layout that `datasets` accepts, such as a list, or objects over several lines."""
    text, end, rows = content.decode(), 0, []
    while (start := cast("re.Match[str]", _WHITESPACE.match(text, end)).end()) < len(text):
        value, end = json.JSONDecoder().raw_decode(text, start)
        rows.append(value)
    if field is not None:
        rows = rows[0][field]
    elif isinstance(rows[0], list):
        rows = rows[0]
    if isinstance(rows, dict):  # columns
        rows = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    rows = [{"text": row} if isinstance(row, str) else row for row in rows]
    return _parse_lines("\n".join(map(json.dumps, rows)).encode(), features)


def _parse_lines(lines: bytes, features: Features) -> pa.Table:
    """A table of objects, one per line.

    Raises:
        ValueError: a line is not exactly one object.
    """
    explicit = paj.ParseOptions(explicit_schema=features.arrow_schema, unexpected_field_behavior="ignore")
    one_block = paj.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    try:
        return paj.read_json(io.BytesIO(lines), read_options=one_block, parse_options=explicit)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass  # a value has another type than its column, or a column is of type `Json`
    rows = [json.loads(line) for line in lines.splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        msg = "a row is not a JSON object"
        raise ValueError(msg)
    return pa.table({name: _column([row.get(name) for row in rows], feature) for name, feature in features.items()})


def _column(values: list[Any], feature: Any) -> pa.Array:
    if isinstance(feature, Value) and feature.dtype in {"string", "large_string"}:
        return pa.array([_as_text(value) for value in values], feature())
    return pa.array([_encode(value, feature) for value in values])


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _encode(value: Any, feature: Any) -> Any:
    """The value, with each part of type `Json` replaced by the JSON text that `datasets` writes for it."""
    if isinstance(feature, dict) and isinstance(value, dict):
        return {**value, **{name: _encode(value.get(name), part) for name, part in feature.items()}}
    if isinstance(feature, (List, LargeList)) and isinstance(value, list):
        return [_encode(item, feature.feature) for item in value]
    if value is None or not isinstance(feature, Json):
        return value
    try:
        ujson_loads(value)
    except (TypeError, ValueError):
        return ujson_dumps(value)
    return value

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
    field: str | None = None,
    encoding: str = "utf-8",
    encoding_errors: str | None = None,
) -> Iterator[pa.Table]:
    """The columns of one JSON file. Files with one object per line are read in chunks, others as a whole.

    Args:
        file: opened for reading bytes.
        features: the columns to read; other keys are ignored, a missing key is null.
        chunksize: bytes per chunk.
        field: key of the rows, if the file is one object that holds them.
        encoding: of the file.
        encoding_errors: how to decode bytes that are invalid in this encoding, as in `open`.

    Raises:
        ValueError: the file is not JSON, or a row is not an object.
    """
    if encoding != "utf-8" or encoding_errors:
        file = cast("IO[bytes]", EncodedFile(file, "utf-8", encoding, encoding_errors or "strict"))
    chunk = file.read(chunksize).removeprefix(BOM_UTF8)
    if field is not None or chunk.lstrip().startswith(b"["):
        content = json.loads(chunk + file.read())
        yield _parse_rows(content if field is None else content[field], features)
        return
    is_first = True
    while chunk:
        chunk += file.readline()
        try:
            table = _parse_lines(chunk, features)
        except ValueError:
            if not is_first:
                raise
            yield _parse_rows(list(_objects((chunk + file.read()).decode())), features)
            return
        yield table
        is_first, chunk = False, file.read(chunksize)


def _objects(text: str) -> Iterator[Any]:
    """JSON values that follow each other, with any whitespace between them."""
    decoder, end = json.JSONDecoder(), 0
    while (start := cast("re.Match[str]", _WHITESPACE.match(text, end)).end()) < len(text):
        value, end = decoder.raw_decode(text, start)
        yield value


def _parse_rows(rows: Any, features: Features) -> pa.Table:
    """The layouts that `datasets` accepts: a list of objects, a list of texts, or an object of columns."""
    if isinstance(rows, dict):
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

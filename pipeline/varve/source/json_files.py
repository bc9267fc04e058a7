"""JSON files as tables of declared types: a text stays as it is in the file, a number keeps all its digits.

`datasets` lets Arrow infer the types of each ten megabytes and casts afterwards. Then texts that all look like dates
change their form, one number among texts puts quotes around the others, and floats are rounded to ten digits.
"""

import io
import json
import re
from codecs import BOM_UTF8, EncodedFile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import IO, Any, TypeVar, cast

import pyarrow as pa
import pyarrow.json as paj
from datasets import Features, Json, LargeList, List, Value

from varve.source.bounded_lines import check_line, check_values
from varve.source.error_messages import UnreadableFileError

_WHITESPACE = re.compile(r"\s*")
_SURROGATE = re.compile("[\ud800-\udfff]")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JsonOptions:
    """Options of the builder of `datasets`."""

    chunksize: int  # bytes that are parsed at once
    field: str | None  # the key below which the rows are
    encoding: str
    encoding_errors: str | None


def json_options(config: Any, **changes: Any) -> JsonOptions:
    """The options of a builder's configuration, with changes."""
    return JsonOptions(**{each.name: getattr(config, each.name) for each in fields(JsonOptions)} | changes)


def read_json(
    file: IO[bytes], features: Features, *, options: JsonOptions, text_columns: Sequence[str]
) -> Iterator[pa.Table]:
    """The columns of a JSON file. A missing key is null, other keys are ignored.

    A text that UTF-8 cannot hold (an escape of half a surrogate pair) stays invalid in a text column, so that its row
    becomes an error row; elsewhere U+FFFD replaces the half pair.

    Raises:
        ValueError: the file is not JSON, or a row is not an object.
    """
    yield from _read_blocks(file, options, partial(_parse_lines, features=features, text_columns=text_columns))


def read_first_objects(file: IO[bytes], options: JsonOptions) -> list[dict[str, Any]]:
    """The objects of the first chunk of a JSON file; of the whole file if it is not lines.

    Raises:
        ValueError: the file is not JSON, or a row is not an object.
    """
    return next(_read_blocks(file, options, partial(_load_objects, skip_deep=True)))


def _read_blocks(file: IO[bytes], options: JsonOptions, parse: Callable[[bytes], T]) -> Iterator[T]:
    """The file, parsed block by block. A file with one object per line is cut into chunks, another is one block."""
    if options.encoding != "utf-8" or options.encoding_errors:
        file = cast("IO[bytes]", EncodedFile(file, "utf-8", options.encoding, options.encoding_errors or "strict"))
    blocks = _split_lines(file, options.chunksize)
    first = next(blocks, b"").removeprefix(BOM_UTF8)
    if options.field is not None or first.lstrip().startswith(b"["):
        yield parse(_to_lines(_join([first], blocks), options.field))
        return
    try:
        parsed = parse(first)
    except ValueError:
        yield parse(_to_lines(_join([first], blocks), options.field))
    else:
        yield parsed
        yield from map(parse, blocks)


def _split_lines(file: IO[bytes], chunksize: int) -> Iterator[bytes]:
    """Blocks of whole lines, of about `chunksize` bytes unless a line is longer."""
    waiting: list[bytes] = []
    chunk = file.read(chunksize)
    while chunk:
        following = file.read(chunksize)
        lines, newline, rest = chunk.rpartition(b"\n")
        if newline and following:  # the last line may have no end
            yield _join(waiting, [lines, newline])
            waiting = [rest]
        else:
            waiting.append(chunk)
        check_line(sum(map(len, waiting)))
        chunk = following
    if waiting:
        yield b"".join(waiting)


def _join(contents: list[bytes], more: Iterable[bytes]) -> bytes:
    size = sum(map(len, contents))
    for content in more:
        size += len(content)
        check_line(size)
        contents.append(content)
    return b"".join(contents)


def _to_lines(content: bytes, field: str | None) -> bytes:
    """One object per line, from any other layout that `datasets` accepts: a list, or objects over several lines."""
    check_values(content)
    text, end, rows = content.decode(), 0, []
    while (start := cast("re.Match[str]", _WHITESPACE.match(text, end)).end()) < len(text):
        value, end = json.JSONDecoder().raw_decode(text, start)
        rows.append(value)
    if field is not None:
        rows = _below(rows, field)
    elif rows and isinstance(rows[0], list):
        rows = rows[0]
    if isinstance(rows, dict):  # columns
        rows = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    rows = [{"text": row} if isinstance(row, str) else row for row in rows]
    return "\n".join(map(json.dumps, rows)).encode()


def _below(values: list[Any], field: str) -> Any:
    """The rows below a key of the first value."""
    first = values[0] if values else None
    rows = first.get(field) if isinstance(first, dict) else None
    if not isinstance(rows, list | dict):
        msg = f"it has no list below the key {field!r}, which source.options.field names"
        raise UnreadableFileError(msg)
    return rows


def _load_objects(lines: bytes, *, skip_deep: bool = False) -> list[dict[str, Any]]:
    """The objects of lines. Bytes that are not UTF-8 become surrogates.

    Raises:
        ValueError: a line is not exactly one object.
    """
    rows = []
    for line in lines.splitlines():
        check_values(line)
        try:
            row = json.loads(line.decode(errors="surrogateescape")) if line.strip() else None
        except RecursionError:
            if not skip_deep:
                raise
            row = None
        rows += [row] if row is not None else []
    if not all(isinstance(row, dict) for row in rows):
        msg = "a row is not a JSON object"
        raise ValueError(msg)
    return rows


def _parse_lines(lines: bytes, features: Features, text_columns: Sequence[str]) -> pa.Table:
    """A table of objects, one per line.

    Raises:
        ValueError: a line is not exactly one object.
    """
    explicit = paj.ParseOptions(explicit_schema=features.arrow_schema, unexpected_field_behavior="ignore")
    one_block = paj.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    try:
        table = paj.read_json(io.BytesIO(lines), read_options=one_block, parse_options=explicit)
        table.validate()  # lists of nulls only have a wrong length
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass  # a value has another type than its column, a column is of type `Json`, or a text is not UTF-8
    else:
        return table
    rows = _load_objects(lines)

    def column(name: str, feature: Any) -> pa.Array:
        values = [row.get(name) for row in rows]
        if isinstance(feature, Value) and feature.dtype in {"string", "large_string"}:
            texts = map(_as_text, values)
            is_text = name in text_columns
            return _as_invalid_utf8(texts) if is_text else pa.array(map(replace_surrogates, texts), feature())
        return pa.array([_encode(replace_surrogates(value), feature) for value in values])

    return pa.table({name: column(name, feature) for name, feature in features.items()})


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return _to_json(value)


def _as_invalid_utf8(texts: Iterable[str | None]) -> pa.Array:
    """Texts whose surrogates stay: as the bytes of the file where they stand for such, else encoded on their own."""

    def encode(text: str) -> bytes:
        try:
            return text.encode(errors="surrogateescape")
        except UnicodeEncodeError:
            return text.encode(errors="surrogatepass")

    contents = [None if text is None else encode(text) for text in texts]
    return pa.array(contents, pa.large_binary()).cast(pa.large_string(), safe=False)


def replace_surrogates(value: Any) -> Any:
    """The value with U+FFFD instead of every surrogate, in all texts and keys in it."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {replace_surrogates(name): replace_surrogates(item) for name, item in value.items()}
    return value


def _encode(value: Any, feature: Any) -> Any:
    """The value, with each part of type `Json` replaced by its JSON text, unless it is one already."""
    if isinstance(feature, dict) and isinstance(value, dict):
        return {**value, **{name: _encode(value.get(name), part) for name, part in feature.items()}}
    if isinstance(feature, (List, LargeList)) and isinstance(value, list):
        return [_encode(item, feature.feature) for item in value]
    if value is None or not isinstance(feature, Json):
        return value
    try:
        json.loads(value)
    except (TypeError, ValueError):
        return _to_json(value)
    return value


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

"""A Hugging Face dataset → shards → Arrow tables of the needed columns, cut along the grid of parts.

Knows nothing of models, tokens or the output's form. Invariants: shards have the order that `datasets` gives them, and
a row's number is its position in its shard, whatever is skipped; a table that `read_parts` yields is exactly one cell
of the grid; workers get a dataset that is already pinned, so no branch name reaches them.
"""

import atexit
import hashlib
import json
import posixpath
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, cast

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, IterableDataset, Value, load_dataset_builder
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from pipeline.errors import JobError, RunError
from pipeline.ranges import Missing
from pipeline.spec import Source as SourceSpec
from pipeline.storage.files import file_exists, file_version, open_file, read_file, use_options

# Below this many rows a Parquet row group is no shard of its own: its part would be too small.
MIN_SHARD_ROWS = 16_384
# With this many files there is work enough for every reader, and opening each to look for row groups takes long.
MANY_FILES = 64

_PACKAGED = frozenset({"parquet", "json", "csv", "text", "arrow", "webdataset"})
_READ_ROWS = 1024
# What a read that nobody waits for any more may still take.
_LAST_READS_S = 0.5
# What pandas takes for a missing value; it must not be taken so in the text column of a CSV file.
_NA_VALUES = ["", "#N/A", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "-nan", "-NaN", "<NA>"]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A source that is pinned, opened and looked at: what reading its shards takes."""

    stream: IterableDataset
    files: tuple[str, ...]  # URIs, in order
    commit: str | None  # of a hub id
    schema: pa.Schema  # the columns that are read
    shards: "Shards"
    versions: tuple[str, ...] | None  # of the files when the job was planned; None for those that a commit pins
    storage_options: dict[str, Any]  # of the files' file system

    @property
    def shard_rows(self) -> tuple[int, ...] | None:
        """Rows of each shard, where the source says without being read."""
        return self.shards.rows

    @property
    def names(self) -> list[str]:
        """The files below the folder that they have in common, so that moving that folder changes nothing."""
        parents = [posixpath.dirname(uri).split("/") for uri in self.files]
        shared = posixpath.commonprefix(parents)
        return ["/".join(uri.split("/")[len(shared) :]) for uri in self.files]

    @property
    def identity(self) -> str:
        """A hash that changes when the files do: their names and versions, or the commit that pins them."""
        seen: list[Any] = [self.commit, self.num_shards]
        if self.versions is not None:
            seen += map(list, zip(self.names, self.versions, strict=True))
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()

    @property
    def num_shards(self) -> int:
        """Independently readable pieces."""
        return self.stream.num_shards

    def name(self, shard: int) -> str:
        """The shard for messages: its file, where that is known."""
        return f"{self.files[0]} and on" if self.shards.files is None else self.files[self.shards.files[shard]]

    def check(self, shard: int) -> None:
        """Ask the store whether a shard's file is still the one that the job was planned for.

        Raises:
            RunError: it is gone, or another is there now.
        """
        if self.versions is None or self.shards.files is None:
            return
        file = self.shards.files[shard]
        uri, then = self.files[file], self.versions[file]
        now = _version(uri, fresh=True)
        if now != then:
            msg = (
                f"shard {shard} ({uri}) has changed since the run was planned: it was {then}, it is {now or 'gone'}. "
                "Restore it, or start anew with another output.path"
            )
            raise RunError(msg)

    def read(self, shard: int, first: int = 0) -> Iterator[pa.Table]:
        """The rows of one shard from row `first` on, in order, in tables of any size.

        Raises:
            RunError: the shard can't be read.
        """
        row = first
        _end_calmly()
        use_options(self.files[0], self.storage_options)
        try:
            for start, piece in self._pieces(shard, first):
                before = max(0, first - start)
                for table in cast("Iterator[pa.Table]", piece.iter(_READ_ROWS)):
                    conformed = table.select(self.schema.names).cast(self.schema).slice(before)
                    before = max(0, before - table.num_rows)
                    if conformed.num_rows:
                        yield conformed
                        row += conformed.num_rows
        except Exception as e:  # every file system and builder has errors of its own
            self.check(shard)
            told = " ".join(str(e).split())[:300]
            msg = f"shard {shard} ({self.name(shard)}) can't be read after row {row}: {type(e).__name__}: {told}"
            raise RunError(msg) from e

    def _pieces(self, shard: int, first: int) -> Iterator[tuple[int, IterableDataset]]:
        """(number of its first row, piece) of a shard; row groups that end before row `first` are never fetched."""
        whole = self.stream.shard(self.num_shards, shard)
        rows = _row_groups((self.name(shard),))[0] if first and self.shards.rows and self.shards.files else []
        finer = whole.reshard() if len(rows) > 1 else whole
        if finer.num_shards != len(rows):
            yield 0, whole.with_format("arrow")
            return
        for group, start in enumerate(accumulate(rows[:-1], initial=0)):
            if start + rows[group] > first:
                yield start, finer.shard(len(rows), group).with_format("arrow")

    def read_parts(self, shard: int, rows_per_part: int, missing: Missing) -> Iterator[tuple[int, pa.Table]]:
        """(first row, table) for each missing cell of the grid; the last cell is short, and may be empty.

        Raises:
            RunError: the shard can't be read, or its file has changed; nothing of the new one was given out.
        """
        start = missing.first
        waiting: list[pa.Table] = []
        num_waiting = 0
        for table in self.read(shard, start):
            waiting.append(table)
            num_waiting += table.num_rows
            while num_waiting >= rows_per_part:
                rows = pa.concat_tables(waiting)
                if missing.wants(start):
                    self.check(shard)
                    yield start, rows.slice(0, rows_per_part)
                start += rows_per_part
                waiting, num_waiting = [rows.slice(rows_per_part)], num_waiting - rows_per_part
                if missing.is_past(start):
                    return
        if missing.wants(start):
            self.check(shard)
            yield start, pa.concat_tables(waiting) if waiting else self.schema.empty_table()


@dataclass(frozen=True, slots=True)
class Shards:
    """What is known of the shards without reading them."""

    files: tuple[int, ...] | None  # index of the file that each shard is of; None where only `datasets` knows
    rows: tuple[int, ...] | None  # of each shard


@cache
def _end_calmly() -> None:
    """Give Arrow's reading threads a moment before the interpreter goes down.

    They hold Python files; one that outlives the interpreter aborts the process, whatever its exit code was to be.
    Remove when apache/arrow#45214 is closed.
    """
    atexit.register(time.sleep, _LAST_READS_S)


def open_dataset(spec: SourceSpec, commit: str | None = None, known: Shards | None = None) -> Dataset:
    """Pin and open a source.

    Args:
        spec: the job's source.
        commit: the commit that an earlier run of the same job was pinned to.
        known: what an earlier run has found of the shards, so that no file is opened for it again.

    Raises:
        JobError: the dataset, its files, split or columns are not there.
    """
    _end_calmly()
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.logging.CRITICAL)
    for uri in spec.locations:
        use_options(uri, spec.storage_options)
    commit = commit or _pin(spec)
    arguments = _builder_arguments(spec, commit)
    builder = _build(spec, arguments)
    files = _files(builder, spec)
    stream = _stream(builder, spec)
    features = stream.features or _peek(stream, spec)
    _check_columns(features, spec)
    narrowed = _narrow(builder.name, features, spec)
    if narrowed:
        stream = _stream(_build(spec, {**arguments, **narrowed}), spec)
    stream = stream.select_columns(spec.columns)
    if known is None:
        groups = _row_groups(files) if builder.name == "parquet" and not spec.options.get("filters") else None
        stream, known = _reshard(stream, files, groups)
    elif known.files is not None and len(known.files) != stream.num_shards:
        stream = stream.reshard()
    return Dataset(
        stream=stream,
        files=files,
        commit=commit,
        schema=_schema(features, spec),
        shards=known,
        versions=None if commit else _versions(files),
        storage_options=spec.storage_options,
    )


def _pin(spec: SourceSpec) -> str | None:
    """The commit of a hub id; None for files."""
    if spec.dataset in _PACKAGED or file_exists(spec.dataset) or "://" in spec.dataset:
        return None
    if spec.dataset.startswith((".", "/", "~")):
        msg = f"source.dataset: {spec.dataset}: no such folder"
        raise JobError(msg)
    try:
        return HfApi().dataset_info(spec.dataset, revision=spec.revision).sha
    except (HfHubHTTPError, OSError, ValueError) as e:
        told = (str(e).strip() or type(e).__name__).splitlines()[0]
        msg = f"source.dataset: {spec.dataset} is no folder here, and the hub did not give it: {told}"
        raise JobError(msg) from e


def _builder_arguments(spec: SourceSpec, commit: str | None) -> dict[str, Any]:
    files = list(spec.data_files) if isinstance(spec.data_files, tuple) else spec.data_files
    if spec.dataset in _PACKAGED and not files:
        msg = f"source.data_files: is missing: dataset {spec.dataset} reads the files named there"
        raise JobError(msg)
    arguments: dict[str, Any] = {"path": spec.dataset, "name": spec.name, **spec.options}
    if files:
        arguments["data_files"] = {spec.split: files} if spec.dataset in _PACKAGED else files
    if commit:
        arguments["revision"] = commit
    if saved := _saved_files(spec):
        arguments |= {"path": "arrow", "data_files": {spec.split: saved}}
    return arguments


def _saved_files(spec: SourceSpec) -> list[str] | None:
    """The Arrow files of a `save_to_disk` folder in their order; None for any other source."""
    if spec.dataset in _PACKAGED:
        return None
    folder = spec.dataset
    if file_exists(posixpath.join(folder, "dataset_dict.json")):
        folder = posixpath.join(folder, spec.split)
    state_uri = posixpath.join(folder, "state.json")
    if not file_exists(state_uri):
        return None
    state = json.loads(read_file(state_uri))
    return [posixpath.join(folder, file["filename"]) for file in state["_data_files"]]


def _build(spec: SourceSpec, arguments: dict[str, Any]) -> datasets.DatasetBuilder:
    try:
        return load_dataset_builder(**arguments)
    except (OSError, ValueError, TypeError, DatasetsError, pa.ArrowException) as e:
        where = spec.data_files or spec.dataset
        msg = f"source: {where} can't be opened: {' '.join(str(e).split())[:300]}"
        raise JobError(msg) from e


def _stream(builder: datasets.DatasetBuilder, spec: SourceSpec) -> IterableDataset:
    try:
        stream = builder.as_streaming_dataset(spec.split)
    except (OSError, ValueError, KeyError, pa.ArrowException, DatasetsError) as e:
        msg = f"source: split {spec.split!r} of {spec.dataset} can't be opened: {' '.join(str(e).split())[:300]}"
        raise JobError(msg) from e
    if not isinstance(stream, IterableDataset):
        msg = f"source.split: {spec.split!r} is not one split of {spec.dataset}"
        raise JobError(msg)
    return stream


def _peek(stream: IterableDataset, spec: SourceSpec) -> Features:
    """Column types from the first rows, for formats that don't declare them."""
    try:
        first = cast("pa.Table", next(iter(stream.with_format("arrow").iter(_READ_ROWS))))
    except StopIteration:
        msg = f"source: {spec.data_files or spec.dataset} holds no rows, so its columns are not known"
        raise JobError(msg) from None
    except (OSError, ValueError, pa.ArrowException, DatasetsError) as e:
        msg = f"source: {spec.data_files or spec.dataset} can't be read: {' '.join(str(e).split())[:300]}"
        raise JobError(msg) from e
    return Features.from_arrow_schema(first.schema)


def _check_columns(features: Features, spec: SourceSpec) -> None:
    for column in spec.columns:
        if column not in features:
            key = "source.text" if column in spec.text_columns else "source.keep"
            msg = f"{key}: there is no column {column!r} in {spec.dataset}. Its columns: {', '.join(features)}"
            raise JobError(msg)
    types = features.arrow_schema
    for column in spec.text_columns:
        kind = types.field(column).type
        kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
        if not any(matches(kind) for matches in kinds):
            msg = f"source.text: column {column!r} holds {kind}, not text"
            raise JobError(msg)


def _narrow(builder: str, features: Features, spec: SourceSpec) -> dict[str, Any]:
    """Builder options with which only the needed columns are read, and texts as texts."""
    needed = Features({name: features[name] for name in spec.columns})
    match builder:
        case "parquet":
            # Without a batch size the builder takes that of the first row group, and fails where it is empty.
            return {"columns": spec.columns, "batch_size": _READ_ROWS}
        case "csv":
            kept = [name for name in spec.keep if name not in spec.text_columns]
            texts = {name: Value("string") for name in spec.text_columns}
            return {
                "features": Features({**needed, **texts}),
                "usecols": spec.columns,
                "keep_default_na": False,
                "na_values": dict.fromkeys(kept, _NA_VALUES),
                **spec.options,
            }
        case "json" | "text":
            return {"features": features}
        case _:
            return {}


def _schema(features: Features, spec: SourceSpec) -> pa.Schema:
    types = features.arrow_schema
    texts = {name: pa.large_string() for name in spec.text_columns if name not in spec.keep}
    return pa.schema([pa.field(name, texts.get(name, types.field(name).type)) for name in spec.columns])


def _files(builder: datasets.DatasetBuilder, spec: SourceSpec) -> tuple[str, ...]:
    split = spec.split.partition("[")[0]
    files = builder.config.data_files
    if files is None or split not in files:
        return (spec.dataset,)
    if not files[split]:
        msg = f"source.data_files: no file matches {spec.data_files or spec.dataset}"
        raise JobError(msg)
    return tuple(files[split])


def _row_groups(files: tuple[str, ...]) -> list[list[int]]:
    """Rows of each row group of each Parquet file, from the footers.

    Raises:
        JobError: a file can't be read.
    """

    def count(uri: str) -> list[int]:
        try:
            with open_file(uri) as file:
                footer = pq.read_metadata(file)
        except (OSError, pa.ArrowException) as e:
            msg = f"source: {uri} can't be read as Parquet: {' '.join(str(e).split())[:200]}"
            raise JobError(msg) from e
        return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]

    with ThreadPoolExecutor(max_workers=32) as threads:
        return list(threads.map(count, files))


def _reshard(
    stream: IterableDataset, files: tuple[str, ...], groups: list[list[int]] | None
) -> tuple[IterableDataset, Shards]:
    """A shard for each row group where files are few and row groups large; else one for each file.

    The rule looks at the source alone, so every run of a job has the same shards.
    """
    whole = tuple(range(len(files))) if stream.num_shards == len(files) else None
    if groups is None:
        return stream, Shards(whole, None)
    group_rows = tuple(row for rows in groups for row in rows)
    if len(groups) < MANY_FILES and len(group_rows) > len(groups) and min(group_rows[:-1]) >= MIN_SHARD_ROWS:
        finer = stream.reshard()
        if finer.num_shards == len(group_rows):
            return finer, Shards(tuple(file for file, rows in enumerate(groups) for _ in rows), group_rows)
    return stream, Shards(whole, tuple(sum(rows) for rows in groups) if whole else None)


def _versions(files: tuple[str, ...]) -> tuple[str, ...]:
    with ThreadPoolExecutor(max_workers=32) as threads:
        return tuple(threads.map(_version, files))


def _version(uri: str, *, fresh: bool = False) -> str:
    try:
        return file_version(uri, fresh=fresh)
    except (OSError, ValueError):
        return ""

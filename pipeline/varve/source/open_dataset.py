"""A job's source → a `Dataset`: pinned to a version, opened, its columns and shards known.

Invariant: the rule that makes shards depends on the source alone, so every run of a job has the same shards.
"""

from functools import partial
from typing import Any

from datasets import DatasetBuilder, Features

from varve.config.source import Source
from varve.process_state import silence_datasets
from varve.source import hf_builder, schema_inference
from varve.source.csv_files import pandas_options, read_csv, readable_features
from varve.source.dataset import Dataset, Shards
from varve.source.error_messages import as_job_errors
from varve.source.file_metadata import file_versions, row_groups
from varve.source.hive_columns import HiveReader
from varve.source.json_files import json_options, read_json
from varve.source.readers import FileReader, ParquetReader, Reader, StreamReader, check_schema
from varve.source.table_source import open_table_source
from varve.source.workarounds import ending_calmly, streams_without_torch
from varve.storage.fsspec_files import use_options

# With fewer rows a Parquet row group is not a shard of its own, because its part would be too small.
MIN_SHARD_ROWS = 16_384
# So many files keep every reader busy, and opening each file to list its row groups takes long.
MANY_FILES = 64


@ending_calmly()
@streams_without_torch()
def open_dataset(spec: Source, commit: str | None = None, known: Shards | None = None) -> Dataset:
    """Pin and open a source.

    Args:
        spec: the job's source.
        commit: the commit that an earlier run of the job used.
        known: the shards that an earlier run of the job found, which saves opening files.

    Raises:
        JobError: the dataset, its files, split or columns do not exist or cannot be read.
    """
    if spec.table:
        return open_table_source(spec, commit)
    silence_datasets()
    for uri in spec.locations:
        use_options(uri, spec.storage_options)
    with as_job_errors(f"source: {spec.data_files or spec.dataset} cannot be opened"):
        return _open(spec, commit, known)


def _open(spec: Source, commit: str | None, known: Shards | None) -> Dataset:
    commit = commit or hf_builder.pin(spec)
    builder = hf_builder.build(spec, commit)
    files = hf_builder.files(builder, spec)
    features, hive = schema_inference.infer_features(builder, files, spec)
    needed = Features({name: features[name] for name in spec.columns if name not in hive.column_names})
    reader, num_shards, shards = _make_reader(builder, files, needed, known, spec)
    if hive.num_columns:
        reader = HiveReader(reader, shards.files or tuple(range(len(files))), hive)
    return Dataset(
        reader=reader,
        num_shards=num_shards,
        files=files,
        commit=commit,
        schema=schema_inference.arrow_schema(features, spec),
        shards=shards,
        versions=None if commit else file_versions(files),
        storage_options=spec.storage_options,
        notes=schema_inference.describe_nulls(features, spec),
    )


def _make_reader(
    builder: DatasetBuilder, files: tuple[str, ...], features: Features, known: Shards | None, spec: Source
) -> tuple[Reader, int, Shards]:
    """(reader, number of shards, what is known about the shards)."""
    config: Any = builder.config
    one_per_file = tuple(range(len(files)))
    shards, num_shards = Shards(one_per_file, None), len(files)
    if builder.name == "parquet":
        if not config.filters:  # filters change the number of rows
            shards = known or _parquet_shards(files, features, spec)
        file_of_shard = shards.files or one_per_file
        num_shards = len(file_of_shard)
        reader = ParquetReader(files, file_of_shard, features, spec.text_columns, config.filters or None)
    elif builder.name == "csv":
        parse = partial(read_csv, options=pandas_options(config, spec), text_columns=spec.text_columns)
        reader = FileReader(files, readable_features(features, spec), parse)
    elif builder.name == "json":
        parse = partial(read_json, options=json_options(config), text_columns=spec.text_columns)
        reader = FileReader(files, features, parse)
    else:
        reader = StreamReader(hf_builder.stream(builder, spec).select_columns(spec.columns))
        num_shards = reader.stream.num_shards
        if num_shards != len(files):
            shards = Shards(None, None)
    return reader, num_shards, shards


def _parquet_shards(files: tuple[str, ...], features: Features, spec: Source) -> Shards:
    """One shard per row group if files are few and row groups large, else one per file.

    Raises:
        JobError: a file cannot be read, or its columns are not those of the job.
    """
    check = partial(check_schema, features=features, text_columns=spec.text_columns)
    groups = row_groups(files, check, spec.text_columns)
    rows = tuple(group.num_rows for file in groups for group in file)
    if len(files) < MANY_FILES and len(rows) > len(files) and min(rows[:-1]) >= MIN_SHARD_ROWS:
        file_of_shard = tuple(number for number, file in enumerate(groups) for _ in file)
        return Shards(file_of_shard, rows, tuple(group.text_bytes for file in groups for group in file))
    per_file = tuple(sum(group.num_rows for group in file) for file in groups)
    return Shards(tuple(range(len(files))), per_file, tuple(sum(group.text_bytes for group in file) for file in groups))

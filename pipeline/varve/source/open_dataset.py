"""A job's source → a `Dataset`: pinned to a version, opened, its columns and shards known.

Invariant: the rule that makes shards depends on the source alone, so every run of a job has the same shards.
"""

import datasets
from datasets import DatasetBuilder, Features

from varve.config.source import Source
from varve.source import hf_builder, schema_inference
from varve.source.dataset import Dataset, Shards
from varve.source.error_messages import as_job_errors
from varve.source.file_metadata import file_versions, row_group_sizes
from varve.source.readers import JsonReader, ParquetReader, Reader, StreamReader, csv_reader
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
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.logging.CRITICAL)
    for uri in spec.locations:
        use_options(uri, spec.storage_options)
    with as_job_errors(f"source: {spec.data_files or spec.dataset} cannot be opened"):
        return _open(spec, commit, known)


def _open(spec: Source, commit: str | None, known: Shards | None) -> Dataset:
    commit = commit or hf_builder.pin(spec)
    builder = hf_builder.build(spec, commit)
    files = hf_builder.files(builder, spec)
    features = schema_inference.infer_features(builder, files, spec)
    schema_inference.check_columns(features, spec)
    if builder.name == "parquet" and known is None:
        known = _parquet_shards(files, has_filters=bool(builder.config.filters))
    reader = _make_reader(builder, files, features, known, spec)
    one_per_file = tuple(range(len(files))) if reader.num_shards == len(files) else None
    return Dataset(
        reader=reader,
        files=files,
        commit=commit,
        schema=schema_inference.arrow_schema(features, spec),
        shards=known or Shards(one_per_file, None),
        versions=None if commit else file_versions(files),
        storage_options=spec.storage_options,
    )


def _parquet_shards(files: tuple[str, ...], *, has_filters: bool) -> Shards:
    """One shard per row group if files are few and row groups large, else one per file."""
    one_per_file = tuple(range(len(files)))
    if has_filters:
        return Shards(one_per_file, None)
    groups = row_group_sizes(files)
    sizes = tuple(size for group in groups for size in group)
    if len(files) < MANY_FILES and len(sizes) > len(files) and min(sizes[:-1]) >= MIN_SHARD_ROWS:
        return Shards(tuple(file for file, group in enumerate(groups) for _ in group), sizes)
    return Shards(one_per_file, tuple(map(sum, groups)))


def _make_reader(
    builder: DatasetBuilder, files: tuple[str, ...], features: Features, shards: Shards | None, spec: Source
) -> Reader:
    needed = Features({name: features[name] for name in spec.columns})
    config = vars(builder.config)
    match builder.name:
        case "parquet":
            file_of_shard = (shards and shards.files) or tuple(range(len(files)))
            return ParquetReader(files, file_of_shard, needed, config["filters"] or None)
        case "csv":
            return csv_reader(files, needed, builder.config, spec)
        case "json":
            options = {name: config[name] for name in ("chunksize", "field", "encoding", "encoding_errors")}
            return JsonReader(files, needed, options)
        case _:
            return StreamReader(hf_builder.stream(builder, spec).select_columns(spec.columns))

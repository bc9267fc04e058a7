"""A job's source → a `Dataset`: pinned, opened, its columns and shards settled.

The rule that makes shards looks at the source alone, so every run of a job has the same ones.
"""

import datasets
from datasets import IterableDataset

from varve.config.source import Source
from varve.source import hf_builder, schema_inference
from varve.source.dataset import Dataset, Shards
from varve.source.error_messages import as_job_errors
from varve.source.file_metadata import row_groups, versions
from varve.source.workarounds import ending_calmly, streams_without_torch
from varve.storage.fsspec_files import use_options

# Below this many rows a Parquet row group is no shard of its own: its part would be too small.
MIN_SHARD_ROWS = 16_384
# With this many files there is work enough for every reader, and opening each to look for row groups takes long.
MANY_FILES = 64


@ending_calmly()
@streams_without_torch()
def open_dataset(spec: Source, commit: str | None = None, known: Shards | None = None) -> Dataset:
    """Pin and open a source.

    Args:
        spec: the job's source.
        commit: the commit that an earlier run of the same job was pinned to.
        known: what an earlier run has found of the shards, so that no file is opened for it again.

    Raises:
        JobError: the dataset, its files, split or columns are not there, or can't be asked for.
    """
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.logging.CRITICAL)
    for uri in spec.locations:
        use_options(uri, spec.storage_options)
    with as_job_errors(f"source: {spec.data_files or spec.dataset} can't be opened"):
        return _open(spec, commit, known)


def _open(spec: Source, commit: str | None, known: Shards | None) -> Dataset:
    commit = commit or hf_builder.pin(spec)
    built = hf_builder.build(spec, commit)
    files = hf_builder.files(built, spec)
    features = schema_inference.look(built, files, spec)
    schema_inference.check(features, spec)
    stream = hf_builder.stream(hf_builder.narrow(built, features, spec), spec).select_columns(spec.columns)
    if known is None:
        groups = row_groups(files) if built.name == "parquet" and not spec.options.get("filters") else None
        stream, known = _reshard(stream, files, groups)
    elif known.files is not None and len(known.files) != stream.num_shards:
        stream = stream.reshard()
    return Dataset(
        stream=stream,
        files=files,
        commit=commit,
        schema=schema_inference.arrow_schema(features, spec),
        shards=known,
        versions=None if commit else versions(files),
        storage_options=spec.storage_options,
    )


def _reshard(
    stream: IterableDataset, files: tuple[str, ...], groups: list[list[int]] | None
) -> tuple[IterableDataset, Shards]:
    """A shard for each row group where files are few and row groups large; else one for each file."""
    whole = tuple(range(len(files))) if stream.num_shards == len(files) else None
    if groups is None:
        return stream, Shards(whole, None)
    group_rows = tuple(row for rows in groups for row in rows)
    if len(groups) < MANY_FILES and len(group_rows) > len(groups) and min(group_rows[:-1]) >= MIN_SHARD_ROWS:
        finer = stream.reshard()
        if finer.num_shards == len(group_rows):
            return finer, Shards(tuple(file for file, rows in enumerate(groups) for _ in rows), group_rows)
    return stream, Shards(whole, tuple(sum(rows) for rows in groups) if whole else None)

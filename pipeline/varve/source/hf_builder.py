"""The builder of `datasets` for a source: its arguments, its files, its stream.

Knows nothing of shards or rows.
"""

import json
import posixpath
from typing import Any

from datasets import DatasetBuilder, IterableDataset, load_dataset_builder
from huggingface_hub import HfApi

from varve.config.source import BUILDERS, Source
from varve.errors import JobError
from varve.source.error_messages import as_job_errors
from varve.storage.fsspec_files import file_exists, read_file


def pin(spec: Source) -> str | None:
    """The commit of a dataset on the Hub; None for files.

    Raises:
        JobError: it is neither a local folder nor on the Hub.
    """
    if spec.dataset in BUILDERS or file_exists(spec.dataset) or "://" in spec.dataset:
        return None
    if spec.dataset.startswith((".", "/", "~")):
        msg = f"source.dataset: {spec.dataset}: no such folder"
        raise JobError(msg)
    problem = f"source.dataset: {spec.dataset} is not a local folder and could not be found on the Hugging Face Hub"
    with as_job_errors(problem):
        return HfApi().dataset_info(spec.dataset, revision=spec.revision).sha


def build(spec: Source, commit: str | None) -> DatasetBuilder:
    """The dataset's builder, with its files resolved.

    Raises:
        JobError: `source.data_files` is missing for a builder that reads files.
    """
    files = list(spec.data_files) if isinstance(spec.data_files, tuple) else spec.data_files
    if spec.dataset in BUILDERS and not files:
        msg = f"source.data_files: missing; dataset {spec.dataset} reads the files that are named there"
        raise JobError(msg)
    arguments: dict[str, Any] = {"path": spec.dataset, "name": spec.name, **spec.options}
    if files:
        arguments["data_files"] = {spec.split: files} if spec.dataset in BUILDERS else files
    if commit:
        arguments["revision"] = commit
    if saved := saved_files(spec):
        arguments |= {"path": "arrow", "data_files": {spec.split: saved}}
    return load_dataset_builder(**arguments)


def saved_files(spec: Source) -> list[str] | None:
    """The Arrow files of a `save_to_disk` folder, in order; None for any other source."""
    if spec.dataset in BUILDERS:
        return None
    folder = spec.dataset
    if file_exists(posixpath.join(folder, "dataset_dict.json")):
        folder = posixpath.join(folder, spec.split)
    state_uri = posixpath.join(folder, "state.json")
    if not file_exists(state_uri):
        return None
    state = json.loads(read_file(state_uri))
    return [posixpath.join(folder, file["filename"]) for file in state["_data_files"]]


def stream(builder: DatasetBuilder, spec: Source) -> IterableDataset:
    """The split as a stream.

    Raises:
        JobError: the split does not exist.
    """
    with as_job_errors(f"source: split {spec.split!r} of {spec.dataset} cannot be opened"):
        stream = builder.as_streaming_dataset(spec.split)
    if not isinstance(stream, IterableDataset):
        msg = f"source.split: {spec.split!r} is not a single split of {spec.dataset}"
        raise JobError(msg)
    return stream


def files(builder: DatasetBuilder, spec: Source) -> tuple[str, ...]:
    """URIs of the split's files, in order; the dataset's name if the builder reads no files.

    Raises:
        JobError: no file matches.
    """
    files = builder.config.data_files
    if files is None or spec.split not in files:
        return (spec.dataset,)
    if not files[spec.split]:
        msg = f"source.data_files: no file matches {spec.data_files or spec.dataset}"
        raise JobError(msg)
    return tuple(files[spec.split])

"""The builder of `datasets` for a source: its arguments, its files, its stream.

Knows nothing of shards or rows.
"""

import json
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetBuilder, IterableDataset, load_dataset_builder
from huggingface_hub import HfApi

from varve.config.source import BUILDERS, Source
from varve.errors import JobError
from varve.source.error_messages import as_job_errors
from varve.source.workarounds import by_their_names
from varve.storage.fsspec_files import escape_existing, file_exists, is_file, read_file


def pin(spec: Source) -> str | None:
    """The commit of a dataset on the Hub; None for files.

    Raises:
        JobError: it is neither a local folder nor on the Hub.
    """
    if spec.dataset in BUILDERS or file_exists(spec.dataset) or "://" in spec.dataset:
        return None
    if spec.dataset.startswith((".", "/", "~")) or Path(spec.dataset).is_symlink():
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
    files = [escape_existing(pattern) for pattern in data_patterns(spec)]
    if spec.dataset in BUILDERS and not files:
        msg = f"source.data_files: missing; dataset {spec.dataset} reads the files that are named there"
        raise JobError(msg)
    is_folder = spec.dataset not in BUILDERS and Path(spec.dataset).is_dir()
    path = str(Path(spec.dataset).resolve()) if is_folder else spec.dataset  # `datasets` takes the name of "." for none
    arguments: dict[str, Any] = {"path": path, "name": spec.name, **spec.options}
    if files:
        arguments["data_files"] = {spec.split: files} if spec.dataset in BUILDERS else files
    if commit:
        arguments["revision"] = commit
    if saved := saved_files(spec):
        arguments |= {"path": "arrow", "data_files": {spec.split: saved}}
    with by_their_names(spec.dataset):
        return load_dataset_builder(**arguments)


def data_patterns(spec: Source) -> list[str]:
    """The job's files; those in a local folder are absolute. Empty if the job names none.

    Raises:
        JobError: one is a folder, a pipe or a device.
    """
    if not spec.data_files:
        return []
    is_folder = spec.dataset not in BUILDERS and Path(spec.dataset).is_dir()
    patterns = [
        str(Path(spec.dataset, pattern).absolute()) if is_folder and "://" not in pattern else pattern
        for pattern in spec.locations
    ]
    for path in map(Path, patterns):
        if os.path.lexists(path):  # unlike those of Path, False for a name that is too long
            _check_file(path)
    return patterns


def _check_file(path: Path) -> None:
    if path.is_dir():
        msg = f"source.data_files: {path} is a folder. Name its files, for example {path}/*{path.suffix or '.parquet'}"
        raise JobError(msg)
    if not path.is_file():
        msg = f"source.data_files: {path} is not a regular file"
        raise JobError(msg)


def saved_files(spec: Source) -> list[str] | None:
    """The Arrow files of a `save_to_disk` folder, in order; None for any other source.

    Raises:
        JobError: the folder names a file outside of it.
    """
    if spec.dataset in BUILDERS:
        return None
    folder = spec.dataset
    if file_exists(posixpath.join(folder, "dataset_dict.json")):
        folder = posixpath.join(folder, spec.split)
    state_uri = posixpath.join(folder, "state.json")
    if not is_file(state_uri):
        return None
    try:
        names = [file["filename"] for file in json.loads(read_file(state_uri))["_data_files"]]
    except (ValueError, LookupError, TypeError):
        return None  # a file of this name that `save_to_disk` did not write
    if outside := [name for name in names if posixpath.basename(name) != name]:
        msg = f"source.dataset: {state_uri} names {outside[0]!r}; expected the name of a file in this folder"
        raise JobError(msg)
    return [posixpath.join(folder, name) for name in names]


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
        JobError: no file matches, or the card of a local folder names a file outside of it.
    """
    files = builder.config.data_files
    if files is None or spec.split not in files:
        return (spec.dataset,)
    if not files[spec.split]:
        msg = f"source.data_files: no file matches {spec.data_files or spec.dataset}"
        raise JobError(msg)
    if spec.dataset not in BUILDERS and not spec.data_files and Path(spec.dataset).is_dir():
        _check_inside(files[spec.split], Path(spec.dataset))
    return tuple(files[spec.split])


def _check_inside(files: Sequence[str], folder: Path) -> None:
    starts = (f"{folder.resolve()}/", f"{posixpath.normpath(folder.absolute())}/")
    outside = [uri for uri in files if "://" in uri or not posixpath.normpath(Path(uri).absolute()).startswith(starts)]
    if outside:
        msg = (
            f"source.dataset: the dataset card in {folder} names {outside[0]}, which is not in this folder. "
            "If it is to be read, name it in source.data_files"
        )
        raise JobError(msg)

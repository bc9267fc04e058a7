"""What `datasets` must be told to open a source, and to read of it what a job needs.

Knows nothing of shards or rows.
"""

import json
import posixpath
from typing import Any

import pyarrow as pa
from datasets import DatasetBuilder, Features, IterableDataset, Value, load_dataset_builder
from huggingface_hub import HfApi

from varve.config.source import BUILDERS, Source
from varve.errors import JobError
from varve.source.dataset import READ_ROWS
from varve.source.error_messages import as_job_errors
from varve.source.lenient_readers import NeededCsv, NeededJson, NeededParquet, another
from varve.storage.fsspec_files import file_exists, read_file

# What pandas takes for a missing value; it must not be taken so in the text column of a CSV file.
_NA_VALUES = ["", "#N/A", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "-nan", "-NaN", "<NA>"]

_NEEDED = {"csv": NeededCsv, "json": NeededJson, "parquet": NeededParquet}


def pin(spec: Source) -> str | None:
    """The commit of a hub id; None for files."""
    if spec.dataset in BUILDERS or file_exists(spec.dataset) or "://" in spec.dataset:
        return None
    if spec.dataset.startswith((".", "/", "~")):
        msg = f"source.dataset: {spec.dataset}: no such folder"
        raise JobError(msg)
    with as_job_errors(f"source.dataset: {spec.dataset} is no folder here, and the hub did not give it"):
        return HfApi().dataset_info(spec.dataset, revision=spec.revision).sha


def _arguments(spec: Source, commit: str | None) -> dict[str, Any]:
    files = list(spec.data_files) if isinstance(spec.data_files, tuple) else spec.data_files
    if spec.dataset in BUILDERS and not files:
        msg = f"source.data_files: is missing: dataset {spec.dataset} reads the files named there"
        raise JobError(msg)
    arguments: dict[str, Any] = {"path": spec.dataset, "name": spec.name, **spec.options}
    if files:
        arguments["data_files"] = {spec.split: files} if spec.dataset in BUILDERS else files
    if commit:
        arguments["revision"] = commit
    if saved := saved_files(spec):
        arguments |= {"path": "arrow", "data_files": {spec.split: saved}}
    return arguments


def saved_files(spec: Source) -> list[str] | None:
    """The Arrow files of a `save_to_disk` folder in their order; None for any other source."""
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


def build(spec: Source, commit: str | None) -> DatasetBuilder:
    """The dataset's builder, which has found its files.

    Raises:
        JobError: no files are named for a builder that reads files.
    """
    return load_dataset_builder(**_arguments(spec, commit))


def stream(builder: DatasetBuilder, spec: Source) -> IterableDataset:
    """The split as a stream.

    Raises:
        JobError: there is no such split.
    """
    with as_job_errors(f"source: split {spec.split!r} of {spec.dataset} can't be opened"):
        stream = builder.as_streaming_dataset(spec.split)
    if not isinstance(stream, IterableDataset):
        msg = f"source.split: {spec.split!r} is not one split of {spec.dataset}"
        raise JobError(msg)
    return stream


def narrow(builder: DatasetBuilder, features: Features, spec: Source) -> DatasetBuilder:
    """A builder that reads the needed columns alone, and texts as texts.

    It takes over the files: to look for them takes seconds where they are thousands.
    """
    kind = _NEEDED.get(builder.name, type(builder))
    options = _options(builder.name, features, spec)
    narrowed = another(builder, kind, **options)
    if "features" in options:  # as `load_dataset_builder` does with them
        narrowed.info.features = options["features"]
    return narrowed


def _options(kind: str, features: Features, spec: Source) -> dict[str, Any]:
    needed = Features({name: features[name] for name in spec.columns})
    match kind:
        case "parquet":
            # Without a batch size the builder takes that of the first row group, and fails where it is empty.
            return {"columns": spec.columns, "features": needed, "batch_size": READ_ROWS}
        case "csv":
            kept = [name for name in spec.keep if name not in spec.text_columns]
            options = {
                "features": _of_csv(needed, spec),
                "usecols": frozenset(spec.columns).__contains__,  # a list would have to be there in every file
                "keep_default_na": False,
                "na_values": dict.fromkeys(kept, _NA_VALUES),
            }
            return {name: value for name, value in options.items() if name not in spec.options}
        case "json":
            return {"features": needed}
        case "text":
            return {"features": features}
        case _:
            return {}


def _of_csv(needed: Features, spec: Source) -> Features:
    """Texts as texts; and whatever pandas can't read where a cell is empty, which is all but texts and floats."""
    told = spec.options.keys() & {"thousands", "true_values", "false_values", "converters"}  # pandas alone knows these

    def read_as(name: str) -> Any:
        if name in spec.text_columns:
            return Value("string")
        is_float = pa.types.is_floating(needed.arrow_schema.field(name).type)
        return needed[name] if is_float or told else Value("string")

    return Features({name: read_as(name) for name in needed})


def files(builder: DatasetBuilder, spec: Source) -> tuple[str, ...]:
    """URIs of the split's files, in order.

    Raises:
        JobError: none match.
    """
    files = builder.config.data_files
    if files is None or spec.split not in files:
        return (spec.dataset,)
    if not files[spec.split]:
        msg = f"source.data_files: no file matches {spec.data_files or spec.dataset}"
        raise JobError(msg)
    return tuple(files[spec.split])

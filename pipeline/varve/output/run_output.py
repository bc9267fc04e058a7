"""Reads columns of a finished output.

Knows nothing of labels or models. Invariants: tables come in the manifest's order of parts and keep the order of their
rows, so a row has the same position in every column that is read; only the bytes of the requested columns are fetched,
from a local folder as from an object store.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from varve.encoder.feature_plan import ROW_COLUMNS, SPAN_COLUMNS, TOKEN_COLUMNS, Column, FeaturePlan
from varve.errors import JobError, RunError, one_line
from varve.output.manifest import JOB_NAME, MANIFEST_NAME, Manifest, read_manifest
from varve.output.part_file import Part, read_footer
from varve.output.part_form import original_schema
from varve.output.part_reader import ImplausiblePartError, read_batches, read_columns
from varve.output.schema import ROW_TYPES, feature_columns, feature_types, read_metadata
from varve.storage.object_file import ObjectFile
from varve.storage.object_store import Storage

# What the metadata of a part says about the meaning of its vectors.
PROVENANCE_KEYS = ("model", "revision", "weights_sha256", "tokenizer_sha256", "max_tokens", "fingerprint", "versions")


@dataclass(frozen=True)
class Output:
    """The output of a finished run."""

    storage: Storage
    manifest: Manifest
    schema: pa.Schema

    @classmethod
    def open(cls, path: str) -> Self:
        """Read the manifest and the schema of an output.

        Raises:
            JobError: there is no output, its run has not finished, or it has no rows.
            RunError: the manifest or the first part cannot be read, or they are not what a run writes.
        """
        storage = Storage(path, patient=False)
        manifest = read_manifest(storage)
        if manifest is None:
            started = storage.read(JOB_NAME) is not None
            what = "has not finished: see `varve status`" if started else f"holds no output of Varve ({MANIFEST_NAME})"
            msg = f"{storage.uri} {what}"
            raise JobError(msg)
        if not manifest.num_rows:
            msg = f"{storage.uri} has no rows"
            raise JobError(msg)
        try:
            _check_manifest(manifest)
            part = manifest.parts[0]
            footer, _ = read_footer(storage, part.name, part.file_bytes)
            opened = cls(storage, manifest, original_schema(footer))
            _check_schema(opened)
        except (ValueError, LookupError, TypeError, pa.ArrowException) as e:
            msg = f"{storage.uri} is not the output of a run: {type(e).__name__} {one_line(e)}. See `varve verify`"
            raise RunError(msg) from e
        return opened

    @property
    def path(self) -> str:
        """Where the output was opened."""
        return self.storage.uri

    def led_by(self, name: str) -> "Output":  # noqa: ARG002 (see `feature_sets.JoinedOutput`)
        """The same rows, with the metadata and the manifest of the feature set that holds a column."""
        return self

    def only(self, names: Sequence[str]) -> "Output":  # noqa: ARG002 (likewise)
        """The same rows, with only the feature sets that these columns are read from."""
        return self

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The text columns of the job."""
        own = self.manifest.job["source"]["text"]
        return (own,) if isinstance(own, str) else tuple(own)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What every part stores about the run: model, revision, weights, feature columns."""
        return read_metadata(self.schema)

    @cached_property
    def features(self) -> dict[str, Column]:
        """The feature columns by name, in the order of the output."""
        return {column.name: column for column in feature_columns(self.schema)}

    @cached_property
    def other_columns(self) -> list[str]:
        """Names of the kept columns and of the columns about rows (`num_tokens`, `truncated`, ...)."""
        stored = {name for column in self.features.values() for name in column.stored_names}
        left_out = {*stored, *TOKEN_COLUMNS, *SPAN_COLUMNS.values(), "error", "shard", "row"}
        return [name for name in self.schema.names if name not in left_out]

    @property
    def kept_columns(self) -> list[str]:
        """Names of the columns of the source that the run kept, and of its computed columns."""
        return [name for name in self.other_columns if name not in ROW_COLUMNS]

    def tables(self, names: Sequence[str]) -> Iterator[tuple[Part, pa.Table]]:
        """(part, its rows) with these columns, in the order of the manifest.

        Raises:
            RunError: a part is missing or damaged.
        """
        for part in self.manifest.parts:
            yield part, self.read(part, names)

    def read(self, part: Part, names: Sequence[str]) -> pa.Table:
        """These columns of one part.

        Raises:
            RunError: the part is missing or damaged.
        """
        if not part.range.num_rows:
            return pa.schema([self.schema.field(name) for name in names]).empty_table()
        with self._errors_of(part):
            table = read_columns(
                ObjectFile(self.storage, part.name, part.file_bytes), names, part.range.num_rows, part.file_bytes
            )
        self._check_types(part, table)
        return table

    def batches(self, part: Part, names: Sequence[str], batch_rows: int) -> Iterator[pa.Table]:
        """These columns of one part, at most `batch_rows` rows at a time; memory does not depend on the part's size.

        Raises:
            RunError: the part is missing or damaged.
        """
        if not part.range.num_rows:
            return
        with self._errors_of(part):
            reader, rows = ObjectFile(self.storage, part.name, part.file_bytes), part.range.num_rows
            for table in read_batches(reader, names, rows, part.file_bytes, batch_rows):
                self._check_types(part, table)
                yield table

    @contextmanager
    def _errors_of(self, part: Part) -> Iterator[None]:
        """Converts errors of Arrow to a RunError that names the part."""
        try:
            yield
        except ImplausiblePartError as e:
            msg = f"{self.storage.uri}/{part.name}: {e}. See `varve verify`"
            raise RunError(msg) from e
        except (pa.ArrowException, OSError, KeyError, ValueError) as e:
            msg = f"{self.storage.uri}/{part.name} cannot be read: {one_line(e)}. See `varve verify`"
            raise RunError(msg) from e

    def _check_types(self, part: Part, table: pa.Table) -> None:
        if [field.type for field in table.schema] != [self.schema.field(name).type for name in table.column_names]:
            msg = f"{self.storage.uri}/{part.name}: its columns are not those of the first part. See `varve verify`"
            raise RunError(msg)


def _check_manifest(manifest: Manifest) -> None:
    """Check the values of the manifest that are used, whoever wrote it."""
    if manifest.num_rows != manifest.parts.num_rows:
        msg = f"num_rows of the manifest is {manifest.num_rows}, its parts have {manifest.parts.num_rows}"
        raise ValueError(msg)
    text, model = manifest.job["source"]["text"], manifest.job["model"]
    if not isinstance(model, dict) or not all(isinstance(name, str) for name in ([text], text)[isinstance(text, list)]):
        msg = "the job of the manifest has no source.text or model"
        raise TypeError(msg)


def _check_schema(output: "Output") -> None:
    """Check that the columns of the first part are described by its metadata."""
    plan = FeaturePlan(tuple(output.features.values()), top_layer=0, num_layers=0, special_tokens=False)
    types = feature_types(plan, pairs=len(output.text_columns) > 1)
    for name, expected in types.items():
        if output.schema.field(name).type != expected:
            msg = f"{name} is of type {output.schema.field(name).type}, its definition needs {expected}"
            raise TypeError(msg)
    for name, expected in ROW_TYPES.items():
        if output.schema.field(name).type != expected:
            msg = f"{name} is of type {output.schema.field(name).type}, expected {expected}"
            raise TypeError(msg)
    if missing := [key for key in PROVENANCE_KEYS if key not in output.metadata]:
        raise KeyError(missing[0])


def stored_names(columns: Sequence[Column]) -> list[str]:
    """Names of the stored columns of these features: one each, and the scales of int8 features."""
    return [name for column in columns for name in column.stored_names]


def index_in(values: pa.ChunkedArray, array: pa.Array) -> pa.ChunkedArray:
    """(R,) int32: position of each value in the array, null if it is not there."""
    return pc.index_in(values, array)  # pyright: ignore[reportAttributeAccessIssue] (made at run time)

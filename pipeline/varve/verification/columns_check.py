"""Checks that the parts have the columns of the job, and that their libraries are those of the manifest.

The footer of the first readable part stands for all; `part_check` compares the others with it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa

from varve.config.job import Job
from varve.encoder.feature_plan import ROW_COLUMNS, Column, FeaturePlan
from varve.errors import JobError, RunError
from varve.output.manifest import Manifest
from varve.output.part_file import Part, read_footer
from varve.output.part_form import original_schema
from varve.output.schema import feature_columns, read_metadata
from varve.preprocessing.computed_columns import make_type
from varve.storage.object_store import Storage
from varve.verification.check import Check


@dataclass(frozen=True, slots=True)
class PartColumns:
    """The columns of a part.

    Attributes:
        schema: of the part.
        features: definitions of its feature columns.
        versions: library → version, by which the part was written.
    """

    schema: pa.Schema
    features: tuple[Column, ...]
    versions: Mapping[str, str]

    @classmethod
    def read(cls, storage: Storage, parts: Iterable[Part]) -> Self | None:
        """The columns of the first part with a readable footer; None if there is none."""
        return next(cls.read_all(storage, parts), None)

    @classmethod
    def read_all(cls, storage: Storage, parts: Iterable[Part]) -> Iterator[Self]:
        """The columns of each part with a readable footer."""
        for part in parts:
            try:
                footer, _ = read_footer(storage, part.name, part.file_bytes)
                schema = original_schema(footer)
                yield cls(schema, tuple(feature_columns(schema)), dict(read_metadata(schema)["versions"]))
            except (RunError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException):
                continue  # `part_check` reports it


def check_columns(
    storage: Storage, finished: Manifest, columns: PartColumns | None, stored: Mapping[str, Any]
) -> Check:
    """Compare the columns of a part with the job, and the manifest's versions with those of the parts.

    Args:
        storage: of the output.
        finished: its manifest.
        columns: of a part; None if no footer can be read.
        stored: content of job.json.
    """
    if columns is None:
        return Check("columns", ("no part has a footer that can be read",))
    try:
        job = Job.reopen(stored["job"], where="job.json")
    except JobError as e:
        return Check("columns", (str(e),))
    failures = _compare_names(columns.schema.names, _expected_names(job, columns.features))
    failures += _feature_failures(job, columns.features)
    for name, feature in job.computed.items():
        expected = make_type(feature.value_type, feature.length)
        if name in columns.schema.names and (found := columns.schema.field(name).type) != expected:
            failures.append(f"{name} is of type {found}, its function returns {expected}")
    # Without a record of an encoder the run that published wrote no part.
    if finished.encoder and not any(_have_versions(storage, finished, columns)):
        failures.append("versions of manifest.json: no part was written with them")
    return Check("columns", tuple(failures))


def _expected_names(job: Job, features: tuple[Column, ...]) -> list[str]:
    pairs = len(job.source.text_columns) > 1
    plan = FeaturePlan(features, top_layer=0, num_layers=0, special_tokens=False)
    return [*job.source.kept, *plan.names(pairs=pairs), *job.computed, *ROW_COLUMNS]


def _compare_names(found: Sequence[str], expected: Sequence[str]) -> list[str]:
    failures = [f"{name} is missing in the parts" for name in expected if name not in found]
    failures += [f"{name} is in the parts, but not in the job" for name in found if name not in expected]
    if not failures and list(found) != list(expected):
        failures.append(f"the order of the columns is {', '.join(found)}, expected {', '.join(expected)}")
    return failures


def _feature_failures(job: Job, features: tuple[Column, ...]) -> list[str]:
    """Compare the definitions of the feature columns with the features of the job."""
    failures, seen = [], set[str]()
    for column in features:
        name = column.name if column.name in job.pooled else column.feature
        seen.add(name)
        if (feature := job.pooled.get(name)) is None:
            failures.append(f"{column.name} is a feature column, but the job has no such feature")
        elif (column.pool, column.normalize, column.combine) != (feature.pool, feature.normalize, feature.combine):
            failures.append(f"{column.name} is not the feature {name} of the job")
    return failures + [f"the feature {name} has no column" for name in job.pooled if name not in seen]


def _have_versions(storage: Storage, finished: Manifest, first: PartColumns) -> Iterator[bool]:
    """Whether each part was written with the versions of the manifest; reads further parts only if needed."""
    yield first.versions == finished.versions
    for columns in PartColumns.read_all(storage, finished.parts):
        yield columns.versions == finished.versions

"""Several feature sets of the same rows as one output: the first one at a path, the others below PATH/sets.

Knows nothing of models. Invariants: all sets have the same rows and the same grid of parts, which is checked when they
are opened; a column has one meaning, since the columns that a run makes are in one set only. A set that has not
finished is not seen.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from varve.config.output import SETS
from varve.errors import JobError, RunError, one_line
from varve.output.manifest import JOB_NAME
from varve.output.part_file import Part
from varve.output.part_table import PartTable
from varve.output.run_output import Output
from varve.output.schema import METADATA_KEY, feature_columns, read_metadata
from varve.storage.object_store import Storage

_ERROR = "error"
_LISTED = ("columns", "computed")  # of the metadata: the definitions of columns


@dataclass(frozen=True)
class JoinedOutput(Output):
    """The output of several finished runs of the same rows. `storage` and `manifest` are those of the leading set.

    Attributes:
        sets: the leading set first; its columns are taken where several sets have them.
        opened_at: path of the first set.
    """

    sets: tuple[Output, ...]
    opened_at: str

    @property
    def path(self) -> str:
        """Where the output was opened."""
        return self.opened_at

    def led_by(self, name: str) -> "JoinedOutput":
        """The same rows, led by the set that holds a feature or computed column; unchanged if none does."""
        leading = next((each for each in self.sets if name in made_columns(each.schema)), self.sets[0])
        others = [each for each in self.sets if each is not leading]
        return _join([leading, *others], self.opened_at)

    def only(self, names: Sequence[str]) -> Output:
        """The same rows, with only the sets that these columns are read from; errors of the others do not count."""
        sets = [one for one, _ in self._choose([name for name in names if name != _ERROR])]
        return _join(sets, self.opened_at) if len(sets) > 1 else sets[0]

    def read(self, part: Part, names: Sequence[str]) -> pa.Table:
        """These columns of one part; `error` is the first reason of any set, so rows without have all features.

        Raises:
            RunError: the part of a set is missing or damaged.
        """
        if not part.range.num_rows:
            return super().read(part, names)
        tables = [one.read(_part_of(one, part), own) for one, own in self._choose(names)]
        return _side_by_side(tables, names)

    def batches(self, part: Part, names: Sequence[str], batch_rows: int) -> Iterator[pa.Table]:
        """These columns of one part as `read` returns them, at most `batch_rows` rows at a time.

        Raises:
            RunError: the part of a set is missing or damaged.
        """
        if not part.range.num_rows:
            return
        streams = [one.batches(_part_of(one, part), own, batch_rows) for one, own in self._choose(names)]
        for tables in zip(*streams, strict=True):  # all batches but the last have `batch_rows` rows, in every set
            yield _side_by_side(tables, names)

    def _choose(self, names: Sequence[str]) -> list[tuple[Output, list[str]]]:
        """(set, columns to read from it) of each set that is needed; each column once, but errors of all sets."""
        chosen: dict[str, int] = {}
        for name in names:
            chosen[name] = next((n for n, one in enumerate(self.sets) if name in one.schema.names), 0)
        columns = [[name for name in chosen if chosen[name] == number] for number in range(len(self.sets))]
        if _ERROR in chosen:
            columns = [own if _ERROR in own else [*own, _ERROR] for own in columns]
        needed = [(one, own) for one, own in zip(self.sets, columns, strict=True) if own]
        return needed or [(self.sets[0], [])]


def open(path: str) -> Output:  # noqa: A001 (see `exploration.opened_output`)
    """Open a finished output, with the columns of all its finished feature sets.

    Args:
        path: `output.path` of the job, or PATH/sets/NAME for one further set alone.

    Returns:
        The output. Its parts are those of the first set; `read`, `tables` and `batches` return columns of any set, as
        Arrow tables of the stored types. `error` is null in rows that every set has encoded.

    Raises:
        JobError: there is no output, its run has not finished, or it has no rows.
        RunError: an output cannot be read, or a further set has other rows or a column of the same name.
    """
    first = Output.open(path)
    others = []
    for name in list_sets(first.storage):
        with suppress(JobError):  # it has not finished
            others.append(Output.open(set_path(first.path, name)))
    if not others:
        return first
    for number, other in enumerate(others):
        _check_rows(first, other)
        for earlier in (first, *others[:number]):
            _check_columns(earlier, other)
    return _join([first, *others], first.path)


def list_sets(storage: Storage) -> list[str]:
    """Names of the further feature sets of an output whose run has begun.

    Raises:
        RunError: the store failed.
    """
    return [name for name in storage.folders(SETS) if storage.read(f"{SETS}/{name}/{JOB_NAME}") is not None]


def set_path(path: str, name: str) -> str:
    """Where a further feature set of an output is."""
    return f"{path}/{SETS}/{name}"


def made_columns(schema: pa.Schema) -> set[str]:
    """Names of the stored columns that a run made: its features and its computed columns.

    Raises:
        KeyError, ValueError, TypeError: the schema is not one of Varve.
    """
    stored = {name for column in feature_columns(schema) for name in column.stored_names}
    return stored | {column["name"] for column in read_metadata(schema).get("computed", ())}


def clashes(one: pa.Schema, other: pa.Schema) -> list[str]:
    """Names that two sets of the same rows use for different columns.

    Columns that both kept are the same, and so are those about rows. Those about tokens and spans belong to a set.
    """
    return sorted(made_columns(one) & {*other.names} | {*one.names} & made_columns(other))


def _check_rows(first: Output, other: Output) -> None:
    """Check that all parts of two sets hold the same rows."""
    ours, theirs = (_ranges(each.manifest.parts) for each in (first, other))
    identity = [each.manifest.resolved.get("source_identity") for each in (first, other)]
    if not np.array_equal(ours, theirs) or identity[0] != identity[1]:
        msg = (
            f"{other.path} does not have the rows of {first.path}, which was written anew. Move the folder of the set "
            "to another place, and run its job again"
        )
        raise RunError(msg)


def _check_columns(one: Output, other: Output) -> None:
    try:
        names = clashes(one.schema, other.schema)
    except (LookupError, TypeError, ValueError) as e:
        msg = f"{one.path} or {other.path} is not the output of a run: {type(e).__name__} {one_line(e)}"
        raise RunError(msg) from e
    if names:
        msg = f"{one.path} and {other.path} both have the column {names[0]!r}. Move the folder of one set elsewhere"
        raise RunError(msg)


def _ranges(parts: PartTable) -> NDArray[np.int64]:
    """(3, parts) shard, first row and last row + 1 of the parts that are not empty."""
    ranges = np.stack([parts.columns[name].to_numpy().astype(np.int64) for name in ("shard", "start", "stop")])
    return ranges[:, ranges[1] < ranges[2]]


def _part_of(output: Output, part: Part) -> Part:
    """The part of a set that holds the rows of a part of another set."""
    parts = output.manifest.parts
    shards, starts = (parts.columns[name].to_numpy() for name in ("shard", "start"))
    low, high = np.searchsorted(shards, part.shard), np.searchsorted(shards, part.shard, side="right")
    return parts[int(low + np.searchsorted(starts[low:high], part.start))]


def _join(sets: Sequence[Output], opened_at: str) -> JoinedOutput:
    leading = sets[0]
    fields = {field.name: field for one in reversed(sets) for field in one.schema}
    names = dict.fromkeys(name for one in sets for name in one.schema.names)
    described = dict(leading.metadata)
    for key in _LISTED:
        described[key] = [column for one in sets for column in one.metadata.get(key, ())]
    schema = pa.schema([fields[name] for name in names], {METADATA_KEY: json.dumps(described, sort_keys=True)})
    return JoinedOutput(leading.storage, leading.manifest, schema, tuple(sets), opened_at)


def _side_by_side(tables: Sequence[pa.Table], names: Sequence[str]) -> pa.Table:
    """The columns of several tables of the same rows as one table; of a column that several have, the first values."""
    columns: dict[str, pa.ChunkedArray] = {}
    for table in tables:
        for name in table.column_names:
            columns[name] = pc.coalesce(columns[name], table[name]) if name in columns else table[name]  # pyright: ignore[reportAttributeAccessIssue] (made at run time)
    fields = {field.name: field for table in tables for field in table.schema}
    return pa.table([columns[name] for name in names], schema=pa.schema([fields[name] for name in names]))

"""A finished output as `varve.open` returns it: its columns as arrays and tables, its rows, their neighbours, its maps.

Only binds what other files do, and imports the model's libraries when a text is encoded. Invariant: reading writes
nothing, except a file that the caller names and temporary files.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.encoder.feature_plan import Column
from varve.encoder.ragged import Ragged
from varve.errors import JobError
from varve.exploration.map.map_table import read_map
from varve.output import feature_sets
from varve.output.feature_array import read_array
from varve.output.manifest import Manifest
from varve.output.manifest_table import features_to_html
from varve.output.output_rows import check_columns, read_row, read_table
from varve.output.part_file import Part
from varve.output.run_output import Output

if TYPE_CHECKING:
    import polars as pl
    import torch


@dataclass(frozen=True)
class OpenedOutput:
    """A finished output.

    Attributes:
        output: what reads its parts.
    """

    output: Output

    @property
    def path(self) -> str:
        """Where the output was opened."""
        return self.output.path

    @property
    def manifest(self) -> Manifest:
        """The record of the run; of several feature sets, of the set that leads."""
        return self.output.manifest

    @property
    def schema(self) -> pa.Schema:
        """The stored columns and their types."""
        return self.output.schema

    @property
    def metadata(self) -> dict[str, Any]:
        """What every part stores about the run: model, revision, weights, feature columns."""
        return self.output.metadata

    @property
    def features(self) -> dict[str, Column]:
        """The feature columns by name, in the order of the output."""
        return self.output.features

    @property
    def kept_columns(self) -> list[str]:
        """Names of the columns of the source that the run kept, and of its computed columns."""
        return self.output.kept_columns

    def __repr__(self) -> str:
        return f"<output {self.path!r}: {len(self):,} rows, features {', '.join(self.features)}>"

    def _repr_html_(self) -> str:
        return features_to_html(self.path, len(self), self.features)

    def __len__(self) -> int:
        return self.manifest.num_rows

    def led_by(self, name: str) -> "OpenedOutput":
        """The same rows, with the manifest and the metadata of the feature set that holds a column."""
        return OpenedOutput(self.output.led_by(name))

    def only(self, names: Sequence[str]) -> "OpenedOutput":
        """The same rows, with only the feature sets that these columns are read from."""
        return OpenedOutput(self.output.only(names))

    def tables(self, columns: Sequence[str]) -> Iterator[tuple[Part, pa.Table]]:
        """(part, its rows) with these columns, in the order of the manifest.

        Raises:
            JobError: there is no such column.
            RunError: a part is missing or damaged.
        """
        check_columns(self.output, columns)
        return self.output.tables(columns)

    def read(self, part: Part, columns: Sequence[str]) -> pa.Table:
        """These columns of one part; errors as `tables`."""
        check_columns(self.output, columns)
        return self.output.read(part, columns)

    def batches(self, part: Part, columns: Sequence[str], batch_rows: int) -> Iterator[pa.Table]:
        """These columns of one part, at most `batch_rows` rows at a time; errors as `tables`."""
        check_columns(self.output, columns)
        return self.output.batches(part, columns, batch_rows)

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Columns of all rows in memory, in the types that are stored; None: all columns. Errors as `tables`."""
        return read_table(self.output, columns)

    def to_numpy(self, feature: str, file: str | os.PathLike[str] | None = None) -> NDArray[np.float32] | Ragged:
        """A feature of all rows as float32, (rows, width), NaN in rows without a vector.

        float16 and int8 are decoded, binary values are -1 and +1. From 1 GiB on the array is mapped from a temporary
        file in TMPDIR. Windows, chunks and the vectors of tokens are a `Ragged`: row r has the vectors `result[r]`.

        Args:
            feature: name of the column.
            file: new `.npy` file to write the array to and to map it from.

        Raises:
            JobError: there is no such feature, or it is sparse or attentions: see `to_arrow`.
            RunError: a part is missing or damaged, or there is no room for the file.
        """
        return read_array(self.output, feature, file)

    def to_torch(self, feature: str) -> "torch.Tensor":
        """`to_numpy` as a tensor that shares its memory; lists of vectors as a nested tensor (jagged layout)."""
        import torch  # noqa: PLC0415 (takes seconds)

        values = self.to_numpy(feature)
        if isinstance(values, Ragged):
            parts = torch.from_numpy(values.values), torch.from_numpy(values.offsets)
            return torch.nested.nested_tensor_from_jagged(*parts)
        return torch.from_numpy(values)

    def to_polars(self, columns: Sequence[str] | None = None) -> "pl.DataFrame":
        """`to_arrow` as a DataFrame of polars.

        Raises:
            JobError: polars is not installed; else as `to_arrow`.
        """
        try:
            import polars as pl  # noqa: PLC0415 (optional)
        except ImportError as e:
            msg = "to_polars needs the package polars: run pip install polars, or use to_arrow"
            raise JobError(msg) from e
        return pl.DataFrame(self.to_arrow(columns))

    def row(self, shard: int, row: int) -> dict[str, Any]:
        """All columns of one row: dense vectors as float32 arrays, None for the features of a row with an error.

        Raises:
            JobError: there is no such row.
            RunError: its part is missing or damaged.
        """
        return read_row(self.output, shard, row)

    def map(self, name: str | None = None) -> pa.Table:
        """The table of a map that `varve map` made: shard, row, x, y, neighbours and copied columns, of all rows.

        Args:
            name: of the map; None: the only one.

        Raises:
            JobError: there is no such map, or it is not finished.
            RunError: a file is missing or damaged, or the map belongs to another run.
        """
        return read_map(self.output, name)

    def neighbours(
        self, text_or_row: str | tuple[int, int], k: int = 10, *, feature: str | None = None, **options: Any
    ) -> pa.Table:
        """The rows that are nearest to a text, or to a row (which is not among them).

        Args:
            text_or_row: a text, encoded with the checkpoint of the run as it declares for queries; or (shard, row).
            k: number of rows.
            feature: name of the column; None: the only one that can be searched, or the only dense one.
            options: `index`, `show`, `model` and `trust_remote_code` of `varve.search`.

        Returns:
            rank int32, score float32, position int64, shard int32, row int64, then the kept columns.

        Raises:
            JobError: an argument is wrong, or the row has no vector.
            RunError: the output, the index or the model failed.
        """
        from varve.retrieval.row_neighbours import find_neighbours  # noqa: PLC0415 (imports the encoder)

        return find_neighbours(self.path, text_or_row, k, feature=feature, **options)


def open(path: str) -> OpenedOutput:  # noqa: A001 (called as `varve.open`)
    """Open a finished output, with the columns of all its finished feature sets.

    >>> output = varve.open("features")
    >>> list(output.features), output.kept_columns
    (['embedding', 'cls'], ['title'])
    >>> for part, rows in output.tables(["title", "embedding", "cls"]):
    ...     print(part.shard, part.start, rows.num_rows)
    0 0 4
    >>> len(output.to_numpy("embedding"))
    4

    Args:
        path: `output.path` of the job, or PATH/sets/NAME for one further set alone.

    Returns:
        The output. Its parts are those of the first set; columns are those of any set, as Arrow tables of the stored
        types, or decoded. `error` is null in rows that every set has encoded.

    Raises:
        JobError: there is no output, its run has not finished, or it has no rows.
        RunError: an output cannot be read, or a further set has other rows or a column of the same name.
    """
    return OpenedOutput(feature_sets.open(path))

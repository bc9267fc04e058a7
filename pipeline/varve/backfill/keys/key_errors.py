"""Messages about keys that do not identify one row of the source each."""

from collections.abc import Sequence

from varve.backfill.keys.bucket_join import Repeats
from varve.backfill.keys.key_columns import NUM_EXAMPLES, FileKeys
from varve.errors import JobError
from varve.lake.table import TableFile

_ADVICE = "Correct the table, or set source.key to another column"


def check_nulls(key: str, table: object, files: Sequence[TableFile], counted: Sequence[FileKeys]) -> None:
    """Refuse rows without a key.

    Args:
        key: name of the column.
        table: for the message.
        files: of the source.
        counted: what was read of each.

    Raises:
        JobError: there are such rows.
    """
    num_nulls = sum(each.num_nulls for each in counted)
    if not num_nulls:
        return
    found = [(files[each.number].path, row) for each in counted for row in each.null_rows][:NUM_EXAMPLES]
    places = "; ".join(f"row {row} of {path}" for path, row in found)
    msg = f"source.key: {key} is null in {num_nulls:,} row(s) of {table}: {places}. Expected no nulls. {_ADVICE}"
    raise JobError(msg)


def check_repeats(key: str, table: object, files: Sequence[TableFile], repeats: Sequence[Repeats]) -> None:
    """Refuse keys that several rows have.

    Args:
        key: name of the column.
        table: for the message.
        files: of the source, by their number.
        repeats: of each bucket.

    Raises:
        JobError: there are such keys.
    """
    num_keys = sum(each.num_keys for each in repeats)
    if not num_keys:
        return
    found = sorted(example for each in repeats for example in each.examples)[:NUM_EXAMPLES]
    examples = "; ".join(f"{value!r} in {_places(files, numbers)}" for value, numbers in found)
    msg = f"source.key: {num_keys:,} value(s) of {key} are in several rows of {table}: {examples}"
    msg += f". Expected one row for each value. {_ADVICE}"
    raise JobError(msg)


def _places(files: Sequence[TableFile], numbers: Sequence[int]) -> str:
    paths = [files[number].path for number in numbers]
    return f"{paths[0]} (several rows)" if len(paths) == 1 else " and ".join(paths[:2])

"""Samples rows of an output, and reads them from its parts and from the source.

Knows nothing of models, features and tolerances. Invariants: the shortest and the longest text of the run are in every
sample; a row of the output is found by its position and must hold its own number.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa

from varve.errors import RunError, one_line
from varve.output.part_file import Part
from varve.output.part_reader import ImplausiblePartError, read_columns
from varve.source.dataset import Dataset
from varve.storage.object_store import Storage

# Limit of the tokens of these rows together: plain transformers encodes some hundreds or thousands per second.
MAX_TOKENS = 65_536

RowId = tuple[int, int]  # shard, row


def choose_rows(parts: Sequence[Part], rows: int, seed: int) -> list[RowId]:
    """Choose rows to compare: the shortest and the longest text of the run, the others at random."""
    extremes: list[tuple[int, int, int]] = []  # (tokens, shard, row) of the shortest and the longest text
    weights = []
    for part in parts:  # a single pass: there may be very many parts
        weights.append(part.range.num_rows if part.shortest else 0)
        if part.shortest and part.longest:
            extremes += [(tokens, part.shard, row) for row, tokens in (part.shortest, part.longest)]
            extremes = [min(extremes), max(extremes)]
    if not extremes:
        return []
    chosen = dict.fromkeys((shard, row) for _, shard, row in extremes)
    draw = random.Random(seed)  # noqa: S311 (a sample, not a secret)
    for part in draw.choices(parts, weights, k=max(0, rows - len(chosen))):
        chosen[part.shard, draw.randrange(part.start, part.stop)] = None
    return list(chosen)


def read_stored_rows(storage: Storage, parts: Iterable[Part], chosen: Sequence[RowId]) -> dict[RowId, pa.Table]:
    """Read each row, as a table, from the committed parts."""
    chosen_rows = defaultdict(list)
    for shard, row in chosen:
        chosen_rows[shard].append(row)
    stored: dict[RowId, pa.Table] = {}
    for part in parts:
        if rows := [row for row in chosen_rows.get(part.shard, ()) if part.start <= row < part.stop]:
            stored |= _rows_of_part(storage, part, rows)
    return stored


def _rows_of_part(storage: Storage, part: Part, rows: Sequence[int]) -> dict[RowId, pa.Table]:
    name = f"{storage.uri}/{part.name}"
    try:
        content = storage.read(part.name) or b""
        table = read_columns(pa.BufferReader(content), None, part.range.num_rows, len(content))
    except ImplausiblePartError as e:
        msg = f"{name}: {e}"
        raise RunError(msg) from e
    except (pa.ArrowException, OSError) as e:
        msg = f"{name} cannot be read again: {one_line(e)}"
        raise RunError(msg) from e
    stored = {}
    for row in rows:
        position = row - part.start
        one = table.slice(position, 1)
        if one.select(["shard", "row"]).to_pylist() != [{"shard": part.shard, "row": row}]:
            msg = f"{name}: position {position} does not hold row {row}"
            raise RunError(msg)
        stored[part.shard, row] = one.take([0])  # a slice would keep the whole part in memory
    return stored


def read_source_rows(dataset: Dataset, selected: Sequence[RowId]) -> Iterator[tuple[RowId, pa.Table]]:
    """Yield ((shard, row), the row as a table), read from the source again."""
    selected_rows = defaultdict(set)
    for shard, row in selected:
        selected_rows[shard].add(row)
    for shard, rows in selected_rows.items():
        first = 0
        for table in dataset.read(shard):
            for row in sorted(row for row in rows if first <= row < first + len(table)):
                yield (shard, row), table.slice(row - first, 1)
            first += len(table)
            if first > max(rows):
                break


def rows_with_errors(chosen: Sequence[RowId], stored: Mapping[RowId, pa.Table]) -> list[RowId]:
    """The rows without features."""
    return [row_id for row_id in chosen if stored[row_id]["error"][0].is_valid]


def within_token_limit(chosen: Sequence[RowId], stored: Mapping[RowId, pa.Table]) -> list[RowId]:
    """The first row, and further rows up to `MAX_TOKENS` together; rows with errors are skipped."""
    selected: list[RowId] = []
    remaining = MAX_TOKENS
    for row_id in chosen:
        if stored[row_id]["error"][0].is_valid:
            continue
        tokens = stored[row_id]["num_tokens"][0].as_py() or 0
        if tokens <= remaining or not selected:
            selected.append(row_id)
            remaining -= tokens
    return selected

"""A finished map as a table.

Invariants: a map belongs to the run whose manifest it names, that of another run is refused; all files have the same
columns.
"""

import pyarrow as pa
import pyarrow.parquet as pq

from varve.errors import JobError, RunError, one_line
from varve.exploration.map.map_part import OWN_TYPES, part_name
from varve.exploration.map.map_request import MAPS, map_folder, read_json
from varve.output.part_file import Part
from varve.output.run_output import Output
from varve.storage.object_file import ObjectFile
from varve.storage.object_store import Storage


def read_map(output: Output, name: str | None = None) -> pa.Table:
    """All rows of a map, in the manifest's order of parts.

    Args:
        output: of the run.
        name: of the map; None: the only one.

    Returns:
        shard int32, row int64, x and y float32, neighbours {ids list<int64>, distances list<float32>}, then the copied
        columns. x, y and neighbours are null in rows without a vector.

    Raises:
        JobError: there is no such map, or it is not finished.
        RunError: a file is missing or damaged, or the map belongs to another run.
    """
    storage = Storage(output.path, patient=False)
    name = _choose(storage, name)
    record = read_json(storage, f"{map_folder(name)}/map.json")
    if record is None:
        msg = f"{output.path}/{map_folder(name)} holds no finished map. Run `varve map`, which makes or continues it"
        raise JobError(msg)
    leading = output.led_by(str(record.get("feature")))
    if record.get("manifest_sha256") != leading.manifest.sha256:
        msg = f"{output.path}/{map_folder(name)} is a map of another run. Delete it, and run `varve map` again"
        raise RunError(msg)
    sizes = {each.name: each.size for each in storage.list(map_folder(name))}
    tables: list[pa.Table] = []
    for part in leading.manifest.parts:
        if part.range.num_rows:
            tables.append(_read(storage, name, part, sizes, tables[0].schema if tables else None))
    return pa.concat_tables(tables)


def _choose(storage: Storage, name: str | None) -> str:
    if name is not None:
        return name
    found = storage.folders(MAPS)
    if len(found) != 1:
        listed = f": name one of {', '.join(found)[:1000]}" if found else ": run `varve map`"
        msg = f"{storage.uri} has {len(found)} maps{listed}"
        raise JobError(msg)
    return found[0]


def _read(storage: Storage, name: str, part: Part, sizes: dict[str, int], expected: pa.Schema | None) -> pa.Table:
    file = part_name(name, part)
    try:
        table = pq.read_table(ObjectFile(storage, file, sizes[file]))
        own = [(field.name, field.type) for field in table.schema][: len(OWN_TYPES)]
        is_like_others = expected is None or table.schema.equals(expected)
        if own != [*OWN_TYPES.items()] or not is_like_others or len(table) != part.range.num_rows:
            raise ValueError(f"it has {len(table)} rows of {one_line(table.schema)}")  # noqa: EM102, TRY003, TRY301
    except (pa.ArrowException, OSError, KeyError, ValueError) as e:
        msg = f"{storage.uri}/{file} cannot be read: {one_line(e)}. Delete the map, and run `varve map` again"
        raise RunError(msg) from e
    return table

"""Sources of very many shards in each format, and the files of the tables of features made of them.

Every row has the same text. Each format's library is imported for its own jobs alone.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_TEXT = "varve"
_THREADS = 8


def bytes_below(*folders: Path) -> int:
    """Sizes of all files below folders."""
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def values(paths: Iterable[str | Path], names: Sequence[str]) -> pa.Table:
    """Columns of many Parquet files."""
    with ThreadPoolExecutor(_THREADS) as threads:
        read = threads.map(lambda path: pq.ParquetFile(path).read(list(names), use_threads=False), paths)
        return pa.concat_tables(list(read))


def _rows(shard: int, rows: int) -> pa.Table:
    return pa.table({"doc_id": np.arange(shard * rows, (shard + 1) * rows), "text": [_TEXT] * rows})


def write_files(folder: Path, rows: int, shards: int) -> list[str]:
    (folder / "docs").mkdir(parents=True)
    paths = [str(folder / f"docs/{shard:06d}.parquet") for shard in range(shards)]
    for shard, path in enumerate(paths):
        pq.write_table(_rows(shard, rows), path)
    return paths


def write_lance(folder: Path, rows: int, shards: int) -> None:
    import lance

    table = _rows(0, rows * shards)
    lance.write_dataset(table, str(folder / "docs.lance"), max_rows_per_file=rows, max_rows_per_group=rows)


def make_iceberg(folder: Path, files: list[str]) -> None:
    from pyiceberg.catalog import load_catalog

    settings = {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}
    os.environ.update({f"PYICEBERG_CATALOG__SCALE__{name.upper()}": value for name, value in settings.items()})
    catalog = load_catalog("scale", **settings)
    catalog.create_namespace("db")
    table = catalog.create_table("db.docs", pq.read_schema(files[0]))
    table.add_files([f"file://{file}" for file in files], check_duplicate_files=False)


def make_delta(folder: Path) -> None:
    from deltalake import convert_to_deltalake

    convert_to_deltalake(str(folder / "docs"))


def files_of(kind: str, folder: Path) -> list[str]:
    """The data files of a table of features, as its library lists them."""
    if kind == "delta":
        from deltalake import DeltaTable

        return [path.removeprefix("file://") for path in DeltaTable(str(folder / "features")).file_uris()]
    tasks = _iceberg_table(folder).scan().plan_files()
    return [task.file.file_path.removeprefix("file://") for task in tasks]


def _iceberg_table(folder: Path) -> Any:
    from pyiceberg.catalog import load_catalog

    return load_catalog("scale", type="sql", uri=f"sqlite:///{folder}/catalog.db").load_table("db.features")


def iceberg_metadata(folder: Path) -> int:
    location = _iceberg_table(folder).location().removeprefix("file://")
    return bytes_below(Path(location) / "metadata")

"""Targets: published indexes: their manifests, the rows of positions, files of vectors and graphs."""

from pathlib import Path

import numpy as np

from tests.fuzz.target import Target
from tests.index_sources import build, open_source, write_source
from varve.config.index import Index
from varve.errors import RunError
from varve.indexing.open_target import find_index, open_target

_ROWS, _WIDTH = 60, 8
_COMPILED = (".faiss", ".usearch")


def _make(folder: Path) -> None:
    source = open_source(
        write_source(folder / "run", rows=_ROWS, width=_WIDTH, rows_per_part=25, shards=[_ROWS], errors=(3,))
    )
    for name in ("npy", "fbin", "ndjson", "usearch", "faiss"):
        settings = Index.parse({"path": str(folder / "run"), "to": f"{name}:{folder / name}"}, "index")
        build(open_target(name, str(folder / name), settings), source, name)


def _read(folder: Path, name: str) -> None:
    """A failed check is a refusal. Compiled code trusts what is in a file of its own whose size is the right one."""
    index = Path(name).parts[0]
    found = find_index(str(folder / index))
    if found is None:
        raise RunError("absent")  # noqa: EM101 (as the command does)
    if index != "ndjson" and (folder / name).suffix not in _COMPILED:
        with found.open() as searcher:
            searcher.search(np.zeros((1, _WIDTH), np.float32), 3, found.record.setting)
    if failures := found.target.verify(found.record):
        raise RunError("\n".join(failures)[:5000])


_FILES = (
    *(f"{name}/_varve/*.json" for name in ("npy", "fbin", "ndjson", "usearch", "faiss")),
    *(f"{name}/**/*" for name in ("npy", "fbin", "ndjson")),
    "faiss/**/*.parquet",
)
TARGETS = (Target("index", _make, _FILES, _read, confined=True),)

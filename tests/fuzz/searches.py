"""Targets: outputs and indexes that `varve search`, `varve index` and `varve.open` read."""

from pathlib import Path

from tests.fuzz.outputs import make_output, make_run
from tests.fuzz.target import Target
from varve.config.index import Index
from varve.errors import RunError
from varve.exploration.opened_output import open as open_output
from varve.indexing.build import build
from varve.indexing.open_target import find_index
from varve.retrieval.search import search

_BUILT = ("npy", "faiss", "usearch")
_BATCH_ROWS = 7


def _make(folder: Path) -> None:
    """A finished run, and indexes of it."""
    make_run(folder)
    for name in _BUILT:
        build(_request(folder, name))


def _request(folder: Path, name: str) -> Index:
    return Index.parse({"path": str(folder / "out"), "to": f"{name}:{folder / name}", "recall": 0.5}, "index")


def _search(folder: Path, name: str) -> None:
    """Through the index whose file was changed, or through all vectors."""
    place = Path(name).parts[0]
    found = search(str(folder / place), ["a text"], 3, model=str(folder / "model"))
    found.validate(full=True)


def _open(folder: Path, name: str) -> None:
    opened = open_output(str(folder / "out"))
    assert repr(opened)
    assert opened._repr_html_()  # as a notebook does
    if name.startswith("out/maps"):
        opened.map().validate(full=True)
    opened.to_arrow().validate(full=True)
    for feature in opened.features:
        opened.to_numpy(feature)
    for part, table in opened.tables(opened.kept_columns):
        table.validate(full=True)
        for rows in opened.batches(part, opened.kept_columns, _BATCH_ROWS):
            rows.validate(full=True)
    part = next(iter(opened.manifest.parts))
    opened.row(part.shard, part.start)
    assert opened.neighbours((part.shard, part.start), 3)["score"].null_count == 0


def _index(folder: Path, _name: str) -> None:
    for name in ("fbin", "ndjson", "faiss", "usearch"):
        build(_request(folder, name))
        found = find_index(str(folder / name))
        assert found
        if failures := found.target.verify(found.record):
            raise RunError("\n".join(failures))


_RECORDS = ("out/_varve/manifest.json", "out/_varve/job.json")
_PARTS = ("out/data/*.parquet",)
TARGETS = (
    Target("search", _make, (*_RECORDS, *_PARTS, *(f"{name}/_varve/*.json" for name in _BUILT)), _search, hang_s=30.0),
    Target("open", make_output, (*_RECORDS, *_PARTS, "out/maps/*/*"), _open, hang_s=30.0),
    Target("index-build", make_output, (*_RECORDS, *_PARTS), _index, hang_s=30.0),
)

"""Outputs to build indexes from, and a build in this process, in the order of the driver."""

from pathlib import Path

import numpy as np

from tests.outputs import column, write_output
from varve.indexing.record import IndexRecord, IndexRequest
from varve.indexing.source import IndexSource
from varve.indexing.target import Kind, Target
from varve.output.run_output import Output
from varve.output.schema import describe

ERRORS = (3, 410, 411)  # rows without vectors, in the middle of parts
ROWS = 1000


def clustered(rows: int, width: int = 32, seed: int = 0, *, clusters: int = 50) -> np.ndarray:
    """(rows, width) float32 of length 1, in clusters as the vectors of texts are."""
    random = np.random.default_rng(seed)
    centers = random.normal(size=(clusters, width))
    vectors = centers[random.integers(0, clusters, rows)] + 0.7 * random.normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write_source(path: Path | str, rows: int = ROWS, width: int = 32, *, dtype="float32", **changes) -> str:
    """Write an output with errors in the middle and an empty part; its kept columns are doc_id and title."""
    options = {"rows_per_part": 150, "shards": [400, 0, rows - 400], "errors": ERRORS, **changes}
    kept = {"doc_id": [f"doc-{row}" for row in range(rows)], "title": [f"Title {row} “é”" for row in range(rows)]}
    features = {column("embedding", width, pool="mean", layer=12, normalize=True, dtype=dtype): clustered(rows, width)}
    return write_output(path, features, kept, **options)


def open_source(path: str, columns=("doc_id", "title"), feature: str | None = None) -> IndexSource:
    return IndexSource.open(Output.open(path), feature, columns)


def request_of(source: IndexSource, target: str, **settings) -> IndexRequest:
    manifest = source.output.manifest
    run = {"path": manifest.path, "fingerprint": manifest.fingerprint, "manifest_sha256": manifest.sha256}
    return IndexRequest(
        source=run,
        feature=describe(source.column),
        metric={"name": source.metric.name, "unit": source.metric.unit},
        num_vectors=source.num_vectors,
        settings={"key": None, "keep": [], **settings},
        target=target,
    )


def build(target: Target, source: IndexSource, name: str, kind: Kind | None = None) -> tuple[Kind, IndexRecord]:
    """Build and publish the first kind, or the given one, without a proof."""
    target.check(source)
    request = request_of(source, name)
    target.begin(request)
    kind = kind or target.kinds(source)[0]
    target.train(kind, source)
    for part in sorted({*range(source.num_parts)} - target.added(kind, source)):
        target.add(kind, source, source.read(part))
    for piece in range(target.pieces(kind, source)):
        target.finish(kind, source, piece)
    record = IndexRecord(
        request=request,
        kind=kind.name,
        setting=dict(kind.settings[-1]),
        bytes_per_vector=kind.bytes_per_vector,
        created_at="2026-01-01T00:00:00+00:00",
        versions={},
    )
    published = target.publish(kind, source, record)
    target.clean(published)
    return kind, published

"""The request of an index: made from a source and settings, and compared with that of a published index."""

from dataclasses import asdict
from typing import Any

from varve.config.index import Index
from varve.indexing.record import IndexRecord, IndexRequest
from varve.indexing.source import IndexSource, find_feature
from varve.output.run_output import Output
from varve.output.schema import describe


def make_request(source: IndexSource, settings: Index) -> IndexRequest:
    """What an index of this source with these settings is made of."""
    return IndexRequest(
        source={"path": source.output.path, **_run_of(source.output)},
        feature=describe(source.column),
        metric=asdict(source.metric),
        num_vectors=source.num_vectors,
        settings=settings.identity(),
        target=settings.target,
    )


def _run_of(output: Output) -> dict[str, Any]:
    return {"fingerprint": output.manifest.fingerprint, "manifest_sha256": output.manifest.sha256}


def answers(published: IndexRecord, output: Output, settings: Index) -> bool:
    """Whether an index is what these settings ask for; needs no vector to be read."""
    request, column = published.request, find_feature(output, settings.feature)
    run = _run_of(output.led_by(column.name))
    return (
        {key: request.source.get(key) for key in ("fingerprint", "manifest_sha256")} == run
        and request.settings == settings.identity()
        and request.target == settings.target
        and request.feature == describe(column)
    )

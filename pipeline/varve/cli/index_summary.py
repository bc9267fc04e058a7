"""The summary of a published index, as `varve index` and `varve demo` print it."""

from dataclasses import asdict
from typing import Any

from varve.indexing.recall import recall_table
from varve.indexing.record import IndexRecord
from varve.monitoring.progress_line import data_size


def index_summary(record: IndexRecord, address: str) -> str:
    """Return a few lines about an index: vectors, kind, setting, size, and its measured recall."""
    request = record.request
    metric = request.metric["name"]
    lines = {
        "feature": f"{request.feature['name']}: {request.num_vectors:,} vectors of {request.feature['width']:,} "
        f"dimensions, compared by {metric}",
        "index": f"{record.kind}, {record.bytes_per_vector:,.0f} bytes/vector",
    }
    if record.files:
        lines["files"] = f"{len(record.files):,}, {data_size(sum(file['bytes'] for file in record.files.values()))}"
    if record.setting:
        lines["search"] = ", ".join(f"{name}={value}" for name, value in record.setting.items())
    width = max(map(len, lines))
    listed = "".join(f"  {name:<{width}} {text}\n" for name, text in lines.items())
    table = recall_table(record.measurements) if record.measurements else ""
    return f"Published: {address}\n{listed}{table}"


def index_json(record: IndexRecord) -> dict[str, Any]:
    """The record without the list of files, which may be long."""
    content = asdict(record)
    return content | {"files": len(record.files)}

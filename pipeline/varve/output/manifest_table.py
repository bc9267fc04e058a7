"""The manifest of a run and an opened output as tables of a notebook.

Knows nothing of how tables are drawn. Invariant: values are read as they are, whoever wrote them; none is trusted.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from varve.encoder.feature_plan import Column
from varve.monitoring.progress_line import clock_time, data_size
from varve.pages.html_table import html_table

_PHASES = ("ray", "imports", "diff", "plan", "graph", "check", "publish")


def manifest_to_html(manifest: Mapping[str, Any]) -> str:
    """The most important values of a manifest, with its number of parts as `num_parts`, as one table."""
    return html_table(f"Run {manifest['path']}", ("", ""), list(_lines(manifest)))


def features_to_html(path: str, num_rows: int, features: Mapping[str, Column]) -> str:
    """The features of an output, as one table."""
    rows = [
        (name, column.form, f"{column.width:,}", column.dtype, column.pool, ", ".join(map(str, column.layers)))
        for name, column in features.items()
    ]
    header = ("feature", "form", "dimensions", "type", "pool", "layers")
    return html_table(f"{path}: {num_rows:,} rows", header, rows)


def _lines(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "rows", f"{manifest['num_rows']:,}"
    yield "failed", _failed(manifest)
    yield "tokens", f"{manifest['num_tokens']:,}; {manifest['num_truncated']:,} rows truncated"
    yield "output", f"{manifest['num_parts']:,} part(s), {data_size(manifest['file_bytes'])}"
    yield "model", str(_at(manifest["job"], "model", "name"))
    yield "features", ", ".join(map(str, _mapping(_at(manifest["job"], "features")))) or "–"  # noqa: RUF001 (a dash)
    yield from manifest["descriptions"].items()
    yield "time", clock_time(_sum(manifest["seconds"]))
    yield "bottleneck", str(manifest["stages"].get("bottleneck", "–"))  # noqa: RUF001 (a dash)
    passed = "passed" if manifest["canary"].get("passed") else "not passed"
    yield "canary", f"{manifest['canary'].get('rows')} rows compared, {passed}"
    yield "finished", manifest["finished_at"]
    yield "manifest", f"sha256:{manifest['sha256']}"


def _failed(manifest: Mapping[str, Any]) -> str:
    reasons = "; ".join(f"{reason}: {count:,}" for reason, count in manifest["error_reasons"].items())
    return f"{manifest['num_errors']:,}{f' ({reasons})' if reasons else ''}"


def _sum(seconds: Mapping[str, Any]) -> float:
    found = (seconds.get(name) for name in _PHASES)
    return sum(value for value in found if isinstance(value, int | float))


def _at(content: Any, *keys: str) -> Any:
    """The value at a path of keys; empty if there is none."""
    for key in keys:
        content = _mapping(content).get(key, "")
    return content


def _mapping(content: Any) -> Mapping[str, Any]:
    return content if isinstance(content, Mapping) else {}

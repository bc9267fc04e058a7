"""The summary of a finished run, as `varve embed` and `varve demo` print it."""

from collections.abc import Mapping
from typing import Any

from varve.monitoring.progress_line import clock_time, data_size
from varve.monitoring.row_errors import list_reasons
from varve.output.manifest import Manifest

_EVENTS = {
    "repeats": "repeated sequence(s) encoded once",
    "overflows": "float16 overflow(s) encoded again in bfloat16",
    "splits": "pack(s) split to fit memory",
    "killers": "row(s) that crashed their worker",
    "lost": "part(s) started again after their worker died",
}
_PHASES = ("ray", "imports", "diff", "plan", "graph", "check", "publish")


def summary(manifest: Manifest) -> str:
    """Return a few lines about a run: rows, tokens, output, time, encoder, canary, and how busy each stage was."""
    lines = {
        **_table(manifest.table),
        "rows": _rows(manifest),
        "tokens": f"{manifest.num_tokens:,}",
        "output": _output(manifest),
        "time": _time(manifest.seconds),
        "encoder": _encoder(manifest),
        **{f"{name}:": words for name, words in manifest.descriptions.items()},
        "canary": _canary(manifest.canary) if manifest.num_rows else "no row to compare",
        "manifest": f"sha256:{manifest.sha256}",
    }
    width = max(map(len, lines))
    listed = "".join(f"  {name:<{width}} {text}\n" for name, text in lines.items())
    return f"Complete: {manifest.table.get('address', manifest.path)}\n{listed}{_stages(manifest.stages)}"


def nothing_to_do(manifest: Manifest) -> str:
    """Return a line about a run that an earlier command has finished."""
    table = manifest.table
    if not table:
        return f"Nothing to do: {manifest.path} is complete since {manifest.finished_at}.\n"
    source = f"version {table['source_version']} of {table['source']}"
    return f"Nothing to do: {table['address']} has the features of {source} since {manifest.finished_at}.\n"


def _table(table: Mapping[str, Any]) -> dict[str, str]:
    """What the commit of a lake table did; nothing without one."""
    if not table:
        return {}
    counts = ", ".join(f"{count:,} {name}" for name, count in table["rows"].items())
    files = f"{table['files_added']:,} file(s) added, {table['files_replaced']:,} replaced"
    return {
        "version": f"{table['version']}: {files}",
        "source": f"{table['source']}, version {table['source_version']}: {counts}",
    }


def _rows(manifest: Manifest) -> str:
    numbers = {"null texts": manifest.num_null_texts, "failed": manifest.num_errors}
    numbers["truncated"] = manifest.num_truncated
    numbers |= {event: manifest.counts.get(name, 0) for name, event in _EVENTS.items()}
    details = ", ".join(f"{count:,} {what}" for what, count in numbers.items() if count)
    reasons = f"; failed: {list_reasons(manifest.error_reasons)}" if manifest.num_errors else ""
    return f"{manifest.num_rows:,}{f' ({details}{reasons})' if details else ''}"


def _output(manifest: Manifest) -> str:
    parts = [f"{len(manifest.parts):,} part(s)", data_size(manifest.file_bytes)]
    if manifest.storage["retries"]:
        parts.append(f"{manifest.storage['retries']:,} request(s) retried")
    if not manifest.storage["create_if_absent"]:
        parts.append("on a store without conditional writes")
    return ", ".join(parts)


def _time(seconds: Mapping[str, float]) -> str:
    total = clock_time(sum(seconds.get(name, 0.0) for name in _PHASES))
    if not seconds["first_block"]:
        return total
    first_s = seconds["ray"] + seconds["imports"] + seconds["plan"] + seconds["first_block"]
    return (
        f"{total} ({first_s:.0f} s until the first rows: Ray {seconds['ray']:.1f} s, imports "
        f"{seconds['imports']:.1f} s, plan {seconds['plan']:.1f} s, replica {seconds['first_replica']:.1f} s)"
    )


def _encoder(manifest: Manifest) -> str:
    encoder = manifest.encoder
    if encoder:
        return f"{encoder['device']}, {encoder['dtype']}, {encoder['layout']}"
    output = manifest.table.get("output")
    return f"none: the features are those of {output}" if output else "no row was missing"


def _canary(canary: Mapping[str, Any]) -> str:
    if not canary["rows"]:
        return "no row could be compared: nothing is proved"
    text = f"{canary['rows']} rows match plain transformers ({_worst(canary['features'])})"
    computed = canary.get("computed")  # absent in older manifests
    return f"{text}; Python functions match on single rows ({_worst(computed)})" if computed else text


def _worst(features: Mapping[str, Any]) -> str:
    largest = max((figures["relative"] for figures in features.values()), default=0.0)
    return f"largest relative difference {largest:.1e}"


def _stages(stages: Mapping[str, Any]) -> str:
    """Return how busy each stage was, as a table."""
    if not stages:
        return ""
    rows = "".join(
        f"    {name:<9} {stage['busy']:>5.0%} {stage['work_s']:>10,.1f} {stage['at_once']:>9}\n"
        for name, stage in stages.items()
        if name != "bottleneck"
    )
    return f"  stage        busy  seconds  parallel\n{rows}  bottleneck {stages['bottleneck']}\n"

"""The report of `varve plan` as text."""

from collections import Counter
from typing import Any

from varve.monitoring.progress_line import clock_time, data_size

_BAR_WIDTH = 40


def plan_report(report: dict[str, Any]) -> str:
    """Return the estimate of a job, as `varve plan --json` prints it, as lines for a terminal."""
    lines = _lines(report)
    width = max(10, *map(len, lines))
    text = "".join(f"  {name:<{width}} {value}\n" for name, value in lines.items())
    columns = "".join(f"    {name:<20} {data_size(size)}\n" for name, size in report["row_bytes"].items())
    return f"{text}  bytes per row:\n{columns}  tokens per row:\n{_histogram(report['length_histogram'])}"


def _lines(report: dict[str, Any]) -> dict[str, str]:
    encoder, prediction = report["encoder"], report["forecast"]
    rows = f"{report['num_rows']:,}" if report["rows_known"] else f"about {report['num_rows']:,} (from a sample)"
    lines = {
        **_table(report.get("table", {})),
        "shards": f"{report['num_shards']:,}",
        "rows": rows,
        "tokens": f"about {report['num_tokens']:,}, {report['tokens_per_row']:.0f} per row "
        f"({report['sampled_rows']:,} rows sampled)",
        "truncated": f"{report['share_truncated']:.1%} of rows; errors {report['share_errors']:.1%}",
        "layers": f"{report['layers_run']} of {report['num_layers']} run",
        **{f"{name}:": words for name, words in report["descriptions"].items()},
        "compute": f"{report['flops']:.2e} FLOPs",
        "cluster": _cluster(report["cluster"]),
        "workers": _workers(report["placement"]),
        "encoder": f"{report['tokens_per_s']:,.0f} tokens/s per replica, measured "
        f"({encoder['device']}, {encoder['dtype']}, {encoder['layout']})",
        "tokenizer": f"{report['tokenizer_tokens_per_s']:,.0f} tokens/s per core, measured; "
        f"{report['tokenizer_cores']:.2f} cores feed one replica",
    }
    if report["compute_s"] is not None:
        row_us = 1e6 * report["compute_s"] / max(1, report["num_rows"])
        lines["functions"] = f"{row_us:,.1f} µs per row on a core, {clock_time(report['compute_s'])} for all rows"
    lines |= {
        "time": f"about {clock_time(prediction['seconds'])}, of which {clock_time(prediction['start_s'])} to start and "
        "to check the output",
        "bottleneck": prediction["bottleneck"],
        "output": f"about {data_size(report['output_bytes'])} before compression",
        "parts": f"about {report['num_parts']:,}, of up to {report['rows_per_part']:,} rows",
    }
    if prediction["cost"] is not None:
        lines["cost"] = f"about {prediction['cost']:,.2f} at this price per hour"
    return lines


def _table(table: dict[str, Any]) -> dict[str, str]:
    if not table:
        return {}
    counts = ", ".join(f"{count:,} {name}" for name, count in table["rows"].items())
    return {"table": table["address"], "changes": f"{counts} rows"}


def _cluster(cluster: dict[str, Any]) -> str:
    nodes = cluster["nodes"]
    gpus: Counter[str] = Counter()
    for node in nodes:
        gpus[node["accelerator"] or "GPU"] += node["gpus"]
    parts = [f"{len(nodes)} node(s)", f"{sum(node['cpus'] for node in nodes):.0f} CPUs"]
    parts += [f"{count:g} × {kind}" for kind, count in gpus.items() if count]  # noqa: RUF001 (a multiplication sign)
    object_store_bytes = sum(node["object_store_bytes"] for node in nodes)
    return ", ".join(parts + ([f"object store {data_size(object_store_bytes)}"] if object_store_bytes else []))


def _workers(placement: dict[str, Any]) -> str:
    with_gpu = f"{placement['gpus']:g} GPU and {placement['cpus']:g} CPUs"
    each = with_gpu if placement["gpus"] else f"{placement['threads']} thread(s)"
    most = f" (up to {placement['most_replicas']})" if placement["most_replicas"] > placement["replicas"] else ""
    return f"{placement['replicas']} replica(s){most} with {each} each"


def _histogram(bins: list[list[int]]) -> str:
    most = max((rows for *_, rows in bins), default=1)
    bars = ((low, high, "█" * round(_BAR_WIDTH * rows / most), rows) for low, high, rows in bins)
    return "".join(f"    {low:>5}-{high:<5} {bar} {rows:,}\n" for low, high, bar, rows in bars)

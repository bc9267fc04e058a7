"""The report of an output as one HTML page that needs no network.

Knows nothing of storage and of how figures are computed. Invariants: texts, labels and names are escaped; sections
without figures are left out, with the reason where one is known.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import yaml

from varve.exploration import findings, run_figures, vector_figures
from varve.exploration.measures.content import Content
from varve.exploration.measures.text_statistics import RowText
from varve.exploration.measures.vector_statistics import VectorStatistics
from varve.exploration.report import Report
from varve.exploration.run_times import RunTimes, measure_run
from varve.monitoring.progress_line import clock_time, data_size
from varve.pages.figure import Figure
from varve.pages.page import render
from varve.pages.scatter_map import map_json

TITLE = "Report of an output of Varve"  # marks the page as one that may be written again
_NONE = "-"
_MAX_SETTLED_CHARACTERS = 20_000  # of the job and of what was settled for it


def render_report(report: Report) -> str:
    """The page."""
    run = measure_run(report.histories, report.manifest.stages)
    return render(
        "varve.exploration",
        "report.html.jinja",
        title=TITLE,
        report=report,
        headline=findings.headline(report, run),
        findings=findings.findings(report, run),
        cards=_cards(report, run),
        bottleneck=findings.find_bottleneck(report, run),
        run=_run_section(run),
        texts=_texts_section(report),
        vectors=_vectors_section(report),
        content=_content_section(report.content) if report.content else None,
        job=_job_section(report),
    )


def _cards(report: Report, run: RunTimes | None) -> list[tuple[str, str, str]]:
    """(name, value, remark) of the figures at the top."""
    manifest = report.manifest
    encoded = report.texts.num_encoded
    truncated = f"{manifest.num_truncated / encoded:.1%} of the texts" if encoded else ""
    cards = [
        ("Rows", f"{manifest.num_rows:,}", f"in {len(manifest.parts):,} parts, {data_size(manifest.file_bytes)}"),
        ("Tokens", f"{manifest.num_tokens:,}", f"{manifest.num_tokens / max(1, encoded):,.0f} per encoded row"),
        ("Failed rows", f"{manifest.num_errors:,}", f"{manifest.num_errors / max(1, manifest.num_rows):.1%}"),
        ("Cut texts", f"{manifest.num_truncated:,}", truncated),
        ("Repeats", f"{manifest.counts.get('repeats', 0):,}", "encoded once"),
    ]
    if run:
        attempts = f"{len(run.attempts)} attempt{'' if len(run.attempts) == 1 else 's'}"
        cards.append(("Time", clock_time(run.ends_s), attempts))
    if run and report.price_per_hour is not None:
        cards.append(("Cost", f"{findings.cost(report.price_per_hour, run):,.2f}", "without pauses"))
    return cards


def _run_section(run: RunTimes | None) -> dict[str, Any] | None:
    if run is None:
        return None
    attempts = [
        (
            str(each.number),
            datetime.fromtimestamp(each.started_at, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            clock_time(each.ends_s - each.begins_s),
            f"{each.outcome}: {each.reason}" if each.reason else each.outcome,
            f"{each.rows:,}",
            f"{each.tokens:,}",
            f"{each.errors:,}",
        )
        for each in run.attempts
    ]
    return {
        "speed": run_figures.speed_figure(run),
        "timeline": run_figures.timeline_figure(run) if run.replicas else None,
        "stages": run_figures.stages_figure(run) if run.stages else None,
        "lost": run_figures.lost_time_table(run),
        "attempts": attempts,
        "parts_left_out": run.parts_left_out,
    }


def _texts_section(report: Report) -> dict[str, Any]:
    texts = report.texts
    return {
        "lengths": vector_figures.length_figure(texts) if texts.num_encoded else None,
        "scripts": vector_figures.script_figure(texts) if texts.scripts else None,
        "repeats": [(f"{each.count:,}", each.text, f"{each.shard}, {each.row}") for each in texts.repeats],
        "errors": [
            (each.reason, f"{each.rows:,}", "; ".join(map(_row_and_text, each.examples))) for each in texts.errors
        ],
    }


def _row_and_text(row: RowText) -> str:
    place = f"shard {row.shard}, row {row.row}"
    return f"{place}: {row.text}" if row.text else place


def _vectors_section(report: Report) -> dict[str, Any]:
    measured = [each for each in report.vectors if each.num_vectors]
    figures: list[Figure] = []
    if measured:
        figures = [vector_figures.anisotropy_figure(measured), vector_figures.rank_figure(measured)]
        figures.append(vector_figures.spectrum_figure(measured))
    return {
        "table": [_vector_row(each) for each in report.vectors],
        "figures": figures,
        "norms": [vector_figures.norm_figure(each) for each in _last_of_families(measured)],
        "similarity": vector_figures.similarity_figure(report.similarity) if report.similarity else None,
    }


def _vector_row(vectors: VectorStatistics) -> tuple[str, ...]:
    canary = vectors.canary or {}
    relative, cosine = canary.get("relative"), canary.get("cosine")
    compared = f"{relative:.1e}" if isinstance(relative, float) else _NONE
    if isinstance(cosine, float):
        compared += f", cosine {cosine:.6f}"
    figures = (f"{vectors.mean_norm:.3f}", f"{vectors.effective_rank:.1f}", f"{vectors.anisotropy:.3f}")
    return (
        vectors.name,
        vectors.form,
        f"{vectors.width:,} {vectors.dtype}",
        *(figures if vectors.num_vectors else (_NONE,) * len(figures)),
        compared,
    )


def _last_of_families(vectors: Sequence[VectorStatistics]) -> list[VectorStatistics]:
    """One feature of each family: the highest layer."""
    return list({each.family: each for each in sorted(vectors, key=lambda each: each.layer or 0)}.values())


def _content_section(content: Content) -> dict[str, Any]:
    colors = {"classes": content.classes, "labels": content.labels}
    neighbours = [
        (_row_and_text(each.row), [(f"{cosine:.3f}", _row_and_text(row)) for row, cosine in each.nearest])
        for each in content.neighbours
    ]
    pairs = [(each.score, *map(_row_and_text, (each.one, each.other))) for each in content.near_duplicates]
    return {
        "map": map_json(content.layers, **colors, texts=content.texts, selected=content.feature),
        "neighbours": neighbours,
        "near_duplicates": [(f"{score:.4f}", one, other) for score, one, other in pairs],
    }


def _job_section(report: Report) -> dict[str, Any]:
    manifest = report.manifest
    encoder = {name: str(value) for name, value in manifest.encoder.items() if not isinstance(value, dict | list)}
    facts = {
        "Output": report.path,
        "Started": manifest.started_at,
        "Finished": manifest.finished_at,
        "Model": f"{manifest.job['model'].get('name')}, weights sha256 {manifest.resolved.get('weights_sha256')}",
        "Encoder": ", ".join(f"{name} {value}" for name, value in encoder.items()),
        "Versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "Fingerprint": manifest.fingerprint,
        "Manifest": f"sha256 {manifest.sha256}",
        "Events": ", ".join(f"{count:,} {name}" for name, count in manifest.counts.items() if count),
        "Sample": f"{report.num_sampled:,} rows, seed {report.seed}",
    }
    resolved = {name: value for name, value in manifest.resolved.items() if name != "schema"}
    return {
        "facts": [(name, value) for name, value in facts.items() if value],
        "settled": _as_yaml({"job": manifest.job, "settled": resolved}),
    }


def _as_yaml(content: dict[str, Any]) -> str:
    text = yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True)
    return text if len(text) <= _MAX_SETTLED_CHARACTERS else f"{text[:_MAX_SETTLED_CHARACTERS]}\n…"

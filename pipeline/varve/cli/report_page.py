"""Writes the page of a report, for the commands that do: `varve report` and `varve embed --report`."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from varve.process_state import silence_datasets, silence_transformers

if TYPE_CHECKING:
    from varve.exploration.report import Report

_PLOTTED = {"norm_edges", "norm_counts", "spectrum"}
_PAIR_FIGURES = ("feature", "threshold", "num_compared", "num_near_duplicates", "num_equal")


@dataclass(frozen=True, slots=True, eq=False)
class WrittenPage:
    """A page that was written: what it shows, its first sentences, and where it is."""

    report: "Report"
    headline: str
    address: str


def write_page(
    path: str,
    *,
    file: str | None = None,
    seed: int = 0,
    color: str | None = None,
    price_per_hour: float | None = None,
) -> WrittenPage:
    """Make the report of a finished output, and write its page.

    Args:
        path: of the output.
        file: of the page; None: report.html in the output.
        seed: of all samples.
        color: kept column whose values color the map.
        price_per_hour: of the run's machines.

    Raises:
        JobError: there is no such output or column, or the file holds something else.
        RunError: the output cannot be read or the page cannot be written.
    """
    from varve.exploration.findings import headline
    from varve.exploration.page import render_report
    from varve.exploration.report import make_report
    from varve.exploration.report_file import ReportFile
    from varve.exploration.run_times import measure_run

    silence_transformers()
    silence_datasets()
    place = ReportFile.choose(path, file)  # before the work
    report = make_report(path, seed=seed, color=color, price_per_hour=price_per_hour)
    place.write(render_report(report))
    run = measure_run(report.histories, report.manifest.stages)
    return WrittenPage(report, headline(report, run), place.address)


def summarize(written: WrittenPage) -> dict[str, Any]:
    """The figures of a report as JSON: without texts, histograms and positions."""
    report, texts = written.report, written.report.texts
    content, similarity = report.content, report.similarity
    return {
        "output": report.path,
        "report": written.address,
        "headline": written.headline,
        "seed": report.seed,
        "num_sampled": report.num_sampled,
        "num_rows": report.manifest.num_rows,
        "num_encoded": texts.num_encoded,
        "num_truncated": texts.num_truncated,
        "max_tokens": texts.max_tokens,
        "windows": None if texts.windows is None else asdict(texts.windows),
        "scripts": dict(texts.scripts),
        "errors": {group.reason: group.rows for group in texts.errors},
        "no_texts": texts.no_texts,
        "vectors": [
            {name: value for name, value in asdict(each).items() if name not in _PLOTTED} for each in report.vectors
        ],
        "similarity": None if similarity is None else {"names": similarity.names, "values": similarity.values.tolist()},
        "near_duplicates": None if content is None else {name: getattr(content, name) for name in _PAIR_FIGURES},
    }

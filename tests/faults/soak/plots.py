"""Plots of samples over time, as SVG files.

Knows nothing of how they were measured.
"""

from pathlib import Path

from tests.faults.soak.samples import Sample
from varve.pages.line_plot import Series, line_plot

_TITLES = {
    "memory_mb": ("Memory of the largest process", "MB"),
    "descriptors": ("Open file descriptors of the process with the most", "descriptors"),
    "threads": ("Threads of the process with the most", "threads"),
}


def write_plots(folder: Path, job: str, by_role: dict[str, list[Sample]]) -> None:
    """Write one plot per figure into a folder: `JOB-FIGURE.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure, (title, unit) in _TITLES.items():
        series = [
            Series(role, [one.time_s for one in samples], [getattr(one, figure) for one in samples])
            for role, samples in sorted(by_role.items())
        ]
        plot = line_plot(f"{title}: {job}", "time", unit, series, x_is_time=True)
        (folder / f"{job.replace(' ', '-')}-{figure.replace('_', '-')}.svg").write_text(plot.standalone())

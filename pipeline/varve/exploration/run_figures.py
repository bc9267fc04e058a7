"""The plots of a run: speed over time, parts of each replica, busy stages, lost time as a table.

Knows nothing of HTML. Invariant: each plot comes with a table of the same figures.
"""

import numpy as np

from varve.exploration.run_times import ReplicaParts, RunTimes
from varve.monitoring.progress_line import clock_time
from varve.pages.bar_plot import bar_plot
from varve.pages.figure import Figure
from varve.pages.line_plot import Series, Span, line_plot
from varve.pages.timeline import Bar, Lane, timeline

# A part that is encoded at less than this share of the usual speed is shown as slow.
_SLOW = 0.67
# (up to so many seconds, unit, its seconds)
_UNITS = ((300.0, "Seconds", 1.0), (10_800.0, "Minutes", 60.0), (float("inf"), "Hours", 3600.0))


def speed_figure(run: RunTimes) -> Figure:
    """Tokens per second over time, with the times in which nothing was encoded."""
    unit, unit_s = next((name, seconds) for most_s, name, seconds in _UNITS if run.ends_s <= most_s)
    middles_s = (run.edges_s[1:] + run.edges_s[:-1]) / 2
    series = Series("tokens/s", (middles_s / unit_s).tolist(), (run.tokens / np.diff(run.edges_s)).tolist())
    spans = [
        Span(each.begins_s / unit_s, each.ends_s / unit_s, each.kind) for each in run.lost if each.kind != "restart"
    ]
    return line_plot("Speed over time", f"{unit} of all attempts", "Tokens per second", [series], spans=spans)


def timeline_figure(run: RunTimes) -> Figure:
    """The parts of each replica, its start and restarts, and what a killed attempt lost."""
    usual = _usual_speed(run)
    lanes = [Lane(_lane_name(run, each), _bars(run, each, usual)) for each in run.replicas]
    return timeline("Parts of each replica", lanes, end_s=run.ends_s)


def _usual_speed(run: RunTimes) -> float:
    """Median tokens per second of the parts that ended."""
    speeds = [
        each.part.tokens / (each.ends_s - each.begins_s)
        for replica in run.replicas
        for each in replica.parts
        if each.part.ended_s is not None and each.ends_s > each.begins_s
    ]
    return float(np.median(speeds)) if speeds else 0.0


def _lane_name(run: RunTimes, replica: ReplicaParts) -> str:
    attempt = f"attempt {replica.attempt}, " if len(run.attempts) > 1 else ""
    return f"{attempt}replica {replica.number}"


def _bars(run: RunTimes, replica: ReplicaParts, usual: float) -> list[Bar]:
    bars = [
        Bar(each.begins_s, each.ends_s, "lost" if each.kind == "restart" else "start", each.text)
        for each in run.lost
        if each.attempt == replica.attempt and (each.kind == "start" or each.replica == replica.number)
    ]
    for each in replica.parts:
        part, seconds = each.part, each.ends_s - each.begins_s
        speed = part.tokens / seconds if seconds > 0 else usual
        kind = "lost" if part.ended_s is None else "slow" if speed < _SLOW * usual else "work"
        failed = f", {part.errors:,} rows failed" if part.errors else ""
        outcome = ", not ended" if part.ended_s is None else f", {speed:,.0f} tokens/s"
        rows = f"shard {part.shard}, rows {part.start:,} to {part.stop:,}"
        node = f" on {replica.node}" if replica.node else ""
        bars.append(Bar(each.begins_s, each.ends_s, kind, f"{rows}{node}: {seconds:.1f} s{outcome}{failed}"))
    return bars


def stages_figure(run: RunTimes) -> Figure:
    """How busy each stage was."""
    names = [f"{name} ({stage.at_once} parallel)" for name, stage in run.stages.items()]
    shares = [100 * stage.busy for stage in run.stages.values()]
    return bar_plot("How busy each stage was", "Percent of its time", names, shares, form="{:.0f} %")


def lost_time_table(run: RunTimes) -> list[tuple[str, ...]]:
    """(what, attempt, from, seconds, replica, details) of each lost time."""
    return [
        (
            each.kind,
            str(each.attempt),
            clock_time(each.begins_s),
            f"{each.seconds:,.1f}",
            "all" if each.replica is None else str(each.replica),
            each.text,
        )
        for each in run.lost
    ]

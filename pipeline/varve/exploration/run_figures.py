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
_SLOW = 0.5
_KINDS = {"start": "start", "restart": "restart", "stall": "stall", "end": "end"}


def speed_figure(run: RunTimes) -> Figure:
    """Tokens per second over time, with the times in which nothing was encoded."""
    middles_s = (run.edges_s[1:] + run.edges_s[:-1]) / 2
    speeds = run.tokens / np.diff(run.edges_s)
    series = Series("tokens/s", _minutes(middles_s), speeds.tolist())
    spans = [
        Span(each.begins_s / 60, each.ends_s / 60, _KINDS[each.kind]) for each in run.lost if each.kind != "restart"
    ]
    return line_plot("Speed over time", "Minutes of all attempts", "Tokens per second", [series], spans=spans)


def _minutes(times_s: np.ndarray) -> list[float]:
    return (times_s / 60).tolist()


def timeline_figure(run: RunTimes) -> Figure:
    """The parts of each replica, its start and restarts, and what a killed attempt lost."""
    usual = _usual_speed(run)
    lanes = [Lane(_lane_name(run, each), _bars(run, each, usual)) for each in run.replicas]
    spans = [Span(each.begins_s, each.ends_s, f"attempt {each.number}, {each.outcome}") for each in run.attempts]
    return timeline("Parts of each replica", lanes, end_s=run.ends_s, spans=spans if len(spans) > 1 else ())


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
    node = f" on {replica.node}" if replica.node else ""
    attempt = f"attempt {replica.attempt}, " if len(run.attempts) > 1 else ""
    return f"{attempt}replica {replica.number}{node}"


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
        bars.append(Bar(each.begins_s, each.ends_s, kind, f"{rows}: {seconds:.1f} s{outcome}{failed}"))
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
            _KINDS[each.kind],
            str(each.attempt),
            clock_time(each.begins_s),
            f"{each.seconds:,.1f}",
            "all" if each.replica is None else str(each.replica),
            each.text,
        )
        for each in run.lost
    ]

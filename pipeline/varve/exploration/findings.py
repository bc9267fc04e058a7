"""What a reader should know first, as sentences: how the run went, and what in its texts and vectors needs attention.

Knows nothing of pages. Invariant: each sentence follows from figures that the report shows, so it can be checked there.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from varve.exploration.measures.vector_statistics import VectorStatistics
from varve.exploration.report import Report
from varve.exploration.run_times import Attempt, RunTimes
from varve.exploration.speed_change import find_slow_replicas, find_speed_change
from varve.monitoring import bottleneck
from varve.monitoring.progress_line import clock_time

_HOUR_S = 3600.0
# From these shares on a figure needs attention.
_TRUNCATED, _REPEATED, _ANISOTROPIC = 0.1, 0.05, 0.5
_LOW_RANK = 0.1  # effective rank, as a share of the dimensions
_LEAST_RANK = 0.5
_PAUSE_S = 1.0


def headline(report: Report, run: RunTimes | None) -> str:
    """How the run went, in two to four sentences."""
    manifest = report.manifest
    good = manifest.num_rows - manifest.num_errors - manifest.num_null_texts
    text = f"{_count(manifest.num_rows, 'row')} and {_count(manifest.num_tokens, 'token')} are complete"
    text += f": {_count(good, 'row')} with features" if good != manifest.num_rows else ", all with features"
    if manifest.num_errors:
        text += f", {manifest.num_errors:,} failed"
    if manifest.num_null_texts:
        text += f", {manifest.num_null_texts:,} without text"
    return f"{text}. {_course(run)}{_cost(report, run)}{_canary(report)}"


def findings(report: Report, run: RunTimes | None) -> list[str]:
    """What needs attention, the course of the run first; empty if nothing does."""
    return [*(_of_run(run) if run else ()), *_of_errors(report), *_of_texts(report), *_of_vectors(report)]


def find_bottleneck(report: Report, run: RunTimes | None) -> str:
    """The stage that the others waited for; empty if it is not known."""
    if run and run.stages:
        return bottleneck.bottleneck(run.stages)
    return str(report.manifest.stages.get("bottleneck", ""))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _course(run: RunTimes | None) -> str:
    if run is None:
        return "Nothing is recorded about the course of the run. "
    tokens = sum(each.tokens for each in run.attempts)
    speed = tokens / run.encoding_s if run.encoding_s > 0 else 0.0
    attempts = f" in {len(run.attempts)} attempts" if len(run.attempts) > 1 else ""
    return f"The run took {clock_time(run.ends_s)}{attempts}, at {speed:,.0f} tokens/s without the start. "


def _cost(report: Report, run: RunTimes | None) -> str:
    if report.price_per_hour is None or run is None:
        return ""
    return f"At a price of {report.price_per_hour:,.2f} per hour it cost {cost(report.price_per_hour, run):,.2f}. "


def cost(price_per_hour: float, run: RunTimes) -> float:
    """The price of all attempts; pauses between them are free."""
    return price_per_hour * run.ends_s / _HOUR_S


def _canary(report: Report) -> str:
    canary = report.manifest.canary
    figures = [each["relative"] for each in canary.get("features", {}).values() if "relative" in each]
    if not canary.get("rows") or not figures:
        return "No row was compared with plain transformers."
    return (
        f"{canary['rows']} rows were encoded again by plain transformers and match: the largest relative difference is "
        f"{max(figures):.1e}."
    )


def _of_run(run: RunTimes) -> Iterator[str]:
    for attempt, following in zip(run.attempts, [*run.attempts[1:], None], strict=True):
        if attempt.outcome != "finished":
            yield _describe_end(attempt, following)
    restarts = [each for each in run.lost if each.kind == "restart"]
    if restarts:
        seconds = sum(each.seconds for each in restarts)
        yield f"Replicas died and were started again {_count(len(restarts), 'time')}, which cost {seconds:,.0f} s."
    stalls = [each for each in run.lost if each.kind == "stall"]
    if stalls:
        seconds = sum(each.seconds for each in stalls)
        yield f"No block was encoded for {seconds:,.0f} s in all, in {_count(len(stalls), 'period')}."
    if change := find_speed_change(run):
        ratio = max(change.before, change.after) / min(change.before, change.after)
        word = "slower" if change.after < change.before else "faster"
        yield (
            f"From {clock_time(change.at_s)} on the run was {ratio:.1f} times {word}: {change.after:,.0f} tokens/s, "
            f"before {change.before:,.0f}."
        )
    for slow in find_slow_replicas(run):
        yield (
            f"Replica {slow.number} of attempt {slow.attempt} ({slow.node}) encoded {slow.tokens_per_s:,.0f} tokens/s, "
            f"the others {slow.others:,.0f}."
        )


def _describe_end(attempt: Attempt, following: Attempt | None) -> str:
    began = datetime.fromtimestamp(attempt.started_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    lasted_s = attempt.ends_s - attempt.begins_s
    outcome = {"killed": "was killed", "stopped": "was stopped", "failed": "failed"}[attempt.outcome]
    text = (
        f"Attempt {attempt.number} of {began} {outcome} after {clock_time(lasted_s)} and {_count(attempt.rows, 'row')}"
    )
    if attempt.reason:
        text += f": {attempt.reason}"
    if following is None:
        return f"{text}. Later commands encoded nothing: they found all rows encoded, and published them."
    pause_s = following.started_at - attempt.started_at - lasted_s
    return f"{text}; the next attempt began {clock_time(pause_s)} later." if pause_s >= _PAUSE_S else f"{text}."


def _of_errors(report: Report) -> Iterator[str]:
    manifest = report.manifest
    if not manifest.num_errors:
        return
    share = manifest.num_errors / manifest.num_rows
    reason, rows = max(manifest.error_reasons.items(), key=lambda each: each[1], default=("", 0))
    of_them = "all" if rows == manifest.num_errors else f"{rows:,}"
    yield f"{_count(manifest.num_errors, 'row')} ({share:.1%}) failed, {of_them} of them with: {reason}"


def _of_texts(report: Report) -> Iterator[str]:
    texts = report.texts
    if texts.num_encoded and texts.num_truncated >= _TRUNCATED * texts.num_encoded:
        text = f"{texts.num_truncated / texts.num_encoded:.0%} of the texts were cut at {texts.max_tokens} tokens"
        if texts.windows:
            text += f", which leaves out {texts.windows.share_left_out:.0%} of the tokens of these texts"
        yield f"{text}. Windows or chunks would keep them."
    repeated = sum(each.count - 1 for each in texts.repeats)
    if texts.num_texts and repeated >= _REPEATED * texts.num_texts:
        yield f"At least {repeated / texts.num_texts:.0%} of the sampled texts repeat another one."


def _of_vectors(report: Report) -> Iterator[str]:
    measured = [each for each in report.vectors if each.num_vectors > 1]
    equal = [each for each in measured if _are_equal(each)]
    if equal:
        text = f"All sampled vectors are equal in: {', '.join(each.name for each in equal)}."
        first = " In layer 0 the first token has no context yet." if any(each.layer == 0 for each in equal) else ""
        yield text + first
    differing = [each for each in measured if not _are_equal(each)]
    alike = [each for each in differing if each.anisotropy > _ANISOTROPIC]
    if alike:
        listed = ", ".join(f"{each.name} {each.anisotropy:.2f}" for each in alike)
        yield (
            f"Vectors of random rows point in similar directions (mean cosine: {listed}). Subtract the mean vector "
            "before you compare cosines of these features."
        )
    flat = [each for each in differing if each.effective_rank < _LOW_RANK * min(each.width, each.num_vectors)]
    if flat:
        listed = ", ".join(f"{each.name} {each.effective_rank:.0f} of {each.width}" for each in flat)
        yield f"Few dimensions carry most of the variance (effective rank: {listed})."


def _are_equal(vectors: VectorStatistics) -> bool:
    """Whether the sampled vectors do not vary: the effective rank of one direction is 1."""
    return vectors.effective_rank < _LEAST_RANK

"""How busy each stage of a run was, and which stage the others waited for. Pure functions.

A stage's share is its seconds of work since the first replica was ready, divided by that time and by the workers that
the stage has: lanes of the replicas, one tokenizing thread per replica, one reader and one writer. Work
before the first replica was ready is excluded: it measures the start, not the throughput.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

STAGES = ("read", "compute", "tokenize", "encode", "write")
# If no stage has this share, no stage is the bottleneck: the time went into the start and the end.
_BUSY_SHARE = 0.6
# With less work than this, the start and the end dominate.
_MIN_WORK_S = 2.0
_ADVICE = {
    "read": "split the source into more shards, or move it closer to the cluster",
    "compute": "make the job's Python functions work on whole columns (pyarrow.compute, numpy) instead of single rows, "
    "or give the run more cores",
    "tokenize": "give each replica more cores, or let replicas share a GPU: compute.gpus 0.5",
    "encode": "this is the hardware's limit: use more cores, GPUs or replicas, or a smaller model",
    "write": "the store accepts parts no faster: write fewer features, or float16",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a run."""

    work_s: float  # summed over its workers
    at_once: int  # workers at the same time
    busy: float  # share of the time, 0 to 1


def measure(
    seconds: Mapping[str, float],
    ready_s: float,
    last_s: float,
    *,
    lanes: int,
    replicas: int,
    before_s: Mapping[str, float] | None = None,
) -> dict[str, Stage]:
    """Measure the stages of a run.

    Args:
        seconds: stage → seconds of work.
        ready_s: seconds from the start until the first replica was ready.
        last_s: seconds from the start until the last block was encoded.
        lanes: of all replicas.
        replicas: each has one thread that tokenizes.
        before_s: the part of `seconds` before the first replica was ready.
    """
    at_once = {"read": 1, "compute": replicas, "tokenize": replicas, "encode": lanes, "write": 1}
    since_s = {name: seconds.get(name, 0.0) - (before_s or {}).get(name, 0.0) for name in STAGES}
    return {
        name: Stage(
            work_s=round(seconds.get(name, 0.0), 3),
            at_once=at_once[name],
            busy=round(min(1.0, since_s[name] / max(last_s - ready_s, 1e-9) / at_once[name]), 3),
        )
        for name in STAGES
        if name != "compute" or name in seconds  # most jobs have no Python functions
    }


def bottleneck(stages: Mapping[str, Stage]) -> str:
    """Describe which stage the others waited for."""
    name = max(stages, key=lambda stage: stages[stage].busy)
    stage = stages[name]
    if stage.work_s < _MIN_WORK_S:
        return f"none: too little work to measure, {stage.work_s:.1f} s of {name}"
    if stage.busy < _BUSY_SHARE:
        return f"none: the busiest stage, {name}, worked {stage.busy:.0%} of the time; the rest was start and end"
    return f"{name}, {stage.busy:.0%} busy: {_ADVICE[name]}"


def to_json(stages: Mapping[str, Stage]) -> dict[str, Any]:
    """The entry of the manifest."""
    return {name: asdict(stage) for name, stage in stages.items()} | {"bottleneck": bottleneck(stages)}

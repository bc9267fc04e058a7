"""How busy each stage of a run was, and which one the others waited for. Pure.

A stage's share is the seconds it worked, over the seconds since the first replica was ready, times what can work at
once: the lanes of the replicas, those who tokenize (in seconds of CPU, where they have workers of their own), one
reader and one writer. What was read and tokenized before waited for the replica, and would reporter of its start.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

STAGES = ("read", "compute", "tokenize", "encode", "write")
# Below this share nothing held a run up but its own start and end.
_BUSY = 0.6
# Below this the start and the end of a run say more than its stages.
_LEAST_WORK_S = 2.0
_ADVICE = {
    "read": "the source can't be read faster by this reader: split it into more shards, or bring it nearer",
    "compute": "that is the job's Python functions: let them work on whole columns (pyarrow.compute, numpy), not row "
    "by row, or give the run more cores",
    "tokenize": "give the run more cores, or more compute.tokenizers",
    "encode": "that is the hardware's limit: more cores, GPUs or replicas shorten the run, as does a smaller model",
    "write": "the store takes parts no faster: write fewer features, or float16",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a run."""

    work_s: float  # summed over all that worked on it
    at_once: int  # what can work on it at the same time
    busy: float  # share of the time


def measure(
    seconds: Mapping[str, float],
    ready_s: float,
    last_s: float,
    *,
    lanes: int,
    tokenizers: int,
    before_s: Mapping[str, float] | None = None,
) -> dict[str, Stage]:
    """The stages of a run.

    Args:
        seconds: stage → seconds of work.
        ready_s: when the first replica was ready, after the first read began.
        last_s: when the last block was encoded, after the first read began.
        lanes: of all replicas.
        tokenizers: that work at once.
        before_s: of the seconds, those until the first replica was ready.
    """
    at_once = {"read": 1, "compute": tokenizers, "tokenize": tokenizers, "encode": lanes, "write": 1}
    since = {name: seconds.get(name, 0.0) - (before_s or {}).get(name, 0.0) for name in STAGES}
    return {
        name: Stage(
            work_s=round(seconds.get(name, 0.0), 3),
            at_once=at_once[name],
            busy=round(min(1.0, since[name] / max(last_s - ready_s, 1e-9) / at_once[name]), 3),
        )
        for name in STAGES
        if name != "compute" or name in seconds  # most jobs have nothing to compute
    }


def bottleneck(stages: Mapping[str, Stage]) -> str:
    """Which stage the others waited for, in words."""
    name = max(stages, key=lambda stage: stages[stage].busy)
    busy = stages[name].busy
    if stages[name].work_s < _LEAST_WORK_S:
        return f"none: there was too little work to reporter, {stages[name].work_s:.1f} s of {name}"
    if busy < _BUSY:
        return f"none: the busiest stage, {name}, worked {busy:.0%} of the time; the rest is the start and the end"
    return f"{name}, {busy:.0%} busy: {_ADVICE[name]}"


def to_json(stages: Mapping[str, Stage]) -> dict[str, Any]:
    """For the manifest."""
    return {name: asdict(stage) for name, stage in stages.items()} | {"bottleneck": bottleneck(stages)}

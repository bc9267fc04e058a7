"""Varve: every feature of a BERT-family encoder from one pass, each row exactly once.

job file ─ spec ─ plan
                    │ shards and the ranges still missing
                    ▼
source ──► tokenizer ──► encoder ──► sink ──► manifest

>>> from pipeline import Job, embed
>>> manifest = embed(Job.load("job.yaml"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.driver import embed
    from pipeline.encoder.encoder import Encoder
    from pipeline.errors import JobError, RunError, VarveError
    from pipeline.probe.saved import Probe
    from pipeline.run.program import features
    from pipeline.spec.feature import Computed, Feature
    from pipeline.spec.job import Job
    from pipeline.spec.model import Model

__all__ = [
    "Computed",
    "Encoder",
    "Feature",
    "Job",
    "JobError",
    "Model",
    "Probe",
    "RunError",
    "VarveError",
    "embed",
    "features",
]

# Looked up on first use: a command that only reads a manifest should not wait for torch and Ray.
_HOMES = {
    "Computed": "pipeline.spec.feature",
    "Encoder": "pipeline.encoder.encoder",
    "Feature": "pipeline.spec.feature",
    "Job": "pipeline.spec.job",
    "JobError": "pipeline.errors",
    "Model": "pipeline.spec.model",
    "Probe": "pipeline.probe.saved",
    "RunError": "pipeline.errors",
    "VarveError": "pipeline.errors",
    "embed": "pipeline.driver",
    "features": "pipeline.run.program",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_HOMES[name]), name)

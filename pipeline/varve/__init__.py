"""Varve: features of BERT-family encoders from one forward pass, with each row exactly once.

job file ─ config ─ planning
                       │ shards and missing ranges of rows
                       ▼
source ──► preprocessing ──► encoder ──► output

>>> from varve import Job, embed
>>> manifest = embed(Job.load("job.yaml"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varve.config.feature import Computed, Feature
    from varve.config.job import Job
    from varve.config.model import Model
    from varve.driver.embed import embed
    from varve.encoder.encoder import Encoder
    from varve.engine.dataset_features import features
    from varve.errors import JobError, RunError, VarveError
    from varve.exploration.opened_output import open  # noqa: A004 (public name)
    from varve.indexing.index import index
    from varve.probe.saved_probe import Probe
    from varve.retrieval.search import search

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
    "index",
    "open",
    "search",
]

# Imported on first use, so that commands which only read a manifest need not import torch and Ray.
_HOMES = {
    "Computed": "varve.config.feature",
    "Encoder": "varve.encoder.encoder",
    "Feature": "varve.config.feature",
    "Job": "varve.config.job",
    "JobError": "varve.errors",
    "Model": "varve.config.model",
    "Probe": "varve.probe.saved_probe",
    "RunError": "varve.errors",
    "VarveError": "varve.errors",
    "embed": "varve.driver.embed",
    "features": "varve.engine.dataset_features",
    "index": "varve.indexing.index",
    "open": "varve.exploration.opened_output",
    "search": "varve.retrieval.search",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    try:
        module = import_module(_HOMES[name])
    except AttributeError as e:  # Python would report "cannot import name", and hide the cause
        msg = f"varve.{name}: {e}. Does a file next to your program have the name of a module?"
        raise ImportError(msg) from e
    return getattr(module, name)

"""Recognizes a job that is written differently: a list of one file, a relative path, the value of an `auto`.

Knows nothing of outputs. Invariant: a value is replaced only by one with which the output's bytes are the same.
"""

from pathlib import Path

from varve.config.feature import MEAN_FEATURES
from varve.config.job import Job
from varve.config.model import Model, Windows
from varve.config.source import BUILDERS, Source
from varve.encoder.checkpoint.defaults import make_feature_plan, resolve_max_tokens
from varve.encoder.checkpoint.heads import default_features
from varve.encoder.checkpoint.local_folder import find_local_folder
from varve.encoder.feature_plan import FeaturePlan
from varve.planning.model_identity import inspect_model
from varve.planning.plan import Resolved


def respell(job: Job, earlier: Job, resolved: Resolved) -> Job:
    """The job with the earlier run's spelling of all values that mean the same.

    A resumed run uses it, so its fingerprint and its parts are those of the earlier run.

    Args:
        job: of this run.
        earlier: of the run that wrote the output.
        resolved: what its values resolved to.

    Raises:
        JobError: the model cannot be read, or a feature names a layer that it does not have.
    """
    output, compute = {}, {}
    if job.output.rows_per_part == resolved.rows_per_part:
        output["rows_per_part"] = earlier.output.rows_per_part
    if job.compute.tokens_per_pack == resolved.tokens_per_pack:
        compute["tokens_per_pack"] = earlier.compute.tokens_per_pack
    model = _respell_model(job.model, earlier.model, resolved)
    respelled = job.model_copy(
        update={
            "source": _respell_source(job.source, earlier.source, resolved),
            "model": model,
            "output": job.output.model_copy(update=output),
            "compute": job.compute.model_copy(update=compute),
        }
    )
    if (model.name, model.revision) != (earlier.model.name, earlier.model.revision):
        return respelled
    return _respell_by_model(respelled, earlier, resolved)


def _respell_source(source: Source, earlier: Source, resolved: Resolved) -> Source:
    update = {}
    if source.revision == resolved.source_commit:
        update["revision"] = earlier.revision
    reads_files = {source.dataset, earlier.dataset} <= BUILDERS  # otherwise data_files are relative to the dataset
    if resolved.source_commit is None and not reads_files and _same_path(source.dataset, earlier.dataset):
        update["dataset"] = earlier.dataset
    is_same = _same_path if reads_files else str.__eq__
    files, before = _listed(source.data_files), _listed(earlier.data_files)
    if len(files) == len(before) and all(map(is_same, files, before)):
        update["data_files"] = earlier.data_files
    return source.model_copy(update=update)


def _respell_model(model: Model, earlier: Model, resolved: Resolved) -> Model:
    update = {}
    if model.revision == resolved.model_commit:
        update["revision"] = earlier.revision
    if model.dtype == resolved.dtype:
        update["dtype"] = earlier.dtype
    # With windows, max_tokens is not used.
    if model.max_tokens == resolved.max_tokens or isinstance(model.long_text, Windows):
        update["max_tokens"] = earlier.max_tokens
    folder = find_local_folder(model.name)
    if resolved.model_commit is None and folder and folder == find_local_folder(earlier.name):
        update["name"] = earlier.name
    return model.model_copy(update=update)


def _respell_by_model(job: Job, earlier: Job, resolved: Resolved) -> Job:
    """Respell what means the same for this model: features with the same columns (layers 6 and -1), an `auto` now."""
    if job.features == earlier.features and job.model == earlier.model:
        return job.model_copy(update={"features": earlier.features})  # their order is that of the columns
    model = job.model
    checkpoint = inspect_model(model, resolved.model_commit)
    if job.features is None:  # in outputs of older versions, the default was the mean of the last layer
        by_default = earlier.features in (default_features(checkpoint), MEAN_FEATURES)
        job = job.with_features((earlier.features if by_default else None) or default_features(checkpoint))

    def columns(of: Job, name: str) -> FeaturePlan:
        return make_feature_plan(of.model, {name: of.pooled[name]}, checkpoint, of.output.dtype)

    shared = job.pooled.keys() & earlier.pooled.keys()
    same = {name: earlier.pooled[name] for name in shared if columns(earlier, name) == columns(job, name)}
    features = {name: same.get(name, feature) for name, feature in (job.features or {}).items()}
    feature_plan = make_feature_plan(model, job.pooled, checkpoint, job.output.dtype)
    if model.max_tokens == "auto" and resolve_max_tokens(model, checkpoint, feature_plan) == resolved.max_tokens:
        model = model.model_copy(update={"max_tokens": earlier.model.max_tokens})
    return job.model_copy(
        update={"model": model, "features": earlier.features if features == earlier.features else features}
    )


def _listed(files: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (files,) if isinstance(files, str) else files or ()


def _same_path(one: str, other: str) -> bool:
    """Whether two addresses are equal, or local paths (or globs) of the same place, seen from the current folder."""
    if one == other:
        return True
    is_local = not any(mark in address for mark in ("://", "::") for address in (one, other))
    return is_local and _absolute(one) == _absolute(other)


def _absolute(path: str) -> Path:
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError):  # a loop of symbolic links
        return Path(path).absolute()

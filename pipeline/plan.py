"""A job → everything that is settled before the first row is read.

Knows nothing of Ray. A plan pins what the job leaves open (commits, sizes, `auto`) and is written as `_varve/job.json`
before any part. A later run of the same job takes its plan from there, so it continues with the very same numbers; a
run of another job is refused with the fields that differ.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from pipeline import size
from pipeline.columns import ROW_COLUMNS, FeaturePlan
from pipeline.computed import ComputedColumn, find_computed
from pipeline.encoder.encoder import default_tokens_per_pack, resolve_dtype, resolve_max_tokens
from pipeline.encoder.encoder import make_plan as feature_plan
from pipeline.encoder.load import Checkpoint, load_tokenizer, look_at
from pipeline.errors import JobError
from pipeline.schema import output_schema
from pipeline.source.dataset import Dataset, Shards
from pipeline.source.opening import open_dataset
from pipeline.spec.job import Job
from pipeline.spec.model import Model, Windows
from pipeline.storage.objects import Storage
from pipeline.tokenizer import Tokenizer
from pipeline.trial import TRIAL_ROWS, try_functions

JOB_NAME = "_varve/job.json"

SAMPLE_ROWS = 512
# Changes that a refusal lists.
_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What the job left open, settled. All of it decides the bytes of the output."""

    source_commit: str | None
    source_identity: str
    num_shards: int
    schema: str  # of the columns read: Arrow IPC, base64
    model_commit: str | None
    weights_sha256: str
    tokenizer_sha256: str
    max_tokens: int
    dtype: str
    tokens_per_pack: int
    block_rows: int
    rows_per_part: int


@dataclass(frozen=True)
class Plan:
    """A job with all that it needs to run."""

    job: Job
    resolved: Resolved
    dataset: Dataset
    checkpoint: Checkpoint
    computed: tuple[ComputedColumn, ...]
    created_at: str

    @cached_property
    def features(self) -> FeaturePlan:
        """The layer plan."""
        return feature_plan(self.job.model, self.job.pooled, self.checkpoint, self.job.output.dtype)

    @property
    def pairs(self) -> bool:
        """Whether a row's text is a sentence pair."""
        return len(self.job.source.text_columns) > 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all that decides the bytes of the output."""
        settled = {"job": {**self.job.identity(), **_code_identity(self.computed)}, "resolved": asdict(self.resolved)}
        return hashlib.sha256(json.dumps(settled, sort_keys=True).encode()).hexdigest()

    @cached_property
    def schema(self) -> pa.Schema:
        """The output's Arrow schema, with its metadata."""
        kept = pa.schema([self.dataset.schema.field(name) for name in self.job.source.keep])
        return output_schema(self.features, kept, pairs=self.pairs, computed=self.computed, metadata=self._provenance())

    @property
    def pinned_model(self) -> Model:
        """The job's model with everything settled, for workers."""
        settled = {"name": self.checkpoint.folder, "revision": None, "dtype": self.resolved.dtype}
        if not isinstance(self.job.model.long_text, Windows):
            settled["max_tokens"] = self.resolved.max_tokens
        return self.job.model.model_copy(update=settled)

    def _provenance(self) -> dict[str, Any]:
        return {
            "version": version("varve"),
            "fingerprint": self.fingerprint,
            "model": self.job.model.name,
            "revision": self.resolved.model_commit,
            "weights_sha256": self.resolved.weights_sha256,
            "tokenizer_sha256": self.resolved.tokenizer_sha256,
            "max_tokens": self.resolved.max_tokens,
            "versions": versions(),
        }

    def to_json(self) -> dict[str, Any]:
        """The content of job.json."""
        return {
            "varve": version("varve"),
            "created_at": self.created_at,
            "fingerprint": self.fingerprint,
            "job": self.job.model_dump(mode="json"),
            "resolved": asdict(self.resolved),
            "source": {
                "files": self.dataset.names,
                "versions": self.dataset.versions,
                "shards": asdict(self.dataset.shards),
            },
            **({"code": self._code()} if self.computed else {}),
        }

    def _code(self) -> dict[str, Any]:
        """Where the functions were found, and what they were."""
        return {"folder": str(Path(self.job.folder).resolve()), "identity": _code_identity(self.computed)}


def local_device() -> str:
    """Where replicas run on this machine."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_plan(job: Job, *, device: str) -> Plan:
    """Settle a job: pin its source and model, resolve every `auto`.

    Args:
        job: the job.
        device: "cuda" or "cpu", which decides `auto` dtypes and packs.

    Raises:
        JobError: something that the job names is not there or does not fit.
    """
    checkpoint = look_at(job.model.name, job.model.revision, trust_remote_code=job.model.trust_remote_code)
    features = feature_plan(job.model, job.pooled, checkpoint, job.output.dtype)
    computed = find_computed(job.computed, job.folder)
    max_tokens = resolve_max_tokens(job.model, checkpoint)
    _check_tokens(job, checkpoint, max_tokens)
    dataset = open_dataset(job.source)
    _check_names(job, features)
    computed_bytes = try_functions(computed, _sample(dataset, TRIAL_ROWS), job.source.text_columns)
    packs, rows = job.compute.tokens_per_pack, job.output.rows_per_part
    if rows == "auto":
        tokenizer = Tokenizer(load_tokenizer(checkpoint), max_tokens)
        sample, whole_rows = _sample(dataset, SAMPLE_ROWS), sum(dataset.shard_rows or ())
        text = job.source.text_columns[0]
        rows = size.rows_per_part(sample, text, tokenizer, features, computed_bytes, whole_rows)
    resolved = Resolved(
        source_commit=dataset.commit,
        source_identity=dataset.identity,
        num_shards=dataset.num_shards,
        schema=base64.b64encode(dataset.schema.serialize().to_pybytes()).decode(),
        model_commit=checkpoint.commit,
        weights_sha256=checkpoint.weights_sha256,
        tokenizer_sha256=checkpoint.tokenizer_sha256,
        max_tokens=max_tokens,
        dtype=resolve_dtype(job.model.dtype, device),
        tokens_per_pack=default_tokens_per_pack(device) if packs == "auto" else packs,
        block_rows=min(size.BLOCK_ROWS, rows),
        rows_per_part=rows,
    )
    return Plan(job, resolved, dataset, checkpoint, computed, datetime.now(UTC).isoformat(timespec="seconds"))


def recall_plan(job: Job, stored: Mapping[str, Any], where: str) -> Plan:
    """The plan of an earlier run, checked against the job of this one.

    Args:
        job: this run's.
        stored: the content of job.json.
        where: the output's address, for messages.

    Raises:
        JobError: the job, its functions' code, the model's weights or the source's files have changed.
    """
    earlier = Job.parse(stored["job"], where=f"{where}/{JOB_NAME}")
    computed = find_computed(job.computed, job.folder)
    _refuse_changes(
        _changes(
            {**earlier.identity(), **stored.get("code", {}).get("identity", {})},
            {**job.identity(), **_code_identity(computed)},
        ),
        where,
    )
    resolved = Resolved(**stored["resolved"])
    checkpoint = look_at(job.model.name, resolved.model_commit, trust_remote_code=job.model.trust_remote_code)
    found = stored["source"]
    shards = {key: value and tuple(value) for key, value in found["shards"].items()}
    dataset = open_dataset(job.source, resolved.source_commit, Shards(**shards))
    _refuse_files(found["files"], found["versions"], dataset, where)
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(resolved.schema)))
    now = {
        "the model's weights": checkpoint.weights_sha256,
        "the tokenizer": checkpoint.tokenizer_sha256,
    }
    then = {
        "the model's weights": resolved.weights_sha256,
        "the tokenizer": resolved.tokenizer_sha256,
    }
    _refuse_changes([what for what in now if now[what] != then[what]], where)
    return Plan(job, resolved, replace(dataset, schema=schema), checkpoint, computed, stored["created_at"])


def _refuse_files(names: Sequence[str], versions: Sequence[str] | None, dataset: Dataset, where: str) -> None:
    """Refuse a source whose files are others than those that the job was planned for, and name them."""
    then = dict(zip(names, versions or names, strict=True))
    now = dict(zip(dataset.names, dataset.versions or names, strict=False))
    changes = _changes(then, now)
    more = [f"and {len(changes) - _SHOWN} more files"] if len(changes) > _SHOWN else []
    _refuse_changes([f"source file {change}" for change in changes[:_SHOWN]] + more, where)


def read_job(storage: Storage) -> dict[str, Any] | None:
    """The job.json of an output; None if there is none.

    Raises:
        JobError: it is not Varve's.
    """
    content = storage.read(JOB_NAME)
    if content is None:
        return None
    try:
        stored = json.loads(content)
        Resolved(**stored["resolved"])
        Shards(**stored["source"]["shards"])
    except (ValueError, KeyError, TypeError) as e:
        msg = f"{storage.uri}/{JOB_NAME} can't be read as a job of this version of Varve: {type(e).__name__} {e}"
        raise JobError(msg) from e
    return stored


def prepare(job: Job, *, device: str) -> Plan:
    """The plan of a job: recalled from its output where an earlier run has left one, else made anew."""
    storage = Storage(job.output.path)
    stored = read_job(storage)
    return make_plan(job, device=device) if stored is None else recall_plan(job, stored, storage.uri)


def record(plan: Plan, storage: Storage) -> None:
    """Write job.json before anything else; whoever was first decides.

    Raises:
        JobError: another job has written there.
    """
    if storage.create(JOB_NAME, json.dumps(plan.to_json(), indent=1).encode()):
        return
    stored = read_job(storage) or {}
    if stored.get("fingerprint") != plan.fingerprint:
        recall_plan(plan.job, stored, storage.uri)
        msg = f"{storage.uri}: another run settled this job differently a moment ago. Run the same command again"
        raise JobError(msg)


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {name: version(name) for name in ("torch", "transformers", "tokenizers", "datasets", "ray", "pyarrow")}


def _code_identity(computed: Sequence[ComputedColumn]) -> dict[str, str]:
    """What decides the values of computed columns beside the job: {"features.overlap.code": SHA-256, ...}."""
    return {f"features.{column.name}.code": column.code.sha256 for column in computed}


def _sample(dataset: Dataset, rows: int) -> pa.Table:
    """The first rows of the source."""
    return next(iter(dataset.read(0)), dataset.schema.empty_table()).slice(0, rows)


def _check_names(job: Job, features: FeaturePlan) -> None:
    """Computed columns must not share a name with what the encoder brings, kept ones with anything that is written."""
    written = {*features.names(pairs=True), *ROW_COLUMNS}
    for name in job.computed:
        if name in written:
            msg = f"features: two output columns would be called {name}: rename the feature"
            raise JobError(msg)
    written |= set(job.computed)
    for name in job.source.keep:
        if name in written:
            msg = f"source.keep: column {name!r} has the name of an output column. Rename the feature or the column"
            raise JobError(msg)


def _check_tokens(job: Job, checkpoint: Checkpoint, max_tokens: int) -> None:
    """A window must hold at least one token of each text beside the special tokens, and more than it overlaps."""
    raw = load_tokenizer(checkpoint).backend_tokenizer
    pairs = len(job.source.text_columns) > 1
    special = raw.num_special_tokens_to_add(pairs)
    least = special + len(job.source.text_columns)
    stride = job.model.long_text.stride if isinstance(job.model.long_text, Windows) else 0
    if max_tokens < least + stride:
        msg = f"model.max_tokens: {max_tokens} leaves no room for text: {special} special tokens are among them"
        raise JobError(msg)


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    fields = [key for key in (*then, *(key for key in now if key not in then)) if then.get(key) != now.get(key)]
    return [f"{key}: {_shown(then, key)} → {_shown(now, key)}" for key in fields]


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "absent"


def _refuse_changes(changes: list[str], where: str) -> None:
    if changes:
        listed = "".join(f"\n  {change}" for change in changes)
        msg = (
            f"output.path: {where} belongs to another job. Changed:{listed}\nUse another output.path, or restore these"
        )
        raise JobError(msg)

"""A job → everything that is settled before the first row is read.

Knows nothing of Ray or the output. A plan pins what the job leaves open: commits, sizes, `auto`.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from varve.config.job import Job
from varve.config.model import Model, Windows
from varve.encoder.checkpoint.defaults import (
    default_block_rows,
    default_tokens_per_pack,
    make_feature_plan,
    make_tokenizer,
    resolve_dtype,
    resolve_max_tokens,
)
from varve.encoder.checkpoint.inspection import Checkpoint, inspect_checkpoint, load_tokenizer
from varve.encoder.checkpoint.sentence_transformers import differences
from varve.encoder.feature_plan import ROW_COLUMNS, FeaturePlan
from varve.errors import JobError
from varve.output.schema import output_schema
from varve.planning import part_sizing
from varve.planning.udf_dry_run import DRY_RUN_ROWS, dry_run_functions
from varve.preprocessing.computed_columns import ComputedColumn, find_computed
from varve.source.dataset import Dataset
from varve.source.open_dataset import open_dataset
from varve.source.sampling import rows_with_text
from varve.workers.worker_spec import Files, WorkerSpec

SAMPLE_ROWS = 512


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
    config_sha256: str | None = None  # of the model; None in outputs that are older than this key


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
        return make_feature_plan(self.job.model, self.job.pooled, self.checkpoint, self.job.output.dtype)

    @property
    def pairs(self) -> bool:
        """Whether a row's text is a sentence pair."""
        return len(self.job.source.text_columns) > 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all that decides the bytes of the output."""
        resolved = asdict(self.resolved)
        if resolved["config_sha256"] is None:
            del resolved["config_sha256"]
        settled = {"job": {**self.job.identity(), **code_identity(self.computed)}, "resolved": resolved}
        return hashlib.sha256(json.dumps(settled, sort_keys=True).encode()).hexdigest()

    @cached_property
    def schema(self) -> pa.Schema:
        """The output's Arrow schema, with its metadata."""
        kept = pa.schema([self.dataset.schema.field(name) for name in self.job.source.keep])
        return output_schema(self.features, kept, pairs=self.pairs, computed=self.computed, metadata=self._provenance())

    @property
    def notes(self) -> list[str]:
        """What a user should know before the run."""
        cut = None if isinstance(self.job.model.long_text, Windows) else self.resolved.max_tokens
        found = differences(self.checkpoint.folder, self.features, cut)
        return [f"sentence-transformers would use {self.job.model.name} otherwise: {'; '.join(found)}"] if found else []

    @property
    def pinned_model(self) -> Model:
        """The job's model with everything settled, for workers."""
        settled = {"name": self.checkpoint.folder, "revision": None, "dtype": self.resolved.dtype}
        if not isinstance(self.job.model.long_text, Windows):
            settled["max_tokens"] = self.resolved.max_tokens
        return self.job.model.model_copy(update=settled)

    def worker_spec(self, device: str, threads: int, files: Files | None = None) -> WorkerSpec:
        """What each worker needs of this plan.

        Args:
            device: "cpu" or "cuda", where the replicas run.
            threads: of each replica.
            files: of the checkpoint, where nodes may not have its folder.
        """
        return WorkerSpec(
            model=self.pinned_model,
            checkpoint=self.checkpoint,
            features=self.job.pooled,
            output_dtype=self.job.output.dtype,
            text_columns=self.job.source.text_columns,
            computed=self.computed,
            schema=self.schema,
            tokens_per_pack=self.resolved.tokens_per_pack,
            block_rows=self.resolved.block_rows,
            device=device,
            threads=threads,
            compiled=self.job.compute.compile,
            max_errors=self.job.output.max_errors,
            files=files,
        )

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
        return {"folder": str(Path(self.job.folder).resolve()), "identity": code_identity(self.computed)}


def make_plan(job: Job, *, device: str) -> Plan:
    """Settle a job: pin its source and model, resolve every `auto`.

    Args:
        job: the job.
        device: "cuda" or "cpu", which decides `auto` dtypes and packs.

    Raises:
        JobError: something that the job names is not there or does not fit.
    """
    checkpoint = inspect_checkpoint(job.model.name, job.model.revision, trust_remote_code=job.model.trust_remote_code)
    features = make_feature_plan(job.model, job.pooled, checkpoint, job.output.dtype)
    computed = find_computed(job.computed, job.folder)
    max_tokens = resolve_max_tokens(job.model, checkpoint)
    _check_tokens(job, checkpoint, max_tokens)
    dataset = open_dataset(job.source)
    _check_names(job, features)
    sample = rows_with_text(dataset, job.source.text_columns, SAMPLE_ROWS)
    computed_bytes = dry_run_functions(computed, sample.slice(0, DRY_RUN_ROWS), job.source.text_columns)
    pack_tokens, block_rows, part_rows = _sizes(job, dataset, sample, checkpoint, features, computed_bytes, device)
    resolved = Resolved(
        source_commit=dataset.commit,
        source_identity=dataset.identity,
        num_shards=dataset.num_shards,
        schema=base64.b64encode(dataset.schema.serialize().to_pybytes()).decode(),
        model_commit=checkpoint.commit,
        weights_sha256=checkpoint.weights_sha256,
        tokenizer_sha256=checkpoint.tokenizer_sha256,
        config_sha256=checkpoint.config_sha256,
        max_tokens=max_tokens,
        dtype=resolve_dtype(job.model.dtype, device),
        tokens_per_pack=pack_tokens,
        block_rows=block_rows,
        rows_per_part=part_rows,
    )
    return Plan(job, resolved, dataset, checkpoint, computed, datetime.now(UTC).isoformat(timespec="seconds"))


def _sizes(
    job: Job,
    dataset: Dataset,
    sample: pa.Table,
    checkpoint: Checkpoint,
    features: FeaturePlan,
    computed_bytes: Mapping[str, float],
    device: str,
) -> tuple[int, int, int]:
    """Tokens of a pack, rows of a block and rows of a part, which the first rows with a text decide."""
    pack_tokens, part_rows = job.compute.tokens_per_pack, job.output.rows_per_part
    tokens = part_sizing.tokens_per_row(
        sample, job.source.text_columns, make_tokenizer(job.model, checkpoint, features)
    )
    if pack_tokens == "auto":
        pack_tokens = default_tokens_per_pack(device, checkpoint)
    block_rows = default_block_rows(device, checkpoint, pack_tokens, tokens)
    if part_rows == "auto":
        whole_rows = sum(dataset.shard_rows or ())
        part_rows = part_sizing.rows_per_part(sample, tokens, features, computed_bytes, whole_rows, block_rows)
    return pack_tokens, min(block_rows, part_rows), part_rows


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {name: version(name) for name in ("torch", "transformers", "tokenizers", "datasets", "ray", "pyarrow")}


def code_identity(computed: Sequence[ComputedColumn]) -> dict[str, str]:
    """What decides the values of computed columns beside the job: {"features.overlap.code": SHA-256, ...}."""
    return {f"features.{column.name}.code": column.code.sha256 for column in computed}


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

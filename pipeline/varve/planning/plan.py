"""The plan of a job: the job and the values that it leaves open, such as commits, sizes and `auto` (see `resolve.py`).

Knows nothing of Ray or of existing outputs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from varve.config.job import Job
from varve.config.model import Model, Windows
from varve.encoder.checkpoint.checkpoint import Checkpoint
from varve.encoder.checkpoint.declaration import TextRules
from varve.encoder.checkpoint.defaults import make_feature_plan
from varve.encoder.checkpoint.heads import text_rules
from varve.encoder.checkpoint.pretrained_tokenizer import load_tokenizer
from varve.encoder.feature_plan import FeaturePlan
from varve.output.schema import output_schema
from varve.output.vocabulary import VOCABULARY_KEY, encode_vocabulary, hash_vocabulary, list_tokens
from varve.pages.html_table import html_table
from varve.planning.declared_note import declared_note, prompt_note
from varve.preprocessing.computed_columns import ComputedColumn
from varve.source.dataset import Dataset
from varve.workers.worker_spec import CheckpointFiles, WorkerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The values that the job left open. All of them affect the bytes of the output."""

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
    config_sha256: str | None = None  # of the model; None in older outputs
    heads_sha256: dict[str, str] | None = None  # file → SHA-256, of the heads and the declaration; None: not used


@dataclass(frozen=True)
class Plan:
    """A job with everything that it needs to run."""

    job: Job
    resolved: Resolved
    dataset: Dataset
    checkpoint: Checkpoint
    computed: tuple[ComputedColumn, ...]
    created_at: str

    def _repr_html_(self) -> str:
        rows = [
            ("source", self.job.source.dataset or self.job.source.table),
            ("rows", "not known before they are read" if self.total_rows is None else f"{self.total_rows:,}"),
            ("shards", f"{self.resolved.num_shards:,}"),
            ("rows per part", f"{self.resolved.rows_per_part:,}"),
            ("model", self.job.model.name),
            ("max_tokens", self.resolved.max_tokens),
            ("features", ", ".join(column.name for column in self.feature_plan.columns)),
            *self.descriptions.items(),
            ("fingerprint", self.fingerprint),
        ]
        return html_table("Plan", ("", ""), rows)

    @cached_property
    def feature_plan(self) -> FeaturePlan:
        """The feature columns, and the layers that they need."""
        return make_feature_plan(self.job.model, self.job.pooled, self.checkpoint, self.job.output.dtype)

    @cached_property
    def text_rules(self) -> TextRules:
        """How texts become tokens."""
        return text_rules(self.job.model, self.feature_plan, self.checkpoint)

    @property
    def descriptions(self) -> dict[str, str]:
        """Feature → a description of what its head computes; features without a head are absent."""
        declaration = self.checkpoint.declaration
        return {
            name: replace(declaration, head=head).describe(self.resolved.max_tokens, self.text_rules.prompt)
            if declaration and self.job.pooled[name].pool == "declared"
            else " → ".join(head.words)
            for name, head in self.feature_plan.heads.items()
        }

    @property
    def pairs(self) -> bool:
        """Whether a row's text is a sentence pair."""
        return len(self.job.source.text_columns) > 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that affects the bytes of the output."""
        return make_fingerprint(self.job, code_identity(self.computed), self.resolved)

    @cached_property
    def schema(self) -> pa.Schema:
        """The output's Arrow schema, with its metadata."""
        kept = pa.schema([self.dataset.schema.field(name) for name in self.job.source.kept])
        metadata = self._provenance()
        return output_schema(self.feature_plan, kept, pairs=self.pairs, computed=self.computed, metadata=metadata)

    @cached_property
    def vocabulary(self) -> bytes | None:
        """The content of the output's vocabulary; None without sparse columns."""
        sizes = [column.width for column in self.feature_plan.columns if column.form == "sparse"]
        if not sizes:
            return None
        return encode_vocabulary(list_tokens(load_tokenizer(self.checkpoint).get_vocab(), max(sizes)))

    @property
    def total_rows(self) -> int | None:
        """Rows of the source; None if they are not known before they are read."""
        return None if self.dataset.shard_rows is None else sum(self.dataset.shard_rows)

    @property
    def notes(self) -> list[str]:
        """Remarks for the user: on the source, and on the vector that the checkpoint declares."""
        max_tokens = None if isinstance(self.job.model.long_text, Windows) else self.resolved.max_tokens
        model = (self.job.model, self.feature_plan, self.checkpoint)
        found = (declared_note(*model, max_tokens), prompt_note(*model))
        return [*self.dataset.notes, *filter(None, found)]

    @property
    def pinned_model(self) -> Model:
        """The job's model section with all values resolved, for workers."""
        values = {"name": self.checkpoint.root, "revision": None, "dtype": self.resolved.dtype}
        if not isinstance(self.job.model.long_text, Windows):
            values["max_tokens"] = self.resolved.max_tokens
        return self.job.model.model_copy(update=values)

    def worker_spec(self, device: str, threads: int, files: CheckpointFiles | None = None) -> WorkerSpec:
        """The part of this plan that workers need.

        Args:
            device: of the replicas, "cpu" or "cuda".
            threads: of each replica.
            files: the checkpoint's files, for nodes without its folder.
        """
        return WorkerSpec(
            model=self.pinned_model,
            checkpoint=self.checkpoint,
            features=self.job.pooled,
            text_columns=self.job.source.text_columns,
            computed=self.computed,
            schema=self.schema,
            tokens_per_pack=self.resolved.tokens_per_pack,
            block_rows=self.resolved.block_rows,
            device=device,
            threads=threads,
            compiled=self.job.compute.compile,
            fast_tokenizer=self.job.compute.fast_tokenizer,
            output=self.job.output,
            total_rows=self.total_rows,
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
            **self._head_provenance(),
            **({VOCABULARY_KEY: hash_vocabulary(self.vocabulary)} if self.vocabulary else {}),
        }

    def _head_provenance(self) -> dict[str, Any]:
        """What readers need to know of features with heads and of prompts; nothing without them."""
        if not (self.descriptions or self.text_rules.prompt or self.job.model.role != "none"):
            return {}
        declaration = self.checkpoint.declaration
        return {
            "descriptions": self.descriptions,
            "role": self.job.model.role,
            "prompt": self.text_rules.prompt,
            "similarity": declaration.similarity if declaration else None,
            "heads_sha256": self.resolved.heads_sha256,
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
        """The folder and the identity of the functions' code."""
        return {"folder": str(Path(self.job.folder).resolve()), "identity": code_identity(self.computed)}


def make_fingerprint(job: Job, code: Mapping[str, str], resolved: Resolved) -> str:
    """SHA-256 of a job, the hashes of its code (see `code_identity`) and its resolved values."""
    values = asdict(resolved)
    for name in ("config_sha256", "heads_sha256"):  # older outputs lack them
        if values[name] is None:
            del values[name]
    content = {"job": {**job.identity(), **code}, "resolved": values}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of the libraries that compute the output."""
    return {name: version(name) for name in ("torch", "transformers", "tokenizers", "datasets", "ray", "pyarrow")}


def code_identity(computed: Sequence[ComputedColumn]) -> dict[str, str]:
    """Hashes of the functions' code, compared like fields of the job: {"features.NAME.code": SHA-256}."""
    return {f"features.{column.name}.code": column.code.sha256 for column in computed}

"""Encodes queries with the checkpoint of a finished run, as the checkpoint declares for queries.

What sentence-transformers' `encode_query` does: the role query where the checkpoint declares one (a prompt, a route of
its Router, the markers and the expansion of ColBERT), else the plain model. Invariants: the weights are those of the
run, compared by SHA-256; pooling, layer and normalization are those of the column; a query is one float32 vector,
whatever the column's dtype is and however the run cut its texts. For a binary column, a query of floats is compared
with vectors of -1 and +1, which ranks better than its signs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from varve.config.feature import Feature
from varve.config.job import Job
from varve.config.model import Model
from varve.encoder.checkpoint.checkpoint import Checkpoint
from varve.encoder.checkpoint.declaration import Declaration
from varve.encoder.checkpoint.declared_vectors import read_declared_vectors
from varve.encoder.checkpoint.defaults import make_feature_plan
from varve.encoder.checkpoint.heads import uses_declaration
from varve.encoder.feature_plan import Column
from varve.encoder.ragged import Ragged
from varve.errors import JobError
from varve.indexing.rows import SparseVectors, Vectors, concatenate
from varve.output.manifest import MANIFEST_NAME
from varve.output.run_output import Output
from varve.planning.model_identity import hash_heads, inspect_model

_TEXTS_AT_ONCE = 1024
_DENSE_FORMS = ("vector", "windows", "chunks")
_FORMS = (*_DENSE_FORMS, "sparse", "late", "clusters")


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """What the user decides about the encoding of queries.

    Attributes:
        prompt: text before each query, in place of the declared one; None: the declared one.
        model: where the run's checkpoint is now; None: where the run found it.
        trust_remote_code: Python code of the checkpoint may run.
    """

    prompt: str | None = None
    model: str | None = None
    trust_remote_code: bool = False


def encode_queries(
    output: Output,
    column: Column,
    texts: Sequence[str],
    options: QueryOptions = QueryOptions(),
) -> Vectors:
    """Encode queries for one feature.

    Args:
        output: the finished run.
        column: definition of the feature.
        texts: Q queries.
        options: of the user.

    Returns:
        (Q, width) float32, sparse vectors, or Q lists of (tokens, width) float32.

    Raises:
        JobError: the feature has no queries, or the checkpoint is not that of the run.
        RunError: a query does not fit into memory, or its vector is not finite.
    """
    return QueryEncoder.open(output, [column], options).encode(texts)[column.name]


@dataclass(frozen=True)
class QueryEncoder:
    """The model of a run, for queries.

    Attributes:
        columns: features for which it encodes.
        model: settings for queries.
        checkpoint: inspected for the role of queries.
        features: the definitions of the columns.
        remark: what the user may want to change; None: nothing.
    """

    columns: tuple[Column, ...]
    model: Model
    checkpoint: Checkpoint
    features: Mapping[str, Feature]
    remark: str | None

    @classmethod
    def open(cls, output: Output, columns: Sequence[Column], options: QueryOptions) -> "QueryEncoder":
        """Find how queries of a run are encoded; loads no weights.

        Raises:
            JobError: a feature has no queries, or the checkpoint is not that of the run.
        """
        _check_columns(output, columns)
        job = Job.reopen(output.manifest.job, where=f"{output.storage.uri}/{MANIFEST_NAME}")
        job = job.model_copy(update={"model": _pinned(output, job.model, options)})
        checkpoint = inspect_model(job.model, job.model.revision)
        _check_identity(output, job, checkpoint)
        features = {name: job.pooled[name] for name in dict.fromkeys(_feature_of(job, each) for each in columns)}
        rules = _QueryRules.of(output, job, checkpoint, columns, options)
        features = {name: each.model_copy(update={"token_pooling": None}) for name, each in features.items()}
        return cls(tuple(columns), rules.model, rules.checkpoint, features, rules.remark)

    def encode(self, texts: Sequence[str]) -> dict[str, Vectors]:
        """Encode Q texts: column → vectors, see `encode_queries`."""
        from varve.encoder.encoder import Encoder  # noqa: PLC0415 (imports torch)

        encoder = Encoder(self.model, dict(self.features), checkpoint=self.checkpoint)
        blocks = [encoder(texts[at : at + _TEXTS_AT_ONCE]) for at in range(0, max(len(texts), 1), _TEXTS_AT_ONCE)]
        return {each.name: concatenate([_vectors(each, block) for block in blocks]) for each in self.columns}

    def describe(self) -> str:
        """One line on the texts of queries: their prompt and length."""
        declared = self.checkpoint.declaration
        declared_prompt = declared.text.prompt if declared and self.model.role == "query" else ""
        prompt = declared_prompt if self.model.prompt is None else self.model.prompt
        return f"role {self.model.role}, prompt {prompt!r}"


@dataclass(frozen=True, slots=True)
class _QueryRules:
    """The settings of the model for queries, and its checkpoint as inspected for them."""

    model: Model
    checkpoint: Checkpoint
    remark: str | None

    @classmethod
    def of(
        cls, output: Output, job: Job, checkpoint: Checkpoint, columns: Sequence[Column], options: QueryOptions
    ) -> "_QueryRules":
        declared = read_declared_vectors(Path(checkpoint.root), job.model.name, "query", prompt="").declaration
        if declared is None or declared.role != "query":
            declared = None
        plan = make_feature_plan(job.model, job.pooled, checkpoint, job.output.dtype)
        max_tokens = output.metadata["max_tokens"]
        model = job.model.model_copy(update={"long_text": "truncate", "dtype": "auto", "max_tokens": max_tokens})
        if declared and uses_declaration(job.model, plan):
            of_role = declared.text.max_tokens or declared.body != checkpoint.body or job.model.max_tokens == "auto"
            max_tokens = "auto" if of_role else max_tokens
            model = model.model_copy(update={"role": "query", "prompt": options.prompt, "max_tokens": max_tokens})
            return cls(model, _for_queries(model, checkpoint, declared), _remark(job, declared, options))
        # A run that does not use the declaration still has dense vectors of a model that expects its prompt.
        is_dense = all(column.form in _DENSE_FORMS for column in columns)
        prompt = declared.text.prompt if declared and is_dense and declared.head.kind == "dense" else ""
        prompt = prompt if options.prompt is None else options.prompt
        model = model.model_copy(update={"role": "none", "prompt": prompt})
        return cls(model, checkpoint, _remark(job, declared, options))


def _for_queries(model: Model, checkpoint: Checkpoint, declared: Declaration) -> Checkpoint:
    """The checkpoint as inspected for queries; the files are hashed again only if their body is another one."""
    if (declared.body, declared.tokenizer) == (checkpoint.body, checkpoint.tokenizer):
        return replace(checkpoint, declaration=declared, problem=None)
    return inspect_model(model, checkpoint.commit)


def _remark(job: Job, declared: Declaration | None, options: QueryOptions) -> str | None:
    if not job.model.prompt or options.prompt is not None or (declared and declared.text.prompt):
        return None
    return (
        f"the run put the prompt {job.model.prompt!r} before each text, and {job.model.name} declares none for "
        "queries. If its model card names one, pass it with --query-prompt"
    )


def _check_columns(output: Output, columns: Sequence[Column]) -> None:
    if len(output.text_columns) > 1:
        msg = f"{output.storage.uri}: a text of the run is a pair of {' and '.join(output.text_columns)}: a single "
        raise JobError(msg + "query cannot be compared with pairs")
    for column in columns:
        if column.form not in _FORMS:
            msg = f"{output.storage.uri}: {column.name} holds {column.form}, which no query is compared with"
            raise JobError(msg)


def _pinned(output: Output, model: Model, options: QueryOptions) -> Model:
    """The run's model at its commit; its code runs only if the user permits it."""
    if model.trust_remote_code and not options.trust_remote_code:
        msg = f"queries need the Python code of the checkpoint {model.name}: if you trust it, add --trust-remote-code"
        raise JobError(msg)
    revision = output.metadata["revision"] if options.model is None else None
    return model.model_copy(update={"name": options.model or model.name, "revision": revision})


def _check_identity(output: Output, job: Job, checkpoint: Checkpoint) -> None:
    """Compare the files of the checkpoint with those of the run."""
    recorded, resolved = output.metadata, output.manifest.resolved
    plan = make_feature_plan(job.model, job.pooled, checkpoint, job.output.dtype)
    heads: dict[str, Any] = hash_heads(job.model, plan, checkpoint) or {}
    of_run = resolved.get("heads_sha256") or {}
    files = {
        "weights": (checkpoint.weights_sha256, recorded["weights_sha256"]),
        "tokenizer": (checkpoint.tokenizer_sha256, recorded["tokenizer_sha256"]),
        "config.json": (checkpoint.config_sha256, resolved.get("config_sha256") or checkpoint.config_sha256),
        **{file: (heads.get(file), of_run.get(file)) for file in {**heads, **of_run}},
    }
    for name, (found, expected) in files.items():
        if found != expected:
            msg = (
                f"{name} of {job.model.name}: sha256 {found}, but {output.storage.uri} was encoded with {expected}. "
                "Queries need the checkpoint of the run: name its folder with --model"
            )
            raise JobError(msg)


def _feature_of(job: Job, column: Column) -> str:
    name = column.name if column.name in job.pooled else column.feature
    if name not in job.pooled:
        msg = f"the job of the run has no feature {name}: its manifest and its parts do not belong together"
        raise JobError(msg)
    return name


def _vectors(column: Column, block: Mapping[str, Any]) -> Vectors:
    """The vectors of one column of the encoder's result."""
    if column.form == "sparse":
        ids, weights = (block[name] for name in column.stored_names)
        return SparseVectors(ids, weights)
    found = block[column.name]
    return found if isinstance(found, Ragged) else np.ascontiguousarray(found, np.float32)

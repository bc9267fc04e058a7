"""Resolves a job into a plan: pins its source and its model, and resolves every `auto`.

Knows nothing of Ray or of existing outputs.
"""

import base64
from collections.abc import Mapping
from datetime import UTC, datetime

import pyarrow as pa

from varve.config.job import Job
from varve.config.model import Windows
from varve.encoder.checkpoint.checkpoint import Checkpoint
from varve.encoder.checkpoint.declaration import TextRules
from varve.encoder.checkpoint.defaults import (
    default_block_rows,
    default_tokens_per_pack,
    make_feature_plan,
    make_tokenizer,
    resolve_dtype,
    resolve_max_tokens,
)
from varve.encoder.checkpoint.heads import default_features, text_rules
from varve.encoder.checkpoint.pretrained_tokenizer import load_tokenizer
from varve.encoder.feature_plan import ROW_COLUMNS, FeaturePlan
from varve.errors import JobError
from varve.output.token_pooling import check_token_pooling
from varve.planning import part_sizing
from varve.planning.model_identity import hash_heads, inspect_model
from varve.planning.plan import Plan, Resolved
from varve.planning.udf_dry_run import DRY_RUN_ROWS, dry_run_functions
from varve.preprocessing.computed_columns import find_computed
from varve.source.dataset import Dataset
from varve.source.open_dataset import open_dataset
from varve.source.row_selection import RowSelection
from varve.source.sampling import rows_with_text
from varve.source.table_source import open_table_source

SAMPLE_ROWS = 512


def make_plan(job: Job, *, device: str, selection: RowSelection | None = None) -> Plan:
    """Pin the source and the model of a job and resolve every `auto`.

    Args:
        job: the job.
        device: "cuda" or "cpu", for `auto` dtypes and pack sizes.
        selection: rows of the source table that are encoded; None: all.

    Raises:
        JobError: something that the job names does not exist or does not fit.
    """
    checkpoint = inspect_model(job.model, job.model.revision)
    if job.features is None:
        job = job.with_features(default_features(checkpoint))
    features = make_feature_plan(job.model, job.pooled, checkpoint, job.output.dtype)
    computed = find_computed(job.computed, job.folder)
    max_tokens = resolve_max_tokens(job.model, checkpoint, features)
    _check_tokens(job, checkpoint, max_tokens)
    _check_texts(job, features, text_rules(job.model, features, checkpoint))
    dataset = open_table_source(job.source, selection=selection) if selection else open_dataset(job.source)
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
        heads_sha256=hash_heads(job.model, features, checkpoint),
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
    """Return (tokens per pack, rows per block, rows per part); `auto` values are derived from the sample."""
    pack_tokens, part_rows = job.compute.tokens_per_pack, job.output.rows_per_part
    tokens = part_sizing.tokens_per_row(
        sample,
        job.source.text_columns,
        make_tokenizer(job.model, checkpoint, features, fast=job.compute.fast_tokenizer),
    )
    if pack_tokens == "auto":
        pack_tokens = default_tokens_per_pack(device, checkpoint)
    block_rows = default_block_rows(device, checkpoint, pack_tokens, tokens)
    if part_rows == "auto":
        num_rows = sum(dataset.shard_rows or ())
        chunks = part_sizing.chunks_per_row(job.model, tokens)
        part_rows = part_sizing.rows_per_part(sample, tokens, features, computed_bytes, num_rows, block_rows, chunks)
    return pack_tokens, min(block_rows, part_rows), part_rows


def _check_names(job: Job, features: FeaturePlan) -> None:
    """Reject computed and kept columns that have the name of another output column."""
    written = {*features.names(pairs=True), *ROW_COLUMNS}
    for name in job.computed:
        if name in written:
            msg = f"features: two output columns would have the name {name!r}. Rename the feature"
            raise JobError(msg)
    written |= set(job.computed)
    for name in job.source.kept:
        if name in written:
            msg = f"source.keep: column {name!r} has the name of an output column. Rename the feature or the column"
            raise JobError(msg)


def _check_texts(job: Job, features: FeaturePlan, rules: TextRules) -> None:
    """Reject what needs a single text where texts are pairs, and windows of texts that have one fixed length."""
    forms = {column.form for column in features.columns}
    if len(job.source.text_columns) > 1 and (rules.prompt or forms & {"late", "clusters"}):
        what = f"the prompt {rules.prompt!r}" if rules.prompt else "late interaction"
        msg = f"source.text names two columns, but {what} needs a single text: name one column"
        raise JobError(msg)
    if rules.expansion and isinstance(job.model.long_text, Windows):
        msg = "model.long_text: queries of this checkpoint have a fixed length: use long_text: truncate"
        raise JobError(msg)
    if "clusters" in forms:
        check_token_pooling()
        if job.output.dtype == "binary":
            msg = "output.dtype: binary is not allowed with token pooling, whose clusters signs do not determine"
            raise JobError(msg)


def _check_tokens(job: Job, checkpoint: Checkpoint, max_tokens: int) -> None:
    """Reject windows without room for the special tokens, one token of each text, and the overlap with the next."""
    num_texts = len(job.source.text_columns)
    special = load_tokenizer(checkpoint).backend_tokenizer.num_special_tokens_to_add(num_texts > 1)
    stride = job.model.long_text.stride if isinstance(job.model.long_text, Windows) else 0
    least = special + num_texts + stride
    if max_tokens < least:
        msg = f"model.max_tokens: {max_tokens} leaves no room for text: set {least} or more ({special} are special)"
        raise JobError(msg)

"""Runs a job in this process, without Ray: the same parts, job.json and manifest as `embed` writes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from varve import Job
from varve.backfill.open_backfill import open_backfill
from varve.driver.run_manifest import make_manifest
from varve.encoder.description import describe
from varve.encoder.encoder import Encoder
from varve.engine.parallel import in_threads
from varve.output import manifest
from varve.output.manifest import Manifest
from varve.output.part_file import write_part
from varve.output.part_layout import PartLayout
from varve.output.part_table import PartTable
from varve.output.token_pooling import pool_tokens
from varve.planning.saved_plan import prepare, save_plan
from varve.preprocessing.text_blocks import tokenize_blocks
from varve.ranges import Range, missing
from varve.storage.object_store import Storage
from varve.verification.canary import compare
from varve.workers.featurize import featurize

Publish = Callable[[Storage, PartTable], dict[str, Any]]


def finish(job: Job, layout: PartLayout | None = None, publish: Publish = lambda _storage, _parts: {}) -> Manifest:
    """Run a job to its end; `layout` and `publish`: see `driver.job_run.run_job`."""
    storage = Storage(job.output.root)
    plan = prepare(job, storage, device="cpu")
    save_plan(plan, storage)
    encoder = Encoder(plan.pinned_model, plan.job.pooled, output_dtype=job.output.dtype, device="cpu")
    rows_per_part, where = plan.resolved.rows_per_part, {"schema": plan.schema, "pairs": plan.pairs}
    for shard in range(plan.resolved.num_shards):
        for start, rows in plan.dataset.read_parts(shard, rows_per_part, missing((), rows_per_part)):
            blocks = tokenize_blocks(
                encoder.tokenizer, rows, job.source.text_columns, plan.resolved.block_rows, plan.computed
            )
            table = featurize(encoder, rows, blocks, shard=shard, start=start, **where)[0]
            table = pool_tokens(table, plan.feature_plan.token_poolings)
            write_part(storage, Range(shard, start, start + len(table)), table, plan.fingerprint, layout=layout)
    parts = manifest.read_parts(storage, manifest.committed(storage))
    checked = compare(plan, storage, parts)
    assert checked["passed"], checked
    table = publish(storage, parts)
    made = make_manifest(plan, storage, parts, "2026-01-01T00:00:00+00:00", {}, None, checked, table)
    return manifest.publish(storage, replace(made, encoder=describe(encoder)))[0]


def finish_table(job: Job) -> tuple[Manifest, bool]:
    """Run a job with an output.table; returns (manifest, whether an earlier run had published it)."""
    backfill = open_backfill(job)
    storage = Storage(backfill.job.output.path)
    if backfill.is_in_step and (finished := manifest.read_manifest(storage)):
        return finished, True
    selection = backfill.select(storage, in_threads)

    def publish(storage: Storage, parts: PartTable) -> dict[str, Any]:
        return backfill.publish(storage, parts, selection, in_threads)

    return finish(backfill.job, backfill.layout, publish), False

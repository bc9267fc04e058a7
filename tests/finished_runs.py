"""Runs a job in this process, without Ray: the same parts, job.json and manifest as `embed` writes."""

from dataclasses import replace

from varve import Job
from varve.driver.run_manifest import make_manifest
from varve.encoder.description import describe
from varve.encoder.encoder import Encoder
from varve.output import manifest
from varve.output.manifest import Manifest
from varve.output.part_file import write_part
from varve.output.token_pooling import pool_tokens
from varve.planning.saved_plan import prepare, save_plan
from varve.preprocessing.text_blocks import tokenize_blocks
from varve.ranges import Range, missing
from varve.storage.object_store import Storage
from varve.verification.canary import compare
from varve.workers.featurize import featurize


def finish(job: Job) -> Manifest:
    """Run a job to its end."""
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
            write_part(storage, Range(shard, start, start + len(table)), table, plan.fingerprint)
    parts = manifest.read_parts(storage, manifest.committed(storage))
    checked = compare(plan, storage, parts)
    made = make_manifest(plan, storage, parts, "2026-01-01T00:00:00+00:00", {}, None, checked, {})
    return manifest.publish(storage, replace(made, encoder=describe(encoder)))[0]

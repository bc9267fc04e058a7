"""Writes most parts of a job without Ray, as an interrupted run of it would have left them.

Invariant: the parts are those of the job itself (its fingerprint, its layout), so its driver takes them for its own.
"""

from pathlib import Path

import pyarrow as pa

from tests.bench.scale.idle_driver import repeat_row
from varve.backfill.open_backfill import open_backfill
from varve.config.job import Job
from varve.encoder.encoder import Encoder
from varve.engine.parallel import in_threads
from varve.output.part_file import write_part
from varve.output.part_layout import PartLayout
from varve.planning.plan import Plan
from varve.planning.saved_plan import prepare, save_plan
from varve.preprocessing.text_blocks import tokenize_blocks
from varve.ranges import Range, missing
from varve.storage.object_store import Storage
from varve.workers.featurize import featurize


def write_ahead(job_file: Path, share: float) -> None:
    """Write all parts of the first shards.

    Args:
        job_file: of a job whose texts are equal.
        share: of the shards.
    """
    job, layout = Job.load(str(job_file)), None
    if job.output.table:
        backfill = open_backfill(job)
        job, layout = backfill.job, backfill.layout
        backfill.select(Storage(job.output.path), in_threads)
    storage = Storage(job.output.root)
    plan = prepare(job, storage, device="cpu")
    save_plan(plan, storage)
    row: pa.Table | None = None
    for shard in range(int(share * plan.resolved.num_shards)):
        grid = plan.resolved.rows_per_part
        for start, rows in plan.dataset.read_parts(shard, grid, missing((), grid)):
            row = _encode(plan, rows) if row is None else row
            _write(plan, storage, Range(shard, start, start + len(rows)), rows, row, layout)


def _encode(plan: Plan, rows: pa.Table) -> pa.Table:
    """The features of the first row."""
    first = rows.slice(0, 1)
    encoder = Encoder(plan.pinned_model, plan.job.pooled, output_dtype=plan.job.output.dtype, device="cpu")
    blocks = tokenize_blocks(encoder.tokenizer, first, plan.job.source.text_columns, 1)
    return featurize(encoder, first, blocks, schema=plan.schema, shard=0, start=0, pairs=plan.pairs)[0]


def _write(
    plan: Plan, storage: Storage, cell: Range, rows: pa.Table, encoded: pa.Table, layout: PartLayout | None
) -> None:
    write_part(storage, cell, repeat_row(encoded, rows, cell, plan.schema), plan.fingerprint, layout=layout)

"""The expected output of a job: one process, one encoder, no Ray, no parts."""

import pyarrow as pa

from varve import Job
from varve.encoder.encoder import Encoder
from varve.planning.resolve import make_plan
from varve.preprocessing.text_blocks import tokenize_blocks
from varve.ranges import missing
from varve.workers.featurize import featurize


def rows_of(job: Job) -> pa.Table:
    """The rows that a run must write, bit for bit, sorted by shard and row."""
    plan = make_plan(job, device="cpu")
    encoder = Encoder(plan.pinned_model, plan.job.pooled, output_dtype=job.output.dtype, device="cpu")
    columns, block_rows = job.source.text_columns, plan.resolved.block_rows
    tables = []
    for shard in range(plan.resolved.num_shards):
        for start, rows in plan.dataset.read_parts(shard, plan.resolved.rows_per_part, missing((), 1)):
            blocks = tokenize_blocks(encoder.tokenizer, rows, columns, block_rows, plan.computed)
            where = {"schema": plan.schema, "shard": shard, "start": start, "pairs": plan.pairs}
            tables.append(featurize(encoder, rows, blocks, **where)[0])
    return pa.concat_tables(tables)

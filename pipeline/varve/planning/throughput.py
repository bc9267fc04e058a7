"""What a job will take, before it runs: rows, tokens, bytes, FLOPs, and time from a measured burst.

Knows nothing of Ray. Counts what the source declares; the rest is estimated from the first rows of a few shards, and
said to be an estimate.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.encoder.description import describe
from varve.encoder.encoder import Encoder
from varve.output.part_file import encode_part
from varve.planning.part_sizing import row_bytes
from varve.planning.plan import Plan
from varve.preprocessing.text_blocks import Tokenized, tokenize_blocks
from varve.ranges import Range
from varve.source.sampling import some_shards
from varve.storage.fsspec_files import file_size
from varve.workers.featurize import featurize

SAMPLED_ROWS = 1000  # of each sampled shard
BURST_S = 5.0
_BURST_ROWS = 64
# Compressed files hold about this many times their size in text.
_COMPRESSION = 3.0
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The figures of `varve plan`."""

    num_shards: int
    num_rows: int
    rows_known: bool  # counted by the source; False: estimated from a sample
    sampled_rows: int
    tokens_per_row: float
    num_tokens: int
    length_histogram: list[tuple[int, int, int]]  # tokens from, to, rows of the sample
    share_truncated: float  # share of the sample
    share_errors: float  # share of the sample
    num_parts: int
    rows_per_part: int
    row_bytes: dict[str, float]  # column → bytes of one row, before compression
    output_bytes: float
    flops: float
    layers_run: int
    num_layers: int
    tokens_per_s: float  # of one replica, measured
    encode_s: float  # all tokens on one replica
    tokenizer_tokens_per_s: float  # of one core, measured
    tokenizer_cores: float  # that keep one such replica fed
    ready_s: float  # until such a replica's model is loaded and checked
    read_s: float  # all rows, on one core
    tokenize_s: float  # all rows, on one core
    write_s: float  # all rows into Parquet on one core, without the store
    compute_s: float | None  # all rows through the job's Python functions, on one core; None without functions
    encoder: dict[str, Any]


def estimate(plan: Plan, device: str, threads: int) -> Estimate:
    """Measure a burst where a replica would stand, and extrapolate.

    Args:
        plan: the job's.
        device: of a replica, cpu or cuda.
        threads: of a replica on a CPU.

    Raises:
        RunError: the source can't be read.
    """
    began = time.process_time()
    samples = [_sample(plan, shard) for shard in some_shards(plan.resolved.num_shards)]
    sample = pa.concat_tables(table for table, _ in samples)
    read_s = time.process_time() - began
    num_rows, known = _count_rows(plan, samples)
    began = time.perf_counter()
    encoder = Encoder(
        plan.pinned_model,
        plan.job.pooled,
        output_dtype=plan.job.output.dtype,
        tokens_per_pack=plan.resolved.tokens_per_pack,
        device=device,
        threads=threads,
    )
    ready_s = time.perf_counter() - began
    tokenizer_tokens_per_s = _tokenizing(plan, encoder, sample)
    features, tokens_per_s, compute_s = _burst(plan, encoder, sample)
    burst = features.select(["num_tokens", "truncated", "error"])
    lengths = burst["num_tokens"].drop_null().to_numpy()
    tokens_per_row = float(lengths.mean()) if len(lengths) else 0.0
    num_tokens = round(num_rows * tokens_per_row)
    per_row = row_bytes(plan.features, tokens_per_row)
    per_row |= {
        column.name: column.row_bytes or burst[column.name].nbytes / max(1, len(burst)) for column in plan.computed
    }
    rows_per_part = plan.resolved.rows_per_part
    layers = plan.features.top_layer
    return Estimate(
        num_shards=plan.resolved.num_shards,
        num_rows=num_rows,
        rows_known=known,
        sampled_rows=len(burst),
        tokens_per_row=tokens_per_row,
        num_tokens=num_tokens,
        length_histogram=histogram(lengths),
        share_truncated=float(np.mean(burst["truncated"].fill_null(False).to_numpy())) if len(burst) else 0.0,  # noqa: FBT003
        share_errors=1 - burst["error"].null_count / len(burst) if len(burst) else 0.0,
        num_parts=plan.resolved.num_shards + num_rows // rows_per_part,
        rows_per_part=rows_per_part,
        row_bytes=per_row,
        output_bytes=num_rows * sum(per_row.values()),
        flops=num_tokens * flops_per_token(plan, tokens_per_row, first_tokens=encoder.top_layer == "first tokens"),
        layers_run=layers,
        num_layers=plan.features.num_layers,
        tokens_per_s=tokens_per_s,
        encode_s=num_tokens / tokens_per_s if tokens_per_s else 0.0,
        tokenizer_tokens_per_s=tokenizer_tokens_per_s,
        tokenizer_cores=tokens_per_s / tokenizer_tokens_per_s if tokenizer_tokens_per_s else 0.0,
        ready_s=ready_s,
        read_s=read_s * num_rows / max(1, len(sample)),
        tokenize_s=num_tokens / tokenizer_tokens_per_s if tokenizer_tokens_per_s else 0.0,
        write_s=_writing(features) * num_rows / max(1, len(features)),
        compute_s=num_rows * compute_s / max(1, len(burst)) if plan.computed else None,
        encoder=describe(encoder),
    )


def flops_per_token(plan: Plan, tokens_per_row: float, *, first_tokens: bool) -> float:
    """Multiply-adds counted as two, of the layers that run: 8 h² + 4 h f + 4 L h for each, with f = 4 h.

    Where the highest layer runs for first tokens alone, only its queries, keys, values and attention (6 h² + 4 L h) are
    made for every token, and the rest for one in L.

    Source: Kaplan et al. 2020, section 2.1, for the projections; attention scores and sums are the last term.
    """
    hidden, tokens = plan.checkpoint.shape.hidden_size, max(1.0, tokens_per_row)
    whole = plan.features.top_layer * (24 * hidden**2 + 4 * tokens * hidden)
    return whole - 18 * hidden**2 * (1 - 1 / tokens) if first_tokens else whole


def histogram(lengths: NDArray[np.int32]) -> list[tuple[int, int, int]]:
    """(tokens from, tokens to, rows) in steps that double: 1-8, 9-16, 17-32, ..."""
    edges = [0, 8]
    while len(lengths) and edges[-1] < lengths.max():
        edges.append(edges[-1] * 2)
    counts = [(low + 1, high, int(((lengths > low) & (lengths <= high)).sum())) for low, high in pairwise(edges)]
    return counts if len(lengths) else []


def _sample(plan: Plan, shard: int) -> tuple[pa.Table, bool]:
    """(first rows of a shard, whether these are all)."""
    tables: list[pa.Table] = []
    rows = 0
    for table in plan.dataset.read(shard):
        tables.append(table)
        rows += len(table)
        if rows > SAMPLED_ROWS:
            return pa.concat_tables(tables).slice(0, SAMPLED_ROWS), False
    return pa.concat_tables(tables) if tables else plan.dataset.schema.empty_table(), True


def _count_rows(plan: Plan, samples: Sequence[tuple[pa.Table, bool]]) -> tuple[int, bool]:
    """(rows of the source, whether they are counted)."""
    if plan.dataset.shard_rows is not None:
        return sum(plan.dataset.shard_rows), True
    if len(samples) == plan.resolved.num_shards and all(whole for _, whole in samples):
        return sum(len(table) for table, _ in samples), True
    sizes = [file_size(uri) or 0 for uri in plan.dataset.files]
    table, whole = samples[0]
    rows = max(1, len(table))
    packed = plan.dataset.files[0].endswith(_COMPRESSED)
    row_size = sizes[0] / rows if whole else table.nbytes / rows / (_COMPRESSION if packed else 1.0)
    return round(sum(sizes) / row_size) if row_size else 0, False


def _tokenizing(plan: Plan, encoder: Encoder, sample: pa.Table) -> float:
    """Tokens that one core tokenizes in a second; 0 without any. CPU time counts, so other load does not."""
    began = time.process_time()
    blocks = tokenize_blocks(encoder.tokenizer, sample, plan.job.source.text_columns, plan.resolved.block_rows)
    tokens = sum(len(block.tokens.input_ids) for block in blocks)
    spent_s = time.process_time() - began
    return tokens / spent_s if spent_s else 0.0


def _burst(plan: Plan, encoder: Encoder, sample: pa.Table) -> tuple[pa.Table, float, float]:
    """(rows of as much of the sample as fits the time, tokens per second, seconds that Python functions took)."""
    draw = np.random.default_rng(0).permutation(len(sample))
    shuffled = sample.take(pa.array(draw))
    ends: list[tuple[float, int]] = []
    began = time.perf_counter()

    def blocks() -> Iterator[Tokenized]:
        columns = plan.job.source.text_columns
        for block in tokenize_blocks(encoder.tokenizer, shuffled, columns, _BURST_ROWS, plan.computed):
            if ends and time.perf_counter() - ends[0][0] > BURST_S:
                return
            yield block

    features, spent, _ = featurize(
        encoder,
        shuffled,
        blocks(),
        schema=plan.schema,
        shard=0,
        start=0,
        pairs=plan.pairs,
        on_block=lambda block: ends.append((time.perf_counter(), block.tokens)),
    )
    # The first block pays for memory and threads that later ones find ready; a sample of one block has no later ones.
    since, counted = (ends[0][0], ends[1:]) if len(ends) > 1 else (began, ends)
    tokens = sum(count for _, count in counted)
    return features, tokens / (ends[-1][0] - since) if tokens else 0.0, spent.get("compute", 0.0)


def _writing(features: pa.Table) -> float:
    """CPU seconds that it takes to make a part of the features."""
    began = time.process_time()
    encode_part(Range(0, 0, len(features)), features, "")
    return time.process_time() - began

"""Estimates what a job takes before it runs: rows, tokens, bytes, FLOPs, and speed measured in a short burst.

Knows nothing of Ray. Uses the row counts that the source declares; everything else is extrapolated from the first rows
of a few shards.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.encoder.description import describe
from varve.encoder.encoder import Encoder
from varve.monitoring.progress_line import clock_time, data_size
from varve.output.part_file import encode_part
from varve.output.token_pooling import pool_tokens
from varve.pages.html_table import html_table
from varve.planning.part_sizing import row_bytes
from varve.planning.plan import Plan
from varve.planning.source_sample import sample_source
from varve.preprocessing.text_blocks import Tokenized, tokenize_blocks
from varve.ranges import Range
from varve.workers.featurize import featurize

BURST_S = 5.0
_BURST_ROWS = 64
# Forms whose size depends on the texts and the model in ways that only the encoded sample shows.
_MEASURED = frozenset({"sparse", "late", "clusters", "chunks"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The figures of `varve plan`."""

    num_shards: int
    num_rows: int
    rows_known: bool  # False: num_rows is estimated from a sample
    sampled_rows: int
    tokens_per_row: float
    num_tokens: int
    length_histogram: list[tuple[int, int, int]]  # of the sample, see `histogram`
    share_truncated: float  # of the rows of the sample
    share_errors: float  # of the rows of the sample
    num_parts: int
    rows_per_part: int
    row_bytes: dict[str, float]  # column → bytes of one row, before compression
    output_bytes: float
    flops: float
    layers_run: int
    num_layers: int
    tokens_per_s: float  # measured on one replica
    encode_s: float  # all tokens on one replica
    tokenizer_tokens_per_s: float  # measured on one core
    tokenizer_cores: float  # needed to supply one replica
    ready_s: float  # to load and check the model of one replica
    read_s: float  # all rows on one core
    tokenize_s: float  # all rows on one core
    write_s: float  # encoding all rows as Parquet on one core, without the upload
    compute_s: float | None  # all rows through the job's Python functions on one core; None without functions
    encoder: dict[str, Any]

    def _repr_html_(self) -> str:
        rows = [
            ("rows", f"{self.num_rows:,}{'' if self.rows_known else ' (from a sample)'}"),
            ("tokens", f"{self.num_tokens:,}, {self.tokens_per_row:.0f} per row"),
            ("truncated", f"{self.share_truncated:.1%} of rows; errors {self.share_errors:.1%}"),
            ("layers", f"{self.layers_run} of {self.num_layers} run"),
            ("compute", f"{self.flops:.2e} FLOPs"),
            ("encoder", f"{self.tokens_per_s:,.0f} tokens/s per replica; {clock_time(self.encode_s)} on one replica"),
            ("tokenizer", f"{self.tokenizer_tokens_per_s:,.0f} tokens/s per core"),
            ("output", f"about {data_size(self.output_bytes)} before compression, {self.num_parts:,} parts"),
        ]
        return html_table("Estimate", ("", ""), rows)


@dataclass(frozen=True, slots=True)
class _Burst:
    """The sampled rows that were encoded within `BURST_S`."""

    features: pa.Table
    tokens_per_s: float
    compute_s: float  # in the job's functions

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row without an error."""
        return self.features["num_tokens"].drop_null().to_numpy()

    @property
    def tokens_per_row(self) -> float:
        return float(self.lengths.mean()) if len(self.lengths) else 0.0


def estimate(plan: Plan, device: str, threads: int) -> Estimate:
    """Measure a burst on this machine and extrapolate.

    Args:
        plan: of the job.
        device: of a replica, cpu or cuda.
        threads: of a replica on CPUs.

    Raises:
        RunError: the source cannot be read.
    """
    source = sample_source(plan.dataset)
    encoder, ready_s = _load_encoder(plan, device, threads)
    tokenizer_tokens_per_s = _measure_tokenizer(plan, encoder, source.table)
    burst = _measure_burst(plan, encoder, source.table)
    tokens_per_row, num_rows = burst.tokens_per_row, source.num_rows
    num_tokens = round(num_rows * tokens_per_row)
    return Estimate(
        num_shards=plan.resolved.num_shards,
        num_rows=num_rows,
        rows_known=source.rows_known,
        read_s=source.read_s,
        tokens_per_row=tokens_per_row,
        num_tokens=num_tokens,
        **_sample_figures(burst),
        **_output_figures(plan, burst, num_rows),
        flops=num_tokens * flops_per_token(plan, tokens_per_row, first_tokens=encoder.top_layer == "first tokens"),
        layers_run=plan.feature_plan.top_layer,
        num_layers=plan.feature_plan.num_layers,
        tokens_per_s=burst.tokens_per_s,
        encode_s=_ratio(num_tokens, burst.tokens_per_s),
        tokenizer_tokens_per_s=tokenizer_tokens_per_s,
        tokenizer_cores=_ratio(burst.tokens_per_s, tokenizer_tokens_per_s),
        tokenize_s=_ratio(num_tokens, tokenizer_tokens_per_s),
        ready_s=ready_s,
        compute_s=num_rows * burst.compute_s / max(1, len(burst.features)) if plan.computed else None,
        encoder=describe(encoder),
    )


def _sample_figures(burst: _Burst) -> dict[str, Any]:
    """The fields of `Estimate` that describe the encoded sample."""
    rows = len(burst.features)
    truncated = burst.features["truncated"].fill_null(False).to_numpy()  # noqa: FBT003 (Arrow takes the value so)
    return {
        "sampled_rows": rows,
        "length_histogram": histogram(burst.lengths),
        "share_truncated": float(np.mean(truncated)) if rows else 0.0,
        "share_errors": 1 - burst.features["error"].null_count / rows if rows else 0.0,
    }


def _output_figures(plan: Plan, burst: _Burst, num_rows: int) -> dict[str, Any]:
    """The fields of `Estimate` that describe the output."""
    rows = max(1, len(burst.features))
    began = time.process_time()
    features = pool_tokens(burst.features, plan.feature_plan.token_poolings)
    encode_part(Range(0, 0, len(features)), features, "")
    encode_part_s = time.process_time() - began
    sizes = row_bytes(plan.feature_plan, burst.tokens_per_row)
    sizes |= {
        column.name: sum(features[name].nbytes for name in column.stored_names) / rows
        for column in plan.feature_plan.columns
        if column.form in _MEASURED
    }
    sizes |= {column.name: column.row_bytes or features[column.name].nbytes / rows for column in plan.computed}
    return {
        "num_parts": plan.resolved.num_shards + num_rows // plan.resolved.rows_per_part,
        "rows_per_part": plan.resolved.rows_per_part,
        "row_bytes": sizes,
        "output_bytes": num_rows * sum(sizes.values()),
        "write_s": encode_part_s * num_rows / rows,
    }


def _ratio(dividend: float, divisor: float) -> float:
    return dividend / divisor if divisor else 0.0


def flops_per_token(plan: Plan, tokens_per_row: float, *, first_tokens: bool) -> float:
    """FLOPs per token, 2 per multiply-add: 8 h² + 4 h f + 4 L h for each layer that runs, with f = 4 h and L tokens.

    If the highest layer runs for first tokens only (`first_tokens`), its queries, keys, values and attention
    (6 h² + 4 L h) are computed for every token, the rest for one token in L.

    Source: Kaplan et al. 2020, section 2.1, for the projections; attention scores and sums are the last term.
    """
    hidden, tokens = plan.checkpoint.shape.hidden_size, max(1.0, tokens_per_row)
    whole = plan.feature_plan.top_layer * (24 * hidden**2 + 4 * tokens * hidden)
    return whole - 18 * hidden**2 * (1 - 1 / tokens) if first_tokens else whole


def histogram(lengths: NDArray[np.int32]) -> list[tuple[int, int, int]]:
    """Count rows by length: (fewest tokens, most tokens, rows) of the bins 1-8, 9-16, 17-32, ..."""
    edges = [0, 8]
    while len(lengths) and edges[-1] < lengths.max():
        edges.append(edges[-1] * 2)
    counts = [(low + 1, high, int(((lengths > low) & (lengths <= high)).sum())) for low, high in pairwise(edges)]
    return counts if len(lengths) else []


def _load_encoder(plan: Plan, device: str, threads: int) -> tuple[Encoder, float]:
    """Return (the encoder of a replica, seconds to load it)."""
    began = time.perf_counter()
    encoder = Encoder(
        plan.pinned_model,
        plan.job.pooled,
        output_dtype=plan.job.output.dtype,
        tokens_per_pack=plan.resolved.tokens_per_pack,
        device=device,
        threads=threads,
    )
    return encoder, time.perf_counter() - began


def _measure_tokenizer(plan: Plan, encoder: Encoder, sample: pa.Table) -> float:
    """Tokens per second of CPU time, which other load on the machine does not change; 0 without any text."""
    began = time.process_time()
    blocks = tokenize_blocks(encoder.tokenizer, sample, plan.job.source.text_columns, plan.resolved.block_rows)
    tokens = sum(len(block.tokens.input_ids) for block in blocks)
    return _ratio(tokens, time.process_time() - began)


def _measure_burst(plan: Plan, encoder: Encoder, sample: pa.Table) -> _Burst:
    """Encode random rows of the sample for about `BURST_S`."""
    shuffled = sample.take(pa.array(np.random.default_rng(0).permutation(len(sample))))
    ends: list[tuple[float, int]] = []  # (time, tokens) of each block
    began = time.perf_counter()

    def blocks() -> Iterator[Tokenized]:
        columns = plan.job.source.text_columns
        for block in tokenize_blocks(encoder.tokenizer, shuffled, columns, _BURST_ROWS, plan.computed):
            if ends and time.perf_counter() - ends[0][0] > BURST_S:
                return
            yield block

    features, seconds, _ = featurize(
        encoder,
        shuffled,
        blocks(),
        schema=plan.schema,
        shard=0,
        start=0,
        pairs=plan.pairs,
        on_block=lambda block: ends.append((time.perf_counter(), block.tokens)),
    )
    # The first block also allocates memory and starts threads, so it is not counted if there are others.
    since, counted = (ends[0][0], ends[1:]) if len(ends) > 1 else (began, ends)
    tokens = sum(count for _, count in counted)
    return _Burst(features, tokens / (ends[-1][0] - since) if tokens else 0.0, seconds.get("compute", 0.0))

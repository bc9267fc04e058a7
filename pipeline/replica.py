"""What stands in the workers: a replica of the encoder, and the tokenizer where it has workers of its own.

A part of texts in, a part of features out. Knows nothing of Ray: run.py makes actors and tasks of these and tells
them whom to report to. Nothing of the source or the plan is imported here, since a replica's start waits for it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from pipeline.encoder.encoder import Encoder, describe, make_plan, make_tokenizer
from pipeline.encoder.load import Checkpoint
from pipeline.envelope import Sealed, seal, unseal
from pipeline.errors import RunError
from pipeline.featurize import featurize, tokenize_blocks
from pipeline.quiet import quiet_transformers
from pipeline.schema import output_schema
from pipeline.spec import Feature, Model
from pipeline.texts import Tokenized
from pipeline.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pipeline.plan import Plan

Join = Callable[[dict[str, Any]], None]  # takes how the encoder runs
# Takes rows, tokens and errors of a block, and whether to wait for the errors of the whole run so far.
Count = Callable[[int, int, int, bool], int]


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker needs to know, small enough to send to each."""

    model: Model
    checkpoint: Checkpoint
    features: dict[str, Feature]
    output_dtype: str
    text_columns: tuple[str, ...]
    schema: pa.Schema
    tokens_per_pack: int
    block_rows: int
    threads: int
    compiled: bool
    max_errors: int | None

    @classmethod
    def of(cls, plan: "Plan", threads: int) -> "Work":
        """The work of a plan, on replicas with so many threads each."""
        return cls(
            model=plan.pinned_model,
            checkpoint=plan.checkpoint,
            features=plan.job.features,
            output_dtype=plan.job.output.dtype,
            text_columns=plan.job.source.text_columns,
            schema=plan.schema,
            tokens_per_pack=plan.resolved.tokens_per_pack,
            block_rows=plan.resolved.block_rows,
            threads=threads,
            compiled=plan.job.compute.compile,
            max_errors=plan.job.output.max_errors,
        )


def tokenize_part(batch: pa.Table, work: Work) -> pa.Table:
    """Add the tokens of its blocks to a part on its way to a replica."""
    part = unseal(batch)
    began = time.perf_counter()
    blocks = tokenize_blocks(_tokenizer_of(work), part.table, work.text_columns, work.block_rows)
    tokens = tuple(block.to_arrow() for block in blocks)
    seconds = {**part.seconds, "tokenize": time.perf_counter() - began}
    kept = part.table.select([name for name in part.table.column_names if name in work.schema.names])
    return seal(Sealed(part.rows, kept, seconds, blocks=tokens))


_tokenizers: dict[str, Tokenizer] = {}


def _tokenizer_of(work: Work) -> Tokenizer:
    """The work's tokenizer, loaded once in a process."""
    key = work.checkpoint.folder + work.model.model_dump_json() + repr(work.features)
    if key not in _tokenizers:
        quiet_transformers()
        features = make_plan(work.model, work.features, work.checkpoint, work.output_dtype)
        _tokenizers[key] = make_tokenizer(work.model, work.checkpoint, features)
    return _tokenizers[key]


class Replica:
    """One encoder on one device."""

    def __init__(self, work: Work, join: Join, count: Count) -> None:
        """Load the model and report."""
        quiet_transformers()
        # Ray sets OMP_NUM_THREADS to the actor's num_cpus; what runs outside of the lanes may take them all.
        torch.set_num_threads(work.threads)
        self._work, self._count = work, count
        self._encoder = Encoder(
            work.model,
            work.features,
            output_dtype=work.output_dtype,
            tokens_per_pack=work.tokens_per_pack,
            threads=work.threads,
            compiled=work.compiled,
            checkpoint=work.checkpoint,
        )
        join(describe(self._encoder))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Bring a part's texts, or the tokens that came along, to its features."""
        part, work = unseal(batch), self._work
        result, spent, counts = featurize(
            self._encoder,
            part.table,
            self._blocks(part),
            schema=work.schema,
            shard=part.rows.shard,
            start=part.rows.start,
            pairs=len(work.text_columns) > 1,
            on_block=self._report,
        )
        seconds = {stage: part.seconds.get(stage, 0.0) + spent.get(stage, 0.0) for stage in (*part.seconds, *spent)}
        happened = {name: count for name, count in asdict(counts).items() if name != "busy_s"}
        return seal(Sealed(part.rows, result, seconds, happened))

    def _blocks(self, part: Sealed) -> Iterator[Tokenized]:
        if part.blocks:
            return map(Tokenized.from_arrow, part.blocks)
        return tokenize_blocks(self._encoder.tokenizer, part.table, self._work.text_columns, self._work.block_rows)

    def _report(self, rows: int, tokens: int, errors: int) -> None:
        limit = self._work.max_errors
        so_far = self._count(rows, tokens, errors, bool(errors) and limit is not None)
        if limit is not None and so_far > limit:
            msg = (
                f"{so_far} rows ended with an error, more than output.max_errors: {limit}. Their reasons stand in the "
                "error column of the parts written so far. Raise max_errors to go on"
            )
            raise RunError(msg)


class FeatureColumns:
    """Adds feature columns to the batches of somebody's own Ray program."""

    def __init__(
        self, model: Model, wanted: dict[str, Feature], text_columns: Sequence[str], output_dtype: str, threads: int
    ) -> None:
        """Load the model."""
        quiet_transformers()
        self._encoder = Encoder(model, wanted, output_dtype=output_dtype, threads=threads)
        self._text_columns = text_columns

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode a batch as one block."""
        pairs = len(self._text_columns) > 1
        schema = output_schema(self._encoder.plan, batch.schema, pairs=pairs)
        blocks = tokenize_blocks(self._encoder.tokenizer, batch, self._text_columns, max(1, len(batch)))
        result, _, _ = featurize(self._encoder, batch, blocks, schema=schema, shard=0, start=0, pairs=pairs)
        return result.drop_columns(["shard", "row"]).replace_schema_metadata(None)

"""A replica of the encoder: encodes one part after another.

Knows nothing of Ray: the engine runs it as an actor and passes a reporter. Imports nothing of the source or the plan,
because the start of a replica waits for its imports.
"""

import logging
import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from threading import Lock

import pyarrow as pa
import torch

from varve.encoder.description import describe
from varve.encoder.encoder import Encoder
from varve.errors import RunError
from varve.monitoring.block import Block
from varve.monitoring.reporter import MAX_DEATHS, Reporter
from varve.monitoring.row_errors import count_errors, too_many_errors
from varve.monitoring.run_counters import Verdict
from varve.preprocessing.text_blocks import Tokenized, tokenize_blocks
from varve.process_state import silence_transformers
from varve.ranges import Range
from varve.workers.crash_isolation import CrashIsolation, Encode
from varve.workers.featurize import featurize
from varve.workers.look_ahead import look_ahead
from varve.workers.part_message import PartMessage, pack_message, text_bytes, unpack_message
from varve.workers.worker_spec import WorkerSpec

logger = logging.getLogger(__name__)

# A share of fewer rows does not end a run of which the number of rows is not known.
_FEWEST_ROWS = 100_000
# Blocks of a part that are tokenized before the encoder asks for them: one may take as long as several others.
_TOKENIZED_AHEAD = 2
_RECORDED_COUNTS = ("repeats", "overflows", "splits")  # counts of the encoder that a part records


class _StoppedError(Exception):
    """The run is stopping before the part is complete."""


class Replica:
    """One encoder on one device."""

    def __init__(self, spec: WorkerSpec, reporter: Reporter) -> None:
        """Load the model and report."""
        silence_transformers()
        # Ray sets OMP_NUM_THREADS to the actor's num_cpus; code outside of the encoder's lanes may use all threads.
        torch.set_num_threads(spec.threads)
        _check_device(spec.device)
        self._spec, self._reporter = spec.on_this_node(), reporter
        self._encoder = _load(self._spec)
        self._turn = Lock()
        # One thread: tokenizers use other cores by themselves, and a job's functions are not called twice at a time.
        self._feeder = ThreadPoolExecutor(1, thread_name_prefix="feeder")
        description = describe(self._encoder)
        logger.info("replica ready: %s", description)
        reporter.join(description)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode the texts of a part; returns no row if the run is stopping.

        Two threads may call it: a part starts once the last block of the previous one has been given to the encoder.
        """
        message = unpack_message(batch)
        with ExitStack() as turn:
            turn.enter_context(self._turn)
            if self._reporter.stopped():
                return batch.slice(0, 0)
            deaths = self._reporter.begin("encode", message.rows)
            try:
                result = self._encode(message, turn) if deaths < MAX_DEATHS else self._encode_isolated(message, deaths)
            except _StoppedError:
                return batch.slice(0, 0)
            finally:
                self._reporter.end("encode", message.rows)
        return pack_message(result)

    def _encode(self, message: PartMessage, turn: ExitStack) -> PartMessage:
        done = 0

        def blocks() -> Iterator[Tokenized]:
            with closing(look_ahead(self._tokenize(message), self._feeder, _TOKENIZED_AHEAD)) as tokenized:
                yield from tokenized
            turn.close()

        def report(block: Block) -> None:
            nonlocal done
            texts = message.table.slice(done, block.rows).select(self._spec.text_columns)
            done, block = done + block.rows, replace(block, text_bytes=text_bytes(texts))
            if self._report(block, message.rows).stop and done < len(message.table):
                raise _StoppedError

        result, _, counts = featurize(
            self._encoder,
            message.table,
            blocks(),
            schema=self._spec.schema,
            shard=message.rows.shard,
            start=message.rows.start,
            pairs=self._spec.pairs,
            on_block=report,
        )
        return PartMessage(message.rows, result, {name: getattr(counts, name) for name in _RECORDED_COUNTS})

    def _encode_isolated(self, message: PartMessage, deaths: int) -> PartMessage:
        """Encode a part that repeatedly crashed its worker in a subprocess."""
        rows, spec = message.rows, self._spec
        if deaths >= 2 * MAX_DEATHS:
            msg = (
                f"shard {rows.shard}, rows [{rows.start}, {rows.stop}): {deaths} workers died while they encoded these "
                "rows, the last ones although a subprocess did so. The machine may have too little memory for both"
            )
            raise RunError(msg)
        logger.warning("shard %d: %d workers died with a part; encoding it in a subprocess", rows.shard, deaths)
        features = []
        with CrashIsolation(partial(_make_encode, spec, rows.shard), spec.schema, rows.shard) as isolation:
            for first in range(0, len(message.table), spec.block_rows):
                began = time.perf_counter()
                block = isolation.encode(message.table.slice(first, spec.block_rows), rows.start + first)
                seconds = {"encode": time.perf_counter() - began}
                features.append(block)
                self._report(_count(block, seconds), rows, isolation.crashing_rows)
        result = pa.concat_tables(features) if features else spec.schema.empty_table()
        return PartMessage(rows, result, {"killers": len(isolation.crashing_rows)})

    def _tokenize(self, message: PartMessage) -> Iterator[Tokenized]:
        spec, tokenizer = self._spec, self._encoder.tokenizer
        return tokenize_blocks(tokenizer, message.table, spec.text_columns, spec.block_rows, spec.computed)

    def _report(self, block: Block, part: Range, crashing_rows: Sequence[int] = ()) -> Verdict:
        """Report a block; fails the run if too many rows failed."""
        output = self._spec.output
        verdict = self._reporter.count(block, part, wait=bool(block.errors) and output.max_errors is not None)
        # Where the number of rows is not known, the share is of the rows so far, of which the first may be the worst.
        limit = output.error_limit(self._spec.total_rows or max(verdict.rows, _FEWEST_ROWS))
        if limit is not None and verdict.errors > limit:
            message = too_many_errors(verdict.errors, output.max_errors, limit, verdict.error_reasons)
            crashed = f". Rows that crashed their worker: {', '.join(map(str, crashing_rows))}" if crashing_rows else ""
            raise RunError(message + crashed)
        return verdict


def _count(block: pa.Table, seconds: dict[str, float]) -> Block:
    """The report of a block that was encoded in the subprocess."""
    errors, tokens = count_errors(block["error"]), int(block["num_tokens"].drop_null().to_numpy().sum())
    return Block(
        len(block), tokens, errors.failures, null_texts=errors.null_texts, reasons=errors.reasons, seconds=seconds
    )


def _check_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        msg = (
            f"Ray reports GPUs on {platform.node()}, but torch {torch.__version__} finds no CUDA there. Install a CUDA "
            "build of torch and the NVIDIA driver on every GPU node, or set compute.gpus: 0"
        )
        raise RunError(msg)


def _load(spec: WorkerSpec) -> Encoder:
    return Encoder(
        spec.model,
        spec.features,
        output_dtype=spec.output.dtype,
        tokens_per_pack=spec.tokens_per_pack,
        device=spec.device,
        threads=spec.threads,
        compiled=spec.compiled,
        fast_tokenizer=spec.fast_tokenizer,
        checkpoint=spec.checkpoint,
    )


def _make_encode(spec: WorkerSpec, shard: int) -> Encode:
    """Load the model in the subprocess; returns the function that encodes rows as one block."""
    silence_transformers()
    encoder = _load(spec)
    for column in spec.computed:
        column.load()

    def encode(table: pa.Table, start: int) -> pa.Table:
        blocks = tokenize_blocks(encoder.tokenizer, table, spec.text_columns, len(table), spec.computed)
        result, _, _ = featurize(encoder, table, blocks, schema=spec.schema, shard=shard, start=start, pairs=spec.pairs)
        return result

    return encode

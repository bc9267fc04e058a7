"""What stands in a worker with a model: a replica of the encoder.

A part of texts in, a part of features out. Knows nothing of Ray: run/ makes actors and tasks of these and tells
them whom to report to. Nothing of the source or the plan is imported here, since a replica's start waits for it.
"""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from threading import Lock

import pyarrow as pa
import torch

from varve.encoder.description import describe
from varve.encoder.encoder import Encoder
from varve.errors import RunError
from varve.monitoring.reporter import MAX_DEATHS, Reporter
from varve.monitoring.run_counters import Block, Verdict
from varve.preprocessing.text_blocks import Tokenized, tokenize_blocks
from varve.process_state import silence_transformers
from varve.ranges import Range
from varve.workers.crash_isolation import CrashIsolation
from varve.workers.featurize import featurize
from varve.workers.part_message import PartMessage, pack_message, unpack_message
from varve.workers.worker_spec import WorkerSpec

# Of the encoder's counts, those that are written with a part.
_HAPPENED = ("repeats", "overflows", "splits")


class _StoppedError(Exception):
    """The run was asked to end in the midst of a part."""


class Replica:
    """One encoder on one device."""

    def __init__(self, spec: WorkerSpec, reporter: Reporter) -> None:
        """Load the model and report."""
        silence_transformers()
        # Ray sets OMP_NUM_THREADS to the actor's num_cpus; what runs outside of the lanes may take them all.
        torch.set_num_threads(spec.threads)
        _check_device(spec.device)
        self._spec, self._reporter = spec.on_this_node(), reporter
        self._encoder = _load(self._spec)
        self._turn = Lock()
        reporter.join(describe(self._encoder))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Bring a part's texts, or the tokens that came along, to its features; nothing once the run is to end.

        Two threads may call it: the next part's turn comes when the last block of the one before is on its way.
        """
        part = unpack_message(batch)
        with ExitStack() as turn:
            turn.enter_context(self._turn)
            if self._reporter.stopped():
                return batch.slice(0, 0)
            deaths = self._reporter.begin("encode", part.rows)
            try:
                sealed = self._encode(part, turn) if deaths < MAX_DEATHS else self._encode_apart(part, deaths)
            except _StoppedError:
                return batch.slice(0, 0)
            finally:
                self._reporter.end("encode", part.rows)
        return pack_message(sealed)

    def _encode(self, part: PartMessage, turn: ExitStack) -> PartMessage:
        done = 0

        def blocks() -> Iterator[Tokenized]:
            yield from self._blocks(part)
            turn.close()

        def report(block: Block) -> None:
            nonlocal done
            done += block.rows
            if self._report(block, part.rows).stop and done < len(part.table):
                raise _StoppedError

        result, _, counts = featurize(
            self._encoder,
            part.table,
            blocks(),
            schema=self._spec.schema,
            shard=part.rows.shard,
            start=part.rows.start,
            pairs=self._spec.pairs,
            on_block=report,
        )
        happened = {name: getattr(counts, name) for name in _HAPPENED}
        return PartMessage(part.rows, result, happened)

    def _encode_apart(self, part: PartMessage, deaths: int) -> PartMessage:
        """Bring a part to its features in a process of its own, which may die of it."""
        rows, block_rows = part.rows, self._spec.block_rows
        if deaths >= 2 * MAX_DEATHS:
            msg = (
                f"shard {rows.shard}, rows [{rows.start}, {rows.stop}): {deaths} workers have died of these rows, the "
                "last while a process of its own encoded them: the machine may have too little memory for both"
            )
            raise RunError(msg)
        done = []
        with CrashIsolation(partial(_make_apart, self._spec, rows.shard), self._spec.schema, rows.shard) as apart:
            for first in range(0, len(part.table), block_rows):
                began = time.perf_counter()
                block = apart.encode(part.table.slice(first, block_rows), rows.start + first)
                spent = {"encode": time.perf_counter() - began}
                done.append(block)
                tokens = int(block["num_tokens"].drop_null().to_numpy().sum())
                errors = len(block) - block["error"].null_count
                self._report(Block(len(block), tokens, errors, spent), rows, apart.killers)
        result = pa.concat_tables(done) if done else self._spec.schema.empty_table()
        return PartMessage(rows, result, {"killers": len(apart.killers)})

    def _blocks(self, part: PartMessage) -> Iterator[Tokenized]:
        if part.blocks:
            return map(Tokenized.from_arrow, part.blocks)
        spec = self._spec
        return tokenize_blocks(self._encoder.tokenizer, part.table, spec.text_columns, spec.block_rows, spec.computed)

    def _report(self, block: Block, part: Range, killers: Sequence[int] = ()) -> Verdict:
        limit = self._spec.max_errors
        verdict = self._reporter.count(block, part, wait=bool(block.errors) and limit is not None)
        if limit is not None and verdict.errors > limit:
            named = f" Rows that killed their worker: {', '.join(map(str, killers))}." if killers else ""
            msg = (
                f"{verdict.errors} rows ended with an error, more than output.max_errors: {limit}.{named} Their "
                "reasons stand in the error column of the parts written so far. Raise max_errors to go on"
            )
            raise RunError(msg)
        return verdict


def _check_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        msg = (
            f"Ray counts GPUs on {platform.node()}, but torch {torch.__version__} finds no CUDA there. Install a CUDA "
            "build of torch and its driver on every GPU node, or set compute.gpus: 0"
        )
        raise RunError(msg)


def _load(spec: WorkerSpec) -> Encoder:
    return Encoder(
        spec.model,
        spec.features,
        output_dtype=spec.output_dtype,
        tokens_per_pack=spec.tokens_per_pack,
        device=spec.device,
        threads=spec.threads,
        compiled=spec.compiled,
        checkpoint=spec.checkpoint,
    )


def _make_apart(spec: WorkerSpec, shard: int) -> Callable[[pa.Table, int], pa.Table]:
    """What a process of its own does with rows: the same as a replica, in one block."""
    silence_transformers()
    encoder = _load(spec)
    for column in spec.computed:
        column.load()

    def encode(table: pa.Table, start: int) -> pa.Table:
        blocks = tokenize_blocks(encoder.tokenizer, table, spec.text_columns, len(table), spec.computed)
        result, _, _ = featurize(encoder, table, blocks, schema=spec.schema, shard=shard, start=start, pairs=spec.pairs)
        return result

    return encode

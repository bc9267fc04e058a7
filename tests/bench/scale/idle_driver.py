"""The driver of a job whose encoder does nothing: `varve NAME ...`, with another replica.

python -m tests.bench.scale.idle_driver [--grouped] embed JOB.yaml

Replicas encode the first row that they get and repeat its features for all others, so the texts of a job must be equal,
and the canary passes. Each part is a block of Ray's, as a part of 16 kB of text or more is; with --grouped small parts
share blocks, as Varve lets them. Seconds of each listing are written to stderr. Ray sends classes of the main module to
its workers by value, so the workers need not find this file.
"""

import os
import sys
import time
from collections.abc import Callable
from threading import Lock
from typing import Any

import pyarrow as pa

from varve.cli.command import ENVIRONMENT

LISTING = "listing took "  # then seconds


class Idle:
    """A replica that encodes one row."""

    def __init__(self, spec: Any, reporter: Any) -> None:
        from varve.encoder.description import describe
        from varve.encoder.encoder import Encoder

        self._spec, self._reporter = spec, reporter
        options = {"output_dtype": spec.output.dtype, "device": spec.device, "threads": spec.threads}
        self._encoder = Encoder(spec.model, spec.features, checkpoint=spec.checkpoint, **options)
        self._row: pa.Table | None = None
        self._turn = Lock()
        reporter.join(describe(self._encoder))

    def __call__(self, batch: pa.Table) -> pa.Table:
        from varve.monitoring.block import Block
        from varve.workers.part_message import PartMessage, pack_message, unpack_message

        message = unpack_message(batch)
        rows = message.rows
        with self._turn:
            if self._reporter.stopped():
                return batch.slice(0, 0)
            self._reporter.begin("encode", rows)
            features = self._features(message)
            self._reporter.count(Block(rows.num_rows, rows.num_rows, 0), rows, wait=False)
            self._reporter.end("encode", rows)
        return pack_message(PartMessage(rows, features))

    def _features(self, message: Any) -> pa.Table:
        encoded = self._encoded(message.table) if message.rows.num_rows else None
        return repeat_row(encoded, message.table, message.rows, self._spec.schema)

    def _encoded(self, table: pa.Table) -> pa.Table:
        """The first row of all."""
        from varve.preprocessing.text_blocks import tokenize_blocks
        from varve.workers.featurize import featurize

        if self._row is None:
            spec, first = self._spec, table.slice(0, 1)
            blocks = tokenize_blocks(self._encoder.tokenizer, first, spec.text_columns, 1)
            self._row, _, _ = featurize(
                self._encoder, first, blocks, schema=spec.schema, shard=0, start=0, pairs=spec.pairs
            )
        return self._row


def repeat_row(encoded: pa.Table | None, rows: pa.Table, cell: Any, schema: pa.Schema) -> pa.Table:
    """The rows of a part, with the features of one encoded row; `cell`: their range."""
    if encoded is None or not cell.num_rows:
        return schema.empty_table()
    repeated = encoded.take([0] * cell.num_rows)
    known = {
        "shard": pa.array([cell.shard] * cell.num_rows, pa.int32()),
        "row": pa.array(range(cell.start, cell.stop), pa.int64()),
        **{name: rows[name] for name in rows.column_names},
    }
    return pa.table([known.get(name, repeated[name]) for name in schema.names], schema=schema)


def timed(listing: Callable) -> Callable:
    """The same listing, which tells its seconds."""

    def wrapped(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        result = listing(*arguments, **options)
        sys.stderr.write(f"{LISTING}{time.perf_counter() - started:.3f}\n")
        return result

    return wrapped


def main() -> None:
    os.environ.update(ENVIRONMENT)  # before Ray is imported
    from importlib import import_module

    import varve.engine.data_context
    import varve.engine.dataflow
    from varve.indexing.index_folder import IndexFolder
    from varve.output import manifest

    arguments = sys.argv[1:]
    varve.engine.dataflow.Replica = Idle  # type: ignore[misc]
    if arguments[0] == "--grouped":
        arguments = arguments[1:]
    else:
        varve.engine.data_context.OPTIONS["target_max_block_size"] = 1
    manifest.committed = timed(manifest.committed)
    IndexFolder.parts_with_ids = timed(IndexFolder.parts_with_ids)
    sys.exit(import_module(f"varve.cli.{arguments[0]}").main(arguments[1:]))


if __name__ == "__main__":
    main()

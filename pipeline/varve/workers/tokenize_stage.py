"""The tokenizer stage of a run on GPUs: adds the tokens of its blocks to a part.

Knows nothing of Ray or the encoder. Invariant: imports no model code, because there is a worker for every spare core
and the start of replicas would wait for the imports of all of them.
"""

import time

import pyarrow as pa

from varve.encoder.checkpoint.defaults import make_feature_plan, make_tokenizer
from varve.monitoring.reporter import MAX_DEATHS, Reporter
from varve.preprocessing.text_blocks import tokenize_blocks
from varve.preprocessing.tokenizer import Tokenizer
from varve.process_state import silence_transformers
from varve.workers.part_message import PartMessage, pack_message, unpack_message
from varve.workers.worker_spec import WorkerSpec


def tokenize_part(batch: pa.Table, spec: WorkerSpec, reporter: Reporter) -> pa.Table:
    """Add tokens to a part; returns no row if the run is stopping.

    A part that repeatedly crashed its worker is returned unchanged: the replica finds the crashing rows.
    """
    message = unpack_message(batch)
    if reporter.stopped():
        return batch.slice(0, 0)
    if reporter.begin("tokenize", message.rows) >= MAX_DEATHS:
        reporter.end("tokenize", message.rows)
        return batch
    began_s = time.process_time()  # of all threads: a task uses every idle core
    tokenizer = _load_tokenizer(spec)
    blocks = list(tokenize_blocks(tokenizer, message.table, spec.text_columns, spec.block_rows, spec.computed))
    compute_s = sum(block.compute_s for block in blocks)
    tokens = tuple(block.to_arrow() for block in blocks)
    tokenize_s = max(0.0, time.process_time() - began_s - compute_s)
    seconds = {"tokenize": tokenize_s} | ({"compute": compute_s} if spec.computed else {})
    for stage, stage_s in seconds.items():
        reporter.spend(stage, stage_s)
    reporter.end("tokenize", message.rows)
    return pack_message(PartMessage(message.rows, message.table, blocks=tokens))


_tokenizers: dict[str, Tokenizer] = {}


def _load_tokenizer(spec: WorkerSpec) -> Tokenizer:
    """The tokenizer, loaded once per process."""
    key = spec.checkpoint.root + spec.model.model_dump_json() + repr(spec.features)
    if key not in _tokenizers:
        silence_transformers()
        checkpoint = spec.on_this_node().checkpoint
        feature_plan = make_feature_plan(spec.model, spec.features, checkpoint, spec.output.dtype)
        _tokenizers[key] = make_tokenizer(spec.model, checkpoint, feature_plan)
    return _tokenizers[key]

"""A part of texts → the same with the tokens of its blocks, where tokenizing has workers of its own: beside GPUs.

Knows nothing of Ray or the encoder. Invariant: importing this file brings no model's code; a run has as many of these
workers as there are cores to spare, and a replica's start would wait for what all of them import.
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
    """Add the tokens of its blocks to a part on its way to a replica.

    One that kills those who tokenize it passes as it is: a replica has the means to find the rows that do so.
    """
    part = unpack_message(batch)
    if reporter.stopped():
        return batch.slice(0, 0)
    if reporter.begin("tokenize", part.rows) >= MAX_DEATHS:
        reporter.end("tokenize", part.rows)
        return batch
    began_s = time.process_time()  # of all its threads: each task spreads over the cores that are idle
    blocks = list(tokenize_blocks(_tokenizer_of(spec), part.table, spec.text_columns, spec.block_rows, spec.computed))
    compute_s = sum(block.compute_s for block in blocks)
    tokens = tuple(block.to_arrow() for block in blocks)
    tokenize_s = max(0.0, time.process_time() - began_s - compute_s)
    seconds = {"tokenize": tokenize_s} | ({"compute": compute_s} if spec.computed else {})
    for stage, spent_s in seconds.items():
        reporter.spend(stage, spent_s)
    reporter.end("tokenize", part.rows)
    return pack_message(PartMessage(part.rows, part.table, blocks=tokens))


_tokenizers: dict[str, Tokenizer] = {}


def _tokenizer_of(spec: WorkerSpec) -> Tokenizer:
    """The spec's tokenizer, loaded once in a process."""
    key = spec.checkpoint.folder + spec.model.model_dump_json() + repr(spec.features)
    if key not in _tokenizers:
        silence_transformers()
        here = spec.on_this_node()
        features = make_feature_plan(here.model, here.features, here.checkpoint, here.output_dtype)
        _tokenizers[key] = make_tokenizer(here.model, here.checkpoint, features)
    return _tokenizers[key]

"""A part of texts → the same with the tokens of its blocks, where tokenizing has workers of its own: beside GPUs.

Knows nothing of Ray or the encoder. Invariant: importing this file brings no model's code; a run has as many of these
workers as there are cores to spare, and a replica's start would wait for what all of them import.
"""

import time

import pyarrow as pa

from varve.encoder.checkpoint.defaults import make_plan, make_tokenizer
from varve.library_logs import quiet_transformers
from varve.monitoring.reporter import MAX_DEATHS, Tell
from varve.preprocessing.text_blocks import tokenize_blocks
from varve.preprocessing.tokenizer import Tokenizer
from varve.workers.part_message import Sealed, seal, unseal
from varve.workers.worker_spec import Work


def tokenize_part(batch: pa.Table, work: Work, tell: Tell) -> pa.Table:
    """Add the tokens of its blocks to a part on its way to a replica.

    One that kills those who tokenize it passes as it is: a replica has the means to find the rows that do so.
    """
    part = unseal(batch)
    if tell.stopped():
        return batch.slice(0, 0)
    if tell.begin("tokenize", part.rows) >= MAX_DEATHS:
        tell.end("tokenize", part.rows)
        return batch
    began_s = time.process_time()  # of all its threads: each task spreads over the cores that are idle
    blocks = list(tokenize_blocks(_tokenizer_of(work), part.table, work.text_columns, work.block_rows, work.computed))
    compute_s = sum(block.compute_s for block in blocks)
    tokens = tuple(block.to_arrow() for block in blocks)
    tokenize_s = max(0.0, time.process_time() - began_s - compute_s)
    seconds = {"tokenize": tokenize_s} | ({"compute": compute_s} if work.computed else {})
    for stage, spent_s in seconds.items():
        tell.spend(stage, spent_s)
    tell.end("tokenize", part.rows)
    return seal(Sealed(part.rows, part.table, blocks=tokens))


_tokenizers: dict[str, Tokenizer] = {}


def _tokenizer_of(work: Work) -> Tokenizer:
    """The work's tokenizer, loaded once in a process."""
    key = work.checkpoint.folder + work.model.model_dump_json() + repr(work.features)
    if key not in _tokenizers:
        quiet_transformers()
        here = work.here()
        features = make_plan(here.model, here.features, here.checkpoint, here.output_dtype)
        _tokenizers[key] = make_tokenizer(here.model, here.checkpoint, features)
    return _tokenizers[key]

"""What windows instead of a cut would change: texts that were cut, tokenized again with windows.

Knows nothing of vectors. Invariants: no code of a checkpoint runs, and nothing is downloaded; the characters that are
tokenized are bounded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from varve.config.job import Job
from varve.config.model import Windows
from varve.encoder.checkpoint.defaults import make_feature_plan, make_tokenizer
from varve.encoder.checkpoint.hub import find_cached
from varve.errors import VarveError
from varve.exploration.measures.text_statistics import WindowEffect
from varve.planning.model_identity import inspect_model
from varve.planning.plan import Resolved
from varve.planning.saved_job import read_job
from varve.preprocessing.tokenizer import Tokenizer
from varve.storage.object_store import Storage

MAX_TEXTS = 256
MAX_CHARACTERS = 8_000_000  # of all texts: seconds of a core


@dataclass(slots=True)
class WindowCounter:
    """Counts the tokens and windows of whole texts; see `WindowEffect`."""

    tokenizer: Tokenizer
    tokens: list[int] = field(default_factory=list)  # of each text
    left_out: list[int] = field(default_factory=list)  # of them, after the first window
    windows: list[int] = field(default_factory=list)
    characters: int = 0

    @classmethod
    def open(cls, storage: Storage) -> Self | None:
        """Load the tokenizer of an output's run.

        Returns:
            None if the checkpoint is not on this machine, has changed or needs code of its own, or if its texts
            cannot be cut into windows, as sentence pairs.
        """
        try:
            stored = read_job(storage)
            return None if stored is None else cls._of_job(stored, storage.uri)
        except (VarveError, ValueError, OSError):
            return None

    @classmethod
    def _of_job(cls, stored: Mapping[str, Any], uri: str) -> Self | None:
        job, resolved = Job.reopen(stored["job"], where=uri), Resolved(**stored["resolved"])
        folder = find_cached(job.model.name, resolved.model_commit)
        if folder is None or job.model.trust_remote_code or len(job.source.text_columns) > 1:
            return None
        model = job.model.model_copy(update={"name": folder, "revision": None})
        checkpoint = inspect_model(model, None)
        if checkpoint.tokenizer_sha256 != resolved.tokenizer_sha256:
            return None
        features = make_feature_plan(model, job.pooled, checkpoint, job.output.dtype)
        windows = Windows(window=resolved.max_tokens)
        model = model.model_copy(update={"long_text": windows})
        tokenizer = make_tokenizer(model, checkpoint, features, fast=job.compute.fast_tokenizer)
        return cls(tokenizer)

    @property
    def is_full(self) -> bool:
        """Whether enough texts were counted."""
        return len(self.tokens) >= MAX_TEXTS or self.characters >= MAX_CHARACTERS

    def add(self, text: str) -> None:
        """Count a text, unless enough were counted or the tokenizer fails at it."""
        if self.is_full:
            return
        self.characters += len(text)
        try:
            tokens = self.tokenizer([text])
        except BaseException as e:
            # `tokenizers` raises bare Exceptions. A Rust panic raises a BaseException whose class cannot be imported.
            if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
                raise
            return
        reserved = self.tokenizer.reserved_tokens
        of_text = tokens.lengths - reserved
        self.windows.append(len(of_text))
        self.tokens.append(int(of_text.sum()))
        self.left_out.append(int(of_text[1:].sum()))

    def result(self) -> WindowEffect | None:
        """None if no text was counted."""
        if not sum(self.tokens):
            return None
        return WindowEffect(
            sampled=len(self.tokens),
            median_left_out_tokens=float(np.median(self.left_out)),
            share_left_out=sum(self.left_out) / sum(self.tokens),
            windows_per_row=float(np.mean(self.windows)),
        )

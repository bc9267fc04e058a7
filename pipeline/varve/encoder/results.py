"""Collects the vectors of a call's windows on the host, then builds the feature columns of its texts.

Knows the feature plan and the call's tokens, but no models or devices. Invariants: every window has vectors or a reason
why not; a window that was encoded once for several equal ones appears in the columns of each of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from threading import Event, Lock

import numpy as np
import torch
from numpy.typing import NDArray

from varve.encoder.feature_plan import Column, FeaturePlan, ModelShape
from varve.encoder.model import pooling
from varve.encoder.model.forward import Vectors
from varve.encoder.packing import Index, Pack, token_index
from varve.encoder.postprocessing import finish
from varve.encoder.ragged import Columns, Ragged
from varve.preprocessing.tokenizer import Tokens, starts_of

NOT_FINITE = "the features are not finite"


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters of one or more calls."""

    repeats: int = 0  # windows not encoded again, because an equal window of the call was
    overflows: int = 0  # windows that overflowed in float16 and were encoded again in bfloat16
    splits: int = 0  # packs split in two because memory ran out

    busy_s: float = 0.0  # seconds in which lanes ran packs, summed over the lanes
    packs: int = 0
    packed_tokens: int = 0  # tokens in the packs, without padding

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(slots=True)
class HostVectors:
    """The float32 vectors of W windows with T tokens, on the host."""

    cu_seqlens: Index  # (W + 1,) where the tokens of each window start
    cu_attentions: Index  # (W + 1,) where the attention weights of each window start
    pooled: dict[tuple[str, int], NDArray[np.float32]] = field(default_factory=dict)  # (pool, layer) → (W, H)
    tokens: dict[int, NDArray[np.float32]] = field(default_factory=dict)  # layer → (T, H)
    attentions: dict[int, NDArray[np.float32]] = field(default_factory=dict)  # layer → flat, heads x L x L per window

    def gather(self, windows: Index) -> "HostVectors":
        """The vectors of these windows; `windows` comes from `find_distinct`, so if it is as long as all, it is all."""
        if len(windows) == len(self.cu_seqlens) - 1:
            return self
        token_places = token_index(self.cu_seqlens, windows)
        attention_places = token_index(self.cu_attentions, windows)
        return HostVectors(
            starts_of(np.diff(self.cu_seqlens)[windows]),
            starts_of(np.diff(self.cu_attentions)[windows]),
            {key: vectors[windows] for key, vectors in self.pooled.items()},
            {layer: vectors[token_places] for layer, vectors in self.tokens.items()},
            {layer: weights[attention_places] for layer, weights in self.attentions.items()},
        )


class Results:
    """Receives the vectors of one call's packs, from any thread."""

    def __init__(
        self, feature_plan: FeaturePlan, pooled: frozenset[tuple[str, int]], lengths: Index, shape: ModelShape
    ) -> None:
        """Allocate the arrays.

        Args:
            feature_plan: decides which token vectors and attentions are kept.
            pooled: every (pool, layer) that a pass computes.
            lengths: (W,) tokens of each window that is encoded.
            shape: of the model.
        """
        token_layers, attention_layers = feature_plan.token_layers, feature_plan.attention_layers
        cu_seqlens = starts_of(lengths)
        cu_attentions = starts_of(shape.num_heads * lengths**2 if attention_layers else 0 * lengths)
        self.vectors = HostVectors(
            cu_seqlens,
            cu_attentions,
            {key: np.empty((len(lengths), shape.hidden_size), np.float32) for key in pooled},
            {layer: np.empty((int(cu_seqlens[-1]), shape.hidden_size), np.float32) for layer in token_layers},
            {layer: np.empty(cu_attentions[-1], np.float32) for layer in attention_layers},
        )
        self.counts = Counts()
        self.reasons: dict[int, str] = {}  # window → why it could not be encoded
        self._num_pending = len(lengths)
        self._error: BaseException | None = None
        self._lock, self._done = Lock(), Event()
        self.mark_done(0)

    def store(self, pack: Pack, vectors: Vectors) -> None:
        """Copy the vectors of a pack to the places of its windows."""
        own, windows = self.vectors, pack.windows
        for key, pooled in vectors.pooled.items():
            own.pooled[key][windows] = pooled.numpy(force=True)
        for layer, hidden in vectors.tokens.items():
            own.tokens[layer][token_index(own.cu_seqlens, windows)] = hidden.float().numpy(force=True)
        for layer, weights in vectors.attentions.items():
            own.attentions[layer][token_index(own.cu_attentions, windows)] = weights.float().numpy(force=True)

    def fail(self, pack: Pack, reason: str) -> None:
        """Record why the windows of a pack cannot be encoded, and fill their vectors with NaN."""
        own = self.vectors
        for arrays, starts in ((own.tokens, own.cu_seqlens), (own.attentions, own.cu_attentions)):
            for array in arrays.values():
                array[token_index(starts, pack.windows)] = np.nan
        for array in own.pooled.values():
            array[pack.windows] = np.nan
        with self._lock:
            self.reasons |= {int(window): reason for window in pack.windows}
        self.mark_done(len(pack.windows))

    def fail_non_finite(self) -> None:
        """Record a reason for windows with NaN or infinite features, unless they have one."""
        own = self.vectors
        windows = np.arange(len(own.cu_seqlens) - 1)
        arrays = [(array, windows) for array in own.pooled.values()]
        arrays += [(array, own.cu_seqlens[:-1]) for array in own.tokens.values()]
        arrays += [(array, own.cu_attentions[:-1]) for array in own.attentions.values()]
        for array, starts in arrays:
            for row in find_non_finite(array):
                self.reasons.setdefault(int(np.searchsorted(starts, row, side="right")) - 1, NOT_FINITE)

    def count(self, **increments: float) -> None:
        """Add to the counters, by the field names of `Counts`."""
        with self._lock:
            self.counts += Counts(**increments)  # pyright: ignore[reportArgumentType] (some fields are int)

    def mark_done(self, num_windows: int) -> None:
        """Count windows as done; the last one ends `wait`."""
        with self._lock:
            self._num_pending -= num_windows
            if self._num_pending == 0:
                self._done.set()

    def abort(self, error: BaseException) -> None:
        """End `wait` with an error."""
        self._error = error
        self._done.set()

    def wait(self) -> None:
        """Block until every window is done; raises the error of a lane, if any."""
        self._done.wait()
        if self._error is not None:
            raise self._error


def find_non_finite(vectors: NDArray) -> Index:
    """Indices of the rows of an array that hold NaN or infinity.

    Most arrays have none, so the whole array is tested first: by its sum, ten times as fast as testing each number, or
    in float16, which a sum would have to widen, by the bits of the exponent.
    """
    if vectors.dtype == np.float16:
        suspect = bool(((vectors.view(np.uint16) & 0x7C00) == 0x7C00).any())
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            suspect = not np.isfinite(vectors.sum(dtype=np.float32))
    if not suspect:
        return np.zeros(0, np.int64)
    return np.flatnonzero(~np.isfinite(vectors).reshape(len(vectors), -1).all(axis=1))


def make_columns(feature_plan: FeaturePlan, tokens: Tokens, vectors: HostVectors) -> Columns:
    """Build the feature columns of the texts, in their order."""
    columns: Columns = {}
    shown = np.ones(len(tokens.input_ids), np.bool_)  # tokens that token columns hold
    if tokens.sequence_ids is not None and not feature_plan.special_tokens:
        shown = tokens.sequence_ids >= 0
    token_offsets = starts_of(shown)[tokens.cu_seqlens[tokens.cu_windows]]
    for column in feature_plan.columns:
        columns |= _make_column(column, tokens, vectors, shown, token_offsets)
    if feature_plan.wants("tokens"):
        assert tokens.spans is not None
        assert tokens.sequence_ids is not None
        columns["input_ids"] = Ragged(tokens.input_ids[shown], token_offsets)
        columns["offsets"] = Ragged(tokens.spans[shown], token_offsets)
        columns["sequence_ids"] = Ragged(tokens.sequence_ids[shown], token_offsets)
    if feature_plan.has_windows:
        columns["windows"] = Ragged(_window_spans(tokens), tokens.cu_windows)
    return columns


def _make_column(
    column: Column, tokens: Tokens, vectors: HostVectors, shown: NDArray[np.bool_], token_offsets: Index
) -> Columns:
    if column.form == "attentions":
        weights = vectors.attentions[column.layers[0]].astype(column.dtype, copy=False)
        return {column.name: Ragged(weights, vectors.cu_attentions[tokens.cu_windows])}
    if column.form == "tokens":
        return _finish(column, [vectors.tokens[layer][shown] for layer in column.layers], token_offsets)
    layers = [vectors.pooled[column.pool, layer] for layer in column.layers]
    if column.form == "windows":
        return _finish(column, layers, tokens.cu_windows)
    if len(tokens.lengths) > len(tokens.truncated):
        layers = [_pool_windows(layer, tokens, column.pool) for layer in layers]
    return _finish(column, layers, None)


def _finish(column: Column, layers: Sequence[NDArray[np.float32]], offsets: Index | None) -> Columns:
    """The column's stored values and, for int8, its scales; ragged if offsets are given."""
    values, scales = finish(column, layers)
    arrays = {column.name: values}
    if scales is not None and column.scale_name:
        arrays[column.scale_name] = scales
    return {name: array if offsets is None else Ragged(array, offsets) for name, array in arrays.items()}


def _pool_windows(pooled: NDArray[np.float32], tokens: Tokens, pool: str) -> NDArray[np.float32]:
    """(W, H) vectors of windows → (R, H) vectors of texts."""
    weights, cu_windows = torch.from_numpy(tokens.lengths), torch.from_numpy(tokens.cu_windows)
    return pooling.pool_rows(torch.from_numpy(pooled), weights, cu_windows, pool).numpy()


def _window_spans(tokens: Tokens) -> NDArray[np.int32]:
    """(W, 2) characters [start, stop) of each window in its text; an empty span without text tokens."""
    assert tokens.spans is not None
    assert tokens.sequence_ids is not None
    of_text = tokens.sequence_ids >= 0
    largest = np.iinfo(np.int32).max
    # Every window has tokens, so no segment of reduceat is empty.
    starts = np.minimum.reduceat(np.where(of_text, tokens.spans[:, 0], largest), tokens.cu_seqlens[:-1])
    stops = np.maximum.reduceat(np.where(of_text, tokens.spans[:, 1], 0), tokens.cu_seqlens[:-1])
    return np.stack([np.minimum(starts, stops), stops], axis=1).astype(np.int32)

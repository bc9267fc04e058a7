"""What a call brings together on the host: vectors of windows from packs in any order, then columns of texts.

Knows the layer plan and the call's tokens; nothing of models and devices. Invariants: every window is kept or told why
it is not; a window that was encoded once for several stands in the columns of each of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from threading import Event, Lock

import numpy as np
import torch
from numpy.typing import NDArray

from varve.encoder.feature_plan import Column, FeaturePlan
from varve.encoder.model import pooling
from varve.encoder.model.forward import Vectors
from varve.encoder.packing import Index, Pack, token_index
from varve.encoder.postprocessing import finish
from varve.encoder.ragged import Columns, Ragged
from varve.preprocessing.tokenizer import Tokens


@dataclass(frozen=True, slots=True)
class Counts:
    """What happened on the way, in windows (splits: in packs)."""

    repeats: int = 0  # not encoded again, since their tokens are those of another window of the call
    overflows: int = 0  # too large for float16, encoded again in bfloat16
    splits: int = 0  # packs that were cut in two because memory ran out

    busy_s: float = 0.0  # seconds in which lanes ran packs, summed over the lanes
    packs: int = 0
    packed_tokens: int = 0  # in the packs, without padding

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


NOT_FINITE = "the features are not finite"


@dataclass(slots=True)
class Kept:
    """The vectors of U windows, float32: what the packs bring."""

    cu_seqlens: Index  # (U + 1,) where the tokens of each window start
    squares: Index  # (U + 1,) where the attention weights of each window start
    pooled: dict[tuple[str, int], NDArray[np.float32]] = field(default_factory=dict)  # (pool, layer) → (U, H)
    tokens: dict[int, NDArray[np.float32]] = field(default_factory=dict)  # layer → (T, H)
    attentions: dict[int, NDArray[np.float32]] = field(default_factory=dict)  # layer → flat, heads x L x L each

    @property
    def num_windows(self) -> int:
        """U."""
        return len(self.cu_seqlens) - 1

    def spread(self, kind: Index) -> "Kept":
        """The vectors of W windows, of which window w is like window `kind[w]` of these."""
        if len(kind) == self.num_windows:
            return self
        at, square = token_index(self.cu_seqlens, kind), token_index(self.squares, kind)
        return Kept(
            _starts(np.diff(self.cu_seqlens)[kind]),
            _starts(np.diff(self.squares)[kind]),
            {key: vectors[kind] for key, vectors in self.pooled.items()},
            {key: vectors[at] for key, vectors in self.tokens.items()},
            {key: weights[square] for key, weights in self.attentions.items()},
        )


class Results:
    """Receives the packs of one call, from any thread."""

    def __init__(
        self, plan: FeaturePlan, pooled: frozenset[tuple[str, int]], lengths: Index, hidden_size: int, num_heads: int
    ) -> None:
        """Make room.

        Args:
            plan: what is wanted.
            pooled: every (pool, layer) that a pass brings.
            lengths: (U,) tokens of each window that is encoded.
            hidden_size: of the model.
            num_heads: of the model.
        """
        self.kept = Kept(_starts(lengths), _starts(num_heads * lengths**2 if plan.attention_layers else 0 * lengths))
        self.kept.pooled = {key: np.empty((len(lengths), hidden_size), np.float32) for key in pooled}
        self.kept.tokens = {
            layer: np.empty((int(lengths.sum()), hidden_size), np.float32) for layer in plan.token_layers
        }
        self.kept.attentions = {layer: np.empty(self.kept.squares[-1], np.float32) for layer in plan.attention_layers}
        self.counts = Counts()
        self.reasons: dict[int, str] = {}  # window → why it could not be encoded
        self._missing = len(lengths)
        self._error: BaseException | None = None
        self._lock, self._done = Lock(), Event()
        self.finish(0)

    def keep(self, pack: Pack, vectors: Vectors) -> None:
        """Take the vectors of a pack."""
        kept, windows = self.kept, pack.windows
        for key, pooled in vectors.pooled.items():
            kept.pooled[key][windows] = pooled.numpy(force=True)
        for layer, hidden in vectors.tokens.items():
            kept.tokens[layer][token_index(kept.cu_seqlens, windows)] = hidden.float().numpy(force=True)
        for layer, weights in vectors.attentions.items():
            kept.attentions[layer][token_index(kept.squares, windows)] = weights.float().numpy(force=True)

    def fail(self, pack: Pack, reason: str) -> None:
        """The windows of a pack can't be encoded; they hold NaN."""
        for arrays, starts in ((self.kept.tokens, self.kept.cu_seqlens), (self.kept.attentions, self.kept.squares)):
            for array in arrays.values():
                array[token_index(starts, pack.windows)] = np.nan
        for array in self.kept.pooled.values():
            array[pack.windows] = np.nan
        with self._lock:
            self.reasons |= {int(window): reason for window in pack.windows}
        self.finish(len(pack.windows))

    def refuse_infinite(self) -> None:
        """Windows with a feature that is NaN or infinite get that for a reason, unless they have one."""
        windows = np.arange(self.kept.num_windows)
        arrays = [(array, windows) for array in self.kept.pooled.values()]
        arrays += [(array, self.kept.cu_seqlens[:-1]) for array in self.kept.tokens.values()]
        arrays += [(array, self.kept.squares[:-1]) for array in self.kept.attentions.values()]
        for array, starts in arrays:
            for at in not_finite(array):
                self.reasons.setdefault(int(np.searchsorted(starts, at, side="right")) - 1, NOT_FINITE)

    def count(self, **more: float) -> None:
        """Count what happened, by the fields of `Counts`."""
        with self._lock:
            self.counts += Counts(**more)  # pyright: ignore[reportArgumentType]

    def finish(self, num_windows: int) -> None:
        """So many more windows are done."""
        with self._lock:
            self._missing -= num_windows
            if self._missing == 0:
                self._done.set()

    def abort(self, error: BaseException) -> None:
        """The call can't be finished."""
        self._error = error
        self._done.set()

    def wait(self) -> None:
        """Until every window is done; raises what went wrong in a lane."""
        self._done.wait()
        if self._error is not None:
            raise self._error


def not_finite(vectors: NDArray) -> Index:
    """Places of the vectors (or numbers) in an array that hold NaN or infinity.

    Whether there are any their sum tells, ten times as fast as a look at each; in float16, which a sum would have to
    widen, the bits of the exponent.
    """
    if vectors.dtype == np.float16:
        found = bool(((vectors.view(np.uint16) & 0x7C00) == 0x7C00).any())
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            found = not np.isfinite(vectors.sum(dtype=np.float32))
    if not found:
        return np.zeros(0, np.int64)
    return np.flatnonzero(~np.isfinite(vectors).reshape(len(vectors), -1).all(axis=1))


def make_columns(plan: FeaturePlan, tokens: Tokens, kept: Kept) -> Columns:
    """The feature columns of the texts, in their order."""
    columns: Columns = {}
    own = np.ones(len(tokens.input_ids), np.bool_)
    if tokens.sequence_ids is not None and not plan.special_tokens:
        own = tokens.sequence_ids >= 0
    token_rows = _starts(own)[tokens.cu_seqlens[tokens.cu_windows]]
    for column in plan.columns:
        columns |= _column(column, tokens, kept, own, token_rows)
    if plan.wants("tokens"):
        assert tokens.spans is not None
        assert tokens.sequence_ids is not None
        columns["input_ids"] = Ragged(tokens.input_ids[own], token_rows)
        columns["offsets"] = Ragged(tokens.spans[own], token_rows)
        columns["sequence_ids"] = Ragged(tokens.sequence_ids[own], token_rows)
    if plan.has_windows:
        columns["windows"] = Ragged(_window_spans(tokens), tokens.cu_windows)
    return columns


def _column(
    column: Column, tokens: Tokens, kept: Kept, own: NDArray[np.bool_], token_rows: NDArray[np.int64]
) -> Columns:
    if column.form == "attentions":
        return {
            column.name: Ragged(
                kept.attentions[column.layers[0]].astype(column.dtype, copy=False), kept.squares[tokens.cu_windows]
            )
        }
    if column.form == "tokens":
        return _stored(column, [kept.tokens[layer][own] for layer in column.layers], token_rows)
    layers = [kept.pooled[column.pool, layer] for layer in column.layers]
    if column.form == "windows":
        return _stored(column, layers, tokens.cu_windows)
    if len(tokens.lengths) > len(tokens.truncated):
        layers = [_pool_rows(layer, tokens, column.pool) for layer in layers]
    return _stored(column, layers, None)


def _stored(column: Column, layers: Sequence[NDArray[np.float32]], offsets: NDArray[np.int64] | None) -> Columns:
    vectors, scales = finish(column, layers)
    arrays = {column.name: vectors}
    if scales is not None and column.scale_name:
        arrays[column.scale_name] = scales
    return {name: values if offsets is None else Ragged(values, offsets) for name, values in arrays.items()}


def _pool_rows(pooled: NDArray[np.float32], tokens: Tokens, pool: str) -> NDArray[np.float32]:
    weights, rows = torch.from_numpy(tokens.lengths), torch.from_numpy(tokens.cu_windows)
    return pooling.pool_rows(torch.from_numpy(pooled), weights, rows, pool).numpy()


def _window_spans(tokens: Tokens) -> NDArray[np.int32]:
    """(W, 2) characters [start, stop) of each window in its text."""
    assert tokens.spans is not None
    assert tokens.sequence_ids is not None
    real = tokens.sequence_ids >= 0
    far = np.iinfo(np.int32).max
    # Windows have tokens, so no segment of reduceat is empty; a window of special tokens alone spans nothing.
    starts = np.minimum.reduceat(np.where(real, tokens.spans[:, 0], far), tokens.cu_seqlens[:-1])
    stops = np.maximum.reduceat(np.where(real, tokens.spans[:, 1], 0), tokens.cu_seqlens[:-1])
    return np.stack([np.minimum(starts, stops), stops], axis=1).astype(np.int32)


def _starts(lengths: NDArray) -> Index:
    """(N + 1,) where each of N neighbours starts."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])

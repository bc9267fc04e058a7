"""Collects the vectors of a call's windows on the host.

Knows the feature plan, but no models or devices. Invariant: every window has vectors or a reason why not.
"""

from dataclasses import dataclass, field, fields
from threading import Event, Lock

import numpy as np
from numpy.typing import NDArray

from varve.encoder.feature_plan import FeaturePlan, ModelShape
from varve.encoder.model.forward import Vectors
from varve.encoder.packing import Index, Pack, token_index
from varve.encoder.sparse_vectors import SparsePieces, SparseVectors
from varve.preprocessing.tokens import starts_of

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
    """The float32 vectors of W windows with T tokens, pooled over U units (windows, or their chunks), on the host."""

    cu_seqlens: Index  # (W + 1,) where the tokens of each window start
    cu_units: Index  # (W + 1,) where the units of each window start
    cu_attentions: Index  # (W + 1,) where the attention weights of each window start
    pooled: dict[tuple[str, int], NDArray[np.float32]] = field(default_factory=dict)  # (pool, layer) → (U, H)
    tokens: dict[int | str, NDArray[np.float32]] = field(default_factory=dict)  # layer, or column of a head → (T, D)
    attentions: dict[int, NDArray[np.float32]] = field(default_factory=dict)  # layer → flat, heads x L x L per window
    sparse: dict[str, SparseVectors] = field(default_factory=dict)  # column → one vector per window

    def gather(self, windows: Index) -> "HostVectors":
        """The vectors of these windows; `windows` comes from `find_distinct`, so if it is as long as all, it is all."""
        if len(windows) == len(self.cu_seqlens) - 1:
            return self
        token_places, unit_places = token_index(self.cu_seqlens, windows), token_index(self.cu_units, windows)
        attention_places = token_index(self.cu_attentions, windows)
        return HostVectors(
            starts_of(np.diff(self.cu_seqlens)[windows]),
            starts_of(np.diff(self.cu_units)[windows]),
            starts_of(np.diff(self.cu_attentions)[windows]),
            {key: vectors[unit_places] for key, vectors in self.pooled.items()},
            {key: vectors[token_places] for key, vectors in self.tokens.items()},
            {layer: weights[attention_places] for layer, weights in self.attentions.items()},
            {name: vectors.take(windows) for name, vectors in self.sparse.items()},
        )


class Results:
    """Receives the vectors of one call's packs, from any thread."""

    def __init__(
        self,
        feature_plan: FeaturePlan,
        pooled: frozenset[tuple[str, int]],
        lengths: Index,
        shape: ModelShape,
        num_chunks: Index | None = None,
    ) -> None:
        """Allocate the arrays.

        Args:
            feature_plan: decides which token vectors and attentions are kept.
            pooled: every (pool, layer) that a pass computes.
            lengths: (W,) tokens of each window that is encoded.
            shape: of the model.
            num_chunks: (W,) chunks of each window; None: windows are pooled as a whole.
        """
        attention_layers = feature_plan.attention_layers
        cu_seqlens, num_windows = starts_of(lengths), len(lengths)
        cu_units = np.arange(num_windows + 1) if num_chunks is None else starts_of(num_chunks)
        cu_attentions = starts_of(shape.num_heads * lengths**2 if attention_layers else 0 * lengths)
        self.vectors = HostVectors(
            cu_seqlens,
            cu_units,
            cu_attentions,
            {key: np.empty((int(cu_units[-1]), shape.hidden_size), np.float32) for key in pooled},
            {
                key: np.empty((int(cu_seqlens[-1]), width), np.float32)
                for key, width in feature_plan.token_widths(shape.hidden_size).items()
            },
            {layer: np.empty(cu_attentions[-1], np.float32) for layer in attention_layers},
        )
        self._sparse = {name: SparsePieces(num_windows) for name in feature_plan.masked_lm_heads}
        self.counts = Counts()
        self.reasons: dict[int, str] = {}  # window → why it could not be encoded
        self._num_pending = len(lengths)
        self._error: BaseException | None = None
        self._lock, self._done = Lock(), Event()
        self.mark_done(0)

    def store(self, pack: Pack, vectors: Vectors) -> None:
        """Copy the vectors of a pack to the places of its windows."""
        own, windows = self.vectors, pack.windows
        units = windows if pack.chunk_counts is None else token_index(own.cu_units, windows)
        for key, pooled in vectors.pooled.items():
            own.pooled[key][units] = pooled.numpy(force=True)
        for key, hidden in vectors.tokens.items():
            own.tokens[key][token_index(own.cu_seqlens, windows)] = hidden.float().numpy(force=True)
        for layer, weights in vectors.attentions.items():
            own.attentions[layer][token_index(own.cu_attentions, windows)] = weights.float().numpy(force=True)
        with self._lock:
            for name, rows in vectors.sparse.items():
                self._sparse[name].add(windows, rows)

    def fail(self, pack: Pack, reason: str) -> None:
        """Record why the windows of a pack cannot be encoded, and fill their vectors with NaN."""
        own = self.vectors
        arrays = [(array, own.cu_seqlens) for array in own.tokens.values()]
        arrays += [(array, own.cu_attentions) for array in own.attentions.values()]
        arrays += [(array, own.cu_units) for array in own.pooled.values()]
        for array, starts in arrays:
            array[token_index(starts, pack.windows)] = np.nan
        with self._lock:
            self.reasons |= {int(window): reason for window in pack.windows}
        self.mark_done(len(pack.windows))

    def fail_non_finite(self) -> None:
        """Record a reason for windows with NaN or infinite features, unless they have one."""
        own = self.vectors
        arrays: list[tuple[NDArray, Index]] = [(array, own.cu_units[:-1]) for array in own.pooled.values()]
        arrays += [(array, own.cu_seqlens[:-1]) for array in own.tokens.values()]
        arrays += [(array, own.cu_attentions[:-1]) for array in own.attentions.values()]
        arrays += [(vectors.weights, vectors.offsets[:-1]) for vectors in own.sparse.values()]
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
        self.vectors.sparse = {name: pieces.join() for name, pieces in self._sparse.items()}


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

"""Cuts the windows of long texts into chunks, whose vectors are pooled from tokens that saw the whole window.

Pure numpy; knows nothing of tokenizers or models. Invariants: only tokens of the text belong to chunks; every one of
them is in a chunk of at least one of its windows; a chunk is never empty, except of a window without tokens.
Source: Günther et al. 2024, Late Chunking: Contextual Chunk Embeddings Using Long-Context Embedding Models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from varve.config.model import Chunks
from varve.preprocessing.sentences import find_sentence_ends
from varve.preprocessing.tokens import Tokens, find_runs, range_index, starts_of

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Regions:
    """The tokens of each of W windows that its chunks cover, as indices into all tokens."""

    starts: Index  # (W,)
    stops: Index  # (W,)
    contexts: Index  # (W,) tokens of the text before `starts`, which the window before covers


def add_chunks(tokens: Tokens, chunks: Chunks, stride: int, texts: Sequence[str]) -> Tokens:
    """Cut every window into chunks.

    A window after the first of its text covers only the tokens that are new in it; chunks that overlap reach back into
    its first tokens. A chunk's span begins at its first token and ends with its last one, so white space between two
    chunks may be in neither. A window without tokens of the text, from an empty text, has one chunk of all its tokens,
    with span [0, 0).

    Args:
        tokens: with spans and sequence ids.
        chunks: how windows are cut.
        stride: tokens of the text by which neighbouring windows overlap.
        texts: (R,) texts of the windows.
    """
    assert tokens.spans is not None
    regions = _regions(tokens, stride)
    firsts, stops, counts = (
        _by_tokens(regions, chunks)
        if chunks.by == "tokens"
        else _by_sentences(regions, chunks.tokens, _sentence_stops(tokens, texts))
    )
    offsets = np.repeat(tokens.cu_seqlens[:-1], counts)
    is_empty = np.repeat(regions.starts == regions.stops, counts)
    return replace(
        tokens,
        cu_chunks=starts_of(counts),
        chunk_tokens=_whole_windows(tokens, np.stack([firsts - offsets, stops - offsets], axis=1), counts, is_empty),
        chunk_spans=_spans(tokens.spans, firsts, stops, is_empty),
    )


def _regions(tokens: Tokens, stride: int) -> _Regions:
    assert tokens.sequence_ids is not None
    firsts, counts = find_runs(tokens.sequence_ids >= 0, tokens.cu_seqlens)
    is_later = np.ones(len(firsts), np.bool_)
    is_later[tokens.cu_windows[:-1]] = False
    contexts = np.where(is_later, np.minimum(stride, counts), 0)
    return _Regions(firsts + contexts, firsts + counts, contexts)


def _by_tokens(regions: _Regions, chunks: Chunks) -> tuple[Index, Index, Index]:
    """(C,) first tokens and (C,) stops of chunks of equal length, and (W,) chunks of each window."""
    starts = regions.starts - np.minimum(regions.contexts, chunks.overlap)
    lengths = regions.stops - starts
    step = chunks.tokens - chunks.overlap
    counts = 1 + np.maximum(0, -(-(lengths - chunks.tokens) // step))
    firsts = np.repeat(starts, counts) + step * range_index(np.zeros_like(counts), counts)
    return firsts, np.minimum(firsts + chunks.tokens, np.repeat(regions.stops, counts)), counts


def _by_sentences(regions: _Regions, size: int, sentence_stops: Index) -> tuple[Index, Index, Index]:
    """The same of chunks of whole sentences. One step of the loop finds the next chunk of every window."""
    windows, firsts = np.arange(len(regions.starts)), regions.starts
    steps: list[tuple[Index, Index, Index]] = []
    while len(windows):
        limits = np.minimum(firsts + size, regions.stops[windows])
        places = np.searchsorted(sentence_stops, limits, side="right") - 1
        last_stops = np.append(sentence_stops, 0)[places]  # place -1: no sentence ends before the limit
        ends_region = limits == regions.stops[windows]
        stops = np.where(~ends_region & (last_stops > firsts), last_stops, limits)
        steps.append((windows, firsts, stops))
        is_open = stops < regions.stops[windows]
        windows, firsts = windows[is_open], stops[is_open]
    every = [np.concatenate(arrays) for arrays in zip(*steps, strict=True)] if steps else [windows, firsts, firsts]
    order = np.lexsort((every[1], every[0]))
    return every[1][order], every[2][order], np.bincount(every[0], minlength=len(regions.starts))


def _sentence_stops(tokens: Tokens, texts: Sequence[str]) -> Index:
    """Indices of all tokens after which another sentence begins; a token belongs to the sentence of its start."""
    assert tokens.spans is not None
    ends, cu_ends = find_sentence_ends(texts)
    rows = np.arange(len(texts))
    # One ascending array of all ends: characters of a text are numbered from row * 2^32.
    keys = ends + (np.repeat(rows, np.diff(cu_ends)) << 32)
    token_rows = np.repeat(rows, tokens.num_tokens)
    sentences = np.searchsorted(keys, tokens.spans[:, 0] + (token_rows << 32), side="right")
    return np.flatnonzero(np.diff(sentences)) + 1


def _whole_windows(
    tokens: Tokens, chunk_tokens: Index, counts: Index, is_empty: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """The tokens of chunks; those of windows without text are all tokens of the window."""
    lengths = np.repeat(tokens.lengths, counts)
    whole = np.stack([np.zeros_like(lengths), lengths], axis=1)
    return np.where(is_empty[:, None], whole, chunk_tokens).astype(np.int32)


def _spans(spans: NDArray[np.int32], firsts: Index, stops: Index, is_empty: NDArray[np.bool_]) -> NDArray[np.int32]:
    """(C, 2) characters of chunks."""
    padded = np.concatenate([spans, np.zeros((1, 2), np.int32)])  # the region of an empty window may start at the end
    result = np.stack([padded[firsts, 0], padded[stops - 1, 1]], axis=1)
    return np.where(is_empty[:, None], np.int32(0), result)

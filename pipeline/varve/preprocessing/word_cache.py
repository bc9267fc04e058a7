"""Tokenizes a text word by word, and each word once: `tokenizers` encodes the words that are not known yet.

Works for tokenizers whose tokens of a word do not depend on its neighbours (`can_cache`). A word here begins with the
spaces before it. Knows nothing of windows. Invariants: the ids are those of the whole text; the cache is bounded.
"""

import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from threading import Lock
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.preprocessing.flat_encodings import count_special_tokens
from varve.preprocessing.leading_text import splits_at_space, steps_of
from varve.preprocessing.tokens import range_index, starts_of

Index = NDArray[np.int64]

_MAX_WORDS = 2**18  # about 40 MB of keys and ids
_MAX_BYTES = 2**25  # of all words
_SPACE = 32
# Normalizers of single characters and their combining marks. The others could change a word's first spaces.
_NORMALIZERS = frozenset(
    {"BertNormalizer", "Lowercase", "StripAccents", "NFC", "NFD", "NFKC", "NFKD", "Precompiled", "ByteLevel"}
)
_MODELS = frozenset({"BPE", "Unigram", "WordPiece"})
_BEFORE, _AFTER = 0, 1  # entries of the special tokens


class WordCache:
    """`tokenizers`, which sees each word once. Threads may call at the same time, and wait for each other."""

    def __init__(self, raw: Any) -> None:
        """Start without words.

        Args:
            raw: a tokenizer of `tokenizers` for which `can_cache` is true, without truncation and padding; is kept.
        """
        self.name = f"tokenizers {version('tokenizers')}, each word once"
        self._raw, self._lock = raw, Lock()
        self._is_break = np.isin(np.arange(256), np.frombuffer(_breaks(raw), np.uint8))
        self._clear()

    def _clear(self) -> None:
        before, after = count_special_tokens(self._raw)
        special = self._raw.encode("a").ids
        self._entries: dict[bytes, int] = {}
        self._num_bytes = 0
        self._ids = np.zeros(0, np.int32)
        self._lengths = np.zeros(0, np.int64)
        self._append([special[:before], special[len(special) - after :]])

    def encode(
        self, texts: Sequence[str], max_tokens: int | None = None, side: Literal["left", "right"] = "right"
    ) -> tuple[NDArray[np.int32], Index]:
        """See `FastTokenizer.encode`."""
        words, cu_words = _split(texts, self._is_break)
        distinct = words.dictionary_encode()
        with self._lock:
            if len(self._entries) > _MAX_WORDS or self._num_bytes > _MAX_BYTES:
                self._clear()
            entries = self._find(distinct.dictionary.to_pylist())[distinct.indices.to_numpy()]
            ids, lengths = self._ids, self._lengths
        entries, cu_words = _add_special(entries, cu_words)
        starts, counts = starts_of(lengths)[entries], lengths[entries]
        if max_tokens is not None:
            starts, counts = _truncate(starts, counts, cu_words, max_tokens, side)
        return ids[range_index(starts, counts)], starts_of(counts)[cu_words]

    def _find(self, words: list[bytes]) -> Index:
        """(N,) the entries of words, which are added if they are not known."""
        known = self._entries
        entries = np.fromiter((known.get(word, -1) for word in words), np.int64, len(words))
        new = np.flatnonzero(entries < 0)
        if len(new):
            added = [words[at] for at in new.tolist()]
            encodings = self._raw.encode_batch_fast([word.decode() for word in added], add_special_tokens=False)
            entries[new] = len(self._lengths) + np.arange(len(new))
            self._append([encoding.ids for encoding in encodings])
            known.update(zip(added, entries[new].tolist(), strict=True))
            self._num_bytes += sum(map(len, added))
        return entries

    def _append(self, ids: list[list[int]]) -> None:
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter((token for row in ids for token in row), np.int32, int(lengths.sum()))
        self._ids, self._lengths = np.concatenate([self._ids, flat]), np.concatenate([self._lengths, lengths])


def can_cache(raw: Any) -> bool:
    """Whether a text has the tokens of its words, each encoded alone with the spaces before it.

    This is true if the model is one of pre-tokens and chooses nothing at random, normalizers change single characters,
    the pre-tokenizer splits at spaces, and no added token contains or takes the space after it.
    """
    state = json.loads(raw.to_str())
    added, model = state.get("added_tokens", ()), state["model"]
    before, after = count_special_tokens(raw)
    return (
        model.get("type") in _MODELS
        and not model.get("dropout")
        and not any(token["rstrip"] or re.search(r"\s", token["content"]) for token in added)
        and all(map(_changes_characters, steps_of(state.get("normalizer"), "normalizers")))
        and splits_at_space(state.get("pre_tokenizer"))
        and len(raw.encode("").ids) == before + after == raw.num_special_tokens_to_add(is_pair=False)
    )


def _changes_characters(normalizer: dict[str, Any]) -> bool:
    """Whether a normalizer changes single characters, or makes one space of several."""
    if normalizer["type"] == "Replace":
        return bool(normalizer["pattern"].get("Regex") == " {2,}" and normalizer["content"] in {" ", "\u2581"})
    return normalizer["type"] in _NORMALIZERS


def _breaks(raw: Any) -> bytes:
    """White space before which a word may begin.

    Metaspace puts a space before a text that begins with another character, so white space must become one.
    """
    first = steps_of(json.loads(raw.to_str()).get("pre_tokenizer"), "pretokenizers")[0]["type"]
    white = " \n\t\r"
    if first == "Metaspace":
        normalize = raw.normalizer.normalize_str if raw.normalizer else str
        white = "".join(c for c in white if c == " " or normalize(c) == " ")
    return white.encode()


def _split(texts: Sequence[str], is_break: NDArray[np.bool_]) -> tuple[pa.Array, Index]:
    """The words of all texts as UTF-8, and (R + 1,) where those of each text start.

    A word begins at white space after a printable ASCII character, a letter of U+00C0 to U+052F, or one of U+3041 to
    U+9FFF. Other characters may be white space to a normalizer, or form one cluster with the space.

    Args:
        texts: to split.
        is_break: (256,) bytes at which a word may begin.
    """
    column = pa.array(texts, pa.large_string())
    content = column.buffers()[2]
    data = np.frombuffer(content or b"", np.uint8)
    offsets = np.frombuffer(column.buffers()[1], np.int64)[: len(column) + 1]
    data = data[: offsets[-1]]
    spaces = np.flatnonzero(is_break[data])
    last, second, third = (data[np.maximum(spaces - back, 0)] for back in (1, 2, 3))
    is_letter = (last >= 0x80) & (last < 0xC0) & (second >= 0xC3) & (second <= 0xD4)
    is_han = (third >= 0xE3) & (third <= 0xE9) & (last >= 0x80) & (last < 0xC0) & ((third > 0xE3) | (second > 0x80))
    is_start = np.zeros(len(data) + 1, np.bool_)
    is_start[spaces[((last > _SPACE) & (last < 0x7F)) | is_letter | is_han]] = True
    is_start[offsets] = True
    is_start[-1] = True
    starts = np.flatnonzero(is_start)
    buffers = [None, pa.py_buffer(starts), content]
    words = pa.Array.from_buffers(pa.large_binary(), len(starts) - 1, buffers)
    return words, np.searchsorted(starts, offsets)


def _add_special(entries: Index, cu_words: Index) -> tuple[Index, Index]:
    """Put the entries of the special tokens before and after the words of each text."""
    num_texts = len(cu_words) - 1
    grown = cu_words + 2 * np.arange(num_texts + 1)
    added = np.empty(len(entries) + 2 * num_texts, np.int64)
    is_word = np.ones(len(added), np.bool_)
    is_word[grown[:-1]] = is_word[grown[1:] - 1] = False
    added[is_word], added[grown[:-1]], added[grown[1:] - 1] = entries, _BEFORE, _AFTER
    return added, grown


def _truncate(starts: Index, counts: Index, cu_words: Index, max_tokens: int, side: str) -> tuple[Index, Index]:
    """Drop the tokens of words for which there is no room; special tokens stay."""
    before = starts_of(counts)
    excess = np.diff(before[cu_words]) - max_tokens  # of each text
    if (excess <= 0).all():
        return starts, counts
    rows = np.repeat(np.arange(len(excess)), np.diff(cu_words))
    is_word = np.ones(len(counts), np.bool_)
    is_word[cu_words[:-1]] = is_word[cu_words[1:] - 1] = False
    if side == "right":
        left = before[cu_words[1:] - 1][rows] - before[1:]  # tokens of the text after this word
    else:
        left = before[:-1] - before[cu_words[:-1] + 1][rows]  # before this word
    dropped = np.where(is_word, np.clip(excess[rows] - left, 0, counts), 0)
    return starts + (dropped if side == "left" else 0), counts - dropped

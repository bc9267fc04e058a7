"""Texts → the token ids of their windows, ragged, without padding.

Uses the raw `tokenizers` of the checkpoint; knows nothing of Arrow, Ray or models. Invariants: every text has at least
one window; the kept tokens are those that `transformers`' own tokenizer keeps; nothing is padded.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Characters read at first per token that may be kept; English has about 4.5.
CHARACTERS_PER_TOKEN = 12

# Pre-tokenizers that always split between a non-space and a space, so that what follows a word can't change its tokens.
_SPLITS_AT_SPACE = {
    "BertPreTokenizer": "",
    "Whitespace": "",
    "WhitespaceSplit": "",
    "ByteLevel": "use_regex",
    "Metaspace": "split",
}
# Normalizers that treat each word by itself.
_KEEPS_WORDS_APART = frozenset(
    {"BertNormalizer", "Lowercase", "StripAccents", "NFC", "NFD", "NFKC", "NFKD", "Strip", "Precompiled", "Replace"}
)
_WORD_END = re.compile(r"\S(?=[ \n\t])")


@dataclass(frozen=True, slots=True)
class Tokens:
    """The windows of R texts, laid end to end; W windows and T tokens in all."""

    input_ids: NDArray[np.int32]  # (T,)
    cu_seqlens: NDArray[np.int64]  # (W + 1,) where each window starts in input_ids
    cu_windows: NDArray[np.int64]  # (R + 1,) where the windows of each text start
    truncated: NDArray[np.bool_]  # (R,) tokens of the text were left out
    token_type_ids: NDArray[np.int32] | None = None  # (T,); None where all are 0
    spans: NDArray[np.int32] | None = None  # (T, 2) characters [start, stop) of each token in its text
    sequence_ids: NDArray[np.int8] | None = None  # (T,) 0 first text, 1 second, -1 special token

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(W,) tokens of each window."""
        return np.diff(self.cu_seqlens)

    @property
    def num_tokens(self) -> NDArray[np.int32]:
        """(R,) tokens of each text over its windows."""
        return np.diff(self.cu_seqlens[self.cu_windows]).astype(np.int32)


class Tokenizer:
    """One checkpoint's tokenizer with one rule for long texts."""

    def __init__(
        self,
        pretrained: Any,
        max_tokens: int,
        *,
        windows: bool = False,
        stride: int = 0,
        spans: bool = False,
        vocab_size: int | None = None,
    ) -> None:
        """Set the rule.

        Args:
            pretrained: a fast tokenizer of `transformers`, as load.py gives it. Its own truncation and padding are
                undone on a copy.
            max_tokens: of a window, special tokens included.
            windows: cut a long text into several windows instead of truncating it.
            stride: tokens by which neighbouring windows overlap.
            spans: return the character span of every token (slower: it needs the offsets of `tokenizers`).
            vocab_size: of the model, where it is known.
        """
        self._raw = type(pretrained.backend_tokenizer).from_str(pretrained.backend_tokenizer.to_str())
        self._raw.no_padding()
        self._splits_special_tokens = pretrained.split_special_tokens
        self._raw.encode_special_tokens = self._splits_special_tokens
        self._pair_types = "token_type_ids" in pretrained.model_input_names
        # Models take 0 where none are given, and a single text has others with few tokenizers.
        self._single_types = self._pair_types and any(self._raw.encode("a").type_ids)
        # Windows leave nothing out, on neither side: they begin where the text does.
        side = "right" if windows else pretrained.truncation_side
        self._raw.enable_truncation(max_tokens, stride=stride, direction=side)
        self._encode = self._raw.encode_batch if spans else self._raw.encode_batch_fast
        self.cuts_windows = windows
        self._vocab_size = np.iinfo(np.int32).max if vocab_size is None else vocab_size
        self._spans = spans
        self._first_cut = CHARACTERS_PER_TOKEN * max_tokens if not windows and _can_cut(self._raw) else None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come out of a pickle, in which `tokenizers` leaves one switch behind."""
        self.__dict__ |= state
        self._raw.encode_special_tokens = self._splits_special_tokens

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokens:
        """Tokenize texts, or pairs of texts."""
        if pairs is not None:
            return self._collect(self._encode(list(zip(texts, pairs, strict=True))), types=self._pair_types)
        encodings = self._encode_cut(texts) if self._first_cut else self._encode(list(texts))
        return self._collect(encodings, types=self._single_types)

    def reasons_against(self, tokens: Tokens) -> dict[int, str]:
        """Text → why the model can't encode it: it has no tokens, or one that came without an embedding."""
        empty = np.flatnonzero(tokens.num_tokens == 0)
        beyond = np.flatnonzero(tokens.input_ids >= self._vocab_size)
        rows = np.searchsorted(tokens.cu_seqlens[tokens.cu_windows], beyond, side="right") - 1
        names = map(self._raw.id_to_token, tokens.input_ids[beyond].tolist())
        unknown = zip(rows.tolist(), names, strict=True)
        return dict.fromkeys(empty.tolist(), "the text has no tokens") | {
            row: f"the model has no embedding for its token {name!r}" for row, name in unknown
        }

    def _encode_cut(self, texts: Sequence[str]) -> list[Any]:
        """Encode only as many characters of long texts as can matter.

        A text is cut after a word that is followed by a space. There the pre-tokenizer splits whatever comes next, so
        the tokens of the cut text are the first tokens of the whole (`_can_cut` admits only tokenizers of which this
        is true). If the cut text fills the window and overflows it, the kept tokens and the flag are therefore those
        of the whole text; if not, twice as many characters are read.
        """
        cut = self._first_cut or 0
        encodings = self._encode([_cut_after_word(text, cut) for text in texts])
        short = [at for at, text in enumerate(texts) if len(text) > cut and not encodings[at].overflowing]
        while short:
            cut *= 2
            for at, encoding in zip(
                short, self._encode([_cut_after_word(texts[at], cut) for at in short]), strict=True
            ):
                encodings[at] = encoding
            short = [at for at in short if len(texts[at]) > cut and not encodings[at].overflowing]
        return encodings

    def _collect(self, encodings: list[Any], *, types: bool) -> Tokens:
        # `tokenizers` hands ids out as Python lists only; they are turned into buffers here, once.
        overflow = [encoding.overflowing for encoding in encodings]
        windows = list(_windows_of(encodings, overflow)) if self.cuts_windows else encodings
        counts = [1 + len(more) for more in overflow] if self.cuts_windows else np.ones(len(encodings), np.int64)
        lengths = np.fromiter((len(window) for window in windows), np.int64, len(windows))
        total = int(lengths.sum())
        return Tokens(
            input_ids=_flat((w.ids for w in windows), np.int32, total),
            cu_seqlens=starts_of(lengths),
            cu_windows=starts_of(np.asarray(counts, np.int64)),
            truncated=np.zeros(len(encodings), np.bool_)
            if self.cuts_windows
            else np.fromiter(map(bool, overflow), np.bool_),
            token_type_ids=_flat((w.type_ids for w in windows), np.int32, total) if types else None,
            spans=_spans(windows, total) if self._spans else None,
            sequence_ids=_sequence_ids(windows, total) if self._spans else None,
        )


def _windows_of(encodings: list[Any], overflow: list[list[Any]]) -> Iterator[Any]:
    for encoding, more in zip(encodings, overflow, strict=True):
        yield encoding
        yield from more


def starts_of(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """(N + 1,) where each of N consecutive pieces starts, and where the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _flat(lists: Iterator[list[int]], dtype: type[np.integer], total: int) -> NDArray[Any]:
    return np.fromiter(chain.from_iterable(lists), dtype, total)


def _spans(windows: list[Any], total: int) -> NDArray[np.int32]:
    pairs = chain.from_iterable(chain.from_iterable(window.offsets for window in windows))
    return np.fromiter(pairs, np.int32, 2 * total).reshape(total, 2)


def _sequence_ids(windows: list[Any], total: int) -> NDArray[np.int8]:
    ids = chain.from_iterable(window.sequence_ids for window in windows)
    return np.fromiter((-1 if sequence is None else sequence for sequence in ids), np.int8, total)


def _cut_after_word(text: str, length: int) -> str:
    """The text up to the first end of a word at or after `length` characters."""
    if len(text) <= length:
        return text
    word_end = _WORD_END.search(text, length - 1)
    return text[: word_end.end()] if word_end else text


def _can_cut(raw: Any) -> bool:
    """Whether what follows a word and a space can never change the tokens up to the word's end.

    True when the pre-tokenizer splits there, the normalizer works within words, no added token holds a space, and
    truncation drops the text's end.
    """
    state = json.loads(raw.to_str())
    if (state.get("truncation") or {}).get("direction", "Right") != "Right":
        return False
    if any(re.search(r"\s", token["content"]) for token in state.get("added_tokens", ())):
        return False
    return _all_known(state.get("normalizer"), "normalizers") and _splits_at_space(state.get("pre_tokenizer"))


def _parts(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return list(step[key]) if step["type"] == "Sequence" else [step]


def _all_known(step: dict[str, Any] | None, key: str) -> bool:
    return all(
        part["type"] in _KEEPS_WORDS_APART and not (part["type"] == "Replace" and _joins_words(part))
        for part in _parts(step, key)
    )


def _joins_words(replace: dict[str, Any]) -> bool:
    """Whether a Replace could take a space away or reach over one: only plain strings and runs of spaces are known."""
    pattern = replace["pattern"]
    return not (("String" in pattern and " " not in pattern["String"]) or pattern.get("Regex") == " {2,}")


def _splits_at_space(step: dict[str, Any] | None) -> bool:
    """Whether the first pre-tokenizer splits at spaces: it does by nature, or its switch for that is on."""
    parts = _parts(step, "pretokenizers")
    switch = _SPLITS_AT_SPACE.get(parts[0]["type"]) if parts else None
    return switch is not None and (not switch or bool(parts[0].get(switch, True)))

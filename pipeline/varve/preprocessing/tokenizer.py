"""Turns texts into the token ids of their windows, concatenated without padding.

Uses the checkpoint's tokenizer from the `tokenizers` library; knows nothing of Arrow, Ray or models. Invariants: every
text has at least one window; the tokens are the same as those of the tokenizer in `transformers`.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Characters that are read first, per token of `max_tokens`. English has about 4.5 characters per token.
_CHARACTERS_PER_TOKEN = 12

# Pre-tokenizers that split between a non-space and a space, so that later text cannot change the tokens of a word →
# the option that switches this on, or "" if they always do.
_SPLITS_AT_SPACE = {
    "BertPreTokenizer": "",
    "Whitespace": "",
    "WhitespaceSplit": "",
    "ByteLevel": "use_regex",
    "Metaspace": "split",
}
# Normalizers that change each word independently of its neighbours.
_NORMALIZES_WORDS = frozenset(
    {"BertNormalizer", "Lowercase", "StripAccents", "NFC", "NFD", "NFKC", "NFKD", "Strip", "Precompiled"}
)
_WORD_END = re.compile(r"\S(?=[ \n\t])")


@dataclass(frozen=True, slots=True)
class Tokens:
    """The windows of R texts, concatenated; W windows and T tokens in all."""

    input_ids: NDArray[np.int32]  # (T,)
    cu_seqlens: NDArray[np.int64]  # (W + 1,) where each window starts in `input_ids`
    cu_windows: NDArray[np.int64]  # (R + 1,) where the windows of each text start
    truncated: NDArray[np.bool_]  # (R,) tokens of the text were dropped
    token_type_ids: NDArray[np.int32] | None = None  # (T,); None if all are 0
    spans: NDArray[np.int32] | None = None  # (T, 2) characters [start, stop) of each token in its text
    sequence_ids: NDArray[np.int8] | None = None  # (T,) 0 first text, 1 second, -1 special token

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(W,) tokens of each window."""
        return np.diff(self.cu_seqlens)

    @property
    def num_tokens(self) -> NDArray[np.int32]:
        """(R,) tokens of each text, summed over its windows."""
        return np.diff(self.cu_seqlens[self.cu_windows]).astype(np.int32)


class Tokenizer:
    """A checkpoint's tokenizer that truncates long texts or cuts them into windows."""

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
        """Configure a copy of a tokenizer; truncation and padding that are saved in the checkpoint are replaced.

        Args:
            pretrained: a fast tokenizer of `transformers`, see `load_tokenizer`.
            max_tokens: maximum number of tokens of a window, with special tokens.
            windows: cut a long text into several windows instead of truncating it.
            stride: tokens by which neighbouring windows overlap.
            spans: return the character span of every token; this is slower.
            vocab_size: number of the model's token embeddings, if known.
        """
        self._raw = type(pretrained.backend_tokenizer).from_str(pretrained.backend_tokenizer.to_str())
        self._raw.no_padding()
        self._splits_special_tokens = pretrained.split_special_tokens
        self._raw.encode_special_tokens = self._splits_special_tokens
        self.gives_types = "token_type_ids" in pretrained.model_input_names
        # None stands for types of 0; few tokenizers give other types to a single text.
        self._single_types = self.gives_types and any(self._raw.encode("a").type_ids)
        # Windows cover the whole text from its start, so the side of truncation does not matter to them.
        side = "right" if windows else pretrained.truncation_side
        self._raw.enable_truncation(max_tokens, stride=stride, direction=side)
        self._encode = self._raw.encode_batch if spans else self._raw.encode_batch_fast
        self.cuts_windows = windows
        self._vocab_size = np.iinfo(np.int32).max if vocab_size is None else vocab_size
        self._spans = spans
        self._first_cut = _CHARACTERS_PER_TOKEN * max_tokens if not windows and _can_cut(self._raw) else None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore `encode_special_tokens`, which `tokenizers` does not pickle."""
        self.__dict__ |= state
        self._raw.encode_special_tokens = self._splits_special_tokens

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokens:
        """Tokenize texts or sentence pairs."""
        if pairs is not None:
            return self._collect(self._encode(list(zip(texts, pairs, strict=True))), types=self.gives_types)
        encodings = self._encode_cut(texts) if self._first_cut else self._encode(list(texts))
        return self._collect(encodings, types=self._single_types)

    def find_unencodable(self, tokens: Tokens) -> dict[int, str]:
        """Text → why the model cannot encode it: it has no tokens, or a token without an embedding."""
        empty = np.flatnonzero(tokens.num_tokens == 0)
        unknown = np.flatnonzero(tokens.input_ids >= self._vocab_size)
        texts = np.searchsorted(tokens.cu_seqlens[tokens.cu_windows], unknown, side="right") - 1
        names = map(self._raw.id_to_token, tokens.input_ids[unknown].tolist())
        return dict.fromkeys(empty.tolist(), "the text has no tokens") | {
            text: f"the model has no embedding for its token {name!r}"
            for text, name in zip(texts.tolist(), names, strict=True)
        }

    def _encode_cut(self, texts: Sequence[str]) -> list[Any]:
        """Encode only as many characters of long texts as the result needs.

        A text is cut after a word that is followed by a space. The pre-tokenizer splits there whatever comes next, so
        the tokens of the cut text are the first tokens of the whole (`_can_cut` accepts only tokenizers for which this
        is true). If the cut text overflows the window, the kept tokens and the truncated flag are those of the whole
        text; otherwise twice as many characters are read.
        """
        num_characters = self._first_cut or 0
        encodings: list[Any] = [None] * len(texts)
        pending = list(range(len(texts)))
        while pending:
            cut = self._encode([_cut_after_word(texts[index], num_characters) for index in pending])
            for index, encoding in zip(pending, cut, strict=True):
                encodings[index] = encoding
            pending = [i for i in pending if len(texts[i]) > num_characters and not encodings[i].overflowing]
            num_characters *= 2
        return encodings

    def _collect(self, encodings: list[Any], *, types: bool) -> Tokens:
        # `tokenizers` returns ids as Python lists only; here they are copied to arrays, once.
        overflowing = [encoding.overflowing for encoding in encodings]
        windows, counts = encodings, np.ones(len(encodings), np.int64)
        truncated = np.fromiter(map(bool, overflowing), np.bool_)
        if self.cuts_windows:
            windows = [window for first, rest in zip(encodings, overflowing, strict=True) for window in (first, *rest)]
            counts = np.fromiter((1 + len(rest) for rest in overflowing), np.int64)
            truncated = np.zeros(len(encodings), np.bool_)
        lengths = np.fromiter((len(window) for window in windows), np.int64, len(windows))
        total = int(lengths.sum())
        return Tokens(
            input_ids=_flatten((window.ids for window in windows), np.int32, total),
            cu_seqlens=starts_of(lengths),
            cu_windows=starts_of(counts),
            truncated=truncated,
            token_type_ids=_flatten((window.type_ids for window in windows), np.int32, total) if types else None,
            spans=_spans(windows, total) if self._spans else None,
            sequence_ids=_sequence_ids(windows, total) if self._spans else None,
        )


def starts_of(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """(N + 1,) where each of N consecutive pieces starts, and where the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _flatten(lists: Iterable[Iterable[int]], dtype: type[np.integer], total: int) -> NDArray[Any]:
    return np.fromiter(chain.from_iterable(lists), dtype, total)


def _spans(windows: list[Any], total: int) -> NDArray[np.int32]:
    pairs = chain.from_iterable(window.offsets for window in windows)
    return _flatten(pairs, np.int32, 2 * total).reshape(total, 2)


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
    """Whether the text after a word and a space can never change the tokens up to the end of that word.

    This is true if truncation drops the end of a text, no added token contains white space, the normalizer works within
    words, and the pre-tokenizer splits at spaces.
    """
    state = json.loads(raw.to_str())
    if (state.get("truncation") or {}).get("direction", "Right") != "Right":
        return False
    if any(re.search(r"\s", token["content"]) for token in state.get("added_tokens", ())):
        return False
    normalizers = _steps(state.get("normalizer"), "normalizers")
    return all(map(_normalizes_words, normalizers)) and _splits_at_space(state.get("pre_tokenizer"))


def _steps(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, which may be a sequence."""
    if component is None:
        return []
    return list(component[key]) if component["type"] == "Sequence" else [component]


def _normalizes_words(normalizer: dict[str, Any]) -> bool:
    """Whether a normalizer changes each word independently; of Replace, two kinds of patterns are known to do so."""
    if normalizer["type"] != "Replace":
        return normalizer["type"] in _NORMALIZES_WORDS
    pattern = normalizer["pattern"]
    return ("String" in pattern and " " not in pattern["String"]) or pattern.get("Regex") == " {2,}"


def _splits_at_space(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether the first pre-tokenizer splits at spaces."""
    steps = _steps(pre_tokenizer, "pretokenizers")
    option = _SPLITS_AT_SPACE.get(steps[0]["type"]) if steps else None
    return option is not None and (not option or bool(steps[0].get(option, True)))

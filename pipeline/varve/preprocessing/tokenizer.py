"""Turns texts into the token ids of their windows, concatenated without padding.

Uses the checkpoint's tokenizer from the `tokenizers` library; knows nothing of Arrow, Ray or models. Invariants: every
text has at least one window; the tokens are the same as those of the tokenizer in `transformers`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varve.config.model import Chunks
from varve.preprocessing.chunks import add_chunks
from varve.preprocessing.leading_text import can_cut, encode_leading
from varve.preprocessing.prompt import cut_with_prompt, mark_prompt
from varve.preprocessing.query_expansion import QueryExpansion, expand
from varve.preprocessing.tokens import SPECIAL, Tokens, starts_of
from varve.preprocessing.vocabulary import adapt


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
        prompt: str = "",
        lower_case: bool = False,
        expansion: QueryExpansion | None = None,
        chunks: Chunks | None = None,
        added_words: Sequence[str] = (),
    ) -> None:
        """Configure a copy of a tokenizer; truncation and padding that are saved in the checkpoint are replaced.

        Args:
            pretrained: a fast tokenizer of `transformers`, see `load_tokenizer`.
            max_tokens: maximum number of tokens of a window, with special tokens and prompt.
            windows: cut a long text into several windows instead of truncating it.
            stride: tokens by which neighbouring windows overlap.
            spans: return the character span of every token; this is slower.
            vocab_size: number of the model's token embeddings, if known.
            prompt: text before each text, in each window; spans are relative to the text without it. Not for pairs.
            lower_case: convert texts to lower case before the tokenizer's own normalization.
            expansion: fill short windows with tokens.
            chunks: cut windows into chunks. Not for pairs.
            added_words: words that become one token each, if the vocabulary has them.
        """
        pretrained = adapt(pretrained, lower_case=lower_case, words=added_words)
        self._raw = type(pretrained.backend_tokenizer).from_str(pretrained.backend_tokenizer.to_str())
        self._raw.no_padding()
        self._splits_special_tokens = pretrained.split_special_tokens
        self._raw.encode_special_tokens = self._splits_special_tokens
        self.gives_types = "token_type_ids" in pretrained.model_input_names
        # None stands for types of 0; few tokenizers give other types to a single text.
        self._single_types = self.gives_types and any(self._raw.encode("a").type_ids)
        self._max_tokens, self._stride, self.cuts_windows = max_tokens, stride, windows
        self._prompt, self._expansion, self._chunks = prompt, expansion, chunks
        self._set_truncation(pretrained.truncation_side)
        self._vocab_size = np.iinfo(np.int32).max if vocab_size is None else vocab_size
        self._spans = spans
        self._collects_spans = spans or chunks is not None or self._repeats_prompt
        self._encode = self._raw.encode_batch if self._collects_spans else self._raw.encode_batch_fast
        self._reads_start = not windows and can_cut(self._raw)
        self.prompt_tokens = self._count_prompt(set(pretrained.all_special_ids))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore `encode_special_tokens`, which `tokenizers` does not pickle."""
        self.__dict__ |= state
        self._raw.encode_special_tokens = self._splits_special_tokens

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokens:
        """Tokenize texts or sentence pairs."""
        if pairs is None:
            tokens = self._tokenize(texts)
        else:
            assert not self._prompt
            assert self._chunks is None
            tokens = self._collect(self._encode(list(zip(texts, pairs, strict=True))), types=self.gives_types)
        if self._expansion:
            tokens = expand(tokens, self._expansion)
        if self._chunks:
            tokens = add_chunks(tokens, self._chunks, self._stride, texts)
        return tokens if self._spans else replace(tokens, spans=None, sequence_ids=None)

    @property
    def reserved_tokens(self) -> int:
        """Tokens of a window that are not available for text: special tokens and the tokens of the prompt alone.

        The prompt's last characters may become part of the text's first token: then a window has room for one more.
        """
        prompt = self._raw.encode(self._prompt, add_special_tokens=False)
        return self._raw.num_special_tokens_to_add(is_pair=False) + len(prompt)

    def find_unencodable(self, tokens: Tokens) -> dict[int, str]:
        """Text → why the model cannot encode it: it has no tokens, or a token without an embedding."""
        attended = tokens.lengths if tokens.attended is None else tokens.attended
        empty = np.flatnonzero(np.diff(starts_of(attended)[tokens.cu_windows]) == 0)
        unknown = np.flatnonzero(tokens.input_ids >= self._vocab_size)
        texts = np.searchsorted(tokens.cu_seqlens[tokens.cu_windows], unknown, side="right") - 1
        names = map(self._raw.id_to_token, tokens.input_ids[unknown].tolist())
        return dict.fromkeys(empty.tolist(), "the text has no tokens") | {
            text: f"the model has no embedding for its token {name!r}"
            for text, name in zip(texts.tolist(), names, strict=True)
        }

    @property
    def _repeats_prompt(self) -> bool:
        """Whether windows are cut here: `tokenizers` would not repeat the prompt."""
        return self.cuts_windows and bool(self._prompt)

    def _set_truncation(self, side: str) -> None:
        if self._repeats_prompt:
            self._raw.no_truncation()
        else:
            # Windows cover the whole text from its start, so the side of truncation does not matter to them.
            direction = "right" if self.cuts_windows else side
            self._raw.enable_truncation(self._max_tokens, stride=self._stride, direction=direction)

    def _count_prompt(self, special_ids: set[int]) -> int:
        """Leading tokens that a pooling without the prompt leaves out.

        Source: sentence-transformers' `Transformer._get_prompt_length`.
        """
        if not self._prompt:
            return 0
        ids = self._raw.encode(self._prompt).ids[: self._max_tokens]
        return len(ids) - (ids[-1] in special_ids) if ids else 0

    def _tokenize(self, texts: Sequence[str]) -> Tokens:
        prompted = [self._prompt + text for text in texts] if self._prompt else list(texts)
        is_cut = self._reads_start
        encodings = encode_leading(self._encode, prompted, self._max_tokens) if is_cut else self._encode(prompted)
        tokens = self._collect(encodings, types=self._single_types)
        if self._prompt and self._collects_spans:
            tokens = mark_prompt(tokens, len(self._prompt))
        return cut_with_prompt(tokens, self._max_tokens, self._stride) if self._repeats_prompt else tokens

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
            spans=_spans(windows, total) if self._collects_spans else None,
            sequence_ids=_sequence_ids(windows, total) if self._collects_spans else None,
        )


def _flatten(lists: Iterable[Iterable[int]], dtype: type[np.integer], total: int) -> NDArray[Any]:
    return np.fromiter(chain.from_iterable(lists), dtype, total)


def _spans(windows: list[Any], total: int) -> NDArray[np.int32]:
    pairs = chain.from_iterable(window.offsets for window in windows)
    return _flatten(pairs, np.int32, 2 * total).reshape(total, 2)


def _sequence_ids(windows: list[Any], total: int) -> NDArray[np.int8]:
    ids = chain.from_iterable(window.sequence_ids for window in windows)
    return np.fromiter((SPECIAL if sequence is None else sequence for sequence in ids), np.int8, total)

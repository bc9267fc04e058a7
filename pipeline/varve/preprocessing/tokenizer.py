"""Turns texts into the token ids of their windows, concatenated without padding.

Uses the checkpoint's tokenizer from the `tokenizers` library, or a faster implementation that is compared with it on
some texts of every call; knows nothing of Arrow, Ray or models. Invariants: every text has at least one window; the
tokens are the same as those of the tokenizer in `transformers`.
"""

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from varve.config.model import Chunks
from varve.preprocessing.chunks import add_chunks
from varve.preprocessing.fast_path import Cut, FastPath
from varve.preprocessing.fast_tokenizer import find_fast_tokenizer
from varve.preprocessing.flat_encodings import collect, count_special_tokens
from varve.preprocessing.leading_text import can_cut, encode_leading
from varve.preprocessing.prompt import cut_with_prompt, mark_prompt
from varve.preprocessing.query_expansion import QueryExpansion, expand
from varve.preprocessing.tokens import Tokens, starts_of
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
        fast: bool = True,
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
            fast: use a faster implementation where it gives the tokens of `tokenizers`.
        """
        pretrained = adapt(pretrained, lower_case=lower_case, words=added_words)
        self._raw = type(pretrained.backend_tokenizer).from_str(pretrained.backend_tokenizer.to_str())
        self._raw.no_padding()
        self._splits_special_tokens = pretrained.split_special_tokens
        self.gives_types = "token_type_ids" in pretrained.model_input_names
        # None stands for types of 0; few tokenizers give other types to a single text.
        self._single_types = self.gives_types and any(self._raw.encode("a").type_ids)
        self._max_tokens, self._stride, self.cuts_windows = max_tokens, stride, windows
        self._side = pretrained.truncation_side
        self._prompt, self._expansion, self._chunks = prompt, expansion, chunks
        self._may_be_fast = fast
        self._vocab_size = np.iinfo(np.int32).max if vocab_size is None else vocab_size
        self._spans = spans
        self._collects_spans = spans or chunks is not None or self._repeats_prompt
        self._encode = self._raw.encode_batch if self._collects_spans else self._raw.encode_batch_fast
        self._reads_start = not windows and self._side == "right" and can_cut(self._raw)
        self._configure()
        self.prompt_tokens = self._count_prompt(set(pretrained.all_special_ids))

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the fast implementation, which cannot be pickled."""
        return {**self.__dict__, "_fast_path": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the fast implementation, and what `tokenizers` does not pickle."""
        self.__dict__ |= state
        self._configure()

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

    def _set_truncation(self) -> None:
        if self._repeats_prompt:
            self._raw.no_truncation()
        else:
            # Windows cover the whole text from its start, so the side of truncation does not matter to them.
            direction = "right" if self.cuts_windows else self._side
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
        prompted = [self._prompt + text for text in texts] if self._prompt else texts
        return self._fast_path(prompted) if self._fast_path else self._encode_texts(prompted)

    def _encode_texts(self, texts: Sequence[str]) -> Tokens:
        """The tokens of texts by `tokenizers`."""
        is_cut = self._reads_start
        encodings = encode_leading(self._encode, texts, self._max_tokens) if is_cut else self._encode(list(texts))
        tokens = self._collect(encodings, types=self._single_types)
        if self._prompt and self._collects_spans:
            tokens = mark_prompt(tokens, len(self._prompt))
        return cut_with_prompt(tokens, self._max_tokens, self._stride) if self._repeats_prompt else tokens

    def _collect(self, encodings: list[Any], *, types: bool) -> Tokens:
        return collect(encodings, windows=self.cuts_windows, types=types, spans=self._collects_spans)

    def _configure(self) -> None:
        """Choose the implementation and set the truncation of `tokenizers`."""
        self._raw.encode_special_tokens = self._splits_special_tokens
        self._raw.no_truncation()
        num_special = count_special_tokens(self._raw)
        fast = self._unsupported(sum(num_special)) or find_fast_tokenizer(self._raw)
        self._set_truncation()
        self.description = f"tokenizers {version('tokenizers')}: {fast}" if isinstance(fast, str) else fast.name
        self._fast_path = None
        if not isinstance(fast, str):
            is_cut, side = self._reads_start, self._side
            cut = Cut(self._max_tokens, self.cuts_windows, self._stride, side, num_special, reads_start=is_cut)
            self._fast_path = FastPath(fast, cut, self._encode_texts)

    def _unsupported(self, num_special: int) -> str:
        """What is needed of a tokenizer that only `tokenizers` has, or ""."""
        needed = {
            "fast_tokenizer is false": not self._may_be_fast,
            "spans of tokens": self._collects_spans,
            "types of tokens": self._single_types,
            "split_special_tokens": self._splits_special_tokens,
            f"no room for text in {self._max_tokens} tokens": self._max_tokens - self._stride - num_special < 1,
        }
        return next((reason for reason, is_needed in needed.items() if is_needed), "")

"""Tokenizes a row for the reference: prompt, markers, windows, query expansion and chunks, one text at a time.

Shares no code with the tokenizer of `preprocessing` but the rule where sentences end. Uses the checkpoint's tokenizer
as transformers loads it. Invariant: every row has at least one window.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from transformers import AutoTokenizer

from varve.config.model import Chunks, Windows
from varve.encoder.checkpoint.declaration import Expansion, TextRules
from varve.planning.plan import Plan
from varve.preprocessing.sentences import find_sentence_ends


@dataclass(frozen=True, slots=True)
class Window:
    """The T tokens of one window.

    Attributes:
        inputs: of the model, (1, T) each.
        is_template: (T,) special tokens that the tokenizer or the expansion of queries added.
        is_text: (T,) tokens of the text or texts: neither added ones nor those of the prompt.
        starts: (T,) character of the text at which each token starts.
        prompt_tokens: leading tokens that a pooling without the prompt leaves out.
        context: tokens of the text that the window before holds too.
    """

    inputs: dict[str, torch.Tensor]
    is_template: NDArray[np.bool_]
    is_text: NDArray[np.bool_]
    starts: NDArray[np.int64]
    prompt_tokens: int
    context: int = 0

    @property
    def ids(self) -> NDArray[np.int64]:
        """(T,) token ids."""
        return self.inputs["input_ids"][0].numpy()

    def take(self, tokens: Sequence[int], context: int) -> "Window":
        """The window of some of these tokens."""
        return replace(
            self,
            inputs={name: values[:, list(tokens)] for name, values in self.inputs.items()},
            is_template=self.is_template[list(tokens)],
            is_text=self.is_text[list(tokens)],
            starts=self.starts[list(tokens)],
            context=context,
        )


class ReferenceTexts:
    """The tokenizer of a plan's checkpoint, with the rules of its role."""

    def __init__(self, plan: Plan) -> None:
        """Load the tokenizer."""
        self._max_tokens, self._rules = plan.resolved.max_tokens, plan.text_rules
        self._windows = plan.job.model.long_text if isinstance(plan.job.model.long_text, Windows) else None
        # Windows always run from left to right, whatever side the checkpoint truncates.
        side = {"truncation_side": "right"} if self._windows else {}
        checkpoint = plan.checkpoint
        self.tokenizer: Any = AutoTokenizer.from_pretrained(
            checkpoint.tokenizer_folder, trust_remote_code=checkpoint.trust_remote_code, **side
        )
        _apply_rules(self.tokenizer, self._rules)
        self._prompt_tokens = self._count_prompt()

    def windows(self, texts: Sequence[str]) -> list[Window]:
        """The windows of a row; `texts` are one text, or the two of a sentence pair."""
        if self._windows and self._rules.prompt:
            return list(self._cut(next(self._encode(texts, truncation=False)), self._windows.stride))
        options: dict[str, Any] = {"truncation": True, "max_length": self._max_tokens}
        if self._windows:
            options |= {"stride": self._windows.stride, "return_overflowing_tokens": True}
        found = list(self._encode(texts, **options))
        stride = self._windows.stride if self._windows else 0
        found[1:] = [replace(window, context=min(stride, int(window.is_text.sum()))) for window in found[1:]]
        expansion = self._rules.expansion
        return [self._expand(window, expansion) for window in found] if expansion else found

    def _encode(self, texts: Sequence[str], **options: Any) -> Iterator[Window]:
        prompt = self._rules.prompt
        # As batches of one: outside a batch an empty second text is ignored and its special token is missing.
        encoded = self.tokenizer(
            *([prompt + text] for text in texts[:1]),
            *([text] for text in texts[1:]),
            return_special_tokens_mask=True,
            return_offsets_mapping=True,
            **options,
        )
        names = [name for name in self.tokenizer.model_input_names if name in encoded]
        for number, mask in enumerate(encoded["special_tokens_mask"]):
            spans = np.array(encoded["offset_mapping"][number], np.int64).reshape(-1, 2)
            is_template = np.array(mask, np.bool_)
            # A token with characters of both the prompt and the text belongs to the text.
            ends_in_text = ~is_template & ((spans[:, 1] > len(prompt)) if prompt else True)
            yield Window(
                {name: torch.tensor(encoded[name][number])[None] for name in names},
                is_template,
                ~is_template & (np.cumsum(ends_in_text) > 0),
                np.maximum(spans[:, 0] - len(prompt), 0),
                self._prompt_tokens,
            )

    def _count_prompt(self) -> int:
        """As sentence-transformers counts: the tokens of the prompt alone, without the special one that ends them."""
        if not self._rules.prompt:
            return 0
        ids = self.tokenizer(self._rules.prompt, truncation=True, max_length=self._max_tokens)["input_ids"]
        return len(ids) - (ids[-1] in self.tokenizer.all_special_ids)

    def _cut(self, whole: Window, stride: int) -> Iterator[Window]:
        """Windows that begin with the tokens before the text and end with those after it."""
        text = np.flatnonzero(whole.is_text).tolist()
        first, stop = (text[0], text[-1] + 1) if text else (len(whole.ids), len(whole.ids))
        head, tail = list(range(first)), list(range(stop, len(whole.ids)))
        room = self._max_tokens - len(head) - len(tail)
        later = math.ceil(max(0, len(text) - room) / (room - stride)) if len(text) > room else 0
        for number in range(later + 1):
            start = number * (room - stride)
            yield whole.take([*head, *text[start : start + room], *tail], stride if number else 0)

    def _expand(self, window: Window, expansion: Expansion) -> Window:
        """Fill a query with tokens to which the others attend only if the checkpoint declares it."""
        missing = expansion.length - len(window.ids)
        if missing <= 0:
            return window
        tokenizer = self.tokenizer
        token = tokenizer.convert_tokens_to_ids(expansion.token) if expansion.token else tokenizer.mask_token_id
        fill = {"input_ids": tokenizer.eos_token_id if token is None else token, "attention_mask": expansion.attend}
        pad = torch.nn.functional.pad
        return replace(
            window,
            inputs={name: pad(values, (0, missing), value=int(fill.get(name, 0))) for name, values in
                    window.inputs.items()},
            is_template=np.pad(window.is_template, (0, missing), constant_values=True),
            is_text=np.pad(window.is_text, (0, missing)),
            starts=np.pad(window.starts, (0, missing)),
        )  # fmt: skip


def _apply_rules(tokenizer: Any, rules: TextRules) -> None:
    """Apply what sentence-transformers changes in a tokenizer: lower case, and markers that stay one token."""
    raw = tokenizer.backend_tokenizer
    if rules.lower_case:
        raw.normalizer = Normalizers([Lowercase(), *([raw.normalizer] if raw.normalizer else [])])
    known = {*tokenizer.get_vocab(), *tokenizer.added_tokens_encoder}
    for marker in filter(str.strip, rules.markers):
        word = next((word for word in (marker, marker.split()[0]) if word in known), None)
        if word is not None and tokenizer.tokenize(word) != [word]:
            added = AddedToken(word, normalized=False, special=True)
            tokenizer.add_special_tokens({"additional_special_tokens": [added]}, replace_extra_special_tokens=False)


def cut_chunks(window: Window, chunks: Chunks, text: str) -> list[slice]:
    """The tokens of each chunk of a window; all tokens, if the window has no token of the text of its own."""
    tokens = np.flatnonzero(window.is_text)
    context = min(window.context, len(tokens))
    if len(tokens) == context:
        return [slice(0, len(window.ids))]
    first, stop = int(tokens[0]) + context, int(tokens[-1]) + 1
    if chunks.by == "tokens":
        first -= min(context, chunks.overlap)
        step = chunks.tokens - chunks.overlap
        starts = range(first, max(first + 1, stop - chunks.overlap), step)
        return [slice(start, min(start + chunks.tokens, stop)) for start in starts]
    return list(_whole_sentences(window, chunks.tokens, text, first, stop))


def _whole_sentences(window: Window, size: int, text: str, first: int, stop: int) -> Iterator[slice]:
    """As many whole sentences as fit into each chunk; a longer sentence is cut."""
    ends = find_sentence_ends([text])[0]
    sentences = [int((ends <= start).sum()) for start in window.starts]
    while first < stop:
        end = min(first + size, stop)
        if end < stop:
            breaks = [at for at in range(first + 1, end + 1) if sentences[at] != sentences[at - 1]]
            end = breaks[-1] if breaks else end
        yield slice(first, end)
        first = end

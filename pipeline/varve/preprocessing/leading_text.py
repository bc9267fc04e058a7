"""Reads only as many characters of a long text as its truncated tokens need.

Knows nothing of checkpoints. Invariant: the kept tokens and the truncated flag are those of the whole text.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

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
# A longer word is not worth its search, which takes longer than fast tokenizers: its text is read whole.
_LONGEST_WORD_CHARACTERS = 2**16


def encode_leading(encode: Callable[[list[str]], list[Any]], texts: Sequence[str], max_tokens: int) -> list[Any]:
    """Encode only as many characters of long texts as the result needs.

    A text is cut after a word that is followed by a space. The pre-tokenizer splits there whatever comes next, so the
    tokens of the cut text are the first tokens of the whole (`can_cut` accepts only tokenizers for which this is true).
    If the cut text overflows the window, the kept tokens and the truncated flag are those of the whole text; otherwise
    twice as many characters are read.

    Args:
        encode: tokenizes texts and truncates them.
        texts: to encode.
        max_tokens: at which `encode` truncates.
    """
    num_characters = _CHARACTERS_PER_TOKEN * max_tokens
    encodings: list[Any] = [None] * len(texts)
    pending = list(range(len(texts)))
    while pending:
        cut = encode([_cut_after_word(texts[index], num_characters) for index in pending])
        for index, encoding in zip(pending, cut, strict=True):
            encodings[index] = encoding
        pending = [i for i in pending if len(texts[i]) > num_characters and not encodings[i].overflowing]
        num_characters *= 2
    return encodings


def read_leading(texts: Sequence[str], max_tokens: int) -> Sequence[str]:
    """The first characters of long texts, as many as a window usually needs; the texts themselves if all are short."""
    num_characters = _CHARACTERS_PER_TOKEN * max_tokens
    if max(map(len, texts), default=0) <= num_characters:
        return texts
    return [_cut_after_word(text, num_characters) for text in texts]


def can_cut(raw: Any) -> bool:
    """Whether the text after a word and a space can never change the tokens up to the end of that word.

    This is true if no added token contains white space, the normalizer works within
    words, and the pre-tokenizer splits at spaces.
    """
    state = json.loads(raw.to_str())
    if any(re.search(r"\s", token["content"]) for token in state.get("added_tokens", ())):
        return False
    normalizers = steps_of(state.get("normalizer"), "normalizers")
    return all(map(_normalizes_words, normalizers)) and splits_at_space(state.get("pre_tokenizer"))


def _cut_after_word(text: str, length: int) -> str:
    """The text up to the first end of a word at or after `length` characters; all of it if that is far away."""
    if len(text) <= length:
        return text
    word_end = _WORD_END.search(text, length - 1, length + _LONGEST_WORD_CHARACTERS)
    return text[: word_end.end()] if word_end else text


def steps_of(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
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


def splits_at_space(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether the first pre-tokenizer splits at spaces."""
    steps = steps_of(pre_tokenizer, "pretokenizers")
    option = _SPLITS_AT_SPACE.get(steps[0]["type"]) if steps else None
    return option is not None and (not option or bool(steps[0].get(option, True)))

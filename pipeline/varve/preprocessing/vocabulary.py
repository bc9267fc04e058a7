"""Changes that a checkpoint declares for its tokenizer: lower case, and words that must be one token.

Knows nothing of where they are declared. Invariants: the given tokenizer is not changed; the vocabulary does not grow.
"""

import copy
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken
from tokenizers.normalizers import Lowercase, Normalizer
from tokenizers.normalizers import Sequence as Steps


def adapt(pretrained: Any, *, lower_case: bool, words: Sequence[str]) -> Any:
    """A copy of a fast tokenizer of `transformers` with these changes, or the tokenizer itself if there are none."""
    if not (lower_case or words):
        return pretrained
    adapted = copy.deepcopy(pretrained)
    if lower_case:
        _lower_case(adapted.backend_tokenizer)
    _add_words(adapted, words)
    return adapted


def _lower_case(raw: Any) -> None:
    """Convert to lower case before all other normalization, as `do_lower_case` of sentence-transformers does."""
    steps = _steps(raw.normalizer)
    if not any(isinstance(step, Lowercase) for step in steps):
        raw.normalizer = Steps([Lowercase(), *steps])


def _steps(normalizer: Any) -> list[Normalizer]:
    if normalizer is None:
        return []
    # It has `__getitem__` without `__iter__`, so type checkers do not accept `list`.
    return [*iter(normalizer)] if isinstance(normalizer, Steps) else [normalizer]


def _add_words(tokenizer: Any, words: Sequence[str]) -> None:
    """Make words of the vocabulary one token each; a word may be there with or without its trailing space.

    Source: sentence-transformers' `MultiVectorEncoder._register_prefix_tokens`.
    """
    known = set(tokenizer.get_vocab()) | set(tokenizer.added_tokens_encoder)
    added: list[AddedToken] = []
    for word in words:
        forms = (word, *word.split(None, 1)[:1]) if word.strip() else ()
        form = next((form for form in forms if form in known), None)
        if form is not None and tokenizer.tokenize(form) != [form]:
            added.append(AddedToken(form, normalized=False, special=True))
    if added:
        tokenizer.add_special_tokens({"additional_special_tokens": added})

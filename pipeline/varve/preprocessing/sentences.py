"""Finds where the sentences of a text end, by characters alone: the rule is the same for all languages and models.

Rule: a sentence ends after a run of `.`, `!` or `?` that is followed by white space or the end of the text, after a run
of the CJK full-width forms, and at a line break. Closing quotes and brackets after the run, and line breaks after
these, are part of the sentence. Abbreviations ("e.g. this") are not recognized: they end a sentence too.
Invariant: the time is linear in the length of the text.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from varve.preprocessing.tokens import starts_of

_CLOSING = "[\"'”’»›)\\]}」』】〉》）］｝]*+"  # noqa: RUF001 (all of these are meant)
# Possessive quantifiers and the look-behind: a run is read once, also if no white space follows it.
_ASCII_END = rf"(?<![.!?])[.!?]++{_CLOSING}(?=\s|\Z)"
_CJK_END = rf"[。！？]++{_CLOSING}"  # noqa: RUF001
_SENTENCE_END = re.compile(rf"(?:{_ASCII_END}|{_CJK_END})(?:[^\S\n]*+\n++)?|\n++")


def find_sentence_ends(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the ends of the sentences of R texts.

    White space between two sentences is part of the second one. A text whose last sentence is open has no end there.

    Returns:
        (S,) characters at which a sentence ends, ascending in each text; (R + 1,) where the ends of each text start.
    """
    ends = [[match.end() for match in _SENTENCE_END.finditer(text)] for text in texts]
    cu_ends = starts_of(np.fromiter(map(len, ends), np.int64))
    return np.fromiter((end for each in ends for end in each), np.int64, int(cu_ends[-1])), cu_ends

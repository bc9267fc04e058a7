"""The scripts of letters, from the names that Unicode gives them: "CYRILLIC SMALL LETTER YA" is Cyrillic.

The standard library knows a letter's name but not its script, and a table of ranges would have to follow Unicode.
Invariant: memory and time depend on the number of characters and of distinct letters only.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

_MAX_SCRIPTS = 12
_WIDTHS = {"FULLWIDTH", "HALFWIDTH"}  # before the name of the script
_TWO_WORDS = {"OLD", "NEW", "TAI", "CANADIAN", "CAUCASIAN", "EGYPTIAN", "INSCRIPTIONAL", "LINEAR", "MEROITIC", "SORA"}
_NAMES = {"CJK": "Han"}
# First words of letters that belong to no script: mathematical alphabets, units, modifiers.
_SYMBOLS = {
    "MATHEMATICAL", "DOUBLE-STRUCK", "SCRIPT", "BLACK-LETTER", "PLANCK", "KELVIN", "ANGSTROM", "OHM", "MICRO",
    "MODIFIER", "FEMININE", "MASCULINE", "TURNED", "INFORMATION", "VERTICAL", "SUPERSCRIPT", "SUBSCRIPT",
}  # fmt: skip
OTHER = "other letters"


def count_scripts(texts: Iterable[str]) -> tuple[tuple[str, float], ...]:
    """(script, share of the letters), the largest first; at most 12, then "other letters" for the rest."""
    codes, counts = _count_characters("".join(texts))
    scripts: Counter[str] = Counter()
    for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
        if script := _script_of(code):
            scripts[script] += count
    total = scripts.total()
    listed = [script for script, _ in scripts.most_common() if script != OTHER][:_MAX_SCRIPTS]
    left = total - sum(scripts[script] for script in listed)
    shares = [(script, scripts[script] / total) for script in listed]
    return (*shares, *([(OTHER, left / total)] if left else []))


def _count_characters(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Code points and how often each occurs; half of a surrogate pair is one of its own."""
    return np.unique(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32), return_counts=True)


@lru_cache(maxsize=65_536)
def _script_of(code: int) -> str:
    """The script of a letter; empty for other characters."""
    character = chr(code)
    if not unicodedata.category(character).startswith("L"):
        return ""
    words = unicodedata.name(character, "").split()
    if words and words[0] in _WIDTHS:
        words = words[1:]
    if len(words) < 2 or words[0] in _SYMBOLS:
        return OTHER
    if words[0] in _TWO_WORDS:
        return f"{words[0]} {words[1]}".title()
    return _NAMES.get(words[0], words[0].partition("-")[0].title())

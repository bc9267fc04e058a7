"""Compares a fast tokenizer with `tokenizers`.

Knows nothing of how either works. Invariant: a comparison is of all ids of a text, special tokens included.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varve.errors import one_line

# What implementations of tokenizers are known to disagree on.
_TEXTS = (
    "", " ", "\t\n\r\x0b\x0c\x1c\x85", "\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000",
    "\u200b\u200c\u200d\u2060\ufeff",
    "Plain words, with punctuation: don't (stop)! e.g. 3.14, 1,000 & $5 @home #tag 50% a_b-c/d\\e",
    "~`^|<>[]{}=+*\"'",
    "UPPER Lower MiXeD camelCase snake_case HTTPServer2 v1.2.3-rc4 https://example.org/a?b=c&d=e#f",
    "user@example.org", "  leading", "trailing  ", "two  spaces\n\nlines\r\ntabs\t\tend",
    "a\x00b\x01c\x0bd\x0ce\x1bf\x7fg\x80h\x9fi\xadj\ufffdk",
    "naïve façade Ångström crème brûlée Straße STRASSE ﬁne ﬂow ǅ ŉ İstanbul ıi ΑΣ ὈΔΥΣΣΕΎΣ ς.",
    "e\u0301 a\u0308\u0323 \u0301 o\u0323\u0308\u0301 x\u0338 각 각",
    "Ω K Å Å Ω \xbd \u2460 \u3392 \u2167 ª º \xb2 ﷺ ℌ \U0001d518\U0001d52b\U0001d526 \U0001d7d8\U0001d7d9",
    "\uff46\uff55\uff4c\uff4c \uff57\uff49\uff44\uff54\uff48 \uff8a\uff9d\uff76\uff78 \u3300 Ĳ",
    "日本語のテキスト\u3002中文字符\uff0c标点\uff01한국어 문장 カタカナ ひらがな 㐀 \U00020000 \U0002a700 豈 丽",
    "العربية م\u064eر\u0652ح\u064eب\u064bا ע\u05b4ב\u05b0ר\u05b4ית ह\u093fन\u094dद\u0940 क\u094dष\u093f ไทย",
    "தம\u0bbfழ\u0bcd ব\u09be\u0982ল\u09be ქართული Հայերեն አማርኛ", "Русский текст Ёлка йод й Українська ґанок",
    "\U0001f642 \U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7 1\ufe0f\u20e3 \u2764\ufe0f",
    "\u2603 \xa9\xae\u2122 \U0001f9d1\u200d\U0001f4bb \U000e0041\U000e007f", "x" * 99, "x" * 100, "x" * 101,
    "\u00e9" * 100, "\u00e9" * 101, "\u65e5x" * 60, "a" * 120 + " b", "https://" + "ab" * 70, "\u0300" * 40,
    "\u4e00" * 130, "." * 130, "1" * 130, "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    "''s 't 're 've 'm 'll 'd 'S can\u2019t \u201cquoted\u201d \u2018single\u2019 \u2014 \u2013 \u2026 \xb7",
    "\u2022 \u203b \xa7 \xb6 \xbf\xa1 \xab \xbb \u2039 \u203a \u2032 \u2033 \u2010 \u2011 \u2012 \u2015 _",
    "\u203f",
    "\U0001d173 \U000e0001 \ue000 \uf8ff \ufffe \uffff \U000f0000 \U0010ffff \u0378 \u2fe0 \U0001fbff",
    "\u202e\u202d\u200e",
    "[CLS] [SEP] [MASK] [PAD] [UNK] <s> </s> <mask> <pad> <unk> [cls] [ SEP ] ##ing ## # \u2581 \u2581a Ġ Ġa",
    "<0x0A> <|endoftext|>",
)  # fmt: skip
# Around an added token: what its options, and the normalizer, may or may not take with it.
_AROUND = ("a {} b", "a{}b", "  {}  ", "\u00e9{}\u4e00", "{0}{0}", ".{}\n", "a_{}1")

_MOST_AROUND = 64  # added tokens that are put into these


def find_difference(fast: Any, raw: Any) -> str | None:
    """The first difference of a fast tokenizer for adversarial texts and every added token, alone and within texts.

    A tokenizer that fails on one of these texts, as one without an unknown token does, is not replaced either.

    Args:
        fast: see `FastTokenizer`.
        raw: of `tokenizers`, without truncation and padding.
    """
    added = [token.content for token in raw.get_added_tokens_decoder().values()]
    few = added[:_MOST_AROUND]
    texts = [*_TEXTS, *added, *(around.format(token) for token in few for around in _AROUND), " ".join(added)]
    try:
        encodings = raw.encode_batch_fast(texts)
    except Exception as e:  # noqa: BLE001 (tokenizers raises no narrower type)
        return f"it fails on some texts: {one_line(e)}"
    ids, starts = fast.encode(texts)
    for row, encoding in enumerate(encodings):
        if (got := ids[starts[row] : starts[row + 1]].tolist()) != encoding.ids:
            return describe_difference(fast.name, texts[row], got, encoding.ids)
    return None


def describe_difference(name: str, text: str, got: Sequence[int], want: Sequence[int]) -> str:
    """A message about a text whose tokens differ."""
    at = next(
        (i for i, (one, other) in enumerate(zip(got, want, strict=False)) if one != other), min(len(got), len(want))
    )
    ids, wanted = (list(row[max(0, at - 1) : at + 4]) for row in (got, want))
    place = f"around token {at} of {text[:200]!r}"
    return f"{name} gives the ids {ids} {place}, `tokenizers` gives {wanted}"


def checked_rows(num_texts: int, num_rows: int, salt: int) -> NDArray[np.int64]:
    """Evenly spaced texts of a block to compare; which of them depends on the block alone.

    Args:
        num_texts: of the block.
        num_rows: texts to choose, at most.
        salt: a number that differs between blocks.
    """
    num_rows = min(num_texts, num_rows)
    step = num_texts // max(1, num_rows)
    return salt % max(1, step) + step * np.arange(num_rows)

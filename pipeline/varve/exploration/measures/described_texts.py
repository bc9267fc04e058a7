"""Reads the texts of the sampled rows once, and collects from them what the report shows.

Knows nothing of vectors. Invariant: of a text only its first characters and a hash are kept.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from varve.exploration.measures.scripts import count_scripts
from varve.exploration.measures.text_statistics import Repeat, WindowEffect
from varve.exploration.measures.window_effect import WindowCounter
from varve.exploration.sampled_texts import RowId, SampledTexts

SHOWN_CHARACTERS = 280
_SCRIPT_CHARACTERS = 500  # of a text
_MAX_REPEATS = 10


@dataclass(slots=True)
class DescribedTexts:
    """The texts of the sampled rows.

    Attributes:
        shown: (shard, row) → first characters of its text.
        num_texts: sampled rows with features that were read.
        starts: beginnings of their texts, for `count_scripts`.
        windows: see `WindowEffect`.
        problem: why texts cannot be read; None if they can.
    """

    shown: dict[RowId, str] = field(default_factory=dict)
    num_texts: int = 0
    starts: list[str] = field(default_factory=list)
    windows: WindowEffect | None = None
    problem: str | None = None
    _counts: Counter[bytes] = field(default_factory=Counter)
    _first: dict[bytes, RowId] = field(default_factory=dict)

    def add(self, row_id: RowId, text: str) -> None:
        """Add the text of a row with features."""
        self.num_texts += 1
        self.starts.append(text[:_SCRIPT_CHARACTERS])
        digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
        self._counts[digest] += 1
        self._first.setdefault(digest, row_id)

    @property
    def scripts(self) -> tuple[tuple[str, float], ...]:
        """See `count_scripts`."""
        return count_scripts(self.starts)

    @property
    def repeats(self) -> tuple[Repeat, ...]:
        """At most ten texts that several rows have, the most frequent first."""
        frequent = [(digest, count) for digest, count in self._counts.most_common(_MAX_REPEATS) if count > 1]
        ids = [self._first[digest] for digest, _ in frequent]
        return tuple(Repeat(self.shown[row], count, *row) for row, (_, count) in zip(ids, frequent, strict=True))


def describe_texts(
    texts: SampledTexts, sampled: Iterable[RowId], truncated: Iterable[RowId], others: Iterable[RowId], seed: int
) -> DescribedTexts:
    """Read the texts of rows.

    Args:
        texts: of the output.
        sampled: rows with features.
        truncated: the cut rows among them.
        others: rows to show only, such as failed ones.
        seed: decides which rows are read if they are too far apart.
    """
    described, in_sample, was_cut = DescribedTexts(), set(sampled), set(truncated)
    counter = WindowCounter.open(texts.output.storage) if was_cut else None
    for row_id, columns in texts.read([*in_sample, *others], seed):
        text = "\n".join(columns)
        described.shown[row_id] = shorten(text)
        if row_id in in_sample:
            described.add(row_id, text)
        if counter and row_id in was_cut:
            counter.add(text)
    described.windows = counter.result() if counter else None
    described.problem = texts.problem
    return described


def shorten(text: str) -> str:
    """The first characters of a text."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"

"""Statistics of the texts of an output: lengths of all rows; scripts, repeats and examples of a sample.

Knows nothing of vectors and pages. Invariant: texts are cut to a few hundred characters, whatever their length was.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RowText:
    """A row, as it is shown.

    Attributes:
        shard: of the source.
        row: its number in the shard.
        text: its first characters; empty if the texts cannot be read.
        label: its value of the color column; empty without one.
    """

    shard: int
    row: int
    text: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Repeat:
    """A text that several sampled rows have; `shard` and `row` are those of the first of them."""

    text: str
    count: int
    shard: int
    row: int


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """The rows without features that have the same reason."""

    reason: str
    rows: int
    examples: tuple[RowText, ...]


@dataclass(frozen=True, slots=True)
class WindowEffect:
    """What windows instead of a cut would change, measured on sampled rows that were cut.

    Attributes:
        sampled: texts that were tokenized again without a cut.
        median_left_out_tokens: of these texts.
        share_left_out: tokens left out, of all tokens of these texts.
        windows_per_row: mean number of windows of `max_tokens` tokens that these texts need.
    """

    sampled: int
    median_left_out_tokens: float
    share_left_out: float
    windows_per_row: float


@dataclass(frozen=True, slots=True)
class TextStatistics:
    """What is known about the texts.

    Attributes:
        num_encoded: rows with a number of tokens.
        length_edges: ascending edges of the histogram of token counts, one more than counts.
        length_counts: rows of all parts in each bin; a bin has its lower edge and not its upper one.
        max_tokens: at which longer texts were cut.
        num_truncated: rows that were cut.
        windows: None if no sampled row was cut, or the source or the tokenizer cannot be read.
        scripts: (name of a Unicode script, share of the letters of the sampled texts), the largest first.
        repeats: texts that several sampled rows have, the most frequent first.
        errors: by number of rows.
        num_texts: sampled rows with features whose texts were read.
        no_texts: why texts cannot be shown; None if they can.
    """

    num_encoded: int
    length_edges: tuple[float, ...]
    length_counts: tuple[int, ...]
    max_tokens: int
    num_truncated: int
    windows: WindowEffect | None
    scripts: tuple[tuple[str, float], ...]
    repeats: tuple[Repeat, ...]
    errors: tuple[ErrorGroup, ...]
    num_texts: int
    no_texts: str | None

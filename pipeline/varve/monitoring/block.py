"""What a replica reports of an encoded block, and how blocks of one part add up. Knows nothing of the run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Block:
    """What a replica reports of an encoded block."""

    rows: int
    tokens: int
    errors: int = 0  # rows that failed
    seconds: Mapping[str, float] = field(default_factory=dict)  # stage → seconds of work
    packs: int = 0
    packed_tokens: int = 0  # in those packs; fewer than `tokens` if texts repeat
    null_texts: int = 0  # rows whose text is null
    reasons: Mapping[str, int] = field(default_factory=dict)  # reason → failed rows
    text_bytes: int = 0  # of the texts, as Parquet stores them: UTF-8 and 4 bytes each


class Added(NamedTuple):
    """What a block adds to the counters of a run; less than it has if an earlier worker reported its rows."""

    rows: int = 0
    tokens: int = 0
    errors: int = 0
    null_texts: int = 0


_NOTHING = Added()


@dataclass(slots=True)
class PartCount:
    """What a part has added to the counters.

    Attributes:
        attempt: by its present worker.
        most: the maximum over all workers that had it.
    """

    attempt: Added = _NOTHING
    most: Added = _NOTHING

    def add(self, block: Block) -> Added:
        """Add a block of this attempt; returns what is new compared with all earlier attempts."""
        before, added = self.most, (block.rows, block.tokens, block.errors, block.null_texts)
        self.attempt = Added(*map(sum, zip(self.attempt, added, strict=True)))
        self.most = Added(*map(max, before, self.attempt))
        return Added(*(now - then for now, then in zip(self.most, before, strict=True)))

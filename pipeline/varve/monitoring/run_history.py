"""What one driver process did over time: speed, parts, replicas and events, as an object of the output.

Parts hold no times, since their bytes depend on the job alone; the history holds them. Knows nothing of how it is
recorded (history_recorder.py) or shown. Invariants: `decode` accepts only what `encode` can have written; the size of
a history is bounded, whatever the size of the run; it holds no text of the source and no secret.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from varve.errors import RunError
from varve.storage.object_store import Storage

logger = logging.getLogger(__name__)

HISTORY_FOLDER = "_varve/history"
MAX_BYTES = 4 * 2**20
MAX_BINS = 512
MAX_REPLICAS = 4096
MAX_PARTS = 2000
MAX_EVENTS = 500
MAX_TEXT = 500  # characters

# What a reader takes of one output: a job that is killed every ten minutes for two weeks has as many histories.
_MAX_HISTORIES, _MAX_TOTAL_BYTES = 2000, 256 * 2**20
_THREADS = 16

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
_Seconds = Annotated[float, Field(ge=0, le=1e10)]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[a-z][a-z0-9_]*$")]
_Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
_Counts = Annotated[tuple[_Count, ...], Field(max_length=MAX_BINS)]
_Times = Annotated[tuple[_Seconds, ...], Field(max_length=MAX_BINS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSpan:
    """The encoding of a part by one replica; a part whose worker died has several."""

    shard: _Count
    start: _Count  # first row
    stop: _Count  # row after the last one
    replica: _Count
    begun_s: _Seconds
    ended_s: _Seconds | None  # None: it did not end: its worker died, or the run ended
    tokens: _Count  # that this replica encoded, counted earlier by another one or not
    errors: _Count  # likewise: rows that failed

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    def __post_init__(self) -> None:
        """Check the order of the rows and of the times."""
        if self.stop < self.start or (self.ended_s is not None and self.ended_s < self.begun_s):
            msg = f"part of shard {self.shard} from row {self.start}: it ends before it begins"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaHistory:
    """One replica; it keeps its number over restarts."""

    number: _Count
    node: Annotated[str, StringConstraints(max_length=256)]  # address of its last node
    ready_s: Annotated[tuple[_Seconds, ...], Field(max_length=MAX_BINS)]  # the first time, then after each restart
    tokens: _Counts  # per bin, repeated ones included

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened once."""

    at_s: _Seconds
    kind: _Name  # "part_lost": started again because its worker died | "stalled" | "stopping": after a signal
    text: _Text

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One driver process, as it was last recorded. All `_s` are seconds since `started_at`, except widths.

    Attributes:
        started_at: Unix time in seconds of the start of the command.
        updated_s: of the last record.
        outcome: "finished", "stopped" by a signal or a stall, "failed", or "running": it still runs, or was killed.
        reason: why it stopped or failed; empty otherwise.
        before_s: phase → seconds before the first part (ray, imports, plan).
        bin_s: width of the bins; the first one begins at `started_at`.
        rows: (B,) rows encoded in each bin. A row that two workers encoded counts once, as in `tokens` and `errors`.
        tokens: (B,) tokens of these rows.
        errors: (B,) rows of these that failed.
        stages: stage → (B,) seconds of work reported in each bin, summed over the stage's workers.
        replicas: the first ones, by number.
        parts: the first spans, by their start.
        parts_left_out: number of spans beyond them.
        events: the first ones, by time.
    """

    started_at: _Seconds
    updated_s: _Seconds
    outcome: Annotated[str, StringConstraints(pattern=r"^(running|finished|stopped|failed)$")]
    reason: _Text
    before_s: Annotated[dict[_Name, _Seconds], Field(max_length=32)]
    bin_s: Annotated[float, Field(gt=0, le=1e10)]
    rows: _Counts
    tokens: _Counts
    errors: _Counts
    stages: Annotated[dict[_Name, _Times], Field(max_length=32)]
    replicas: Annotated[tuple[ReplicaHistory, ...], Field(max_length=MAX_REPLICAS)]
    parts: Annotated[tuple[PartSpan, ...], Field(max_length=MAX_PARTS)]
    parts_left_out: _Count
    events: Annotated[tuple[Event, ...], Field(max_length=MAX_EVENTS)]

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    def __post_init__(self) -> None:
        """Check that all series have the same bins, and that no replica is there twice."""
        series = (self.tokens, self.errors, *self.stages.values(), *(each.tokens for each in self.replicas))
        if any(len(values) != len(self.rows) for values in series):
            msg = f"series of different lengths: expected {len(self.rows)} bins, as `rows` has"
            raise ValueError(msg)
        if len({each.number for each in self.replicas}) != len(self.replicas):
            msg = "two replicas have the same number"
            raise ValueError(msg)

    def encode(self) -> bytes:
        """The history as JSON."""
        return _adapter().dump_json(self)

    @classmethod
    def decode(cls, content: bytes) -> "History":
        """Read a history.

        Raises:
            ValueError: the content is too large, or nothing that a run writes.
        """
        if len(content) > MAX_BYTES:
            msg = f"{len(content):,} bytes: expected at most {MAX_BYTES:,}"
            raise ValueError(msg)
        return _adapter().validate_json(content)


@cache
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(History)


def read_histories(storage: Storage) -> list[History]:
    """The histories of an output, oldest first, one per driver process; unreadable ones are left out.

    Raises:
        RunError: the store refused the listing or failed.
    """
    listed = [entry for entry in storage.list(HISTORY_FOLDER) if entry.name.endswith(".json")]
    latest = sorted(listed, reverse=True)[:_MAX_HISTORIES]  # names begin with the time of the start
    totals = accumulate(min(entry.size, MAX_BYTES) for entry in latest)
    names = [entry.name for entry, total in zip(latest, totals, strict=True) if total <= _MAX_TOTAL_BYTES]
    if len(names) < len(listed):
        logger.warning("%s: only the last %d of %d run histories are read", storage.uri, len(names), len(listed))
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda name: _read(storage, name), names)
        return sorted((each for each in found if each is not None), key=lambda each: each.started_at)


def _read(storage: Storage, name: str) -> History | None:
    """One history; None, with a warning, if it cannot be read."""
    try:
        content = storage.read_at_most(name, MAX_BYTES)
        return None if content is None else History.decode(content)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(key)[:MAX_TEXT] for key in first["loc"])
        why = f"{where}: {first['msg']}" if where else first["msg"]
    except RunError as e:  # among others: it is too large
        why = str(e)
    logger.warning("%s/%s: left out: this run history cannot be read: %s", storage.uri, name, why)
    return None

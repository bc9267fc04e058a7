"""Which parts of a job are committed and which are missing, and the manifest of a finished run.

The listing of the parts is the only log of a run. Knows nothing of Ray or models. Invariant: a manifest exists only
if the parts cover every row of every shard exactly once; it is written last, and once.
"""

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Self

import numpy as np

from varve import ranges
from varve.errors import RunError
from varve.output import part_file
from varve.output.json_text import MAX_BYTES, parse_object
from varve.output.manifest_json import check_fields, check_parts
from varve.output.manifest_table import manifest_to_html
from varve.output.part_file import Part
from varve.output.part_table import PartTable
from varve.ranges import Missing, Range
from varve.storage.object_store import Storage

MANIFEST_NAME = "_varve/manifest.json"
JOB_NAME = "_varve/job.json"  # the job and its resolved plan: the first object that a run writes
# From this many parts on a listing takes several requests and is split. Footers are also read in batches of this size.
_MANY_PARTS = 4000
_LISTINGS = 32
# A request takes tens of milliseconds, decoding a footer less than one.
_FOOTER_THREADS = 96


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The record of a finished run, stored as manifest.json."""

    path: str
    fingerprint: str
    started_at: str
    finished_at: str
    num_rows: int
    num_tokens: int
    num_errors: int  # rows that failed
    num_null_texts: int = 0  # rows whose text is null
    num_truncated: int
    file_bytes: int
    counts: dict[str, int]  # events, see `encoder.results.Counts`
    error_reasons: dict[str, int] = field(default_factory=dict)  # reason → rows, the most frequent ones
    storage: dict[str, Any]  # whether the store supports create-if-absent, and the number of retries
    seconds: dict[str, float]  # phase of the run that published → duration
    stages: dict[str, Any]  # stage → work and utilization in the run that published; the bottleneck
    encoder: dict[str, Any]
    descriptions: dict[str, str] = field(default_factory=dict)  # feature with a head → what it computes
    canary: dict[str, Any]
    versions: dict[str, str]
    job: dict[str, Any]
    resolved: dict[str, Any]
    table: dict[str, Any] = field(default_factory=dict)  # the commit of a lake table; empty without one
    parts: PartTable
    sha256: str | None = field(default=None, compare=False)  # of manifest.json; None before it is written

    def encode(self) -> bytes:
        """Return the content of manifest.json; encodes part by part, since objects for all parts need much memory."""
        content = io.BytesIO()
        content.write(json.dumps({**self._without_parts(), "parts": []}).removesuffix("]}").encode())
        for number, part in enumerate(self.parts):
            record = part.to_json()
            del record["fingerprint"]  # the same as the manifest's
            content.write(f"{', ' if number else ''}{json.dumps(record)}".encode())
        content.write(b"]}")
        return content.getvalue()

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Parse the content of manifest.json.

        Raises:
            ValueError, KeyError, TypeError, OverflowError: the content is not a manifest.
        """
        stored = parse_object(content)
        records = ({**record, "fingerprint": stored["fingerprint"]} for record in stored.pop("parts"))
        check_fields(cls, stored)
        parts = PartTable.of(map(Part.from_json, records))
        check_parts(parts)
        return cls(**stored, parts=parts, sha256=hashlib.sha256(content).hexdigest())

    def __repr__(self) -> str:
        return f"<manifest of {self.path!r}: {self.num_rows:,} rows, finished {self.finished_at}, sha256 {self.sha256}>"

    def _repr_html_(self) -> str:
        return manifest_to_html({**self._without_parts(), "num_parts": len(self.parts), "sha256": self.sha256})

    def summary(self) -> dict[str, Any]:
        """All fields without job, resolved and parts, but with the number of parts and the hash of manifest.json."""
        content = {**self._without_parts(), "num_parts": len(self.parts), "manifest_sha256": self.sha256}
        return {key: content[key] for key in content if key not in {"job", "resolved"}}

    def _without_parts(self) -> dict[str, Any]:
        names = (name for name in self.__dataclass_fields__ if name not in {"parts", "sha256"})
        return {name: getattr(self, name) for name in names}


def read_manifest(storage: Storage) -> Manifest | None:
    """Read the manifest of an output; None if its run has not finished.

    Raises:
        RunError: the manifest cannot be read.
    """
    content = storage.read_at_most(MANIFEST_NAME, MAX_BYTES)
    if content is None:
        return None
    try:
        return Manifest.decode(content)
    except (ValueError, KeyError, TypeError, OverflowError) as e:
        msg = f"{storage.uri}/{MANIFEST_NAME} cannot be read by this version of Varve: {type(e).__name__} {e}"
        raise RunError(msg) from e


def publish(storage: Storage, manifest: Manifest) -> tuple[Manifest, bool]:
    """Write the manifest; returns (the published one, whether it is this one or that of another driver)."""
    content = manifest.encode()
    if storage.create(MANIFEST_NAME, content):
        return replace(manifest, sha256=hashlib.sha256(content).hexdigest()), True
    return read_manifest(storage) or manifest, False


def committed(storage: Storage, splits: Sequence[str] = ()) -> dict[int, dict[Range, int]]:
    """List the committed parts: shard → {range: bytes of the file}.

    Args:
        storage: of the output.
        splits: see `splits`.
    """
    parts: dict[int, dict[Range, int]] = defaultdict(dict)
    for part, size in part_file.list_ranges(storage, splits):
        parts[part.shard][part] = size
    return dict(parts)


def splits(num_shards: int, rows_per_part: int, shard_rows: Sequence[int] | None) -> list[str]:
    """Return names that split the listing of a large output into about equal pieces, to be fetched in parallel."""
    cells = np.ones(num_shards, np.int64) if shard_rows is None else np.array(shard_rows, np.int64) // rows_per_part + 1
    ends = np.cumsum(cells)
    if not num_shards or ends[-1] < _MANY_PARTS:
        return []
    cuts = np.linspace(0, ends[-1], _LISTINGS + 1)[1:-1].astype(np.int64)
    shards = np.searchsorted(ends, cuts, side="right")
    starts = (cuts - (ends[shards] - cells[shards])) * rows_per_part
    return sorted({part_file.name_prefix(int(shard), int(start)) for shard, start in zip(shards, starts, strict=True)})


def missing(parts: Mapping[int, Iterable[Range]], num_shards: int, rows_per_part: int, uri: str) -> dict[int, Missing]:
    """Return shard → missing cells, for the incomplete shards.

    Args:
        parts: shard → committed ranges.
        num_shards: of the source.
        rows_per_part: of the job.
        uri: of the output, for messages.

    Raises:
        RunError: a part does not belong to this job, or far too many cells are missing between parts.
    """
    incomplete: dict[int, Missing] = {}
    num_cells = 0
    for shard in range(num_shards):
        try:
            cells = ranges.missing(parts.get(shard, ()), rows_per_part)
        except ValueError as e:
            msg = f"{uri}/data: shard {shard}: {e}. Move this part to another folder"
            raise RunError(msg) from e
        if not cells.is_empty:
            incomplete[shard] = cells
            num_cells += len(cells.starts)
        if num_cells > ranges.MAX_CELLS:
            msg = f"{uri}/data: more than {ranges.MAX_CELLS:,} parts are missing between the first {shard + 1} shards'"
            raise RunError(msg)
    return incomplete


def coverage_gaps(
    parts: Mapping[int, Iterable[Range]], num_shards: int, rows_per_part: int, shard_rows: Sequence[int] | None
) -> list[str]:
    """Describe why the parts do not cover every row of every shard exactly once; an empty list proves that they do."""
    failures = [f"shard {shard} is not in the source" for shard in sorted(parts) if shard >= num_shards]
    known = sorted(shard for shard in parts if shard < num_shards)
    if lacking := num_shards - len(known):
        first = next(shard for shard in range(num_shards) if shard not in parts)
        failures.append(f"shard {first}: it has no part" + (f", as {lacking - 1} other shards" if lacking > 1 else ""))
    for shard in known:
        of_shard = list(parts[shard])
        num_ends = sum(part.is_last(rows_per_part) for part in of_shard)
        gaps = ranges.gaps(of_shard, None if shard_rows is None else shard_rows[shard])
        if num_ends != 1:
            gaps.append(f"{num_ends} parts end the shard, expected 1")
        failures += [f"shard {shard}: {gap}" for gap in gaps]
    return failures


def read_parts(storage: Storage, parts: Mapping[int, Mapping[Range, int]], known: Iterable[Part] = ()) -> PartTable:
    """Return the records of all committed parts, sorted by shard and row.

    Args:
        storage: of the output.
        parts: the committed parts, see `committed`.
        known: records of parts whose footers need not be read.

    Raises:
        RunError: a footer cannot be read.
    """
    return PartTable.of(_records(storage, parts, known)).in_order()


def _records(storage: Storage, parts: Mapping[int, Mapping[Range, int]], known: Iterable[Part]) -> Iterator[Part]:
    """Yield each committed part once, known parts first; the footers of the others are read in parallel."""
    unread = {rows: size for sizes in parts.values() for rows, size in sizes.items()}
    for part in known:
        if unread.pop(part.range, None) is not None:
            yield part
    remaining = iter(unread.items())
    with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
        # In batches: futures and records of all parts at once would need much memory.
        while batch := list(islice(remaining, _MANY_PARTS)):
            yield from threads.map(lambda entry: part_file.read_part(storage, *entry), batch)

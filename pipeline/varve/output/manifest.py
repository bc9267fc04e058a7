"""What of a run is done, what is missing, and the record of a finished one.

The listing of parts is the only log. Knows nothing of Ray or models. Invariant: a manifest exists only for a run whose
parts were proved to cover every row of every shard exactly once; it is written last, once.
"""

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

import numpy as np

from varve import ranges
from varve.errors import RunError
from varve.output import part_file
from varve.output.part_file import Part
from varve.output.part_table import PartTable
from varve.ranges import Missing, Range
from varve.storage.object_store import Storage

MANIFEST_NAME = "_varve/manifest.json"
JOB_NAME = "_varve/job.json"  # the job and its resolved plan: the first object that a run writes
# From here on a listing takes several requests, so it is worth cutting. So many footers are asked for in one go.
_MANY_PARTS = 4000
_LISTINGS = 32
# A store answers within tens of milliseconds, and a footer takes less than one of ours.
_FOOTERS_AT_ONCE = 96


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The record of a finished run."""

    path: str
    fingerprint: str
    started_at: str
    finished_at: str
    num_rows: int
    num_tokens: int
    num_errors: int
    num_truncated: int
    file_bytes: int
    counts: dict[str, int]  # what happened on the way: `encoder.results.Counts`
    storage: dict[str, Any]  # whether it honours create-if-absent, and requests that were made again
    seconds: dict[str, float]  # of the phases of the run that published
    stages: dict[str, Any]  # stage → its work and how busy it was in that run, and the bottleneck in words
    encoder: dict[str, Any]
    canary: dict[str, Any]
    versions: dict[str, str]
    job: dict[str, Any]
    resolved: dict[str, Any]
    parts: PartTable

    def encode(self) -> bytes:
        """The content of manifest.json. Parts are written one by one: as objects they take many times their bytes."""
        content = io.BytesIO()
        content.write(json.dumps({**self._beside_parts(), "parts": []}).removesuffix("]}").encode())
        for number, part in enumerate(self.parts):
            told = part.to_json()
            del told["fingerprint"]  # that of the manifest
            content.write(f"{', ' if number else ''}{json.dumps(told)}".encode())
        content.write(b"]}")
        return content.getvalue()

    def summary(self) -> dict[str, Any]:
        """Everything but the list of parts and the job."""
        content = {**self._beside_parts(), "num_parts": len(self.parts)}
        return {key: content[key] for key in content if key not in {"job", "resolved"}}

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Back from manifest.json.

        Raises:
            ValueError, KeyError, TypeError, OverflowError: it is none.
        """
        told = json.loads(content)
        parts = ({**part, "fingerprint": told["fingerprint"]} for part in told["parts"])
        return cls(**{**told, "parts": PartTable.of(map(Part.from_json, parts))})

    def _beside_parts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "parts"}


def read_manifest(storage: Storage) -> Manifest | None:
    """The manifest of an output; None while its run has not finished.

    Raises:
        RunError: it can't be read.
    """
    content = storage.read(MANIFEST_NAME)
    if content is None:
        return None
    try:
        return Manifest.decode(content)
    except (ValueError, KeyError, TypeError, OverflowError) as e:
        msg = f"{storage.uri}/{MANIFEST_NAME} can't be read by this version of Varve: {type(e).__name__} {e}"
        raise RunError(msg) from e


def publish(storage: Storage, manifest: Manifest) -> tuple[Manifest, bool]:
    """Write the manifest: (what is published now, whether it is this one and not that of another driver)."""
    if storage.create(MANIFEST_NAME, manifest.encode()):
        return manifest, True
    return read_manifest(storage) or manifest, False


def committed(storage: Storage, splits: Sequence[str] = ()) -> dict[int, dict[Range, int]]:
    """shard → {range: bytes of its part}, from the listing.

    Args:
        storage: of the output.
        splits: see `splits`.
    """
    found: dict[int, dict[Range, int]] = defaultdict(dict)
    for part, size in part_file.list_ranges(storage, splits):
        found[part.shard][part] = size
    return dict(found)


def splits(num_shards: int, rows_per_part: int, shard_rows: Sequence[int] | None) -> list[str]:
    """Names that cut the listing of a large output into about equal pieces, so that it is fetched in parallel."""
    cells = np.ones(num_shards, np.int64) if shard_rows is None else np.array(shard_rows, np.int64) // rows_per_part + 1
    ends = np.cumsum(cells)
    if not num_shards or ends[-1] < _MANY_PARTS:
        return []
    cuts = np.linspace(0, ends[-1], _LISTINGS + 1)[1:-1].astype(np.int64)
    shards = np.searchsorted(ends, cuts, side="right")
    starts = (cuts - (ends[shards] - cells[shards])) * rows_per_part
    return sorted({part_file.name_before(int(shard), int(start)) for shard, start in zip(shards, starts, strict=True)})


def missing(
    found: Mapping[int, Iterable[Range]], num_shards: int, rows_per_part: int, where: str
) -> dict[int, Missing]:
    """shard → what it lacks, for the shards that lack anything.

    Raises:
        RunError: a part does not belong to this job.
    """
    lacking: dict[int, Missing] = {}
    for shard in range(num_shards):
        try:
            lacks = ranges.missing(found.get(shard, ()), rows_per_part)
        except ValueError as e:
            msg = f"{where}/data: shard {shard}: {e}. Move the strange part away"
            raise RunError(msg) from e
        if not lacks.is_empty:
            lacking[shard] = lacks
    return lacking


def coverage_gaps(
    found: Mapping[int, Iterable[Range]], num_shards: int, rows_per_part: int, shard_rows: Sequence[int] | None
) -> list[str]:
    """What keeps the parts from covering every row of every shard exactly once, in words; empty is the proof."""
    told = [f"shard {shard} is not in the source" for shard in sorted(found) if shard >= num_shards]
    for shard in range(num_shards):
        parts = list(found.get(shard, ()))
        ends = [part for part in parts if part.is_last(rows_per_part)]
        gaps = ranges.gaps(parts, None if shard_rows is None else shard_rows[shard])
        if len(ends) != 1:
            gaps.append(f"{len(ends)} parts end the shard, expected 1")
        told += [f"shard {shard}: {gap}" for gap in gaps]
    return told


def read_parts(storage: Storage, found: Mapping[int, Mapping[Range, int]], known: Iterable[Part] = ()) -> PartTable:
    """What every committed part records, in order; footers are read for those not `known`, in parallel.

    Raises:
        RunError: a footer can't be read.
    """
    return PartTable.of(_records(storage, found, known)).in_order()


def _records(storage: Storage, found: Mapping[int, Mapping[Range, int]], known: Iterable[Part]) -> Iterator[Part]:
    """Each committed part once, those that are known first."""
    unread = {rows: size for sizes in found.values() for rows, size in sizes.items()}
    for part in known:
        if unread.pop(part.range, None) is not None:
            yield part
    left = iter(unread.items())
    with ThreadPoolExecutor(max_workers=_FOOTERS_AT_ONCE) as threads:
        # Not all in one go: what waits to be read, and what is read and not yet taken, are objects.
        while entries := list(islice(left, _MANY_PARTS)):
            yield from threads.map(lambda entry: part_file.read_part(storage, *entry), entries)

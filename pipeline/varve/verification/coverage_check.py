"""Checks that the files of an output are the parts of its manifest, and that they cover the source exactly once."""

from collections.abc import Iterator, Sequence

from varve.output import manifest
from varve.output.manifest import Manifest
from varve.output.object_names import OBJECT_NAMES
from varve.output.part_file import DATA_PREFIX, parse_name
from varve.storage.object_store import Storage
from varve.storage.stale_uploads import find_stale_uploads
from varve.verification.check import Check


def check_coverage(
    storage: Storage, finished: Manifest, num_shards: int, rows_per_part: int, shard_rows: Sequence[int] | None
) -> Check:
    """Compare the files below data/ with the manifest and with the source.

    Args:
        storage: of the output.
        finished: its manifest.
        num_shards: of the source.
        rows_per_part: of the job.
        shard_rows: rows of each shard; None if they are not known.
    """
    committed = manifest.committed(storage)
    failures = manifest.coverage_gaps(committed, num_shards, rows_per_part, shard_rows)
    listed = {part: size for parts in committed.values() for part, size in parts.items()}
    recorded = {part.range: part.file_bytes for part in finished.parts}
    for r in sorted({*listed, *recorded}):
        where = f"shard {r.shard}, rows [{r.start}, {r.stop}): the part"
        if r not in recorded:
            failures.append(f"{where} is not in the manifest")
        elif r not in listed:
            failures.append(f"{where} is gone")
        elif listed[r] != recorded[r]:
            failures.append(f"{where} has {listed[r]:,} bytes, {recorded[r]:,} are recorded")
    return Check("coverage", (*failures, *_foreign_files(storage)))


def _foreign_files(storage: Storage) -> Iterator[str]:
    """Files below data/ that no run writes: readers of the folder would read them as parts."""
    for entry in storage.list(DATA_PREFIX):
        if parse_name(entry.name) is None:
            yield f"{entry.name} is not a part: readers of {DATA_PREFIX}/ would read it too. Move it to another folder"
    for upload in find_stale_uploads(storage, OBJECT_NAMES):
        if upload.name.startswith(f"{DATA_PREFIX}/"):
            yield f"{upload.name} is left of an interrupted upload. `varve clean --delete --older-than 0` deletes it"

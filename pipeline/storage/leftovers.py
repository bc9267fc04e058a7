"""What broken uploads leave behind: staged files of a local folder, multipart uploads of S3 that nobody completed.

None of it was ever visible as an object, so removing it takes nothing away. The output's own client sees neither:
files are looked for on the disk, uploads are asked for through s3fs.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec

from pipeline.errors import RunError
from pipeline.storage.objects import Storage

# Local stores write to NAME#N and link it to NAME once it is whole.
_STAGED = re.compile(r".*#\d+")


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that no run will ever finish."""

    name: str
    kind: str  # "staged file" or "multipart upload"
    size: int | None  # bytes, where known
    begun_at: datetime
    remove: Callable[[], None]


def find_leftovers(storage: Storage) -> Iterator[Leftover]:
    """What broken uploads have left below an output.

    Raises:
        RunError: the store refused to say.
    """
    if storage.is_local:
        yield from _staged_files(Path(storage.uri))
    elif storage.uri.startswith("s3://"):
        try:
            yield from _uploads(storage.uri.removeprefix("s3://"))
        except (OSError, ImportError, ValueError) as e:
            msg = f"{storage.uri}: its multipart uploads can't be listed: {' '.join(str(e).split())[:200]}"
            raise RunError(msg) from e


def _staged_files(folder: Path) -> Iterator[Leftover]:
    for path in sorted(folder.rglob("*#*")):
        if path.is_file() and _STAGED.fullmatch(path.name):
            status = path.stat()
            begun_at = datetime.fromtimestamp(status.st_mtime, UTC)
            yield Leftover(str(path.relative_to(folder)), "staged file", status.st_size, begun_at, path.unlink)


def _uploads(address: str) -> Iterator[Leftover]:
    bucket, _, prefix = address.partition("/")
    filesystem: Any = fsspec.filesystem("s3")
    asked: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{prefix.rstrip('/')}/" if prefix else ""}
    while True:
        page = filesystem.call_s3("list_multipart_uploads", **asked)
        for upload in page.get("Uploads", ()):
            named = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}

            def abort(named: dict[str, str] = named) -> None:
                filesystem.call_s3("abort_multipart_upload", **named)

            name = upload["Key"].removeprefix(asked["Prefix"])
            yield Leftover(name, "multipart upload", None, upload["Initiated"].astimezone(UTC), abort)
        if not page.get("IsTruncated"):
            return
        asked |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

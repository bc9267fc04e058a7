"""An index segment that is not committed yet, as JSON: workers write it, the driver commits it."""

import base64
import json
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lance.dataset import Index


def encode_segment(segment: "Index") -> bytes:
    """The JSON of a segment."""
    kind, details = segment.index_details or ("", b"")
    content = {
        "uuid": segment.uuid,
        "name": segment.name,
        "fields": list(segment.fields),
        "dataset_version": segment.dataset_version,
        "fragment_ids": sorted(segment.fragment_ids),
        "index_version": segment.index_version,
        "created_at": segment.created_at.isoformat() if segment.created_at else None,
        "files": [[file.path, file.size_bytes] for file in segment.files or []],
        "index_details": [kind, base64.b64encode(details).decode()],
    }
    return json.dumps(content).encode()


def decode_segment(content: bytes) -> "Index":
    """The segment of `encode_segment`."""
    from lance.dataset import Index, IndexFile  # noqa: PLC0415

    values = json.loads(content)
    kind, details = values["index_details"]
    created_at = values["created_at"]
    restored = {
        "fragment_ids": set(values["fragment_ids"]),
        "files": [IndexFile(path=path, size_bytes=size) for path, size in values["files"]],
        "created_at": datetime.fromisoformat(created_at) if created_at else None,
        "index_details": (kind, base64.b64decode(details)) if kind else None,
    }
    return Index(**{**values, **restored})

"""Reads a checkpoint's JSON files, which may come from a stranger: bounded size, regular files only, any content."""

import json
from pathlib import Path
from typing import Any

from varve.errors import first_line


class UnreadableFileError(Exception):
    """Why a file cannot be read as JSON, as a phrase that follows the file's name."""


def read_json(path: Path, max_bytes: int) -> Any:
    """The content of a JSON file.

    Raises:
        UnreadableFileError: it is missing, not a regular file, larger than `max_bytes`, or not JSON.
    """
    content = _read(path, max_bytes)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as e:
        reason = "it is nested too deeply" if isinstance(e, RecursionError) else first_line(e)
        msg = f"is not JSON: {reason}"
        raise UnreadableFileError(msg) from e


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        if not path.is_file():  # a folder, a named pipe or a device; opening a pipe may wait for ever
            raise UnreadableFileError("is not a file" if path.exists() else "is missing")
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as e:
        msg = f"cannot be read: {e.strerror}"
        raise UnreadableFileError(msg) from e
    if len(content) > max_bytes:
        msg = f"is larger than {max_bytes // 2**20} MiB"
        raise UnreadableFileError(msg)
    return content

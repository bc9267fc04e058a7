"""The source's files, opened through fsspec as `datasets` does.

Knows nothing of rows or formats.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.config import conf
from fsspec.utils import get_protocol, glob_translate


def use_options(uri: str, options: Mapping[str, Any]) -> None:
    """Have this process open files like this one with options of their file system (fsspec's own configuration)."""
    protocol = get_protocol(uri)
    if options and conf.get(protocol) != options:
        conf[protocol] = {**conf.get(protocol, {}), **options}


def open_file(uri: str) -> IO[bytes]:
    """A file for reading."""
    filesystem, path = fsspec.core.url_to_fs(uri)
    return filesystem.open(path, "rb")


def read_file(uri: str) -> bytes:
    """The bytes of a small file."""
    with open_file(uri) as file:
        return file.read()


def file_size(uri: str) -> int | None:
    """Bytes of a file, where its file system says."""
    filesystem, path = fsspec.core.url_to_fs(uri)
    return filesystem.info(path).get("size")


def matches(pattern: str, path: str) -> bool:
    """Whether a glob would find a path of this machine; that of a store, or a wrong one, finds none."""
    if get_protocol(pattern) != "file":
        return False
    _, glob = fsspec.core.url_to_fs(pattern)
    try:
        return re.match(glob_translate(str(Path(glob).resolve())), str(Path(path).resolve())) is not None
    except ValueError:
        return False


def file_exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, path = fsspec.core.url_to_fs(uri)
    return bool(filesystem.exists(path))


def file_version(uri: str, *, fresh: bool = False) -> str:
    """What changes when a file is replaced: its size with its entity tag, or with the time it was written.

    Args:
        uri: the file.
        fresh: ask the store again, whatever a listing said before.

    Raises:
        OSError: the file is gone or can't be asked about.
    """
    filesystem, path = fsspec.core.url_to_fs(uri)
    if fresh:
        filesystem.invalidate_cache(filesystem._parent(path))  # noqa: SLF001 (fsspec has no other name for it)
    info: dict[str, Any] = filesystem.info(path)
    if info.get("type") == "directory":
        return "a folder"
    told = [f"{info['size']} bytes"] if info.get("size") is not None else []
    for key in ("ETag", "etag", "md5Hash", "content_md5", "mtime", "last_modified", "LastModified", "updated"):
        if info.get(key):
            told.append(f"{key.lower()} {str(info[key]).strip(chr(34))}")
            break
    return ", ".join(told)

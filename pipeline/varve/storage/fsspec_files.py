"""Files of a source, accessed through fsspec as `datasets` does."""

import os
import re
from collections.abc import Mapping
from typing import IO, Any

import fsspec
from fsspec.config import conf
from fsspec.utils import get_protocol, glob_translate

_MAGIC = re.compile(r"[*?[]")


def use_options(uri: str, options: Mapping[str, Any]) -> None:
    """Set the options with which this process opens files of the URI's protocol, in fsspec's configuration."""
    protocol = get_protocol(uri)
    if options and conf.get(protocol) != options:
        conf[protocol] = {**conf.get(protocol, {}), **options}


def open_file(uri: str) -> IO[bytes]:
    """A file for reading bytes."""
    filesystem, path = fsspec.core.url_to_fs(uri)
    return filesystem.open(path, "rb")


def read_file(uri: str) -> bytes:
    """The bytes of a small file."""
    with open_file(uri) as file:
        return file.read()


def file_size(uri: str) -> int | None:
    """Bytes of a file; None if its file system does not know."""
    filesystem, path = fsspec.core.url_to_fs(uri)
    return filesystem.info(path).get("size")


def escape_existing(pattern: str) -> str:
    """A glob in which the names of folders and files that exist have no special characters.

    A pattern of HTTP or of members of an archive is returned as it is.
    """
    if "::" in pattern or get_protocol(pattern) in {"http", "https"}:
        return pattern
    parts = pattern.split("/")
    escaped = list(map(escape, parts))
    for number, part in enumerate(parts):
        if part != escaped[number] and not file_exists("/".join(parts[: number + 1])):
            return "/".join([*escaped[:number], *parts[number:]])
    return "/".join(escaped)


def escape(path: str) -> str:
    """A glob that matches one path."""
    return _MAGIC.sub(r"[\g<0>]", path)


def matches(pattern: str, path: str) -> bool:
    """Whether a glob matches a local path. A glob of a store or an invalid one matches nothing."""
    if get_protocol(pattern) != "file":
        return False
    _, glob = fsspec.core.url_to_fs(escape_existing(pattern))
    try:
        return re.match(glob_translate(os.path.realpath(glob)), os.path.realpath(path)) is not None
    except ValueError:
        return False


def file_exists(uri: str) -> bool:
    """Whether a file or folder exists."""
    filesystem, path = fsspec.core.url_to_fs(uri)
    return bool(filesystem.exists(path))


def is_file(uri: str) -> bool:
    """Whether a regular file exists."""
    filesystem, path = fsspec.core.url_to_fs(uri)
    return bool(filesystem.isfile(path))


def file_version(uri: str, *, fresh: bool = False) -> str:
    """A text that changes when the file is replaced: its size, with its entity tag or modification time.

    Args:
        uri: the file.
        fresh: bypass cached listings.

    Raises:
        OSError: the file does not exist, or its file system does not answer.
    """
    filesystem, path = fsspec.core.url_to_fs(uri)
    if fresh:
        filesystem.invalidate_cache(filesystem._parent(path))  # noqa: SLF001 (fsspec has no public method)
    info: dict[str, Any] = filesystem.info(path)
    if info.get("type") == "directory":
        return "a folder"
    version = [f"{info['size']} bytes"] if info.get("size") is not None else []
    for key in ("ETag", "etag", "md5Hash", "content_md5", "mtime", "last_modified", "LastModified", "updated"):
        if info.get(key):
            version.append(f"{key.lower()} {str(info[key]).strip(chr(34))}")
            break
    return ", ".join(version)

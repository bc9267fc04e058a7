"""The only file that talks to object stores and file systems.

The output lies behind a few verbs (create, read, list) over obstore, which treats a local folder, S3, GCS and Azure
alike; sources are opened through fsspec, as `datasets` does. Knows nothing of parts or jobs. Invariants: an object
appears whole or not at all; an object that exists is never overwritten. Credentials, endpoint and region come from the
environment alone and are never part of a `Storage`, so they can't be pickled or printed with one.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import fsspec
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, ObjectStore, from_url

from pipeline.errors import JobError, RunError

_NO_SPACE = "No space left on device"


@dataclass(frozen=True, slots=True)
class Storage:
    """One output: a local folder or an object store prefix. Holds its address alone, so it is safe to pickle."""

    uri: str

    def __post_init__(self) -> None:
        if "://" not in self.uri:
            object.__setattr__(self, "uri", str(Path(self.uri).expanduser().absolute()))

    @property
    def is_local(self) -> bool:
        """Whether the output is a folder of this machine."""
        return "://" not in self.uri

    def create(self, name: str, content: bytes) -> bool:
        """Write an object if there is none of this name.

        Returns:
            True if it is there with this content now, False if another content was there before.

        Raises:
            RunError: the store refused or failed.
        """
        try:
            obstore.put(_store(self.uri, create=True), name, content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return self.read(name) == content
        except (BaseError, OSError) as e:
            # The answer may be lost although the object was written: what is there now decides.
            if _NO_SPACE not in str(e) and self._has(name, content):
                return True
            raise self._failed(name, e) from e
        return True

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        """An object's bytes, or those in [start, stop); None if there is no such object.

        Raises:
            RunError: the store refused or failed.
        """
        try:
            store = _store(self.uri)
            if start is None or stop is None:
                return bytes(obstore.get(store, name).bytes())
            return bytes(obstore.get_range(store, name, start=start, end=stop))
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as e:
            raise self._failed(name, e) from e

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(name, bytes) of every object below a prefix, in any order, a page at a time.

        Raises:
            RunError: the store refused or failed.
        """
        if self.is_local and not Path(self.uri, prefix).is_dir():
            return
        try:
            for page in obstore.list(_store(self.uri), prefix):
                for found in page:
                    yield found["path"], found["size"]
        except FileNotFoundError:
            return
        except (BaseError, OSError) as e:
            raise self._failed(prefix, e) from e

    def _has(self, name: str, content: bytes) -> bool:
        try:
            return self.read(name) == content
        except RunError:
            return False

    def _failed(self, name: str, error: Exception) -> RunError:
        where = f"{self.uri}/{name}"
        if _NO_SPACE in str(error):
            return RunError(f"{where}: no space left on the device. Free some and run the same command again")
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError, PermissionError)):
            return RunError(
                f"{where}: access denied. Check the credentials in the environment and the rights on the path"
            )
        told = " ".join(str(error).split())[:300]
        return RunError(f"{where}: the store failed: {told}")


@lru_cache(maxsize=8)
def _store(uri: str, *, create: bool = False) -> ObjectStore:
    """The store behind an address, once per process."""
    if "://" not in uri:
        if not create and not Path(uri).is_dir():
            raise FileNotFoundError(uri)
        return LocalStore(uri, mkdir=create)
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    options: dict[str, Any] = {"client_options": {"allow_http": True}} if endpoint.startswith("http://") else {}
    try:
        return from_url(uri, **options)
    except (BaseError, ValueError) as e:
        msg = f"output.path: {uri} is not a folder or an address of a store (s3://, gs://, az://): {e}"
        raise JobError(msg) from e


def open_source(uri: str) -> IO[bytes]:
    """A source file for reading, through fsspec."""
    filesystem, path = fsspec.core.url_to_fs(uri)
    return filesystem.open(path, "rb")


def source_size(uri: str) -> int | None:
    """Bytes of a source file, where its file system says."""
    filesystem, path = fsspec.core.url_to_fs(uri)
    return filesystem.info(path).get("size")


def source_exists(uri: str) -> bool:
    """Whether a source file or folder is there."""
    filesystem, path = fsspec.core.url_to_fs(uri)
    return bool(filesystem.exists(path))


def read_source(uri: str) -> bytes:
    """The bytes of a small source file."""
    with open_source(uri) as file:
        return file.read()

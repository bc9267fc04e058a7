"""The output's objects: create, read, list and check, in a local folder, S3, GCS, Azure or memory.

Knows nothing of parts or jobs. Invariants: an object appears completely or not at all; an existing object is never
overwritten if the store supports create-if-absent; a request that fails with a transient error is repeated, within
bounds; after a lost response the object is read back. Credentials, endpoint and region come from the environment or the
machine's role and are never part of a `Storage`, so they cannot be pickled or printed with it.
"""

import os
import posixpath
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, MemoryStore, ObjectStore, from_url

from varve.config.base import local_path
from varve.errors import JobError, RunError, first_line
from varve.storage.retry import ConcurrentWriteError, with_retries
from varve.storage.store_errors import parse_error

T = TypeVar("T")

# A part is uploaded in one request, which takes long on a slow line.
_CLIENT = {"connect_timeout": "4s", "timeout": "300s"}
_PAGE = 1000
_CHUNK_BYTES = 8 * 2**20  # of a download, and of an upload in several requests
_MAX_CHUNKS = 9000  # of an upload; S3 allows 10,000
_MAX_PARALLEL_CHUNKS = 4
# One of many requests fails often, and must not repeat the others.
_REPEATED = {
    "max_retries": 10,
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
}
_MAX_PARALLEL_LISTINGS = 16
_EXPECTED = "expected a folder, or a path where one can be created"
_CHECK_NAME = "_varve/check"
_CHECK_CONTENT = b"Written twice: the second conditional PUT must fail, so the store supports create-if-absent.\n"


class ListedObject(NamedTuple):
    """An entry of a listing."""

    name: str
    size: int  # bytes
    modified_at: datetime


class ObjectTooLargeError(RunError):
    """An object is larger than its reader expects."""


@dataclass(frozen=True, slots=True)
class Storage:
    """One output: a local folder or an object store prefix. Holds only its address, so it is safe to pickle.

    `conditional`: the store supports create-if-absent (see `check`). `patient`: keep retrying while the store is
    unreachable; right during a run, wrong at its start, when the endpoint may be wrong.
    """

    uri: str
    conditional: bool = True
    patient: bool = True

    def __post_init__(self) -> None:
        """Make a local path absolute.

        Raises:
            JobError: the path is empty, as an unset variable of the shell is; it would mean the current folder.
        """
        if not self.uri.strip():
            msg = (
                f"the path of the output, {self.uri!r}, is empty: expected a folder. Is a variable of the shell unset?"
            )
            raise JobError(msg)
        path = local_path(self.uri)
        if "://" not in path:
            object.__setattr__(self, "uri", str(_expand_home(path).absolute()))

    @property
    def is_local(self) -> bool:
        """Whether the output is a local folder."""
        return "://" not in self.uri

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless one of this name exists.

        Returns:
            True if the object now has this content, False if it existed with other content.

        Raises:
            RunError: the store refused or failed.
        """

        def put() -> bool:
            store = _store(self.uri, create=True)
            if not self.conditional and (existing := _get(store, name)) is not None:
                return existing == content
            mode = "create" if self.conditional else "overwrite"
            try:
                obstore.put(store, name, content, mode=mode, use_multipart=False)
            except AlreadyExistsError:
                # It may be ours: the response to an earlier attempt may have been lost after the write.
                if (existing := _get(store, name)) is None:
                    raise ConcurrentWriteError from None
                return existing == content
            return True

        return self._request(put, name)

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        """An object's bytes, or the bytes in [start, stop); None if the object does not exist.

        Raises:
            RunError: the store refused or failed, or the bucket does not exist.
        """
        if self.is_local and not is_folder(self.uri):
            return None
        return self._request(lambda: _get(_store(self.uri), name, start, stop), name)

    def read_at_most(self, name: str, max_bytes: int) -> bytes | None:
        """A whole object of at most `max_bytes` bytes; None if the object does not exist.

        The size is that of the response to the read: a HEAD request, whose errors have no message, is not made.

        Raises:
            ObjectTooLargeError: the object is larger; nothing of it was read.
            RunError: the store refused or failed, or the bucket does not exist.
        """
        if self.is_local and not is_folder(self.uri):
            return None
        found = self._request(lambda: _get_at_most(_store(self.uri), name, max_bytes), name)
        if isinstance(found, int):
            msg = f"{self.uri}/{name} has {found:,} bytes: expected at most {max_bytes:,}"
            raise ObjectTooLargeError(msg)
        return found

    def put(self, name: str, content: bytes) -> None:
        """Write a small object; one of this name is replaced.

        Raises:
            RunError: the store refused or failed.
        """
        self._request(
            lambda: obstore.put(_store(self.uri, create=True), name, content, mode="overwrite", use_multipart=False),
            name,
        )

    def upload(self, name: str, path: Path) -> None:
        """Write a file as an object of any size, in several requests; an object of this name is replaced.

        For objects whose bytes are a function of their name's folder, so that two writers write the same.

        Raises:
            RunError: the store refused or failed, or the file cannot be read.
        """
        self._request(lambda: obstore.put(_store(self.uri, create=True, repeats=True), name, path), name)

    def write(self, name: str, num_bytes: int, blocks: Callable[[], Iterable[bytes | memoryview]]) -> None:
        """Write blocks as one object while they are made: it needs a few blocks of memory and no disk. See `upload`.

        Args:
            name: of the object.
            num_bytes: of all blocks together, about.
            blocks: returns the blocks from the first one; called again if the store fails.

        Raises:
            RunError: the store refused or failed.
        """

        def put() -> None:
            size = max(_CHUNK_BYTES, num_bytes // _MAX_CHUNKS)
            store = _store(self.uri, create=True, repeats=True)
            # Without `with`, which would publish what was written before an error.
            file = obstore.open_writer(store, name, buffer_size=size, max_concurrency=_MAX_PARALLEL_CHUNKS)
            for block in blocks():
                file.write(block)
            file.close()

        self._request(put, name)

    def download(self, name: str, path: Path) -> bool:
        """Write an object of any size to a file; False if the object does not exist.

        Raises:
            RunError: the store refused or failed, or the file cannot be written.
        """
        if self.is_local and not is_folder(self.uri):
            return False
        return self._request(lambda: _get_file(_store(self.uri), name, path), name)

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects; one that does not exist is no error.

        Raises:
            RunError: the store refused or failed.
        """
        if self.is_local and not is_folder(self.uri):
            return
        for name in names:
            self._request(partial(_delete, _store(self.uri), name), name)

    def list(self, prefix: str, splits: Sequence[str] = ()) -> Iterator[ListedObject]:
        """List the objects below a prefix, page by page.

        Args:
            prefix: a folder.
            splits: ascending names at which the listing may be split into parallel requests.

        Raises:
            RunError: the store refused or failed.
        """
        if self.is_local and not (is_folder(self.uri) and is_folder(posixpath.join(self.uri, prefix))):
            return
        # For other stores the client emulates an offset by listing everything.
        if not self.uri.startswith(("s3://", "gs://")) or not splits:
            yield from self._pages(prefix, None, None)
            return
        with ThreadPoolExecutor(_MAX_PARALLEL_LISTINGS) as threads:
            bounds = pairwise([None, *splits, None])
            for objects in threads.map(lambda bound: list(self._pages(prefix, *bound)), bounds):
                yield from objects

    def folders(self, prefix: str) -> Sequence[str]:
        """Names of the folders directly below a prefix, sorted; what they hold is not listed.

        Args:
            prefix: a folder.

        Raises:
            RunError: the store refused or failed.
        """
        if self.is_local and not (is_folder(self.uri) and is_folder(posixpath.join(self.uri, prefix))):
            return []
        found = self._request(lambda: obstore.list_with_delimiter(_store(self.uri), prefix), prefix)
        return sorted(posixpath.basename(path.rstrip("/")) for path in found["common_prefixes"])

    def _pages(self, prefix: str, after: str | None, until: str | None) -> Iterator[ListedObject]:
        """Objects with names in (after, until]."""
        pages: Any = None
        last = after

        def next_page() -> Sequence[Any] | None:
            nonlocal pages
            if pages is None:
                pages = obstore.list(_store(self.uri), prefix, offset=last, chunk_size=_PAGE)
            try:
                return next(pages, None)
            except Exception:
                pages = None  # a failed stream yields nothing more, so list again after the last name
                raise

        while page := self._request(next_page, prefix):
            for entry in page:
                if until is not None and entry["path"] > until:
                    return
                yield ListedObject(entry["path"], entry["size"], entry["last_modified"])
            last = page[-1]["path"]

    def check(self) -> bool:
        """Check write access and create-if-absent by writing one small object twice, which stays there.

        Returns:
            Whether the second write was rejected, so the store supports create-if-absent.

        Raises:
            RunError: the store cannot be written.
        """

        def is_rejected() -> bool:
            try:
                obstore.put(
                    _store(self.uri, create=True), _CHECK_NAME, _CHECK_CONTENT, mode="create", use_multipart=False
                )
            except AlreadyExistsError:
                return True
            return False

        return self._request(is_rejected, _CHECK_NAME) or self._request(is_rejected, _CHECK_NAME)

    def _request(self, request: Callable[[], T], name: str) -> T:
        """Make a request, with retries, and convert its error to a RunError."""
        try:
            return with_retries(request, patient=self.patient)
        except (BaseError, OSError) as e:
            error = parse_error(e)
            msg = f"{self.uri}/{name}: the store failed: {error.message}. {error.advice}"
            raise RunError(msg) from e


def _get_at_most(store: ObjectStore, name: str, max_bytes: int) -> bytes | int | None:
    """The object, or its size if it is larger; None if it does not exist."""
    try:
        found = obstore.get(store, name)
        return bytes(found.bytes()) if found.meta["size"] <= max_bytes else int(found.meta["size"])
    except (NotFoundError, FileNotFoundError) as e:
        if parse_error(e).is_container_missing:
            raise
        return None


def _get_file(store: ObjectStore, name: str, path: Path) -> bool:
    """Write an object to a file; False if the object does not exist."""
    try:
        found = obstore.get(store, name)
        with path.open("wb") as file:
            for chunk in found.stream(_CHUNK_BYTES):
                file.write(chunk)
    except (NotFoundError, FileNotFoundError) as e:
        if parse_error(e).is_container_missing:
            raise
        return False
    return True


def _delete(store: ObjectStore, name: str) -> None:
    with suppress(NotFoundError, FileNotFoundError):
        obstore.delete(store, name)


def _get(store: ObjectStore, name: str, start: int | None = None, stop: int | None = None) -> bytes | None:
    try:
        if start is None or stop is None:
            return bytes(obstore.get(store, name).bytes())
        return bytes(obstore.get_range(store, name, start=start, end=stop))
    except (NotFoundError, FileNotFoundError) as e:
        if parse_error(e).is_container_missing:
            raise
        return None


@lru_cache(maxsize=8)
def _store(uri: str, *, create: bool = False, repeats: bool = False) -> ObjectStore:
    """The client of an address, cached per process; `repeats`: it repeats single requests of an upload itself."""
    if "://" not in uri:
        is_folder(uri)
        return LocalStore(uri, mkdir=create)
    if uri.startswith("memory://"):
        return _memory(uri)
    options: dict[str, Any] = {"client_options": {**_CLIENT, "allow_http": _allows_http()}}
    # `with_retries` repeats and counts requests; the client would not count them.
    options["retry_config"] = _REPEATED if repeats else {"max_retries": 0}
    try:
        return from_url(_escaped(uri), **options)
    except (BaseError, ValueError) as e:
        why = first_line(e)
        msg = f"output.path: {uri} is not a folder or an address of a store (s3://, gs://, az://): {why}"
        raise JobError(msg) from e


def is_folder(path: str) -> bool:
    """Whether a local folder exists.

    Raises:
        JobError: none can be created there: a part of the path is a file, links to itself or is not accessible.
    """
    try:
        is_folder = stat.S_ISDIR(Path(path).stat().st_mode)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        is_folder = False
    except (OSError, ValueError) as e:
        msg = f"output.path: {path} cannot be opened: {getattr(e, 'strerror', None) or e}; {_EXPECTED}"
        raise JobError(msg) from e
    if not is_folder:
        file = next(place for place in (Path(path), *Path(path).parents) if place.exists() and not place.is_dir())
        msg = f"output.path: {file} is a file; {_EXPECTED}"
        raise JobError(msg)
    return True


def _expand_home(path: str) -> Path:
    """A path with `~` or `~user` replaced by the home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError as e:
        msg = f"{path}: there is no home directory {path.split('/', maxsplit=1)[0]} on this machine"
        raise JobError(msg) from e


def _escaped(uri: str) -> str:
    """The address as a URL. In names of buckets and objects, `#`, `?` and `%` have no special meaning."""
    scheme, _, path = uri.partition("://")
    return f"{scheme}://{quote(path, safe='/@:')}"


@lru_cache
def _memory(uri: str) -> ObjectStore:  # noqa: ARG001 (the key of the cache: one store per address)
    return MemoryStore()


def _allows_http() -> bool:
    """Whether the user's endpoint has no TLS; the endpoints of clouds always have."""
    amazon, azure = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"), ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
    return any(os.environ.get(name, "").startswith("http://") for name in (*amazon, *azure, "GOOGLE_BASE_URL"))

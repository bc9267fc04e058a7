"""The output's objects: a few verbs over a local folder, S3, GCS, Azure or memory.

Knows nothing of parts or jobs. Invariants: an object appears whole or not at all; one that exists is never overwritten
where the store honours create-if-absent; a request that failed for a passing reason is repeated, within bounds; an
answer that was lost is resolved by reading back. Credentials, endpoint and region come from the environment or the
machine's role alone and are never part of a `Storage`, so they can't be pickled or printed with one.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, MemoryStore, ObjectStore, from_url

from varve.errors import JobError, RunError, first_line
from varve.storage.retry import CrossedError, persist
from varve.storage.store_errors import understand

T = TypeVar("T")

# A part goes up in one request, which a slow line must be given the time for.
_CLIENT = {"connect_timeout": "4s", "timeout": "300s"}
_PAGE = 1000
_LISTINGS_AT_ONCE = 16
_CHECK_NAME, _CHECK_CONTENT = "_varve/check", b"create-if-absent: this object is written twice, once in vain\n"


class Found(NamedTuple):
    """An object in a listing."""

    name: str
    size: int  # bytes
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Storage:
    """One output: a local folder or an object store prefix. Holds its address alone, so it is safe to pickle.

    `conditional` is whether the store honours create-if-absent (see `check`). `patient` is whether to wait for a store
    that can't be reached at all: right in the midst of a run, wrong at its start.
    """

    uri: str
    conditional: bool = True
    patient: bool = True

    def __post_init__(self) -> None:
        path = self.uri.removeprefix("file://") if self.uri.startswith("file:///") else self.uri
        if "://" not in path:
            object.__setattr__(self, "uri", str(_at_home(path).absolute()))

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

        def put() -> bool:
            store = _store(self.uri, create=True)
            if not self.conditional and (there := _get(store, name)) is not None:
                return there == content
            mode = "create" if self.conditional else "overwrite"
            try:
                obstore.put(store, name, content, mode=mode, use_multipart=False)
            except AlreadyExistsError:
                # Perhaps ours: the answer to an earlier try may have been lost after the object was written.
                if (there := _get(store, name)) is None:
                    raise CrossedError from None
                return there == content
            return True

        return self._try(put, name)

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        """An object's bytes, or those in [start, stop); None if there is no such object.

        Raises:
            RunError: the store refused or failed, or the bucket is not there.
        """
        if self.is_local and not Path(self.uri).is_dir():
            return None
        return self._try(lambda: _get(_store(self.uri), name, start, stop), name)

    def list(self, prefix: str, splits: Sequence[str] = ()) -> Iterator[Found]:
        """Every object below a prefix, a page at a time.

        Args:
            prefix: the folder.
            splits: names, ascending, at which the listing may be cut to be fetched in parallel.

        Raises:
            RunError: the store refused or failed.
        """
        if self.is_local and not Path(self.uri, prefix).is_dir():
            return
        # Elsewhere a listing from the middle is made by the client, from a whole one.
        if not self.uri.startswith(("s3://", "gs://")) or not splits:
            yield from self._pages(prefix, None, None)
            return
        with ThreadPoolExecutor(_LISTINGS_AT_ONCE) as threads:
            bounds = pairwise([None, *splits, None])
            for found in threads.map(lambda bound: list(self._pages(prefix, *bound)), bounds):
                yield from found

    def _pages(self, prefix: str, after: str | None, until: str | None) -> Iterator[Found]:
        """The objects whose names are in (after, until]."""
        pages: Any = None
        last = after

        def next_page() -> Sequence[Any] | None:
            nonlocal pages
            if pages is None:
                pages = obstore.list(_store(self.uri), prefix, offset=last, chunk_size=_PAGE)
            try:
                return next(pages, None)
            except Exception:
                pages = None  # a stream that broke gives nothing more: go on behind the last name seen
                raise

        while page := self._try(next_page, prefix):
            for found in page:
                if until is not None and found["path"] > until:
                    return
                yield Found(found["path"], found["size"], found["last_modified"])
            last = page[-1]["path"]

    def check(self) -> bool:
        """Whether the store can be written, and honours create-if-absent; leaves one small object behind.

        Raises:
            RunError: the store can't be read or written.
        """

        def put() -> bool:
            try:
                obstore.put(
                    _store(self.uri, create=True), _CHECK_NAME, _CHECK_CONTENT, mode="create", use_multipart=False
                )
            except AlreadyExistsError:
                return True
            return False

        return self._try(put, _CHECK_NAME) or self._try(put, _CHECK_NAME)

    def _try(self, request: Callable[[], T], name: str) -> T:
        """Make a request, again where that can help, and tell what is wrong where it can't."""
        try:
            return persist(request, patient=self.patient)
        except (BaseError, OSError) as e:
            failure = understand(e)
            msg = f"{self.uri}/{name}: the store failed: {failure.words}. {failure.advice}"
            raise RunError(msg) from e


def _get(store: ObjectStore, name: str, start: int | None = None, stop: int | None = None) -> bytes | None:
    try:
        if start is None or stop is None:
            return bytes(obstore.get(store, name).bytes())
        return bytes(obstore.get_range(store, name, start=start, end=stop))
    except (NotFoundError, FileNotFoundError) as e:
        _raise_without_container(e)
        return None


def _raise_without_container(error: Exception) -> None:
    """An object that is not there is an answer; a bucket that is not there is a failure."""
    if understand(error).is_container_missing:
        raise error


@lru_cache(maxsize=8)
def _store(uri: str, *, create: bool = False) -> ObjectStore:
    """The store behind an address, once per process."""
    if "://" not in uri:
        if (file := next(filter(Path.is_file, (Path(uri), *Path(uri).parents)), None)) is not None:
            msg = f"output.path: {file} is a file: name a folder, or where one can be made"
            raise JobError(msg)
        return LocalStore(uri, mkdir=create)
    if uri.startswith("memory://"):
        return _memory(uri)
    options: dict[str, Any] = {"client_options": {**_CLIENT, "allow_http": _allows_http()}}
    try:
        # Repeated by `persist`, which counts; the client would repeat without a word.
        return from_url(_escaped(uri), **options, retry_config={"max_retries": 0})
    except (BaseError, ValueError) as e:
        why = first_line(e)
        msg = f"output.path: {uri} is not a folder or an address of a store (s3://, gs://, az://): {why}"
        raise JobError(msg) from e


def _at_home(path: str) -> Path:
    """A path with the home that `~` or `~somebody` stands for."""
    try:
        return Path(path).expanduser()
    except RuntimeError as e:
        msg = f"{path}: {path.split('/', maxsplit=1)[0]} is nobody's home on this machine"
        raise JobError(msg) from e


def _escaped(uri: str) -> str:
    """The same address as a URL: in names of buckets and objects `#`, `?` and `%` are characters like others."""
    scheme, _, place = uri.partition("://")
    return f"{scheme}://{quote(place, safe='/@:')}"


@lru_cache
def _memory(uri: str) -> ObjectStore:  # noqa: ARG001 (the key: one store to an address)
    return MemoryStore()


def _allows_http() -> bool:
    """An endpoint of one's own may be served without TLS; that of a cloud never is."""
    amazon, azure = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"), ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
    return any(os.environ.get(name, "").startswith("http://") for name in (*amazon, *azure, "GOOGLE_BASE_URL"))

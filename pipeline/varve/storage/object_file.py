"""An object as a seekable file that fetches only the bytes that are read, for readers of Parquet.

Knows nothing of what the object holds. Invariant: a read is one request of the object's store, with its retries.
"""

import io

from varve.errors import RunError
from varve.storage.object_store import Storage


class MissingObjectError(RunError):
    """An object does not exist."""


class ObjectFile(io.RawIOBase):
    """An object of a known size as a seekable file.

    Args:
        storage: that has the object.
        name: of the object.
        num_bytes: its size.
    """

    def __init__(self, storage: Storage, name: str, num_bytes: int) -> None:
        self._storage, self._name, self._num_bytes, self._position = storage, name, num_bytes, 0

    def readable(self) -> bool:
        """Return True: it can be read."""
        return True

    def seekable(self) -> bool:
        """Return True: it can be read from any position."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position of the next read; returns it.

        Raises:
            ValueError: it is before the start, as a damaged length in a file may say.
        """
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        if start + offset < 0:
            msg = f"{start + offset} is before the start of {self._name}"
            raise ValueError(msg)
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; a negative size means all of them.

        Raises:
            MissingObjectError: the object does not exist.
            RunError: the store refused or failed.
        """
        size = self._num_bytes if size < 0 else size
        stop = min(self._position + size, self._num_bytes)
        if stop <= self._position:
            return b""
        content = self._storage.read(self._name, self._position, stop)
        if content is None:
            msg = f"{self._storage.uri}/{self._name} is missing"
            raise MissingObjectError(msg)
        self._position += len(content)
        return content

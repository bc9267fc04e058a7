"""A file whose lines have a bounded length, so that a compressed file of one line cannot fill the memory."""

import io
from typing import IO, Any

from varve.source.error_messages import UnreadableFileError

MAX_LINE_BYTES = 1 << 30
_BUFFER_BYTES = 1 << 18


class _Lines(io.RawIOBase):
    """Counts the bytes since the last end of a line."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._num_bytes = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._num_bytes = 0
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        content = self._file.read(len(view))
        end = max(content.rfind(b"\n"), content.rfind(b"\r"))
        self._num_bytes = len(content) - end - 1 if end >= 0 else self._num_bytes + len(content)
        check_line(self._num_bytes)
        view[: len(content)] = content
        return len(content)


def bound_lines(file: IO[bytes]) -> IO[bytes]:
    """A file that raises an UnreadableFileError when a line of it is too long."""
    return io.BufferedReader(_Lines(file), _BUFFER_BYTES)


def check_line(num_bytes: int) -> None:
    """Check the length of a line of which so many bytes were read.

    Raises:
        UnreadableFileError: it is too long.
    """
    if num_bytes > MAX_LINE_BYTES:
        msg = "more than 1 GiB without the end of a row. Write one row per line"
        raise UnreadableFileError(msg)

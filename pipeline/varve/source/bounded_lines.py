"""Lines of a bounded length and number of values, so that a compressed file of one line cannot fill the memory."""

import io
from typing import IO, Any

from varve.source.error_messages import UnreadableFileError

MAX_LINE_BYTES = 1 << 30
MAX_VALUES = 1 << 25  # that Python holds at the same time; a small object takes 70 to 160 bytes
_BUFFER_BYTES = 1 << 18


class _Lines(io.RawIOBase):
    """Counts the bytes since the last end of a line."""

    def __init__(self, file: IO[bytes], ends: tuple[bytes, ...]) -> None:
        self._file, self._ends, self._num_bytes = file, ends, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        content = self._file.read(len(view))
        end = max(content.rfind(each) for each in self._ends)
        self._num_bytes = len(content) - end - 1 if end >= 0 else self._num_bytes + len(content)
        check_line(self._num_bytes)
        view[: len(content)] = content
        return len(content)


def bound_lines(file: IO[bytes], ends: tuple[bytes, ...] = (b"\n", b"\r")) -> io.BufferedReader:
    """A file that raises an UnreadableFileError when a line of it is too long. It cannot seek, but `peek`.

    Args:
        file: is read once, from its start.
        ends: bytes that end a line.
    """
    return io.BufferedReader(_Lines(file, ends), _BUFFER_BYTES)


def check_line(num_bytes: int) -> None:
    """Check the length of a line of which so many bytes were read.

    Raises:
        UnreadableFileError: it is too long.
    """
    if num_bytes > MAX_LINE_BYTES:
        msg = "more than 1 GiB without the end of a row. Write one row per line"
        raise UnreadableFileError(msg)


def check_values(content: bytes) -> None:
    """Check that JSON which Python is about to parse as a whole has not too many values.

    Raises:
        UnreadableFileError: it has.
    """
    if content.count(b",") > MAX_VALUES:  # in texts too, where they are rarer
        msg = f"more than {MAX_VALUES:,} values without the end of a row. Write one row per line"
        raise UnreadableFileError(msg)

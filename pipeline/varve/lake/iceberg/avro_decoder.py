"""Decodes the Avro files of Iceberg's metadata without reading past the end of a damaged one.

pyiceberg's compiled decoder checks no length: a changed file ends the process, or shows other memory of it. Its decoder
in Python has no bound for the bytes of an integer. Invariant: outside of `bounded_decoding` pyiceberg is unchanged.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from threading import Lock
from typing import Any, NoReturn

from pyiceberg.avro.decoder import BinaryDecoder, new_decoder

_MAX_INT_BYTES = 10  # of 64 bits, 7 in each byte
_reader: Any = import_module("pyiceberg.avro.file")
_users, _lock = 0, Lock()


class BoundedDecoder(BinaryDecoder):
    """Reads Python values from bytes.

    Raises EOFError for a value that ends after the last byte, has a negative length, or is an integer of more than 10
    bytes. Source of the encoding: https://avro.apache.org/docs/1.12.0/specification/#binary-encoding.
    """

    __slots__ = ("_at", "_content")

    def __init__(self, content: bytes) -> None:
        """Start at the first byte."""
        self._content, self._at = content, 0

    def tell(self) -> int:
        """The position."""
        return self._at

    def read(self, n: int) -> bytes:
        """The next n bytes."""
        start, end = self._at, self._at + n
        if n < 0 or end > len(self._content):
            self._refuse(n)
        self._at = end
        return self._content[start:end]

    def skip(self, n: int) -> None:
        """Move n bytes forward."""
        self.read(n)

    def read_int(self) -> int:
        """An integer: 7 bits in each byte, the lowest first, with the sign in the lowest bit."""
        at, value = self._at, 0
        encoded = self._content[at : at + _MAX_INT_BYTES]
        for index, byte in enumerate(encoded):
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                self._at = at + index + 1
                return (value >> 1) ^ -(value & 1)
        return self._refuse(len(encoded) + 1)

    def skip_int(self) -> None:
        """Skip an integer."""
        self.read_int()

    def _refuse(self, n: int) -> NoReturn:
        msg = f"a value of {n} bytes at byte {self._at:,} of {len(self._content):,}"
        raise EOFError(msg)


@contextmanager
def bounded_decoding() -> Iterator[None]:
    """Let pyiceberg decode with `BoundedDecoder` inside, in all threads: it has no argument for it."""
    global _users  # noqa: PLW0603 (threads may be inside at the same time; the last one restores)
    with _lock:
        _users += 1
        _reader.new_decoder = BoundedDecoder
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _reader.new_decoder = new_decoder

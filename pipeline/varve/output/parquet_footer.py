"""Reads the sizes of a Parquet file's columns from its footer, without pyarrow.

pyarrow ends the process when it makes the metadata of a column chunk from some damaged footers, so the footer is
decoded here, by the rules of Thrift's compact protocol. Knows nothing of parts. Invariant: memory and time are bounded
by the size of the footer.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_MAGIC_BYTES = 8  # footer length and "PAR1"
# Bytes of a decoded value by Parquet's physical type: boolean, int32, int64, int96, float, double, bytes.
_TYPE_BYTES = {0: 1, 1: 4, 2: 8, 3: 12, 4: 4, 5: 8, 6: 0}
_TRUE, _FALSE = 1, 2  # types of the compact protocol: a boolean field is its type


@dataclass(frozen=True, slots=True)
class ColumnChunk:
    """A leaf column of a row group, as the footer describes it.

    Attributes:
        path: of the leaf, its names joined by dots.
        num_values: values and nulls of all nested levels.
        uncompressed_bytes: size of its pages.
        value_bytes: of a decoded value; 0 for strings, whose sizes differ.
        has_dictionary: its values may be numbers of dictionary entries.
    """

    path: str
    num_values: int
    uncompressed_bytes: int
    value_bytes: int
    has_dictionary: bool


def read_footer_sizes(source: Any) -> tuple[int, list[ColumnChunk]]:
    """Decode the footer of a seekable file.

    Returns:
        (number of rows, column chunks of all row groups).

    Raises:
        ValueError: the footer is damaged.
    """
    try:
        size = source.seek(0, io.SEEK_END)
        source.seek(size - _MAGIC_BYTES)
        footer_bytes = int.from_bytes(source.read(4), "little")
        source.seek(size - _MAGIC_BYTES - footer_bytes)
        content = _Decoder(source.read(footer_bytes)).struct()
        widths = [_value_bytes(element) for element in content[2] if 1 in element]
        return content[3], [chunk for group in content[4] for chunk in _chunks(group, widths)]
    except (LookupError, TypeError, ValueError, OSError, RecursionError, AttributeError) as e:
        msg = f"its footer is damaged: {type(e).__name__}"
        raise ValueError(msg) from e
    finally:
        source.seek(0)


def _value_bytes(element: dict[int, Any]) -> int:
    """Of a leaf of the schema: field 1 is its type, field 2 the length of a fixed number of bytes."""
    width = _TYPE_BYTES.get(element[1])
    return int(element[2]) if width is None else width


def _chunks(group: dict[int, Any], widths: list[int]) -> Iterator[ColumnChunk]:
    for chunk, width in zip(group[1], widths, strict=True):
        column = chunk[3]
        yield ColumnChunk(
            path=b".".join(column[3]).decode(),
            num_values=int(column[5]),
            uncompressed_bytes=int(column[6]),
            value_bytes=width,
            has_dictionary=11 in column,
        )


class _Decoder:
    """Values of Thrift's compact protocol; a struct becomes {number of the field: value}."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0
        self._readers = {
            **dict.fromkeys((1, 2, 3), self._byte),  # booleans of a list take a byte each
            **dict.fromkeys((4, 5, 6), self._zigzag),
            7: lambda: self._bytes(8),
            8: lambda: self._bytes(self._varint()),
            **dict.fromkeys((9, 10), self._list),
            11: self._map,
            12: self.struct,
        }

    def struct(self) -> dict[int, Any]:
        values: dict[int, Any] = {}
        number = 0
        while header := self._byte():
            number = number + (header >> 4) if header >> 4 else self._zigzag()
            kind = header & 15
            values[number] = kind == _TRUE if kind in {_TRUE, _FALSE} else self._readers[kind]()
        return values

    def _list(self) -> list[Any]:
        header = self._byte()
        length = header >> 4 if header >> 4 < 15 else self._varint()
        read = self._readers[header & 15]
        return [read() for _ in range(length)]

    def _map(self) -> list[tuple[Any, Any]]:
        if not (length := self._varint()):
            return []
        kinds = self._byte()
        read_key, read_value = self._readers[kinds >> 4], self._readers[kinds & 15]
        return [(read_key(), read_value()) for _ in range(length)]

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                msg = "a number has more than 64 bits"
                raise ValueError(msg)

    def _byte(self) -> int:
        self._at += 1
        return self._content[self._at - 1]

    def _bytes(self, length: int) -> bytes:
        value = self._content[self._at : self._at + length]
        if len(value) != length:
            msg = "the footer ends within a value"
            raise ValueError(msg)
        self._at += length
        return value

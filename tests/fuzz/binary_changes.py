"""Changes of binary files: bytes anywhere, lengths, footers and metadata of Parquet, headers of safetensors."""

import struct
from collections.abc import Callable
from io import BytesIO
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.json_changes import VALUES, change_json

_WIDTHS = ("<B", "<H", "<i", "<I", "<q", "<Q", ">I", ">Q")
_LENGTHS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
_TAIL_SHARE = 0.4
_MAX_REPEATED_BYTES = 4096
_TYPES = (pa.string(), pa.int8(), pa.float64(), pa.list_(pa.int32()), pa.null(), pa.bool_(), pa.binary())


def change_bytes(random: Random, content: bytes) -> bytes:
    """Change one to four places; near the start or the end more often than between."""
    changed = bytearray(content)
    for _ in range(random.randint(1, 4)):
        at = _place(random, len(changed))
        match random.randrange(7):
            case 0 if changed:
                changed[at] ^= 1 << random.randrange(8)
            case 1 if changed:
                changed[at] = random.randrange(256)
            case 2:
                del changed[at : at + random.choice((1, 2, 8, 64))]
            case 3:
                changed[at:at] = changed[at : at + random.randint(1, _MAX_REPEATED_BYTES)]
            case 4:
                del changed[at:]
            case 5:
                _write_length(random, changed, at)
            case _:
                changed[at:at] = random.randbytes(random.choice((1, 4, 16)))
    return bytes(changed)


def _place(random: Random, length: int) -> int:
    where = random.random()
    if where < _TAIL_SHARE / 2:
        return random.randrange(max(1, min(length, 64)))
    if where < _TAIL_SHARE:
        return max(0, length - 1 - random.randrange(64))
    return random.randrange(max(1, length))


def _write_length(random: Random, content: bytearray, at: int) -> None:
    form = random.choice(_WIDTHS)
    size = struct.calcsize(form)
    content[at : at + size] = struct.pack(form, random.choice(_LENGTHS) & (2 ** (8 * size - (form[1] in "iq")) - 1))


def change_parquet(random: Random, content: bytes) -> bytes:
    """Change the footer, the pages, or what the footer says of a table that is written again.

    Raises:
        ValueError, OSError: it is not Parquet.
    """
    if random.random() < 0.5:
        return _changed_footer(random, content)
    table = pq.read_table(BytesIO(content))
    for _ in range(random.randint(1, 2)):
        table = _changed_table(random, table)
    written = BytesIO()
    groups = random.choice((1, 7, len(table) or 1))
    pq.write_table(table, written, row_group_size=groups, compression=random.choice(("none", "snappy", "zstd", "gzip")))
    return written.getvalue()


def _changed_footer(random: Random, content: bytes) -> bytes:
    length = struct.unpack("<I", content[-8:-4])[0]
    start = max(4, len(content) - 8 - length)
    footer = bytearray(content[start:-8])
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(footer))
        footer[at] = random.choice((footer[at] ^ (1 << random.randrange(8)), 0, 0xFF, 0x7F, 0x80, footer[at] ^ 1))
    size = random.choice((len(footer), len(footer), len(footer), *_LENGTHS)) & 0xFFFFFFFF
    return content[:start] + bytes(footer) + struct.pack("<I", size) + b"PAR1"


def _changed_table(random: Random, table: pa.Table) -> pa.Table:
    names = table.column_names
    if not names:
        return table
    place = random.randrange(len(names))
    kind = random.choice(_TYPES)
    texts = [value for value in VALUES if isinstance(value, str) and value.isprintable()]
    renamed = [random.choice(texts) if at == place else name for at, name in enumerate(names)]
    changes: tuple[Callable[[], pa.Table], ...] = (
        lambda: table.remove_column(place),
        lambda: table.append_column(table.field(random.randrange(len(names))), table.column(place)),
        lambda: table.set_column(place, table.field(place), pa.nulls(len(table), table.field(place).type)),
        lambda: table.slice(random.randrange(len(table) + 1), random.choice((0, 1, len(table)))),
        lambda: table.set_column(place, names[place], pa.nulls(len(table), kind)),
        lambda: table.rename_columns(renamed),
        lambda: _changed_metadata(random, table),
    )
    return random.choice(changes)()


def _changed_metadata(random: Random, table: pa.Table) -> pa.Table:
    metadata = dict(table.schema.metadata or {})
    if not metadata:
        return table
    key = random.choice(list(metadata))
    try:
        metadata[key] = change_json(random, metadata[key])
    except (ValueError, RecursionError):
        metadata[key] = change_bytes(random, metadata[key])
    if random.random() < 0.2:
        del metadata[key]
    return table.replace_schema_metadata(metadata)


def change_safetensors(random: Random, content: bytes) -> bytes:
    """Change the JSON header, with a length that fits it or not.

    Raises:
        ValueError: the header is not JSON.
    """
    (length,) = struct.unpack("<Q", content[:8])
    header = change_json(random, content[8 : 8 + length])
    size = random.choice((len(header), len(header), len(header), len(header), *_LENGTHS))
    return struct.pack("<Q", size & (2**64 - 1)) + header + content[8 + length :]

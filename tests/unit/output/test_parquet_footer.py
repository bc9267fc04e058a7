import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from varve.output.parquet_footer import read_footer_sizes


def written(**options) -> bytes:
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "number": pa.array(rng.integers(9, size=50)),
            "text": [None if row % 7 == 0 else f"text {row % 5}" for row in range(50)],
            "half": pa.FixedSizeListArray.from_arrays(pa.array(rng.random(200).astype(np.float16)), 4),
            "tags": [[{"key": "a", "flag": True}] * (row % 3) for row in range(50)],
            "price": pa.array(range(50), pa.decimal128(20, 2)),
        },
        metadata={"varve": "x" * 5000},
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=20, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"compression": "zstd", "version": "1.0"}])
def test_sizes_are_those_that_pyarrow_reads(options):
    content = written(**options)
    footer = pq.read_metadata(pa.BufferReader(content))
    rows, chunks = read_footer_sizes(pa.BufferReader(content))
    groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
    expected = [group.column(index) for group in groups for index in range(group.num_columns)]
    assert rows == footer.num_rows
    assert [(chunk.path, chunk.num_values, chunk.uncompressed_bytes, chunk.has_dictionary) for chunk in chunks] == [
        (c.path_in_schema, c.num_values, c.total_uncompressed_size, c.has_dictionary_page) for c in expected
    ]
    widths = {chunk.path.split(".")[0]: chunk.value_bytes for chunk in chunks}
    assert (widths["number"], widths["text"], widths["half"], widths["price"]) == (8, 0, 2, 9)


def test_damaged_footer_is_an_error_and_nothing_else():
    content = written()
    size = int.from_bytes(content[-8:-4], "little") + 8
    outcomes = set()
    for at in range(len(content) - size, len(content), 11):
        damaged = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        try:
            outcomes.add(type(read_footer_sizes(io.BytesIO(damaged))))
        except ValueError:
            outcomes.add(ValueError)
    assert outcomes == {tuple, ValueError}


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PAR1" * 3, b"\x1c" * 100_000 + (100_000).to_bytes(4, "little") + b"PAR1"]
)
def test_file_that_is_not_parquet_is_an_error(content):
    with pytest.raises(ValueError, match="its footer is damaged"):
        read_footer_sizes(io.BytesIO(content))

"""Rows with every kind of column that a run writes to a lake table, and their files, as Varve makes both."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from varve.config.table_address import parse_table_address
from varve.lake.open_table import open_feature_table
from varve.lake.table import Change, Definition, FeatureTable, NewFile, PartitionField, State
from varve.lake.text_hash import HASH_TYPE, hash_texts
from varve.output.part_layout import PartLayout, encode_table_file, key_range
from varve.storage.object_store import Storage

ROWS, WIDTH, TOKEN_WIDTH, ROWS_PER_FILE = 5000, 384, 16, 700
FEATURE_SET, SOURCE_UUID = "f" * 64, "6f0e4c5a-0000-4000-8000-000000000000"
LANGUAGES = ("de", "en", None)


@cache
def feature_rows() -> pa.Table:
    """Rows as the encoder returns them: every 97th could not be encoded, its features are null."""
    rng, ids = np.random.default_rng(0), np.arange(ROWS)
    good = ids % 97 != 0
    lengths = np.where(good, ids % 4, 0)
    stops = np.cumsum(lengths)
    total = int(stops[-1])
    offsets = pa.array(np.concatenate([[0], stops]), pa.int32(), mask=np.append(~good, False))

    def floats(*shape: int) -> pa.Array:
        return pa.array(rng.standard_normal(shape, np.float32).reshape(-1))

    def lists(values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, values)

    def integers(bound: int, width: int = 1) -> pa.Array:
        return pa.array(rng.integers(0, bound, total * width).astype(np.int32))

    texts = pa.array([f"text {row}" if good[row] else None for row in range(ROWS)])
    return pa.table(
        {
            "doc_id": ids,
            "lang": [LANGUAGES[row % 3] for row in range(ROWS)],
            "text_hash": hash_texts([texts]),
            "embedding": pa.FixedSizeListArray.from_arrays(floats(ROWS, WIDTH), WIDTH, mask=pa.array(~good)),
            "tokens": lists(pa.FixedSizeListArray.from_arrays(floats(total, TOKEN_WIDTH), TOKEN_WIDTH)),
            "terms_ids": lists(integers(30522)),
            "terms_weights": lists(floats(total)),
            "attentions": pa.LargeListArray.from_arrays(offsets.cast(pa.int64()), floats(total)),
            "windows": lists(pa.FixedSizeListArray.from_arrays(integers(512, 2), 2)),
            "num_tokens": pa.array(ids % 512, pa.int32(), mask=~good),
            "truncated": pa.array(ids % 5 == 0, mask=~good),
            "error": pa.array(np.where(good, None, "null text")),
        }
    )


def comparable(table: pa.Table) -> pa.Table:
    """Rows in the order of their keys, in types that all engines have: lists of any length, binary of any length."""
    schema = pa.schema([pa.field(column.name, _common(column.type)) for column in feature_rows().schema])
    return table.select(schema.names).cast(schema).sort_by("doc_id").combine_chunks()


def _common(column: pa.DataType) -> pa.DataType:
    if _is_list(column):
        return pa.list_(_common(column.value_type))
    return pa.binary() if column == HASH_TYPE else column


def _is_list(column: pa.DataType) -> bool:
    return pa.types.is_list(column) or pa.types.is_large_list(column) or pa.types.is_fixed_size_list(column)


def _declared(column: pa.DataType) -> pa.DataType:
    """The type of a column of the table."""
    return pa.list_(pa.field("element", _declared(column.value_type))) if _is_list(column) else column


def publish(address: str, source_version: int, rows: pa.Table, removes: tuple[str, ...] = ()) -> FeatureTable:
    """Commit rows, a few hundred per file; `removes`: ends of the paths of files that leave the table."""
    table = open_feature_table(parse_table_address(address))
    declared = pa.schema([pa.field(column.name, _declared(column.type)) for column in rows.schema])
    partition = (PartitionField("lang", "lang"),)
    table.prepare(Definition(FEATURE_SET, SOURCE_UUID, "doc_id", declared, partition))
    head = table.pin(None).version
    leaving = tuple(file for file in table.files(head) if removes and file.path.endswith(removes))
    state = State(FEATURE_SET, SOURCE_UUID, source_version, f"{source_version:064x}", f"{table.folder}/run")
    change = Change(head, state, tuple(write_files(table, rows, source_version)), leaving)
    table.stage(change)
    table.commit(change)
    return table


def write_files(table: FeatureTable, rows: pa.Table, run: int) -> Iterator[NewFile]:
    """Files of a run below the table's folder, each in one partition."""
    is_delta = table.address.format == "delta"
    layout = PartLayout(tuple(rows.schema.names), "doc_id", table.field_ids(), fixed_binary=not is_delta)
    for language in LANGUAGES:
        chosen = pc.is_null(rows["lang"]) if language is None else pc.equal(rows["lang"], language)
        part = rows.filter(chosen)
        for first in range(0, len(part), ROWS_PER_FILE):
            cell = part.slice(first, ROWS_PER_FILE)
            content = encode_table_file(cell, layout)
            name = f"{run:016x}/data/part-{language}-{first}.parquet"
            Storage(table.folder).create(name, content)
            value = "[null]" if language is None else f'["{language}"]'
            yield NewFile(
                f"{table.folder.rstrip('/')}/{name}", len(cell), len(content), value, key_range(cell["doc_id"])
            )

"""Kept columns in a real server: every type, nulls and long texts come back as they were."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from tests.index_sources import build, clustered
from tests.outputs import column, write_output
from tests.servers.postgres import Database, postgres, source_of

ROWS = 300
TEXTS = ["", "é“”", "a" * 5000, "tab\tline\n\\N", "\U0001f600", "NULL"]
DAYS = [dt.date(1969, 12, 31), dt.date(2000, 1, 1), dt.date(2026, 2, 28), dt.date(1, 1, 1), dt.date(9999, 12, 31)]
TIMES = [
    dt.datetime(1969, 12, 31, 23, 59, 59, 999999, dt.UTC),
    dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC),
    dt.datetime(1900, 1, 1, 0, 0, 0, 1, dt.UTC),
]
WITHOUT_ZONE = [time.replace(tzinfo=None) for time in TIMES]
COLUMNS = {
    "bool": (pa.bool_(), [True, False]),
    "int8": (pa.int8(), [-128, 0, 127]),
    "int16": (pa.int16(), [-32768, 32767]),
    "int32": (pa.int32(), [-(2**31), 2**31 - 1]),
    "int64": (pa.int64(), [-(2**63), 2**63 - 1, 0]),
    "uint8": (pa.uint8(), [0, 255]),
    "uint16": (pa.uint16(), [0, 65535]),
    "uint32": (pa.uint32(), [0, 2**32 - 1]),
    "float16": (pa.float16(), [np.float16(0.1), np.float16(-65504)]),
    "float32": (pa.float32(), [0.1, -1e38, float("inf")]),
    "float64": (pa.float64(), [0.1, 1e300, -0.0]),
    "string": (pa.string(), TEXTS),
    "large_string": (pa.large_string(), TEXTS),
    "binary": (pa.binary(), [b"", b"\0\xff\n", b"PGCOPY"]),
    "large_binary": (pa.large_binary(), [b"x" * 3000]),
    "date32": (pa.date32(), DAYS),
    "time64": (pa.time64("us"), [dt.time(0), dt.time(23, 59, 59, 999999)]),
    "timestamp_s": (pa.timestamp("s"), [np.datetime64("2026-01-01T12", "s"), np.datetime64("1950-05-05", "s")]),
    "timestamp_us": (pa.timestamp("us"), WITHOUT_ZONE),
    "timestamp_ns": (pa.timestamp("ns"), WITHOUT_ZONE[:2]),
    "timestamp_tz": (pa.timestamp("us", "UTC"), TIMES),
    "timestamp_zone": (pa.timestamp("ms", "Europe/Berlin"), [dt.datetime(2026, 7, 1, 12, tzinfo=dt.UTC)]),
    "null": (pa.null(), [None]),
}


@pytest.fixture(scope="module")
def database():
    with postgres() as server:
        yield Database(server, server.create_database())


def values_of(name: str, *, nulls: bool) -> pa.Array:
    kind, examples = COLUMNS[name]
    values = [examples[row % len(examples)] for row in range(ROWS)]
    return pa.array([None if nulls and row % 7 == 3 else value for row, value in enumerate(values)], kind)


@pytest.mark.parametrize("nulls", [False, True])
def test_pgvector_kept_columns_of_every_type_are_read_back_equal(database, tmp_path, nulls):
    kept = {name: values_of(name, nulls=nulls) for name in COLUMNS}
    features = {column("e", 24): clustered(ROWS, 24)}
    path = write_output(tmp_path / "output", features, kept, rows_per_part=70, errors=(0, 75))
    target = database.target(path, keep=tuple(COLUMNS), table=f"nulls_{nulls}")
    source = source_of(target)
    _, record = build(target, source, "postgresql")
    positions = np.random.default_rng(0).permutation(source.num_vectors)
    expected = pa.concat_tables([source.read(part).ids for part in range(source.num_parts)]).take(pa.array(positions))
    with database.reader(f"nulls_{nulls}").open(record) as searcher:
        found, vectors = searcher.rows(positions), searcher.dense_at(positions)
    for name in expected.column_names:
        assert found[name].equals(expected[name]), name
    assert found.schema.equals(expected.schema)
    assert np.array_equal(vectors, source.dense_at(positions))


def test_pgvector_kept_columns_are_what_sql_expects(database, tmp_path):
    names = ("bool", "int16", "float64", "string", "binary", "date32", "timestamp_tz", "time64")
    kept = {name: values_of(name, nulls=False) for name in names}
    path = write_output(tmp_path / "output", {column("e", 8): clustered(ROWS, 8)}, kept)
    target = database.target(path, keep=names, table="typed")
    build(target, source_of(target), "postgresql")
    types = "SELECT string_agg(format_type(atttypid, -1), ' ' ORDER BY attnum) FROM pg_attribute "
    found = database.query(f"{types} WHERE attrelid = 'typed'::regclass AND attnum > 4 - 1")[0][0]
    expected = (
        "boolean smallint double precision text bytea date timestamp with time zone time without time zone vector"
    )
    assert found == expected
    (row,) = database.query('SELECT "bool", string, "binary", date32, time64 FROM typed WHERE row = 1')
    assert row == (False, "é“”", b"\0\xff\n", dt.date(2000, 1, 1), dt.time(23, 59, 59, 999999))

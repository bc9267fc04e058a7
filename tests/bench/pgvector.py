"""Compares ways to load vectors into pgvector over loopback: rows per second.

python -m tests.bench.pgvector [--rows 200000] [--part-rows 20000] [--width 384] [--rounds 5]

The server is a real one, of this machine. Varve's `add` loads parts, each in a transaction with its row of the ledger
and on a connection of its own. The other ways get one open transaction, and fewer rows, since they are slower. The ways
take turns; medians are shown.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pgvector
import psycopg
import pyarrow as pa
from pgvector.psycopg import register_vector

from tests.index_sources import request_of
from tests.outputs import column, write_output
from tests.servers.postgres import Database, postgres, source_of
from tests.waiting import wait_until
from varve.indexing.rows import IndexRows

TEXT_BYTES = {"add": 0, "add, texts of 40 bytes": 40, "add, texts of 500 bytes": 500}
# So that no checkpoint and no creation of files of the write-ahead log is measured.
SETTINGS = ("max_wal_size=8GB", "min_wal_size=4GB", "shared_buffers=1GB")
SHARES = {"psycopg write_row": 1, "executemany": 0.1, "text COPY": 0.02}
Way = Callable[[], "Rate"]


@dataclass(frozen=True)
class Rate:
    """Of one run: rows per second, and CPU time per row in microseconds, which a busy machine changes little."""

    rows_per_s: float
    client_us: float
    server_us: float


class Stopwatch:
    """Measures wall and CPU time from its creation."""

    def __init__(self, database: Database) -> None:
        self._database, self._server_s = database, ended_cpu_s(database)
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def rate(self, rows: int) -> Rate:
        """Of these rows; the connections that loaded them are closed."""
        wall_s, cpu_s = time.perf_counter() - self._wall_s, time.process_time() - self._cpu_s
        server_s = ended_cpu_s(self._database) - self._server_s
        return Rate(rows / wall_s, cpu_s / rows * 1e6, server_s / rows * 1e6)


def ended_cpu_s(database: Database) -> float:
    """CPU seconds of the server's connections, when the server has noticed the end of them all."""
    seen: list[float] = []

    def is_constant() -> bool:
        seen.append(database.server.ended_cpu_s())
        return seen[-3:] == [seen[-1]] * 3

    wait_until(is_constant, "the end of the connections")
    return seen[-1]


def make_parts(rows: int, part_rows: int, width: int, text_bytes: int) -> list[IndexRows]:
    """Parts of random vectors; a text differs from row to row."""
    random, parts = np.random.default_rng(0), []
    vectors = random.normal(size=(part_rows, width)).astype(np.float32)
    for part, first in enumerate(range(0, rows, part_rows)):
        positions = np.arange(first, first + part_rows)
        ids = {
            "position": pa.array(positions),
            "shard": pa.array(np.zeros(part_rows, np.int32)),
            "row": pa.array(positions),
        }
        texts = [f"{row:09d} {'text ' * (text_bytes // 5)}"[:text_bytes] for row in positions.tolist()]
        ids |= {"title": pa.array(texts)} if text_bytes else {}
        parts.append(IndexRows(part, first, vectors, pa.table(ids)))
    return parts


def make_add(database: Database, path: str, parts: list[IndexRows], text_bytes: int) -> Way:
    """`PgvectorTarget.add` of all parts, one after the other."""
    target = database.target(path, keep=("title",) if text_bytes else (), kind="flat", table=f"add{text_bytes}")
    source = source_of(target)
    (kind,) = target.kinds(source)

    def run() -> Rate:
        target.begin(request_of(source, "postgresql"))
        target.train(kind, source)
        watch = Stopwatch(database)
        for part in parts:
            target.add(kind, source, part)
        rate = watch.rate(sum(map(len, parts)))
        require_rows(database, target.searcher(kind, source), parts)
        return rate

    return lambda: emptied(database, run)


def emptied(database: Database, run: Way) -> Rate:
    """Run with an empty schema."""
    database.execute("DROP SCHEMA public CASCADE", "CREATE SCHEMA public", "CREATE EXTENSION vector", "CHECKPOINT")
    return run()


def require_rows(database: Database, searcher: object, parts: list[IndexRows]) -> None:
    """All rows must be there, and sampled vectors must be those of the parts."""
    with searcher as opened:  # pyright: ignore[reportGeneralTypeIssues]
        asked = np.array([0, parts[-1].first + len(parts[-1]) - 1])
        vectors = opened.dense_at(asked)
    assert np.array_equal(vectors, np.stack([parts[0].dense[0], parts[-1].dense[-1]]))
    tables = database.query("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'add%\\_\\_________'")
    assert database.query(f'SELECT count(*) FROM "{tables[0][0]}"') == [(sum(map(len, parts)),)]


def make_other(database: Database, name: str, parts: list[IndexRows], rows: int) -> Way:
    """One of the usual ways, in one transaction."""
    load = {"psycopg write_row": write_rows, "executemany": insert, "text COPY": copy_text}[name]
    vectors = np.concatenate([part.dense for part in parts[: -(-rows // len(parts[0]))]])[:rows]

    def run() -> Rate:
        width = vectors.shape[1]
        database.execute(f"CREATE TABLE t (position bigint, shard integer, row bigint, embedding vector({width}))")
        database.execute("ALTER TABLE t ALTER COLUMN embedding SET STORAGE plain")
        watch = Stopwatch(database)
        with database.connect() as connection:
            register_vector(connection)
            with connection.transaction():
                load(connection.cursor(), vectors)
        rate = watch.rate(rows)
        assert database.query("SELECT count(*) FROM t") == [(rows,)]
        return rate

    return lambda: emptied(database, run)


def write_rows(cursor: psycopg.Cursor, vectors: np.ndarray) -> None:
    """Binary COPY, one call per row with pgvector's dumper."""
    with cursor.copy("COPY t FROM STDIN WITH (FORMAT binary)") as copy:
        copy.set_types(["int8", "int4", "int8", "vector"])
        for row, vector in enumerate(vectors):
            copy.write_row((row, 0, row, vector))


def insert(cursor: psycopg.Cursor, vectors: np.ndarray) -> None:
    """INSERT of each row, which psycopg sends in a pipeline."""
    rows = ((row, 0, row, vector) for row, vector in enumerate(vectors))
    cursor.executemany("INSERT INTO t VALUES (%s, %s, %s, %b)", rows)


def copy_text(cursor: psycopg.Cursor, vectors: np.ndarray) -> None:
    """COPY in its text format."""
    with cursor.copy("COPY t FROM STDIN") as copy:
        for row, vector in enumerate(vectors):
            copy.write_row((row, 0, row, pgvector.Vector(vector).to_text()))


def write_small_source(path: Path, width: int) -> str:
    """An output of the width; its rows are not loaded."""
    kept = {"title": [f"title {row}" for row in range(8)]}
    return write_output(path, {column("embedding", width): np.ones((8, width), np.float32)}, kept)


def main() -> None:
    """Run all ways in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rows", 200_000), ("part-rows", 20_000), ("width", 384), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, postgres(*SETTINGS) as server:
        database = Database(server, server.create_database())
        path = write_small_source(Path(folder) / "output", options.width)
        ways: dict[str, Way] = {}
        for name, text_bytes in TEXT_BYTES.items():
            parts = make_parts(options.rows, options.part_rows, options.width, text_bytes)
            ways[name] = make_add(database, path, parts, text_bytes)
        plain = make_parts(options.rows, options.part_rows, options.width, 0)
        ways |= {name: make_other(database, name, plain, int(options.rows * share)) for name, share in SHARES.items()}
        rates = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                rates[name].append(way())
    sys.stdout.write(f"| {options.width} dimensions | rows/s | lowest | highest | CPU µs/row: client | server |\n")
    sys.stdout.write("| --- | --- | --- | --- | --- | --- |\n")
    for name, found in rates.items():
        speeds = [rate.rows_per_s for rate in found]
        client_us, server_us = (statistics.median(values) for values in zip(*map(cpu_us, found), strict=True))
        figures = f"{statistics.median(speeds):,.0f} | {min(speeds):,.0f} | {max(speeds):,.0f}"
        sys.stdout.write(f"| {name} | {figures} | {client_us:.1f} | {server_us:.1f} |\n")


def cpu_us(rate: Rate) -> tuple[float, float]:
    """(client, server)."""
    return rate.client_us, rate.server_us


if __name__ == "__main__":
    main()

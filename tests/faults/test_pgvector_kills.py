"""Loaders and servers of pgvector are killed at seeded points: every row once, as in the undisturbed table."""

import multiprocessing
import os
import random
import signal
import threading
from unittest.mock import patch

import numpy as np
import psycopg
import pytest

from tests.index_sources import build, request_of, write_source
from tests.servers.postgres import Database, load, postgres, source_of
from tests.waiting import wait_until
from varve.errors import RunError
from varve.indexing.record import IndexRecord
from varve.indexing.request import make_request

KILLED = 9
CALLS = 190  # of a build: round trips to the server
CONTENT = "SELECT count(*), count(DISTINCT position), md5(string_agg(t::text, '|' ORDER BY position)) FROM {} t"
LEFTOVERS = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE '{}\\_\\_%'"


@pytest.fixture(scope="module")
def server():
    with postgres() as server:
        yield server


@pytest.fixture(scope="module")
def database(server):
    return Database(server, server.create_database())


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("source") / "output")


@pytest.fixture(scope="module")
def undisturbed(database, path):
    target = database.target(path, table="undisturbed", key="doc_id", keep=("title",), kind="flat")
    source = source_of(target)
    build(target, source, "postgresql")
    (content,) = database.query(CONTENT.format("undisturbed"))
    assert content[:2] == (source.num_vectors, source.num_vectors)
    return content


def die_at(call: int) -> None:
    """End this process before its n-th round trip to the server."""
    wait, left = psycopg.Connection.wait, iter(range(call, -1, -1))

    def counted(self, *arguments, **options):
        if next(left, None) == 0:
            os._exit(KILLED)
        return wait(self, *arguments, **options)

    patch.object(psycopg.Connection, "wait", counted).start()


def whole_build(target, source, rows, order, call: int) -> None:
    """In a process of its own: everything that a driver does, but the parts are read before."""
    die_at(call)
    (kind,) = target.kinds(source)
    target.begin(request_of(source, "postgresql"))
    target.train(kind, source)
    added = target.added(kind, source)
    for part in order:
        if part not in added:
            target.add(kind, source, rows[part])
    target.finish(kind, source, 0)
    target.clean(target.publish(kind, source, record_of(source, kind)))
    os._exit(0)


def record_of(source, kind) -> IndexRecord:
    request = request_of(source, "postgresql")
    return IndexRecord(
        request=request, kind=kind.name, setting={}, bytes_per_vector=1.0, created_at="2026-01-01", versions={}
    )


def run_forked(*arguments) -> int:
    process = multiprocessing.get_context("fork").Process(target=whole_build, args=arguments)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("seed", range(20))
def test_pgvector_killed_builds_end_with_the_undisturbed_table(database, path, undisturbed, seed):
    chance = random.Random(seed)
    target = database.target(path, table=f"t{seed}", key="doc_id", keep=("title",), kind="hnsw")
    source = source_of(target)
    rows = [source.read(part) for part in range(source.num_parts)]
    exits = []
    while not exits or (exits[-1] == KILLED and len(exits) < 30):
        order = chance.sample(range(source.num_parts), source.num_parts)
        # The later attempts have more time, so that kills are in all phases and the build ends.
        exits.append(run_forked(target, source, rows, order, chance.randint(1, CALLS + 20 * len(exits))))
    assert exits[-1] == 0, exits
    assert database.query(CONTENT.format(f"t{seed}")) == [undisturbed]
    assert target.verify(target.published()) == []
    assert database.query(LEFTOVERS.format(f"t{seed}")) == []


def test_pgvector_calls_of_a_build_are_as_many_as_the_kills_assume(database, path):
    target = database.target(path, table="counted", key="doc_id", keep=("title",), kind="hnsw")
    source = source_of(target)
    rows = [source.read(part) for part in range(source.num_parts)]
    assert run_forked(target, source, rows, range(source.num_parts), CALLS // 2) == KILLED
    database.execute("DROP TABLE IF EXISTS counted, counted_parts")
    assert run_forked(target, source, rows, range(source.num_parts), 2 * CALLS) == 0


def test_pgvector_without_its_ledger_would_load_rows_twice(database, path):
    """The control: the ledger is emptied after each kill."""
    chance = random.Random(1)
    target = database.target(path, table="control", kind="flat")
    source = source_of(target)
    rows = [source.read(part) for part in range(source.num_parts)]
    ledger = f'"control__{make_request(source, target.settings).fingerprint[:8]}_parts"'
    for _ in range(3):
        assert run_forked(target, source, rows, range(source.num_parts), chance.randint(60, 80)) == KILLED
        database.execute(f"DELETE FROM {ledger}")
    load(target)
    (content,) = database.query(CONTENT.format(ledger.replace("_parts", "")))
    assert content[0] > content[1] == source.num_vectors
    with pytest.raises(RunError, match="rows are not unique"):
        target.finish(target.kinds(source)[0], source, 0)


def at_block(number: int, action):
    """Run an action before the n-th block of COPY that this process sends."""
    write, left = psycopg.Copy.write, iter(range(number, -1, -1))

    def counted(self, block):
        if next(left, None) == 0:
            action()
        return write(self, block)

    return patch.object(psycopg.Copy, "write", counted)


@pytest.mark.parametrize("by", [signal.SIGQUIT, signal.SIGKILL])
def test_pgvector_server_that_is_killed_during_copy_loses_and_doubles_nothing(server, path, undisturbed, by):
    database = Database(server, server.create_database())
    target = database.target(path, key="doc_id", keep=("title",), kind="hnsw")
    with at_block(7, lambda: server.restart(by)):  # the trailer of the third part: header and rows were sent
        source, kind = load(target)
    target.finish(kind, source, 0)
    target.publish(kind, source, record_of(source, kind))
    assert database.query(CONTENT.format("docs")) == [undisturbed]
    assert target.verify(target.published()) == []


def test_pgvector_server_that_does_not_return_ends_the_build_which_then_resumes(server, path, undisturbed):
    database = Database(server, server.create_database())
    target = database.target(path, key="doc_id", keep=("title",), kind="flat")
    impatient = type(target)(target.destination, target.settings, patience_s=1)
    with at_block(4, lambda: server.end(signal.SIGQUIT)), pytest.raises(RunError, match="run the same command again"):
        load(impatient)
    server.start()
    source = source_of(target)
    assert 0 < len(target.added(target.kinds(source)[0], source)) < source.num_parts
    build(target, source, "postgresql")
    assert database.query(CONTENT.format("docs")) == [undisturbed]


def test_pgvector_connection_that_is_terminated_is_opened_again(server, path, undisturbed):
    database = Database(server, server.create_database())
    target = database.target(path, key="doc_id", keep=("title",), kind="flat")
    terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COPY%'"
    with at_block(4, lambda: database.query(terminate)):
        load(target)
    build(target, source_of(target), "postgresql")
    assert database.query(CONTENT.format("docs")) == [undisturbed]


def in_threads(*works) -> list[Exception]:
    """Run works at the same time; returns their errors."""
    errors: list[Exception] = []

    def run(work) -> None:
        try:
            work()
        except Exception as e:  # noqa: BLE001
            errors.append(e)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_pgvector_two_loaders_at_once_load_every_row_once(database, path, undisturbed):
    target = database.target(path, table="two", key="doc_id", keep=("title",), kind="flat")
    source, kind = source_of(target), target.kinds(source_of(target))[0]
    rows = [source.read(part) for part in range(source.num_parts)]
    target.begin(request_of(source, "postgresql"))
    target.train(kind, source)

    def load_all() -> None:
        for part in range(source.num_parts):
            target.add(kind, source, rows[part])

    assert in_threads(load_all, load_all, load_all) == []
    build(target, source, "postgresql")
    assert database.query(CONTENT.format("two")) == [undisturbed]


@pytest.mark.parametrize("commits", [True, False])
def test_pgvector_second_loader_waits_for_the_first(database, path, commits):
    target = database.target(path, table=f"waits_{commits}", kind="flat")
    source, kind = source_of(target), target.kinds(source_of(target))[0]
    rows = source.read(1)
    target.begin(request_of(source, "postgresql"))
    target.train(kind, source)
    staged = f"waits_{commits}__{make_request(source, target.settings).fingerprint[:8]}"
    second = threading.Thread(target=target.add, args=(kind, source, rows))
    with database.connect() as first:
        first.execute("BEGIN")
        first.execute(f'INSERT INTO "{staged}_parts" VALUES (1, {len(rows)})')
        second.start()
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT%'"
        wait_until(lambda: database.query(waiting) == [(1,)], "the second loader's wait")
        first.execute("COMMIT" if commits else "ROLLBACK")
    second.join()
    assert database.query(f'SELECT count(*) FROM "{staged}"') == [(0 if commits else len(rows),)]
    assert target.added(kind, source) == {1}


def test_pgvector_two_drivers_at_once_publish_one_table(server, path, undisturbed):
    database = Database(server, server.create_database())
    target = database.target(path, key="doc_id", keep=("title",), kind="hnsw")
    source = source_of(target)

    def whole() -> None:
        build(target, source, "postgresql")

    assert in_threads(whole, whole) == []
    assert database.query(CONTENT.format("docs")) == [undisturbed]
    record = target.published()
    assert target.verify(record) == []
    with target.open(record) as searcher:
        found = searcher.search(source.dense_at(np.arange(3)), 1, {"ef_search": 40})
    assert found.positions[:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("call", range(1, 12, 2))
def test_pgvector_finish_that_is_killed_is_repeated(database, path, call):
    target = database.target(path, table=f"finish_{call}", key="doc_id", kind="hnsw")
    source, kind = load(target)

    def finish() -> None:
        die_at(2 * call)
        target.finish(kind, source, 0)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=finish)
    process.start()
    process.join()
    assert process.exitcode == KILLED
    target.finish(kind, source, 0)
    record = target.publish(kind, source, record_of(source, kind))
    assert target.verify(record) == []

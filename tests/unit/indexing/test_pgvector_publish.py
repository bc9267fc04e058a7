"""Publishing of a table in a real server: atomic for readers, and careful with tables of others."""

import threading
from dataclasses import replace

import numpy as np
import psycopg
import pytest

from tests.index_sources import build, clustered, request_of, write_source
from tests.outputs import column, write_output
from tests.servers.postgres import Database, load, postgres, source_of
from tests.waiting import wait_until
from varve.errors import JobError, RunError
from varve.indexing.record import IndexRecord
from varve.indexing.request import make_request

TABLES = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1"


@pytest.fixture(scope="module")
def server():
    with postgres() as server:
        yield server


@pytest.fixture
def database(server):
    return Database(server, server.create_database())


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("source") / "output")


def write_smaller(path) -> str:
    return write_output(path, {column("embedding", 32): clustered(300, 32)}, {"doc_id": np.arange(300)})


def record_of(source, kind) -> IndexRecord:
    request = request_of(source, "postgresql")
    setting = dict(kind.settings[0])
    return IndexRecord(
        request=request, kind=kind.name, setting=setting, bytes_per_vector=1.0, created_at="2026-01-01", versions={}
    )


def finished(target) -> tuple:
    """(source, kind) of a build that only has to be published."""
    source, kind = load(target)
    target.finish(kind, source, 0)
    return source, kind


class Reader(threading.Thread):
    """Counts the rows of the table again and again."""

    def __init__(self, database) -> None:
        super().__init__(daemon=True)
        self._database = database
        self.counts: set[int] = set()
        self.errors: list[str] = []
        self.queries = 0
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        with self._database.connect() as connection:
            while not self._ended.is_set():
                try:
                    self.counts.add(connection.execute("SELECT count(embedding) FROM docs").fetchone()[0])
                except psycopg.Error as e:
                    self.errors.append(str(e))
                self.queries += 1

    def finish(self) -> None:
        queries = self.queries
        wait_until(lambda: self.queries > queries + 1, "a query after the last change")
        self._ended.set()
        self.join()


def test_pgvector_readers_see_the_old_or_the_new_table(database, path, tmp_path):
    old = database.target(write_smaller(tmp_path / "output"))
    build(old, source_of(old), "postgresql")
    readers = [Reader(database) for _ in range(2)]
    for kind in ("flat", "hnsw", "hnsw,m=8", "flat"):
        target = database.target(path, key="doc_id", kind=kind)
        build(target, source_of(target), "postgresql")
    for reader in readers:
        reader.finish()
        assert reader.errors == []
        assert reader.counts == {300, source_of(target).num_vectors}
    assert [name for (name,) in database.query(TABLES)] == ["docs", "docs_parts"]


def test_pgvector_build_is_not_visible_before_it_is_published(database, path, tmp_path):
    old = database.target(write_smaller(tmp_path / "output"))
    _, first = build(old, source_of(old), "postgresql")
    target = database.target(path, kind="hnsw")
    source, kind = finished(target)
    assert target.published() == first
    assert database.query("SELECT count(*) FROM docs") == [(300,)]
    second = target.publish(kind, source, record_of(source, kind))
    assert target.published() == second
    assert database.query("SELECT count(*) FROM docs") == [(source.num_vectors,)]
    assert old.verify(first) != []


def test_pgvector_publish_twice_returns_the_same_record(database, path):
    target = database.target(path)
    source, kind = finished(target)
    first = target.publish(kind, source, record_of(source, kind))
    second = target.publish(kind, source, replace(record_of(source, kind), created_at="2027-01-01"))
    assert second == first == target.published()


def test_pgvector_publish_keeps_the_rights_of_readers(database, path):
    target = database.target(path)
    build(target, source_of(target), "postgresql")
    database.execute("CREATE ROLE app LOGIN", "GRANT SELECT ON docs TO app", "GRANT SELECT ON docs TO PUBLIC")
    other = database.target(path, keep=("title",))
    build(other, source_of(other), "postgresql")
    with database.connect(user="app") as connection:
        assert connection.execute("SELECT count(title) FROM docs").fetchone() == (source_of(other).num_vectors,)
    grants = (
        "SELECT grantee FROM information_schema.role_table_grants WHERE table_name = 'docs' AND grantee <> 'postgres'"
    )
    assert sorted(database.query(grants)) == [("PUBLIC",), ("app",)]


def test_pgvector_table_of_others_is_neither_replaced_nor_dropped(database, path):
    database.execute("CREATE TABLE docs (id int)", "INSERT INTO docs VALUES (7)")
    target = database.target(path)
    with pytest.raises(JobError, match=r"public\.docs exists, and Varve did not make it"):
        target.check(source_of(target))
    database.execute("ALTER TABLE docs RENAME TO kept")
    source, kind = finished(target)
    database.execute("ALTER TABLE kept RENAME TO docs")  # while the index was built
    with pytest.raises(JobError, match=r"public\.docs exists, and Varve did not make it"):
        target.publish(kind, source, record_of(source, kind))
    assert database.query("SELECT * FROM docs") == [(7,)]
    assert target.published() is None


@pytest.mark.parametrize("name", ["docs_parts", "docs_pkey", "docs_hnsw", "docs_position"])
def test_pgvector_names_of_other_relations_are_checked_first(database, path, name):
    database.execute(f"CREATE TABLE {name} (id int)")
    target = database.target(path)
    with pytest.raises(JobError, match=rf"public\.{name} exists, and Varve did not make it"):
        target.check(source_of(target))
    assert [found for (found,) in database.query(TABLES)] == [name]


def test_pgvector_comment_of_others_is_not_taken_for_a_record(database, path):
    database.execute("CREATE TABLE docs (id int)", """COMMENT ON TABLE docs IS '{"varve": 1}'""")
    target = database.target(path)
    assert target.published() is None
    with pytest.raises(JobError, match="Varve did not make it"):
        target.check(source_of(target))


def test_pgvector_publish_waits_for_a_long_reader_and_lets_others_read(database, path):
    target = database.target(path)
    _, first = build(target, source_of(target), "postgresql")
    other = database.target(path, keep=("title",))
    source, kind = finished(other)
    impatient = replace(other, patience_s=0.1)
    with database.connect() as reader, reader.transaction():
        count = reader.execute("SELECT count(*) FROM docs").fetchone()
        with pytest.raises(RunError, match="another session reads or changes the table in a long transaction"):
            impatient.publish(kind, source, record_of(source, kind))
        assert database.query("SELECT count(*) FROM docs") == [count]
        assert other.published() == first
    assert other.publish(kind, source, record_of(source, kind)) == other.published() != first


def test_pgvector_view_on_the_old_table_stops_publishing_and_loses_nothing(database, path):
    target = database.target(path)
    _, first = build(target, source_of(target), "postgresql")
    database.execute("CREATE VIEW newest AS SELECT row FROM docs")
    other = database.target(path, keep=("title",))
    source, kind = finished(other)
    with pytest.raises(RunError, match=r"public\.docs cannot be replaced: view newest depends on table docs"):
        other.publish(kind, source, record_of(source, kind))
    assert other.published() == first
    database.execute("DROP VIEW newest")
    assert other.published() != other.publish(kind, source, record_of(source, kind))


def test_pgvector_clean_drops_superseded_builds_and_keeps_all_others(database, path):
    older, running = database.target(path, keep=("title",)), database.target(path, recall=0.5)
    load(older)
    target = database.target(path)
    source, kind = finished(target)
    load(running)
    load(database.target(path, table="docs__other"))
    database.execute("CREATE TABLE docs__12345678_parts (part int)", "CREATE TABLE docs__12345678 (id int)")
    before = {name for (name,) in database.query(TABLES)}
    record = target.publish(kind, source, record_of(source, kind))
    target.clean(record)
    target.clean(record)
    gone = before - {name for (name,) in database.query(TABLES)}
    assert gone == {*staged_names(older), *staged_names(target)}


def staged_names(target) -> list[str]:
    name = f"docs__{make_request(source_of(target), target.settings).fingerprint[:8]}"
    return [name, f"{name}_parts"]


def test_pgvector_clean_keeps_a_build_that_is_in_use(database, path):
    older = database.target(path, keep=("title",))
    load(older)
    target = database.target(path)
    source, kind = finished(target)
    record = target.publish(kind, source, record_of(source, kind))
    with database.connect() as connection, connection.transaction():
        connection.execute(f'INSERT INTO "{staged_names(older)[1]}" VALUES (99, 0)')
        target.clean(record)
        assert {*staged_names(older)} <= {name for (name,) in database.query(TABLES)}
    target.clean(record)
    assert [name for (name,) in database.query(TABLES)] == ["docs", "docs_parts"]


def test_pgvector_awkward_names_are_quoted(database, path):
    database.execute('CREATE SCHEMA "my schema"', 'CREATE TABLE "docs" (id int)')
    table = 'my schema.Do"cs; DROP TABLE docs'
    target = database.target(path, table=table, key="doc_id", keep=("title",), kind="hnsw")
    _, record = build(target, source_of(target), "postgresql")
    assert target.verify(record) == []
    assert database.reader(table).published() == record
    assert [name for (name,) in database.query(TABLES)] == ["docs"]
    with database.reader(table).open(record) as searcher:
        assert searcher.rows(np.array([5]))["doc_id"].to_pylist() == ["doc-6"]


@pytest.mark.parametrize(
    ("damage", "failure"),
    [
        ("DELETE FROM docs WHERE position = 5", "has 996 rows with 996 positions from 0 to 996, expected 997 rows"),
        ("UPDATE docs SET position = 2000 WHERE position = 5", "997 rows with 997 positions from 0 to 2000"),
        ("DELETE FROM docs_parts WHERE part = 0", "docs_parts: its parts have 848 rows, expected 997"),
        ("DROP INDEX docs_hnsw", "docs_hnsw: the index is missing"),
        ("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'docs_hnsw'::regclass", "docs_hnsw: the index is"),
        ("DROP TABLE docs", "docs is missing"),
    ],
)
def test_pgvector_verify_reports_damage(database, path, damage, failure):
    target = database.target(path, kind="hnsw")
    _, record = build(target, source_of(target), "postgresql")
    assert target.verify(record) == []
    database.execute(damage)
    (line,) = target.verify(record)
    assert failure in line

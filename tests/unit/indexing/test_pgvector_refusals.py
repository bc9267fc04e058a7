"""What a server lacks is reported before anything is written, with what to do; passwords are in no message."""

import pickle

import numpy as np
import pyarrow as pa
import pytest

from tests.index_sources import build, clustered, write_source
from tests.outputs import column, write_output
from tests.servers.postgres import LOCKED_PASSWORD, LOCKED_USER, Database, postgres, source_of
from tests.servers.processes import free_port
from varve.errors import JobError, RunError
from varve.indexing.pgvector.pgvector_target import PgvectorTarget

WRONG_PASSWORD = "wrong-and-not-to-be-seen"


@pytest.fixture(scope="module")
def server():
    with postgres() as server:
        with server.connect() as connection:
            connection.execute("CREATE ROLE writer LOGIN")
            connection.execute(f"CREATE ROLE {LOCKED_USER} LOGIN PASSWORD '{LOCKED_PASSWORD}' SUPERUSER")
        yield server


@pytest.fixture
def database(server):
    return Database(server, server.create_database())


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("source") / "output")


def refusal(target) -> str:
    """Of `check`; nothing was written."""
    with pytest.raises(JobError) as refused:
        target.check(source_of(target))
    return str(refused.value)


def test_pgvector_missing_server_is_reported_with_its_address():
    target = PgvectorTarget(f"127.0.0.1:{free_port()}/texts", None)
    with pytest.raises(
        RunError, match=r"does not answer: .*Connection refused.* Check that the server runs"
    ) as failure:
        target.published()
    assert target.address in str(failure.value)


def test_pgvector_missing_database_is_reported(server):
    with pytest.raises(RunError, match=r'database "nothing" does not exist. Create it, or correct the address'):
        PgvectorTarget(server.destination("nothing"), None).published()


def test_pgvector_missing_role_is_reported(server):
    with pytest.raises(RunError, match=r'role "no one" does not exist'):
        PgvectorTarget(server.destination("postgres", user="no%20one"), None).published()


@pytest.mark.parametrize("password", [None, WRONG_PASSWORD])
def test_pgvector_refused_password_is_reported_and_not_shown(database, monkeypatch, password):
    if password:
        monkeypatch.setenv("PGPASSWORD", password)
    target = PgvectorTarget(database.server.destination(database.name, user=LOCKED_USER), None)
    with pytest.raises(RunError, match=r"password .*Set PGPASSWORD, or PGPASSFILE") as failure:
        target.published()
    assert WRONG_PASSWORD not in str(failure.value)


def test_pgvector_password_of_the_environment_is_used_and_stored_nowhere(database, path, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", LOCKED_PASSWORD)
    target = database.target(path, user=LOCKED_USER)
    _, record = build(target, source_of(target), "postgresql")
    stored = database.query("SELECT description FROM pg_description WHERE description LIKE '%varve%'")
    for text in (repr(target), pickle.dumps(target), record.encode(), str(stored)):
        assert LOCKED_PASSWORD not in str(text)


def test_pgvector_user_without_a_right_to_create_tables_is_refused(database, path):
    database.execute("CREATE EXTENSION vector")
    message = refusal(database.target(path, user="writer"))
    assert "the user writer may not create tables in the schema 'public'" in message
    assert "GRANT CREATE, USAGE ON SCHEMA public TO writer" in message


def test_pgvector_missing_extension_is_refused_with_the_right_that_it_needs(database, path):
    database.execute("GRANT ALL ON SCHEMA public TO writer")
    message = refusal(database.target(path, user="writer"))
    assert "the user writer may not create it" in message
    assert "CREATE EXTENSION vector needs the rights of a superuser" in message


def test_pgvector_user_with_the_needed_rights_builds_and_publishes(database, path):
    database.execute("CREATE EXTENSION vector", "CREATE SCHEMA mine AUTHORIZATION writer")
    target = database.target(path, table="mine.docs", user="writer", kind="hnsw")
    _, record = build(target, source_of(target), "postgresql")
    assert target.verify(record) == []


def test_pgvector_extension_in_a_schema_of_its_own_is_found(database, path):
    database.execute("CREATE SCHEMA extensions", "CREATE EXTENSION vector SCHEMA extensions")
    target = database.target(path, kind="hnsw")
    source = source_of(target)
    _, record = build(target, source, "postgresql")
    with database.reader().open(record) as searcher:
        found = searcher.search(source.dense_at(np.arange(3)), 1, {"ef_search": 80})
    assert found.positions[:, 0].tolist() == [0, 1, 2]


def test_pgvector_server_without_the_extension_is_refused(path):
    with postgres(has_pgvector=False) as server:
        message = refusal(Database(server, "postgres").target(path))
    assert "the server has no pgvector. Install it on the server" in message
    assert "postgresql-16-pgvector" in message


@pytest.mark.parametrize(
    ("dtype", "version", "needed"),
    [("float16", "0.6.2", "0.7"), ("binary", "0.6.2", "0.7"), ("float32", "0.4.4", "0.5")],
)
def test_pgvector_old_extension_is_refused(database, tmp_path, dtype, version, needed):
    database.execute("CREATE EXTENSION vector", f"UPDATE pg_extension SET extversion = '{version}'")
    path = write_source(tmp_path / "output", 60, dtype=dtype, shards=None, errors=())
    message = refusal(database.target(path, kind="hnsw"))
    assert f"pgvector has version {version}" in message
    assert f"needs {needed}: run ALTER EXTENSION vector UPDATE" in message


def test_pgvector_missing_schema_is_refused(database, path):
    assert "there is no schema 'nowhere': run CREATE SCHEMA" in refusal(database.target(path, table="nowhere.docs"))


def test_pgvector_read_only_server_is_refused(database, path):
    database.execute(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
    assert "the server is read-only" in refusal(database.target(path))


def test_pgvector_table_of_another_owner_is_refused(database, path):
    database.execute("CREATE EXTENSION vector", "GRANT ALL ON SCHEMA public TO writer")
    target = database.target(path)
    build(target, source_of(target), "postgresql")
    assert "public.docs belongs to another role" in refusal(database.target(path, user="writer"))


@pytest.mark.parametrize("kind", ["ivfflat", "hnsw,m=1", "hnsw,m=200", "hnsw,m=32,ef=20", "hnsw,ef=5000", "HNSW32"])
def test_pgvector_unknown_kind_is_refused_with_the_list(database, path, kind):
    target = database.target(path, kind=kind)
    with pytest.raises(JobError, match=rf"--kind: '{kind}' is not a kind .*expected flat, hnsw, or hnsw,m=M,ef=E"):
        target.kinds(source_of(target))


@pytest.mark.parametrize("name", ["position", "item", "embedding", "ctid", "x" * 64])
def test_pgvector_kept_column_with_a_taken_name_is_refused(database, tmp_path, name):
    path = write_output(tmp_path / "output", {column("e", 8): clustered(20, 8)}, {name: np.arange(20)})
    assert f"the kept column '{name}'" in refusal(database.target(path, keep=(name,)))


def test_pgvector_kept_column_of_an_unsupported_type_is_refused_by_name(database, tmp_path):
    kept = {"tags": pa.array([["a"]] * 20)}
    path = write_output(tmp_path / "output", {column("e", 8): clustered(20, 8)}, kept)
    assert "'tags' has the type list<" in refusal(database.target(path, keep=("tags",)))


@pytest.mark.parametrize(("kind", "width"), [("hnsw", 4001), ("flat", 16_001)])
def test_pgvector_too_wide_vectors_are_refused_with_the_limit(database, tmp_path, kind, width):
    path = write_output(
        tmp_path / "output", {column("e", width): np.ones((4, width), np.float32)}, {"id": np.arange(4)}
    )
    message = refusal(database.target(path, kind=kind))
    assert f"e has {width:,} dimensions" in message
    assert f"at most {width - 1:,} of" in message

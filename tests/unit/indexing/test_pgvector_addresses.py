"""Addresses of tables, without a server."""

import pytest

from varve.config.index import Index
from varve.errors import JobError
from varve.indexing.pgvector.address import Address
from varve.indexing.pgvector.client import conninfo_to_dict
from varve.indexing.pgvector.pgvector_target import PgvectorTarget


def parameters(destination: str) -> dict:
    return conninfo_to_dict(Address.parse(destination).uri)


def test_address_has_host_port_user_database_and_table():
    address = Address.parse("reader@db.example:6543/texts?table=docs")
    assert (address.schema, address.table) == (None, "docs")
    found = conninfo_to_dict(address.uri)
    assert {name: found[name] for name in ("host", "port", "user", "dbname")} == {
        "host": "db.example", "port": "6543", "user": "reader", "dbname": "texts",
    }  # fmt: skip


def test_address_without_table_means_docs():
    assert Address.parse("localhost/texts").table == "docs"


def test_address_passes_parameters_of_libpq_on():
    found = parameters("localhost/texts?table=t&sslmode=verify-full&sslrootcert=/a%20b/ca.pem&connect_timeout=3")
    assert (found["sslmode"], found["sslrootcert"], found["connect_timeout"]) == ("verify-full", "/a b/ca.pem", "3")
    assert "table" not in found


def test_address_of_several_hosts_and_of_a_service_is_that_of_libpq():
    assert parameters("a:1,b:2/texts?target_session_attrs=read-write")["host"] == "a,b"
    assert parameters("/?service=search")["service"] == "search"


def test_address_with_schema_has_two_names():
    address = Address.parse("localhost/texts?table=search.Docs%202026")
    assert (address.schema, address.table) == ("search", "Docs 2026")


@pytest.mark.parametrize("table", ["", "a.b.c", ".docs", "docs.", "x" * 41, "é" * 21, "a%00b"])
def test_address_with_an_impossible_table_is_refused_with_its_value(table):
    with pytest.raises(JobError, match=r"is not allowed: expected NAME or SCHEMA\.NAME, each of 1 to 40 bytes"):
        Address.parse(f"localhost/texts?table={table}")


@pytest.mark.parametrize(
    ("destination", "message"),
    [
        ("localhost", "names no database"),
        ("localhost/texts?colour=red", 'invalid URI query parameter: "colour"'),
        ("[::1/texts", "is not an address of PostgreSQL"),
    ],
)
def test_address_that_libpq_refuses_is_refused_with_its_reason(destination, message):
    with pytest.raises(JobError, match=message) as refusal:
        Address.parse(destination)
    assert "expected postgresql://[USER@]HOST[:PORT]/DATABASE?table=[SCHEMA.]NAME" in str(refusal.value)


@pytest.mark.parametrize(
    "destination",
    ["me:hunter2@localhost/texts", "localhost/texts?password=hunter2", "localhost/texts?sslpassword=hunter2"],
)
def test_address_with_a_password_is_refused_and_not_shown(destination):
    with pytest.raises(JobError, match="PGPASSWORD") as refusal:
        PgvectorTarget(destination, None)
    assert "hunter2" not in str(refusal.value)
    with pytest.raises(ValueError, match="credential") as refused:
        Index(path="output", to=f"postgresql://{destination}")
    assert "hunter2" not in str(refused.value).replace(f"input_value='postgresql://{destination}'", "")


def test_target_of_an_address_shows_database_and_table():
    target = PgvectorTarget("me@localhost/texts?table=search.docs&sslmode=require", None)
    assert target.address == "postgresql://me@localhost/texts?table=search.docs"
    assert target.accepts == {"dense", "sparse"}

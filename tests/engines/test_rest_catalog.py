"""DuckDB attaches a REST catalog and reads in it what Varve commits to S3."""

import pyarrow as pa
import pytest

from tests.engines.feature_rows import comparable, feature_rows, publish
from tests.servers.seaweed import WAREHOUSE, seaweed_server
from tests.servers.stores import ACCESS_KEY, SECRET_KEY
from varve.lake.iceberg.catalog import open_catalog

ROWS = feature_rows().slice(0, 900)


@pytest.fixture
def server(tmp_path, monkeypatch):
    with seaweed_server(tmp_path) as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        yield running


def test_duckdb_reads_the_table_in_an_attached_rest_catalog(server, duck):
    open_catalog("lake").create_namespace("db")
    publish("iceberg://lake/db.features", 1, ROWS)
    keys, host = f"'{ACCESS_KEY}', SECRET '{SECRET_KEY}'", server.s3.removeprefix("http://")
    client = keys.replace("SECRET", "CLIENT_SECRET")
    token = f"{server.catalog}/v1/oauth/tokens"
    duck.sql(f"CREATE SECRET store (TYPE s3, KEY_ID {keys}, ENDPOINT '{host}', URL_STYLE 'path', USE_SSL false)")
    duck.sql(f"CREATE SECRET lake (TYPE iceberg, CLIENT_ID {client}, OAUTH2_SERVER_URI '{token}')")
    duck.sql(f"ATTACH 's3://{WAREHOUSE}/' AS lake (TYPE iceberg, ENDPOINT '{server.catalog}', SECRET lake)")
    found: pa.Table = duck.table("SELECT * FROM lake.db.features")
    assert comparable(found).equals(comparable(ROWS))

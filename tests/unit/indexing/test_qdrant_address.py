"""Addresses, keys and payloads of the Qdrant target, without a server that answers."""

import datetime as dt
import socket
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest

from tests.index_sources import ROWS, clustered, open_source, write_source
from tests.outputs import column, write_output
from tests.servers.processes import answers, end, free_port, start
from tests.waiting import wait_until
from varve.errors import JobError, RunError
from varve.indexing.qdrant.address import QdrantAddress
from varve.indexing.qdrant.keys import check_keys
from varve.indexing.qdrant.payload import is_supported, point_ids, read_payloads, write_payloads
from varve.indexing.qdrant.qdrant_target import QdrantTarget


@pytest.mark.parametrize(
    ("destination", "url", "shown"),
    [
        ("host/docs", "http://host:6333", "qdrant://host:6333/docs"),
        ("host:7000/docs", "http://host:7000", "qdrant://host:7000/docs"),
        ("q.example/docs?https=true", "https://q.example:6333", "qdrant://q.example:6333/docs?https=true"),
        ("[::1]:6333/docs/", "http://[::1]:6333", "qdrant://[::1]:6333/docs"),
    ],
)
def test_address_is_parsed_and_shown(destination, url, shown):
    address = QdrantAddress.parse(destination)
    assert (address.url, address.name, str(address)) == (url, "docs", shown)
    assert QdrantAddress.parse(shown.removeprefix("qdrant://")) == address


@pytest.mark.parametrize(
    ("destination", "reason"),
    [
        ("host", "the name of the collection is ''"),
        ("host/a/b", "the name of the collection is 'a/b'"),
        ("host/docs__1234", "the name of the collection is 'docs__1234'"),
        ("/docs", "expected qdrant://HOST"),
        ("host:port/docs", "expected qdrant://HOST"),
        ("host/docs?grpc=true", "unknown option 'grpc=true'"),
        ("host/docs?https=yes", "unknown option 'https=yes'"),
    ],
)
def test_malformed_address_is_refused(destination, reason):
    with pytest.raises(JobError) as error:
        QdrantTarget(destination)
    assert reason in str(error.value)


@pytest.mark.parametrize("destination", ["user:hunter2@host/docs", "host/docs?api_key=hunter2"])
def test_address_with_a_secret_is_refused_without_showing_it(destination):
    with pytest.raises(JobError, match="set QDRANT_API_KEY instead") as error:
        QdrantTarget(destination)
    assert "hunter2" not in str(error.value)


def test_unreachable_server_fails_within_seconds_with_its_address():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(RunError, match=rf"http://127\.0\.0\.1:{port} cannot be reached: ConnectError"):
        QdrantTarget(f"127.0.0.1:{port}/docs").published()
    assert time.monotonic() - started < 30


def test_server_that_is_not_qdrant_is_named(tmp_path):
    (tmp_path / "collections").mkdir()
    (tmp_path / "collections/docs").write_text("<h1>Hello</h1>")
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    server = start(command, tmp_path / "log")
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/"), "a web server", tmp_path / "log", server)
        with pytest.raises(RunError, match=r"is not Qdrant's REST interface: its answer .* is '<h1>Hello</h1>'"):
            QdrantTarget(f"127.0.0.1:{port}/docs").published()
    finally:
        end([server])


def test_published_record_is_asked_for_without_importing_the_client():
    code = (
        "import sys; from varve.indexing.qdrant.qdrant_target import QdrantTarget\n"
        "try: QdrantTarget('127.0.0.1:9/docs').published()\n"
        "except Exception: pass\n"
        "assert 'qdrant_client' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def write_keys(path, keys, **options) -> str:
    feature = column("embedding", 4, pool="mean", layer=12, normalize=True)
    kept = {"key": keys}
    return write_output(path, {feature: clustered(len(keys), 4)}, kept, rows_per_part=10, **options)


def test_repeated_keys_are_refused_with_two_examples(tmp_path):
    keys = [f"k{row}" for row in range(40)]
    keys[33], keys[25], keys[39] = keys[2], keys[7], keys[8]
    source = open_source(write_keys(tmp_path / "run", keys, shards=[20, 20]), ("key",))
    with pytest.raises(JobError) as error:
        check_keys(source, "key")
    lines = str(error.value).splitlines()
    assert lines[1:3] == ["  'k7': shard 0 row 7 and shard 1 row 5", "  'k2': shard 0 row 2 and shard 1 row 13"]
    assert "k8" not in str(error.value)


def test_absent_key_is_refused_unless_its_row_has_no_vector(tmp_path):
    keys = [f"k{row}" if row != 3 else None for row in range(20)]
    check_keys(open_source(write_keys(tmp_path / "run", keys, errors=(3,)), ("key",)), "key")
    with pytest.raises(JobError, match="--key key is null in shard 0 row 3"):
        check_keys(open_source(write_keys(tmp_path / "other", keys), ("key",)), "key")


def test_unique_keys_are_accepted(tmp_path):
    check_keys(open_source(write_source(tmp_path / "run", ROWS)), "doc_id")


def test_payloads_are_read_as_the_same_arrow_values():
    table = pa.table(
        {
            "position": pa.array([0, 1], pa.int64()),
            "text": pa.array(["é“”", None], pa.string()),
            "price": pa.array([1.25, None], pa.float32()),
            "tags": pa.array([["a", "b"], []], pa.list_(pa.string())),
            "flag": pa.array([True, None], pa.bool_()),
            "seen": pa.array([dt.datetime(2026, 1, 2, 3, 4, 5, 6), None], pa.timestamp("us")),  # noqa: DTZ001
            "day": pa.array([dt.date(2026, 1, 2), None], pa.date32()),
        }
    )
    payloads = write_payloads(table)
    assert payloads[0]["seen"] == "2026-01-02 03:04:05.000006"
    without_nulls = [{name: value for name, value in each.items() if value is not None} for each in payloads]
    assert read_payloads(without_nulls, table.schema).equals(table)
    assert all(is_supported(field.type) for field in table.schema)


@pytest.mark.parametrize("kind", [pa.binary(), pa.decimal128(10, 2), pa.struct({"a": pa.int32()}), pa.uint64()])
def test_types_without_a_json_form_are_not_supported(kind):
    assert not is_supported(kind)


def test_point_ids_of_items_of_one_row_differ():
    columns = {"position": [0, 1], "shard": [0, 0], "row": [4, 4], "item": [0, 1], "key": ["a", "a"]}
    table = pa.table({name: np.array(values) for name, values in columns.items()})
    assert len({*point_ids(table, None), *point_ids(table, "key")}) == 4


def test_missing_client_is_named_with_its_extra(monkeypatch):
    """The first request is made without the client, by a library that comes with it."""
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(JobError, match=r"pip install '\.\[qdrant\]'"):
        QdrantTarget("127.0.0.1:1/docs", None).published()
